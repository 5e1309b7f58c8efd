"""A review in a terminal: the graded text in colour, the report, and the tokens the teacher disliked most."""

from __future__ import annotations

import os
import unicodedata
from math import exp, isnan

import numpy as np

from opd.grading.summary import DISAGREEMENTS, report_card
from opd.reasoning import spelled_out
from opd.reviews import PromptText, Review
from opd.trajectory import VERDICTS
from opd.view import palette
from opd.view.payload import (
    COLOUR_STEPS,
    LONGEST_TOKEN,
    VERDICT_GLYPHS,
    notes,
    one_line,
    shown_pieces,
    visible,
)

WORST_TOKENS = 8
"""Rows of the table."""

RARE = 0.001
"""Shares nearer than this to 0 or to 1 are not worth their digits."""

_BOLD, _DIM, _UNDERLINE, _STRUCK, _RESET = "\x1b[1m", "\x1b[2m", "\x1b[4m", "\x1b[9m", "\x1b[0m"
_FINISH = {"stop": "ended by itself", "length": "cut off by the length limit", None: "unfinished"}


def render(review: Review, *, color: bool, show_prompt: bool = False) -> str:
    """Return the review as text, with 24-bit ANSI colours if ``color``.

    Control codes of the model's text are made visible, so they cannot act on the terminal. With
    ``show_prompt`` what the models read stands before it, ids and all.
    """
    parts = [_heading(review, color)]
    if show_prompt:
        parts += _prompts(review, color)
    parts += [_graded_text(review, color), _report(review)]
    if report_card(review).tokens:
        parts.append(_table(review, color))
    return "\n\n".join(parts) + "\n"


def _heading(review: Review, color: bool) -> str:
    names = f"{visible(review.student)}, graded by {visible(review.teacher)}"
    lines = [_styled(names, _BOLD, color)]
    for message in review.messages:
        lines.append(_styled(f"{visible(message['role'])}: {visible(spelled_out(message))}", _DIM, color))
    return "\n".join(lines)


def _prompts(review: Review, color: bool) -> list[str]:
    """What student and teacher read before the text: token by token, and as ids."""
    parts = []
    for side, text in (("student", review.prompt), ("teacher", review.teacher_prompt)):
        if side == "teacher" and review.read_alike:
            parts.append(_styled("The teacher read the same.", _DIM, color))
            continue
        ids = review.trajectory.seen_by(side).tolist()
        lines = [_styled(f"The {side} read {len(ids)} tokens:", _DIM, color)]
        if text is None:
            lines.append("(Which texts these ids stand for was not recorded.)")
        else:
            lines.append(_read_text(text, color))
            if not text.templated:
                lines.append(_styled("(No chat template: the messages are read as plain text.)", _DIM, color))
            if text.spelled:
                lines.append(_styled("(‹ › is text that spells a control token.)", _DIM, color))
        parts.append("\n".join([*lines, _styled(f"ids {' '.join(map(str, ids))}", _DIM, color)]))
    return parts


def _read_text(text: PromptText, color: bool) -> str:
    """A rendered prompt, its control tokens in ⟪ ⟫ or, with colours, in bold; in ‹ › what only spells one."""
    control, spelled = set(text.control), set(text.spelled)
    shown = []
    for i, piece in enumerate(shown_pieces(text.pieces)):
        if i in control:
            words, line_break, rest = piece.partition("\n")
            shown.append((_styled(words, _BOLD, True) if color else f"⟪{words}⟫") + line_break + rest)
        else:
            begins, ends = i in spelled and i - 1 not in spelled, i in spelled and i + 1 not in spelled
            shown.append("‹" * begins + piece + "›" * ends)
    return "".join(shown)


def _graded_text(review: Review, color: bool) -> str:
    grades = review.grades
    signs = [""] * len(grades)
    own = np.zeros(len(grades), dtype=bool)
    own[review.own_tokens] = True
    if grades.verdicts is not None:
        signs = [VERDICT_GLYPHS.get(VERDICTS[verdict], "") for verdict in grades.verdicts]
    return "".join(
        _token(shown, float(penalty), sign if chosen else "", bool(fork and chosen), color)
        for shown, penalty, sign, fork, chosen in zip(
            shown_pieces(review.pieces), grades.penalty, signs, grades.forks, own, strict=True
        )
    )


def _token(shown: str, penalty: float, sign: str, fork: bool, color: bool) -> str:
    """One token with its colour, its sign and, without colours, a diamond where it is a fork.

    A token that could not be graded is dim and struck through, without colours between ``⟦`` and ``⟧``.
    """
    if len(shown) > LONGEST_TOKEN:
        shown = f"{shown[:LONGEST_TOKEN]}…⟨+{len(shown) - LONGEST_TOKEN} characters⟩"
    text, line_break, rest = shown.partition("\n")
    if isnan(penalty):
        return (_styled(text, _DIM + _STRUCK, True) if color else f"⟦{text}⟧") + line_break + rest
    if not color:
        return text + sign + ("◆" if fork else "") + line_break + rest
    # A leading space and what follows a line break stay unpainted: colour would fill the margin.
    space = " " if text.startswith(" ") and text.strip() else ""
    style = _heat(penalty) + (_UNDERLINE if fork else "")
    painted = _styled(text[len(space) :] + sign, style, bool(style))
    return space + painted + line_break + rest


def _report(review: Review) -> str:
    report = report_card(review)
    words = [] if review.correct is None else ["✓ right" if review.correct else "✗ wrong"]
    words.append(f"{len(review.trajectory)} tokens, {_FINISH[review.trajectory.finish_reason]}")
    if report.agreement is not None:
        bound = "at most " if report.bound else ""
        words.append(f"agreement {bound}{percent(report.agreement)} of {report.tokens} tokens")
    if report.mean_penalty is not None:
        words.append(f"mean penalty {report.mean_penalty:.2f} nats")
    if report.mean_reverse_kl is not None:
        words.append(f"mean reverse KL {report.mean_reverse_kl:.2f} nats")
    if report.tokens and report.counts is not None:
        words += [
            f"{verdict} {VERDICT_GLYPHS[verdict]} {report.counts[verdict]}" for verdict in DISAGREEMENTS
        ]
    if report.tokens:
        words.append(f"forks {report.forks}")
    lines = [" · ".join(words), *notes(review)]
    if report.graded < report.tokens:
        lines.append(
            f"Tokens that could not be graded (struck through, or in ⟦ ⟧): {report.tokens - report.graded}."
        )
    if replaced := sum("\ufffd" in visible(piece) for piece in review.pieces):
        lines.append(f"Tokens that cannot be written as text and show \ufffd: {replaced}.")
    return "\n".join(lines)


def _table(review: Review, color: bool) -> str:
    """The student's own tokens with the highest penalties, worst first."""
    grades, own = review.grades, review.own_tokens
    student, teacher = grades.student, grades.teacher
    penalty = np.zeros(len(grades), dtype=np.float32)
    penalty[own] = np.nan_to_num(grades.penalty[own])
    ranked = np.argsort(-penalty, kind="stable")[:WORST_TOKENS].tolist()
    worst = [i for i in ranked if penalty[i] >= COLOUR_STEPS[0]]
    if not worst:
        return f"No token has a penalty of {COLOUR_STEPS[0]} nats or more."
    rows = [("token", "", "penalty", "KL", "student", "teacher", "verdict", "teacher's choice")]
    for i in worst:
        verdict = "" if grades.verdicts is None else VERDICTS[grades.verdicts[i]]
        choice = review.teacher_choice(i)
        rows.append(
            (
                str(i + 1),
                _label(review.pieces[i]),
                f"{penalty[i]:+.2f}",
                "–" if grades.reverse_kl is None else f"{grades.reverse_kl[i]:.2f}",
                percent(exp(student.logprobs[i])),
                "–" if isnan(teacher.logprobs[i]) else percent(exp(teacher.logprobs[i])),
                f"{verdict}{' ◆' if grades.forks[i] else ''}",
                "–" if choice is None else f"{_label(choice[0])} {percent(exp(choice[1]))}",
            )
        )
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    text_columns = (1, 6, 7)
    lines = [
        "  ".join(
            _pad(cell, width, left=i in text_columns)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([_styled(lines[0], _DIM, color), *lines[1:]])


def percent(share: float) -> str:
    """A share as a percentage, as the page writes it: 0 or 100 only where it is that."""
    if 0 < share < RARE:
        return f"<{RARE:.1%}"
    if 1 - RARE < share < 1:
        return f">{1 - RARE:.1%}"
    return f"{share:.1%}" if 0 < share < 0.1 or 0.99 < share < 1 else f"{share:.0%}"


def _label(piece: str, longest: int = 24) -> str:
    """A token on one line, spaces as dots."""
    text = one_line(piece).replace(" ", "·") or "◌"
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _width(text: str) -> int:
    """Columns that ``text`` takes: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def _pad(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text


def _styled(text: str, style: str, color: bool) -> str:
    return f"{style}{text}{_RESET}" if color else text


def _heat(penalty: float) -> str:
    """The ANSI codes of a penalty's colour; empty below the first step."""
    level = int(np.searchsorted(COLOUR_STEPS, abs(penalty), side="right"))
    if not level:
        return ""
    ink = _rgb(f"heat-ink-{level}" if level > 4 else "heat-ink-low")
    ground = _rgb(f"{'like' if penalty < 0 else 'dislike'}-{level}")
    return "\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m".format(*ink, *ground)


def _rgb(name: str) -> tuple[int, ...]:
    """Return one of the component's colours: by day if the terminal says that it is light."""
    light = os.environ.get("COLORFGBG", "").rpartition(";")[2] in ("7", "15")
    day, night = palette()[name]
    return tuple(bytes.fromhex((day if light else night)[1:]))
