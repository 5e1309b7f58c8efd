"""Two tokenizations of one text, aligned over its bytes, so that two models can be compared on it.

A span is a minimal run of student tokens and of teacher tokens that begin and end at the same byte. So the
spans part the text: every byte lies in exactly one, and no span could be cut in two. (GOLD merges tokens the
same way, Patiño et al. 2025; ULD, arXiv:2402.12030, is the idea of a teacher with another vocabulary.)

Deliberately left out: distributions. Two vocabularies have no tokens in common that a KL could run over; what
both models assign to a span of text is a number on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

SURE, REACH = 8, 96
"""After a difference the texts are one again where so many bytes agree, at most so many bytes further."""


@dataclass(frozen=True)
class Span:
    """A run of student tokens and the run of teacher tokens that stands for it.

    Attributes:
        student: places of the student's tokens; may be empty where the teacher reads what is not there.
        teacher: places of the teacher's tokens; empty where the teacher reads nothing.
        same: both runs are the same bytes, so their log-probs can be compared.
    """

    student: range
    teacher: range
    same: bool


def align(student: Sequence[bytes], teacher: Sequence[bytes]) -> list[Span]:
    """Align two tokenizations, given as the bytes of each token.

    They should spell one text. Where they do not, because a tokenizer normalises, what lies around the
    difference is in spans that are not the ``same``. A token without bytes goes with the one behind it.

    Returns:
        The spans, in order: every token of either side lies in exactly one.
    """
    counterpart = _counterparts(b"".join(student), b"".join(teacher))
    begins = _begins(teacher)
    edges = [
        (place, begins[counterpart[offset]])
        for offset, place in _begins(student).items()
        if counterpart.get(offset) in begins
    ]
    if edges[:1] != [(0, 0)]:
        edges.insert(0, (0, 0))
    spans = []
    for (place, other), (end, other_end) in pairwise([*edges, (len(student), len(teacher))]):
        written = b"".join(student[place:end])
        same = bool(written) and written == b"".join(teacher[other:other_end])
        spans.append(Span(range(place, end), range(other, other_end), same))
    return [span for span in spans if span.student or span.teacher]


def _begins(tokens: Sequence[bytes]) -> dict[int, int]:
    """Return the first token that begins at each byte where one does; the end of the text is none."""
    offsets = accumulate((len(token) for token in tokens), initial=0)
    first: dict[int, int] = {}
    for place, offset in enumerate(offsets):
        first.setdefault(offset, place)
    first.popitem()
    return first


def _counterparts(ours: bytes, theirs: bytes) -> dict[int, int]:
    """Return which offset of ``theirs`` an offset of ``ours`` is, where it is one.

    Read side by side; after a difference, go on at the nearest place where :data:`SURE` bytes agree. (A
    longest common subsequence would be quadratic in a text that repeats itself.)
    """
    found: dict[int, int] = {}
    a = b = 0
    while True:
        found.setdefault(a, b)
        if a < len(ours) and b < len(theirs) and ours[a] == theirs[b]:
            a, b = a + 1, b + 1
            continue
        skips = ((skip, away - skip) for away in range(1, REACH + 1) for skip in range(away + 1))
        nearest = next((s for s in skips if _agree(ours, a + s[0], theirs, b + s[1])), None)
        if nearest is None:
            return found
        a, b = a + nearest[0], b + nearest[1]


def _agree(ours: bytes, a: int, theirs: bytes, b: int) -> bool:
    """Whether two texts go on alike, or end there both."""
    inside = a <= len(ours) and b <= len(theirs)
    return inside and ours[a : a + SURE] == theirs[b : b + SURE]
