"""Where a text was lost: how often the student still ends right from places along it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from opd.grading.branching.rolling import (
    NO_RETURN_STREAM,
    Cost,
    check,
    check_count,
    must_be_verified,
    quoted,
    roll,
    room_behind,
)
from opd.grading.evaluation import wilson
from opd.models.pair import Pair
from opd.reviews import Review
from opd.tasks import Example, Task, verify


@dataclass(frozen=True)
class PassRate:
    """How often the student gets it right from one place on.

    Attributes:
        index: index of the token that the student goes on from; all before it is the trajectory's.
        n: rollouts.
        right: how many of them the verifier passed.
        low: lower end of the share's 95 % Wilson interval.
        high: upper end.
    """

    index: int
    n: int
    right: int
    low: float
    high: float


@dataclass(frozen=True)
class NoReturn:
    """Where along a trajectory the answer was lost.

    Attributes:
        at: index of the token after which the pass rate stays down; None where it nowhere surely does.
        points: what was measured, by index.
        sentence: the finding in words.
    """

    at: int | None
    points: tuple[PassRate, ...]
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as :attr:`opd.reviews.Review.evidence` holds it."""
        out = asdict(self)
        return out | {"points": list(out["points"])}


def no_return_cost(review: Review, *, k: int = 32, grid: int = 9) -> Cost:
    """Return about what :func:`point_of_no_return` takes.

    Raises:
        ValueError: k is below 1.
    """
    check_count(k)
    places = _grid(len(review.trajectory), grid)
    gap = max((b - a for a, b in pairwise(places)), default=1)
    halvings = (gap - 1).bit_length()
    tokens = sum(len(review.trajectory) - i for i in places) + halvings * len(review.trajectory)
    return Cost(k * (len(places) + halvings), k * tokens)


def point_of_no_return(
    pair: Pair,
    review: Review,
    *,
    task: Task,
    example: Example | None,
    k: int = 32,
    grid: int = 9,
    max_tokens: int = 256,
) -> Iterator[NoReturn]:
    """Measure where along a trajectory the student's pass rate collapses.

    From each of a grid of places the student goes on ``k`` times. The rate need not fall evenly, nor only
    fall (a lucky step lifts it), so this is no plain bisection: the *collapse* is the first place from which
    on every measured rate is at most half of the start's. The gap before it is halved, and the collapse found
    anew among all places, until it lies between two neighbours: then the token between them is the one that
    lost the answer. Half, because a rate moves by chance everywhere; and a collapse counts only where the
    95 % Wilson interval of all rollouts from there on, taken together, lies below that of the start's.

    Args:
        pair: the student that goes on, and its teacher.
        review: the trajectory.
        task: verifies the answers.
        example: the problem that the prompt poses.
        k: rollouts from each place.
        grid: how many places to begin with, at least 2.
        max_tokens: bound on each whole completion.

    Yields:
        The state after each place.

    Raises:
        ValueError: nobody verifies the answers, or k is below 1; see also :func:`branch`.
    """
    check_count(k)
    must_be_verified(example)
    check(pair, review, 0)
    main = review.trajectory
    room = room_behind(pair, main, len(main) - 1, max_tokens)
    rates: dict[int, PassRate] = {}

    def measure(index: int) -> None:
        prefix = main.completion_ids[:index]
        rollouts = roll(pair, review, [(prefix, NO_RETURN_STREAM, j) for j in range(k)], room)
        right = sum(bool(verify(task, example, pair.student, t)) for t in rollouts)
        rates[index] = PassRate(index, k, right, *wilson(right, k))

    places = _grid(len(main), grid)
    for done, index in enumerate(places, start=1):
        measure(index)
        yield NoReturn(None, _sorted(rates), f"{done} of {len(places)} places so far.")
    while (gap := _collapse(_sorted(rates))) and gap[1].index - gap[0].index > 1:
        measure((gap[0].index + gap[1].index) // 2)
        yield NoReturn(None, _sorted(rates), f"Narrowing it down, {len(rates)} places so far.")
    yield _judge_no_return(review, _sorted(rates))


def _grid(tokens: int, places: int) -> list[int]:
    """Return the places to begin with, evenly from the first token to the last."""
    return sorted({round(i) for i in np.linspace(0, tokens - 1, places)})


def _sorted(rates: dict[int, PassRate]) -> tuple[PassRate, ...]:
    return tuple(rates[index] for index in sorted(rates))


def _collapse(rates: Sequence[PassRate]) -> tuple[PassRate, PassRate] | None:
    """Return the last place above half of the start's rate and the next one, if the fall is supported."""
    start = rates[0]
    above = max((i for i, r in enumerate(rates) if 2 * r.right * start.n > start.right * r.n), default=None)
    if above is None or above + 1 == len(rates):
        return None
    later = rates[above + 1 :]
    _, high = wilson(sum(r.right for r in later), sum(r.n for r in later))
    return (rates[above], later[0]) if high < start.low else None


def _judge_no_return(review: Review, rates: tuple[PassRate, ...]) -> NoReturn:
    start = rates[0]
    gap = _collapse(rates)
    counts = f"{start.right} of {start.n}"
    if gap is None:
        why = (
            f"No collapse: {counts} rollouts from the start are right, and the rate nowhere surely stays at "
            "half of that or less."
            if start.right
            else f"Nothing to lose: {counts} rollouts from the start are right."
        )
        return NoReturn(None, rates, why)
    before, after = gap
    at = after.index - 1
    sentence = (
        f"Lost at {quoted(review.pieces[at])}: before it {before.right} of {before.n} rollouts are right, "
        f"after it {after.right} of {after.n}, and the rate does not recover (from the start: {counts})."
    )
    return NoReturn(at, rates, sentence)
