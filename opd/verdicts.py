"""What the grades of a token amount to: verdicts and forks. Every threshold of either stands in this file.

Colour follows the penalty in nats, which has no bound; a verdict follows the bounded blame

    B = D R,   D = p_teacher(best) - p_teacher(token),   R = max(0, 1 - p_teacher(token) / p_student(token)).

The drop D is what the teacher loses by the token; it gates itself when the teacher is unsure (as chess sites
judge by win chance, not by centipawns). R is the chance that speculative decoding would reject the token
(Leviathan et al. 2023, arXiv:2211.17192): how much of it is the student's belief. D alone judges the luck of
sampling: where a model has many ways on, every single one is far from its best, and a model graded against
itself would blunder. So what the student does not prefer more than the teacher does has no blame, and what
neither model finds likely is a slip. A teacher is an opinion: a blunder is what *this* teacher would never
write.

The cut-offs keep both ends (``opd pair-report`` and the README): the first errors of the embedded pair stay
marked, and a damaged model of real text has marks on an eighth of its tokens, not on half of them.

A fork is a token where the trajectory could have gone another way. There are several definitions
(:data:`FORK_DEFINITIONS`); ``opd pair-report`` measures how well each finds a first error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from opd.trajectory import VERDICTS, TokenScores

BLUNDER, MISTAKE, INACCURACY = 0.60, 0.40, 0.25
"""A blame B of at least this much is a blunder, a mistake, an inaccuracy."""

SLIP = 0.001
"""A slip: both models give the token less than this, and the drop D is that of an inaccuracy or more."""

FORCED_ENTROPY = 0.05
"""Below this student entropy (nats), with both models' first choice taken, nothing was chosen."""

BRILLIANT_GAIN, BRILLIANT_STUDENT = 0.30, 0.20
"""Brilliant: p_teacher - p_student at least the first, p_student below the second."""

FORK_SHARE = 0.20
"""Forks by entropy are this share of all tokens."""

FORK_FLOORS = {"entropy": 0.1, "penalty": 1.0, "entropy_drop": 0.15}
"""Forks by each definition score at least this many nats. (With 0.15, entropy x D marks about as many
tokens of the embedded pair as the penalty does.)"""

FORK_EXCESS = 3.0
"""Forks by penalty also stand out of their text: by this factor above the mean |penalty| of all its other
tokens. A damaged student is punished everywhere, and where everything forks nothing does."""

FORK_RADIUS = 3
"""A peak is a token that none within this many tokens exceeds."""

FORK_DEFINITIONS = {
    "entropy": f"the {FORK_SHARE:.0%} of tokens with the highest student entropy among all trajectories "
    f"graded together, {FORK_FLOORS['entropy']:g} nat or more",
    "penalty": f"a peak of the penalty, {FORK_FLOORS['penalty']:g} nat or more and {FORK_EXCESS:g} times the "
    "mean size of the others in its text",
    "entropy_drop": "a peak of student entropy times the drop of the teacher's probability where the student "
    f"prefers the token more than the teacher does, {FORK_FLOORS['entropy_drop']:g} nat or more",
}
"""The definitions of a fork by name, each in words. Wang et al. 2025 (arXiv:2506.01939) is the first."""

DEFAULT_FORKS = "penalty"
"""The definition that marks :attr:`opd.trajectory.Grades.forks`. On the embedded pair's tuning split its
marks, one to three a trajectory, come within one token of the first error most often. It looks at one
trajectory alone, so marks do not depend on what else is in a batch."""


class Scored(Protocol):
    """What fork finding needs of :class:`opd.trajectory.Grades`."""

    @property
    def penalty(self) -> NDArray[np.float32]:
        """Penalty of each token, float32 ``[T]``, nats."""
        ...

    @property
    def student(self) -> TokenScores:
        """The student's scores."""
        ...

    @property
    def teacher(self) -> TokenScores:
        """The teacher's scores."""
        ...


def drop(teacher: TokenScores) -> NDArray[np.float32] | None:
    """Return D = p_teacher(best) - p_teacher(token) of each token, float32 ``[T]`` in [0, 1].

    None for a teacher that grades by spans: its best token need not be a token of the student at all.
    """
    if teacher.ranks is None:
        return None
    return np.exp(teacher.top_logprobs[:, 0]) - np.exp(teacher.logprobs)


def blame(student: TokenScores, teacher: TokenScores) -> NDArray[np.float32] | None:
    """Return B of each token, float32 ``[T]`` in [0, 1]: the drop D times the chance R of a rejection.

    None for a teacher that grades by spans.
    """
    lost = drop(teacher)
    # R from the log-probs: of tokens that underflow to 0 on both sides the ratio is still known.
    return None if lost is None else lost * (1 - np.exp(np.minimum(teacher.logprobs - student.logprobs, 0)))


def verdicts(student: TokenScores, teacher: TokenScores) -> NDArray[np.uint8]:
    """Judge each token, uint8 ``[T]`` of indices into :data:`opd.trajectory.VERDICTS`."""
    taken_teacher, taken_student = np.exp(teacher.logprobs), np.exp(student.logprobs)
    blamed = blame(student, teacher)
    best = teacher.ranks == 0
    forced = best & (student.ranks == 0) & (student.entropy < FORCED_ENTROPY)
    brilliant = (taken_teacher - taken_student >= BRILLIANT_GAIN) & (taken_student < BRILLIANT_STUDENT)
    index = {name: i for i, name in enumerate(VERDICTS)}
    choices = [
        (forced, "forced"),
        ((np.maximum(taken_teacher, taken_student) < SLIP) & (drop(teacher) >= INACCURACY), "slip"),
        (blamed >= BLUNDER, "blunder"),
        (blamed >= MISTAKE, "mistake"),
        (blamed >= INACCURACY, "inaccuracy"),
        (brilliant, "brilliant"),
        (best & (student.ranks > 0), "great"),
        (best, "best"),
    ]
    return np.select(
        [mask for mask, _ in choices], [index[name] for _, name in choices], index["good"]
    ).astype(np.uint8)


def fork_score(graded: Scored, definition: str) -> NDArray[np.float32]:
    """Return how much each token is a fork by one of :data:`FORK_DEFINITIONS`, float32 ``[T]``, nats.

    It is -inf where that is not known.

    Raises:
        ValueError: there is no such definition.
    """
    match definition:
        case "entropy":
            return graded.student.entropy
        case "penalty":
            return np.where(np.isnan(graded.penalty), np.float32(-np.inf), graded.penalty)
        case "entropy_drop":  # the student hesitates where the teacher minds
            lost = drop(graded.teacher)
            return np.full_like(graded.penalty, -np.inf) if lost is None else graded.student.entropy * lost
    raise ValueError(f"There are no forks by {definition!r}. Known: {', '.join(FORK_DEFINITIONS)}.")


def find_forks(graded: Sequence[Scored], definition: str = DEFAULT_FORKS) -> list[NDArray[np.bool_]]:
    """Mark the forks of trajectories that are looked at together.

    Args:
        graded: their grades; the quantile of "entropy" is taken over all of them.
        definition: one of :data:`FORK_DEFINITIONS`.

    Returns:
        bool ``[T]`` of each trajectory.

    Raises:
        ValueError: there is no such definition.
    """
    scores = [fork_score(g, definition) for g in graded]
    floor = FORK_FLOORS[definition]
    if definition == "entropy" and any(len(s) for s in scores):
        floor = max(floor, float(np.quantile(np.concatenate(scores), 1 - FORK_SHARE)))
    marks = [_candidates(g, s, definition) & (s >= floor) for g, s in zip(graded, scores, strict=True)]
    if definition == "penalty":
        marks = [
            found & (g.penalty >= FORK_EXCESS * _others(g.penalty))
            for found, g in zip(marks, graded, strict=True)
        ]
    return marks


def strongest_forks(graded: Scored, definition: str, n: int) -> NDArray[np.int64]:
    """Return the indices of a trajectory's ``n`` strongest forks, best first, however weak they are.

    With as many marks each, definitions can be compared.

    Raises:
        ValueError: there is no such definition.
    """
    score = fork_score(graded, definition)
    ranked = np.argsort(-np.where(_candidates(graded, score, definition), score, -np.inf), kind="stable")
    return ranked[:n]


def _others(penalty: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean size of a text's other penalties for each of them, ``[T]``; NaN counts for nothing."""
    size = np.abs(np.nan_to_num(penalty.astype(np.float64)))
    others = np.maximum(np.isfinite(penalty).sum() - 1, 1)
    return (size.sum() - size) / others


def _candidates(graded: Scored, score: NDArray[np.float32], definition: str) -> NDArray[np.bool_]:
    """Return which tokens may be forks at all, ``[T]`` -> bool ``[T]``."""
    if definition == "entropy":
        return np.ones(len(score), dtype=bool)
    preferred = graded.penalty > 0  # by the student, more than by the teacher
    return peaks(np.where(preferred, score, 0), FORK_RADIUS) & preferred


def peaks(score: NDArray[np.float32], radius: int) -> NDArray[np.bool_]:
    """Mark what no neighbour within ``radius`` exceeds, ``[T]`` -> bool ``[T]``: non-maximum suppression.

    Of equal neighbours the first one is the peak.
    """
    marks = np.ones(len(score), dtype=bool)
    for away in range(1, radius + 1):
        marks[away:] &= score[away:] > score[:-away]
        marks[:-away] &= score[:-away] >= score[away:]
    return marks
