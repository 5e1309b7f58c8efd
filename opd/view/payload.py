"""What the token review component needs of a review: columns of numbers and text made safe to show.

A review travels to the page as one small JSON object: a list of token texts and base64 columns of typed
arrays. The alternatives of both models are the bulk of a review and are looked at one token at a time, so
they travel separately, :data:`CHUNK` tokens at a time, when somebody looks.
"""

from __future__ import annotations

import base64
import re
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd.summary import report_card
from opd.trajectory import VERDICTS, Review

CHUNK = 256
"""Tokens per piece of alternatives."""

COLOUR_STEPS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Where each step of a colour ramp begins, in nats. Fixed, so that any two pictures can be compared."""

VERDICT_GLYPHS = {"brilliant": "!!", "great": "!", "inaccuracy": "?!", "mistake": "?", "blunder": "??"}
"""The signs of chess annotation for the verdicts that deserve one."""

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
    characters their code point (``⟨U+202E⟩``); what UTF-8 cannot carry becomes U+FFFD.
    """
    return _UNSEEN.sub(lambda match: _picture(match[0]), text)


def _picture(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return {"\n": "↵\n", "\t": "⇥\t"}[character]
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"⟨U+{code:04X}⟩"


def legend() -> dict[str, Any]:
    """Return what the colours and verdicts mean, in numbers: the same for every review."""
    from opd import grading  # needs torch, which showing a saved review does not

    def points(share: float) -> str:
        return f"{100 * share:.0f} points"

    rules = {
        "forced": "there was no real choice; left out of the agreement",
        "brilliant": f"rare for the student, {points(grading.BRILLIANT_GAIN)} likelier to the teacher",
        "great": "the teacher's first choice, but not the student's",
        "inaccuracy": f"the teacher's first choice was {points(grading.INACCURACY)} likelier",
        "mistake": f"{points(grading.MISTAKE)} likelier",
        "blunder": f"{points(grading.BLUNDER)} likelier",
    }
    return {
        "steps": COLOUR_STEPS,
        "chunk": CHUNK,
        "verdicts": [
            {"name": name, "glyph": VERDICT_GLYPHS.get(name, ""), "rule": rules.get(name, "")}
            for name in VERDICTS
        ],
        "fork": f"a peak of the penalty, {grading.FORK_PENALTY:g} nats or more",
    }


def review_payload(review: Review) -> dict[str, Any]:
    """Return everything the page needs to draw ``review`` but the alternatives."""
    grades, trajectory = review.grades, review.trajectory
    return {
        "student": visible(review.student),
        "teacher": visible(review.teacher),
        "messages": [{key: visible(text) for key, text in message.items()} for message in review.messages],
        "finish_reason": trajectory.finish_reason,
        "temperature": grades.temperature,
        "bias": grades.bias,
        "correct": review.correct,
        "report": asdict(report_card(review)),
        # A token that is only part of a character has no text of its own, and still must be seen.
        "tokens": [visible(piece) or "◌" for piece in review.pieces],
        "penalty": _column(grades.penalty, "<f4"),
        "reverse_kl": _column(grades.reverse_kl, "<f4"),
        "student_entropy": _column(grades.student_entropy, "<f4"),
        "teacher_entropy": _column(grades.teacher_entropy, "<f4"),
        "student_logprobs": _column(grades.student.logprobs, "<f4"),
        "teacher_logprobs": _column(grades.teacher.logprobs, "<f4"),
        "teacher_rank": _column(grades.teacher_rank, "<i4"),
        "verdicts": _column(grades.verdicts, "<u1"),
        "forks": _column(grades.forks, "<u1"),
    }


def alternatives_payload(review: Review, chunk: int) -> dict[str, Any]:
    """Return both models' likeliest tokens for the tokens of one chunk, columns of ``[tokens, K]``."""
    part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
    columns: dict[str, Any] = {"tokens": len(review.grades.penalty[part])}
    shown: set[int] = set()
    for name, scores in (("student", review.grades.student), ("teacher", review.grades.teacher)):
        shown.update(scores.top_ids[part].ravel().tolist())
        columns[f"{name}_ids"] = _column(scores.top_ids[part], "<i4")
        columns[f"{name}_logprobs"] = _column(scores.top_logprobs[part], "<f4")
    columns["ids"] = _column(review.trajectory.completion_ids[part], "<i4")
    columns["vocabulary"] = {str(token): visible(review.vocabulary[token]) for token in sorted(shown)}
    return columns


def _column(values: NDArray[Any], dtype: str) -> str:
    """Return an array as base64 of little-endian ``dtype``, row by row."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")
