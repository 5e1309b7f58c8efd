"""What many grades say together: a report card of one trajectory; worst tokens, swaps and a map of many.

Only the student's own tokens count (:attr:`opd.reviews.Review.own_tokens`). A place ``(review, index)`` is
the index of a review in the sequence that was given, and of a token in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd.reviews import Review
from opd.trajectory import VERDICTS
from opd.verdicts import INACCURACY, blame

DISAGREEMENTS = ("blunder", "mistake", "inaccuracy")
"""The verdicts that say something bad, worst first."""

CONTEXT = 10
"""Tokens shown on either side of a token."""

QUADRANT_ENTROPY, QUADRANT_KL = 0.3, 0.1
"""Where the map of entropy and KL is divided, in nats. Below the first the student was sure (0.3 nats are a
choice of 91 to 9); below the second the teacher would have chosen much the same."""

QUADRANTS = ("forced", "confident but wrong", "free choice", "fork")
"""Names of the map's quadrants: a sure student that the teacher agrees with, a sure one that it does not, an
unsure one with several good ways on, and an unsure one whose choice matters to the teacher.
:attr:`TokenMap.quadrants` holds indices into it."""


@dataclass(frozen=True)
class ReportCard:
    """What the grades of the student's own tokens of one trajectory say together.

    A mean over no tokens, or of what is absent, is None.

    Attributes:
        tokens: number of the student's own tokens: all, but for a branch.
        graded: how many of them could be graded: all, but for a teacher with another tokenizer.
        agreement: mean of :attr:`opd.trajectory.Grades.agreement`, the share of tokens that speculative
            decoding would accept: 1 for equal models. None where it is not known.
        bound: whether the agreement is but an upper bound, and the reverse KL a lower one.
        mean_penalty: nats per graded token.
        total_penalty: nats.
        mean_reverse_kl: nats per token.
        total_reverse_kl: nats.
        mean_student_entropy: nats per token.
        mean_teacher_entropy: nats per token.
        overlap: mean share of the student's likeliest tokens that are among the teacher's likeliest.
        forks: number of forking tokens.
        counts: tokens by verdict, every verdict named; None without verdicts.
    """

    tokens: int
    graded: int
    agreement: float | None
    bound: bool
    mean_penalty: float | None
    total_penalty: float
    mean_reverse_kl: float | None
    total_reverse_kl: float | None
    mean_student_entropy: float | None
    mean_teacher_entropy: float | None
    overlap: float | None
    forks: int
    counts: dict[str, int] | None


def report_card(review: Review) -> ReportCard:
    """Sum up the grades of what the student chose in ``review``."""
    grades, own = review.grades, review.own_tokens
    tokens, graded = own.stop - own.start, int(grades.graded[own].sum())
    counts = None
    if grades.verdicts is not None:
        seen = Counter(VERDICTS[verdict] for verdict in grades.verdicts[own].tolist())
        counts = {verdict: seen[verdict] for verdict in VERDICTS}

    def total(values: np.ndarray | None) -> float | None:
        return None if values is None else float(np.nansum(values[own], dtype=np.float64))

    def mean(values: np.ndarray | None, over: int = tokens) -> float | None:
        return None if values is None or not over else total(values) / over

    return ReportCard(
        tokens=tokens,
        graded=graded,
        agreement=mean(grades.agreement),
        bound=grades.bound is not None,
        mean_penalty=mean(grades.penalty, graded),
        total_penalty=total(grades.penalty),
        mean_reverse_kl=mean(grades.reverse_kl),
        total_reverse_kl=total(grades.reverse_kl),
        mean_student_entropy=mean(grades.student_entropy),
        mean_teacher_entropy=mean(grades.teacher_entropy),
        overlap=mean(_shared(grades.student.top_ids, grades.teacher.top_ids))
        if grades.spans is None
        else None,
        forks=int(grades.forks[own].sum()),
        counts=counts,
    )


@dataclass(frozen=True)
class TokenInContext:
    """One graded token with the text around it.

    Attributes:
        review: index of the review.
        index: index of the token.
        left: text of the :data:`CONTEXT` tokens before it.
        token: its text; empty where it is only a part of a character.
        right: text of the :data:`CONTEXT` tokens after it.
        penalty: nats; NaN where the token could not be graded.
        reverse_kl: nats; None, as the next two, where spans were graded.
        student_entropy: nats.
        blame: B of :mod:`opd.verdicts`, in [0, 1].
        verdict: name of its verdict.
        preferred: text of the teacher's first choice; empty within a span.
        preferred_probability: what the teacher gives it; None within a span.
    """

    review: int
    index: int
    left: str
    token: str
    right: str
    penalty: float
    reverse_kl: float | None
    student_entropy: float
    blame: float | None
    verdict: str | None
    preferred: str
    preferred_probability: float | None


def tokens_in_context(reviews: Sequence[Review], places: Sequence[tuple[int, int]]) -> list[TokenInContext]:
    """Return the tokens at ``places``, in their order.

    Raises:
        IndexError: there is no such place.
    """
    blamed = {number: _blame(reviews[number]) for number in {number for number, _ in places}}
    return [_in_context(reviews[number], number, index, blamed[number]) for number, index in places]


def _blame(review: Review) -> NDArray[np.float32] | None:
    return blame(review.grades.student, review.grades.teacher)


def _in_context(
    review: Review, number: int, index: int, blamed: NDArray[np.float32] | None
) -> TokenInContext:
    grades, pieces = review.grades, review.pieces
    preferred, logprob = review.teacher_choice(index) or ("", None)
    return TokenInContext(
        review=number,
        index=index,
        left="".join(pieces[max(0, index - CONTEXT) : index]),
        token=pieces[index],
        right="".join(pieces[index + 1 : index + 1 + CONTEXT]),
        penalty=float(grades.penalty[index]),
        reverse_kl=None if grades.reverse_kl is None else float(grades.reverse_kl[index]),
        student_entropy=float(grades.student_entropy[index]),
        blame=None if blamed is None else float(blamed[index]),
        verdict=None if grades.verdicts is None else VERDICTS[grades.verdicts[index]],
        preferred=preferred,
        preferred_probability=None if logprob is None else float(np.exp(logprob)),
    )


def worst_tokens(
    reviews: Sequence[Review], n: int = 100, *, verdicts: Collection[str] = VERDICTS
) -> list[TokenInContext]:
    """Return the student's own tokens with the largest penalties, worst first, at most ``n``.

    A token that the teacher likes as much as the student does (penalty <= 0) is never among them.

    Args:
        reviews: where to look.
        n: how many.
        verdicts: names of those that count; where spans were graded there are none, so all or nothing.
    """
    tokens = _Tokens(reviews, verdicts, spans=True)
    penalty = tokens.of(lambda review: review.grades.penalty)
    worst = np.argsort(-penalty, kind="stable")[:n]
    worst = worst[penalty[worst] > 0]
    return tokens_in_context(reviews, tokens.places(worst))


@dataclass(frozen=True)
class Swap:
    """A token that the student wrote where the teacher would rather have seen a certain other one.

    Attributes:
        token: text of the student's token.
        preferred: text of the teacher's first choice.
        count: how often.
        mean_blame: mean of the blame B of :mod:`opd.verdicts`, in [0, 1].
        penalty: sum of the positive penalties there, nats.
        share: that sum as a share of all positive penalties of the trajectories; 0 where there are none.
        places: where, the largest blame first.
    """

    token: str
    preferred: str
    count: int
    mean_blame: float
    penalty: float
    share: float
    places: tuple[tuple[int, int], ...]


def swaps(
    reviews: Sequence[Review], *, least_blame: float = INACCURACY, verdicts: Collection[str] = VERDICTS
) -> list[Swap]:
    """Count which tokens the teacher would exchange for which, the largest share of the penalty first.

    Counted are the student's own tokens that are not the teacher's first choice and whose blame B is
    ``least_blame`` or more; as it is by default, they are the disagreements and the slips of as much blame.
    Graded spans have no B.

    Args:
        reviews: where to look.
        least_blame: the least B, in [0, 1].
        verdicts: names of those that count. The shares stay shares of the whole penalty.
    """
    total = sum(
        float(np.nansum(np.maximum(r.grades.penalty[r.own_tokens], 0), dtype=np.float64)) for r in reviews
    )
    tokens = _Tokens(reviews, verdicts)
    blamed = tokens.of(_blame)
    penalty = tokens.of(lambda review: np.maximum(review.grades.penalty, 0)).astype(np.float64)
    rank = tokens.of(lambda review: review.grades.teacher_rank)
    minded = np.flatnonzero((blamed >= np.float32(least_blame)) & (rank > 0))
    found: dict[tuple[int, str, int, str], list[int]] = {}
    for at, (number, index) in zip(minded.tolist(), tokens.places(minded), strict=True):
        review = reviews[number]
        token = int(review.trajectory.completion_ids[index])
        best = int(review.grades.teacher.top_ids[index, 0])
        # Ids alone would mix up different vocabularies, texts alone the parts of characters.
        written = review.vocabulary.get(token, review.pieces[index])
        found.setdefault((token, written, best, review.vocabulary[best]), []).append(at)
    out = []
    for (_, written, _, preferred), where in found.items():
        where.sort(key=lambda at: -blamed[at])
        spent = float(penalty[where].sum())
        out.append(
            Swap(
                token=written,
                preferred=preferred,
                count=len(where),
                mean_blame=float(blamed[where].mean(dtype=np.float64)),
                penalty=spent,
                share=spent / total if total else 0.0,
                places=tuple(tokens.places(where)),
            )
        )
    return sorted(out, key=lambda swap: -swap.penalty)


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Where tokens stand between the student's entropy and the reverse KL.

    Attributes:
        review: int64 ``[N]``, index of each token's review.
        index: int64 ``[N]``, index of the token in it.
        student_entropy: float32 ``[N]``, nats.
        reverse_kl: float32 ``[N]``, nats.
        verdicts: uint8 ``[N]``, indices into :data:`opd.trajectory.VERDICTS`.
        quadrants: uint8 ``[N]``, indices into :data:`QUADRANTS`.
    """

    review: NDArray[np.int64]
    index: NDArray[np.int64]
    student_entropy: NDArray[np.float32]
    reverse_kl: NDArray[np.float32]
    verdicts: NDArray[np.uint8]
    quadrants: NDArray[np.uint8]

    def __len__(self) -> int:
        """Return N, the number of tokens."""
        return len(self.review)


def token_map(reviews: Sequence[Review], *, verdicts: Collection[str] = VERDICTS) -> TokenMap:
    """Place the student's own tokens with one of these verdicts by entropy and reverse KL.

    A value on a border of :data:`QUADRANT_ENTROPY` or :data:`QUADRANT_KL` counts as above it. Graded spans
    have no KL and are left out.
    """
    tokens = _Tokens(reviews, verdicts)
    entropy = tokens.of(lambda review: review.grades.student_entropy)
    kl = tokens.of(lambda review: review.grades.reverse_kl)
    unsure, apart = entropy >= np.float32(QUADRANT_ENTROPY), kl >= np.float32(QUADRANT_KL)
    return TokenMap(
        review=tokens.review,
        index=tokens.index,
        student_entropy=entropy,
        reverse_kl=kl,
        verdicts=tokens.of(lambda review: review.grades.verdicts),
        quadrants=(2 * unsure + apart).astype(np.uint8),
    )


def sparkline(values: NDArray[np.floating], bins: int) -> NDArray[np.floating]:
    """Shorten a column for a small picture, ``[T]`` -> ``[min(T, bins)]``.

    Of each bin it keeps the value farthest from 0: peaks survive, which a mean would hide. NaN counts as 0.
    """
    values = np.nan_to_num(values)
    edges = np.linspace(0, len(values), min(len(values), bins) + 1).astype(int)
    return np.array(
        [values[a:b][np.abs(values[a:b]).argmax()] for a, b in pairwise(edges)], dtype=values.dtype
    )


class _Tokens:
    """The student's own tokens with one of these verdicts, side by side, review after review.

    Of reviews that were graded by spans and so have no verdicts, none; with ``spans``, and if every verdict
    is wanted, those that could be graded.

    ``review`` and ``index``, int64 ``[N]``, are their places.
    """

    def __init__(self, reviews: Sequence[Review], verdicts: Collection[str], *, spans: bool = False) -> None:
        spans = spans and set(VERDICTS) <= set(verdicts)
        wanted = [number for number, name in enumerate(VERDICTS) if name in verdicts]
        self._reviews = reviews
        self._chosen = []
        for review in reviews:
            own = np.arange(len(review.grades))[review.own_tokens]
            if review.grades.verdicts is not None:
                own = own[np.isin(review.grades.verdicts[own], wanted)]
            else:
                own = own[review.grades.graded[own] & spans]
            self._chosen.append(own)
        self.review = np.repeat(np.arange(len(reviews)), [len(chosen) for chosen in self._chosen])
        self.index = np.concatenate([np.zeros(0, dtype=np.int64), *self._chosen])

    def of(self, column: Callable[[Review], NDArray[Any]]) -> NDArray[Any]:
        """Return each token's value of a column ``[T]`` that every review with verdicts has, ``[N]``."""
        parts = [
            column(r)[chosen] for r, chosen in zip(self._reviews, self._chosen, strict=True) if len(chosen)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    def places(self, which: Sequence[int] | NDArray[np.int64]) -> list[tuple[int, int]]:
        """Return the places of some of the tokens."""
        return list(zip(self.review[which].tolist(), self.index[which].tolist(), strict=True))


def _shared(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Share of the student's tokens that the teacher lists too, int ``[T, K]`` x 2 -> ``[T]``."""
    # One alternative at a time: all pairs of a long text at once would be gigabytes.
    found = np.stack([(teacher == student[:, k, None]).any(1) for k in range(student.shape[1])], axis=1)
    return found.mean(1)
