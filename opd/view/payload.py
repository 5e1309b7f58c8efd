"""What the token review component needs of a review: columns of numbers and text made safe to show.

The first paint of a trajectory takes under 12 bytes a token: its text as one string with the length of each
token, the penalty in half precision, the drop D and the agreement in 255 steps, and a byte of flags. All
other signals come one exact column at a time when somebody chooses them (:func:`columns_payload`), the
alternatives of both models with the exact figures of their tokens :data:`CHUNK` tokens at a time when
somebody looks (:func:`alternatives_payload`).

A byte of flags holds the verdict (bits 0 to 3, an index into :data:`opd.trajectory.VERDICTS`), whether the
token is special (bit 4: it ends the text, or is part of a character) and, from bit 5 up, whether it is a fork
by each of :data:`opd.verdicts.FORK_DEFINITIONS`, in their order.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from opd import verdicts as cutoffs
from opd.grading.saved_reviews import ReviewGroup
from opd.grading.summary import report_card
from opd.reviews import PromptText, Review
from opd.trajectory import VERDICTS

CHUNK = 256
"""Tokens per piece of alternatives."""

COLOUR_STEPS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Where each step of a colour ramp begins, in nats. Fixed, so that any two pictures can be compared."""

RANK_STEPS = (2, 3, 5, 10, 100, 1000)
"""Where each step begins for a rank; 1 is the first choice and has no colour."""

VERDICT_GLYPHS = {"brilliant": "!!", "great": "!", "inaccuracy": "?!", "mistake": "?", "blunder": "??"}
"""The signs of chess annotation for the verdicts that deserve one."""

MOST_MARKS = 5
"""Combining marks on one character that are shown; a flood of them would cover the lines around it."""

LONGEST_TOKEN = 200
"""Characters of one token shown in a text; the rest comes on request."""

_SPECIAL = 1 << 4
_FIRST_FORK = 5
_LONG = 255  # in the column of lengths: look into "long"

# Characters that would act on the page or the terminal, or that nobody would see: C0, DEL and C1 controls,
# soft hyphen, direction marks and overrides, line separators, invisible operators, byte-order mark, tags,
# lone surrogates. The zero-width joiners stay: emoji and several scripts need them.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Return ``text`` with everything invisible made visible; a line break keeps breaking the line.

    ASCII controls become their pictures (``␀``), a newline ``↵`` and the break, a tab ``⇥``, other unseen
    characters their code point (``⟨U+202E⟩``); what UTF-8 cannot carry becomes U+FFFD. Of a flood of
    combining marks the first :data:`MOST_MARKS` stay and the rest are counted (``⟨+36 marks⟩``).
    """
    if text.isascii() and text.isprintable():
        return text
    return _bounded_marks(_UNSEEN.sub(lambda match: _picture(match[0]), text))


def one_line(text: str) -> str:
    """Return ``text`` on one line, with everything invisible made visible, line breaks too."""
    return visible(text).replace("\n", "")


def _picture(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return {"\n": "↵\n", "\t": "⇥\t"}[character]
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"⟨U+{code:04X}⟩"


def _bounded_marks(text: str) -> str:
    out: list[str] = []
    marks = 0
    for character in (*text, ""):  # the empty one ends a flood at the end of the text
        if character and unicodedata.category(character) in ("Mn", "Me"):
            marks += 1
            if marks > MOST_MARKS:
                continue
        else:
            if marks > MOST_MARKS:
                out.append(f"⟨+{marks - MOST_MARKS} marks⟩")
            marks = 0
        out.append(character)
    return "".join(out)


def shown_pieces(pieces: Sequence[str]) -> list[str]:
    """Return the text to show for each token of a text: :func:`visible`, and never empty.

    A token that is only part of a character has no text of its own and becomes ``◌``; so does the ground
    under combining marks that would pile up over many tokens.
    """
    shown = []
    marks = 0  # mark-only tokens in a row
    for piece in pieces:
        text = visible(piece) or "◌"
        only_marks = not text.isascii() and all(unicodedata.category(c) in ("Mn", "Me") for c in text)
        marks = marks + 1 if only_marks else 0
        shown.append("◌" + text if marks > MOST_MARKS else text)
    return shown


def notes(review: Review) -> list[str]:
    """Return what must be said beside the figures of ``review``, in sentences."""
    branch, own = review.branch, review.own_tokens
    counted = None
    if branch is not None and branch.by == "teacher":
        counted = f"From token {branch.at + 1} on the teacher wrote: nothing here counts as the student's."
    elif branch is not None:
        tokens = "1 token" if own.stop - own.start == 1 else f"{own.stop - own.start} tokens"
        counted = f"Counted is what the student wrote from token {own.start + 1} on: {tokens}."
    return [note for note in (review.grades.bias, review.grades.bound, review.grades.masked, counted) if note]


def legend() -> dict[str, Any]:
    """Return what the colours and verdicts mean, in numbers: the same for every review."""
    return {
        "steps": COLOUR_STEPS,
        "rankSteps": RANK_STEPS,
        "chunk": CHUNK,
        "longestToken": LONGEST_TOKEN,
        "verdicts": [{"name": name, "glyph": VERDICT_GLYPHS.get(name, "")} for name in VERDICTS],
        "thresholds": {
            "blunder": cutoffs.BLUNDER,
            "mistake": cutoffs.MISTAKE,
            "inaccuracy": cutoffs.INACCURACY,
            "slip": cutoffs.SLIP,
            "brilliantGain": cutoffs.BRILLIANT_GAIN,
            "brilliantStudent": cutoffs.BRILLIANT_STUDENT,
            "forcedEntropy": cutoffs.FORCED_ENTROPY,
        },
        "forks": [{"name": name, "rule": rule} for name, rule in cutoffs.FORK_DEFINITIONS.items()],
        "defaultForks": cutoffs.DEFAULT_FORKS,
    }


# Reviews are immutable, and a set that grows shows its finished ones again and again.
_encoded: WeakKeyDictionary[Review, dict[str, Any]] = WeakKeyDictionary()


def set_payload(key: str, groups: Sequence[ReviewGroup]) -> dict[str, Any]:
    """Return what the component's ``show`` takes: ``{key, groups: [{label, reviews}]}``.

    Forks are found in all trajectories of the set together.
    """
    reviews = [review for group in groups for review in group.reviews]
    marks = [cutoffs.find_forks([r.grades for r in reviews], name) for name in cutoffs.FORK_DEFINITIONS]
    payloads = iter(review_payload(review, [found[i] for found in marks]) for i, review in enumerate(reviews))
    shown = [{"label": visible(g.label), "reviews": [next(payloads) for _ in g.reviews]} for g in groups]
    return {"key": key, "groups": shown}


def review_payload(review: Review, forks: Sequence[NDArray[np.bool_]]) -> dict[str, Any]:
    """Return what the page needs to draw ``review`` for the first time.

    Args:
        review: what to draw.
        forks: the marks, bool ``[T]``, of each of :data:`opd.verdicts.FORK_DEFINITIONS`.
    """
    if review not in _encoded:
        _encoded[review] = _unmarked_payload(review)
    flags = _verdicts(review) | np.where(_special(review), _SPECIAL, 0).astype(np.uint8)
    for bit, marked in enumerate(forks, _FIRST_FORK):
        flags = flags | (marked.astype(np.uint8) << bit)
    return _encoded[review] | {"flags": _base64(flags, "<u1")}


def _verdicts(review: Review) -> NDArray[np.uint8]:
    """Return the verdicts; where there are none, one without a sign; the page knows them by "spans"."""
    judged = review.grades.verdicts
    return np.full(len(review.pieces), VERDICTS.index("good"), dtype=np.uint8) if judged is None else judged


def _unmarked_payload(review: Review) -> dict[str, Any]:
    """Everything of :func:`review_payload` that does not depend on the other reviews of its set."""
    grades = review.grades
    tokens = shown_pieces(review.pieces)
    lost = cutoffs.drop(grades.teacher)
    lengths = [len(t) if t.isascii() else len(t.encode("utf-16-le")) // 2 for t in tokens]
    return {
        "student": visible(review.student),
        "teacher": visible(review.teacher),
        "messages": [{key: visible(text) for key, text in message.items()} for message in review.messages],
        "finish_reason": review.trajectory.finish_reason,
        "temperature": grades.temperature,
        "notes": notes(review),
        "correct": review.correct,
        "off_policy": review.trajectory.behaviour_logprobs is None,
        "branch": None if review.branch is None else asdict(review.branch),
        "own": [review.own_tokens.start, review.own_tokens.stop],
        "evidence": _visible_within(review.evidence),
        "report": asdict(report_card(review)),
        "replaced": sum("\ufffd" in token for token in tokens),
        "absent": [name for name, column in COLUMNS.items() if column.of(review) is None],
        "read": {side: len(review.trajectory.seen_by(side)) for side in ("student", "teacher")},
        "readAlike": review.read_alike,
        "reasoning": [review.reasoning.start, review.reasoning.stop],
        "text": "".join(tokens),
        "lengths": _base64(np.minimum(lengths, _LONG), "<u1"),
        "long": {str(i): length for i, length in enumerate(lengths) if length >= _LONG},
        "penalty": _base64(np.clip(grades.penalty, -6e4, 6e4), "<f2"),
        "drop": _in_steps(lost),
        "agreement": _in_steps(grades.agreement),
        "spans": None if grades.spans is None else _base64(grades.spans, "<i4"),
    }


def _in_steps(shares: NDArray[np.float32] | None) -> str | None:
    """Return a column of shares in [0, 1], each in 255 steps; None where there is none."""
    return None if shares is None else _base64(np.rint(np.clip(shares, 0, 1) * 255), "<u1")


def _special(review: Review) -> NDArray[np.bool_]:
    special = np.array([not piece for piece in review.pieces], dtype=bool)
    if len(special) and review.trajectory.finish_reason == "stop":
        special[-1] = True
    return special


@dataclass(frozen=True)
class Column:
    """One number per token, as the page asks for it.

    Attributes:
        dtype: little-endian numpy dtype.
        of: takes it from a review, ``[T]``; None where the review does not have it.
    """

    dtype: str
    of: Callable[[Review], NDArray[Any] | None]


COLUMNS = {
    "penalty": Column("<f4", lambda r: r.grades.penalty),
    "reverse_kl": Column("<f4", lambda r: r.grades.reverse_kl),
    "forward_kl": Column("<f4", lambda r: r.grades.forward_kl),
    "jsd": Column("<f4", lambda r: r.grades.jsd),
    "student_entropy": Column("<f4", lambda r: r.grades.student_entropy),
    "teacher_entropy": Column("<f4", lambda r: r.grades.teacher_entropy),
    "student_rank": Column("<i4", lambda r: r.grades.student.shown_ranks),
    "teacher_rank": Column("<i4", lambda r: r.grades.teacher.shown_ranks),
    # As probabilities, computed here: the page must judge on the very numbers that Python judges on.
    "student_share": Column("<f4", lambda r: np.exp(r.grades.student.logprobs)),
    "teacher_share": Column("<f4", lambda r: np.exp(r.grades.teacher.logprobs)),
    "drop": Column("<f4", lambda r: cutoffs.drop(r.grades.teacher)),
    "blame": Column("<f4", lambda r: cutoffs.blame(r.grades.student, r.grades.teacher)),
    "agreement": Column("<f4", lambda r: r.grades.agreement),
}
"""The columns that can be asked for by name."""


def columns_payload(review: Review, name: str) -> dict[str, str] | None:
    """Return one of :data:`COLUMNS`, exact: ``{dtype, data}``; None if the review does not have it.

    Raises:
        KeyError: there is no column of that name.
    """
    column = COLUMNS[name]
    values = column.of(review)
    return None if values is None else {"dtype": column.dtype, "data": _base64(values, column.dtype)}


def alternatives_payload(review: Review, chunk: int) -> dict[str, Any]:
    """Return both models' likeliest tokens, ``[tokens, K]``, and all :data:`COLUMNS` of one chunk."""
    part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
    out: dict[str, Any] = {"tokens": len(review.grades.penalty[part])}
    shown: list[set[int]] = []
    for name, scores in (("student", review.grades.student), ("teacher", review.grades.teacher)):
        shown.append(set(scores.top_ids[part].ravel().tolist()) - {-1})
        out[f"{name}_ids"] = _base64(scores.top_ids[part], "<i4")
        out[f"{name}_logprobs"] = _base64(scores.top_logprobs[part], "<f4")
    out["ids"] = _base64(review.trajectory.completion_ids[part], "<i4")
    ours, theirs = shown
    if review.teacher_vocabulary is None:
        out["vocabulary"] = _texts(review.vocabulary, ours | theirs)
    else:
        out["vocabulary"] = _texts(review.vocabulary, ours)
        out["teacher_vocabulary"] = _texts(review.teacher_vocabulary, theirs)
    out["columns"] = {
        name: {"dtype": column.dtype, "data": _base64(values[part], column.dtype)}
        for name, column in COLUMNS.items()
        if (values := column.of(review)) is not None
    }
    return out


def prompt_payload(review: Review) -> dict[str, Any]:
    """Return what student and teacher read before the completion; the teacher's None where it is the same.

    The texts of tokens are None where they were not recorded.
    """
    sides = {"student": review.prompt, "teacher": review.teacher_prompt}
    return {
        side: None
        if side == "teacher" and review.read_alike
        else _prompt(review.trajectory.seen_by(side), text)
        for side, text in sides.items()
    }


def _prompt(ids: NDArray[np.int64], text: PromptText | None) -> dict[str, Any]:
    known = {} if text is None else asdict(text) | {"pieces": shown_pieces(text.pieces)}
    return {"ids": ids.tolist(), "pieces": None, **known}


def _texts(vocabulary: Mapping[int, str], ids: set[int]) -> dict[str, str]:
    return {str(token): visible(vocabulary[token]) for token in sorted(ids)}


def _visible_within(data: Any) -> Any:  # noqa: ANN401
    """Make every text within JSON-ready data visible."""
    match data:
        case str():
            return visible(data)
        case dict():
            return {key: _visible_within(value) for key, value in data.items()}
        case list() | tuple():
            return [_visible_within(value) for value in data]
    return data


def _base64(values: NDArray[Any], dtype: str) -> str:
    """Return an array as base64 of little-endian ``dtype``, row by row."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")
