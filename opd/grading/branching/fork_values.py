"""What a choice was worth: rollouts behind each option of a place, counted by a verifier, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any, Literal

import numpy as np

from opd.grading.branching.rolling import (
    OPTION_STREAM,
    ROUND,
    Cost,
    check,
    check_count,
    check_index,
    quoted,
    roll,
    room_behind,
)
from opd.grading.evaluation import Z95, newcombe
from opd.grading.grading import grade
from opd.models.pair import Pair
from opd.reviews import Review
from opd.tasks import Example, Task, verify

STYLE_POINTS = 10.0
"""A difference of pass rates that surely is less than this many percentage points is a matter of style."""

CHOICE_PROBABILITY = 0.05
"""What the teacher gives less than this is no choice of its."""

Decision = Literal["decisive", "style only", "undecided"]


@dataclass(frozen=True)
class Option:
    """One way to go on at a fork, and what came of it.

    Attributes:
        token: the forced id.
        text: its text.
        by: whose choice it is: the token the text has, or one that the teacher finds likely.
        n: rollouts so far.
        right: how many of them the verifier passed; None where nobody verifies.
        kl: mean reverse KL of their tokens after the fork, nats per token; None where there are none.
    """

    token: int
    text: str
    by: Literal["student", "teacher"]
    n: int = 0
    right: int | None = None
    kl: float | None = None


@dataclass(frozen=True)
class ForkValue:
    """What the choice at one token is worth.

    Attributes:
        at: index of the token.
        options: the token that was taken, then the teacher's choices, likeliest first.
        verdict: "decisive" (the interval excludes 0), "style only" (the whole interval is within
            :data:`STYLE_POINTS`, 0 inside it or not) or "undecided".
        points: pass rate after the teacher's likeliest choice minus that after the token taken, percentage
            points; None where nobody verifies.
        low: lower end of its 95 % interval (:func:`opd.grading.evaluation.newcombe`).
        high: upper end.
        more: undecided: about how many more rollouts of each option would decide; None where that cannot be
            said.
        sentence: the finding in words.
    """

    at: int
    options: tuple[Option, ...]
    verdict: Decision
    points: float | None
    low: float | None
    high: float | None
    more: int | None
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as :attr:`opd.reviews.Review.evidence` holds it."""
        out = asdict(self)
        del out["at"]
        return out | {"options": list(out["options"])}


def teacher_choices(review: Review, at: int, top: int = 2) -> list[int]:
    """Return up to ``top`` ids that the teacher finds likely at ``at`` and that were not taken, best first.

    Raises:
        ValueError: ``at`` is no token of the review, or the teacher sees no other way to go on there.
    """
    check_index(review, at)
    teacher, taken = review.grades.teacher, int(review.trajectory.completion_ids[at])
    likely = [
        int(token)
        for token, logprob in zip(teacher.top_ids[at], teacher.top_logprobs[at], strict=True)
        if token != taken and np.exp(logprob) >= CHOICE_PROBABILITY
    ]
    if not likely:
        raise ValueError(
            f"The teacher sees no other way to go on here: it gives no other token {CHOICE_PROBABILITY:.0%}. "
            "Choose a token where it does, or force one."
        )
    return likely[:top]


def fork_value_cost(review: Review, at: int, *, k: int = 32, top: int = 2) -> Cost:
    """Return what :func:`fork_value` would take.

    Raises:
        ValueError: k is below 1; see also :func:`teacher_choices`.
    """
    check_count(k)
    rollouts = k * (1 + len(teacher_choices(review, at, top)))
    return Cost(rollouts, rollouts * (len(review.trajectory) - at - 1))


def fork_value(
    pair: Pair,
    review: Review,
    at: int,
    *,
    task: Task | None = None,
    example: Example | None = None,
    k: int = 32,
    top: int = 2,
    max_tokens: int = 256,
) -> Iterator[ForkValue]:
    """Measure what the choice at one token is worth: force it or a teacher's choice; the student goes on.

    It compares the token taken with the teacher's *likeliest* other choice, which is known before
    any rollout. Picking the one that came out best would find differences where there are none (the winner's
    curse). The further choices are shown beside it.

    Args:
        pair: the student that goes on and the teacher.
        review: the trajectory.
        at: index of the token, in [0, T).
        task: verifies the answers, with ``example``. Without it only the KL is compared.
        example: the problem that the prompt poses.
        k: rollouts of each option.
        top: how many of the teacher's choices to try.
        max_tokens: bound on each whole completion.

    Yields:
        The state after every :data:`ROUND` rollouts of each option. It is decided after the last one only:
        who looks at every partial result and stops at a decisive one finds too many.

    Raises:
        ValueError: k is below 1; see also :func:`branch` and :func:`teacher_choices`.
    """
    check_count(k)
    choices = teacher_choices(review, at, top)
    check(pair, review, at)
    main = review.trajectory
    tokens = [int(main.completion_ids[at]), *choices]
    options = [
        Option(token, pair.student.token_text(token), "teacher" if i else "student")
        for i, token in enumerate(tokens)
    ]
    room = room_behind(pair, main, at + 1, max_tokens)
    verified = task is not None and example is not None and example.answer is not None
    kl = [np.zeros(0) for _ in options]
    for start in range(0, k, ROUND):
        asked = [
            (np.append(main.completion_ids[:at], token), OPTION_STREAM + token, j)
            for token in tokens
            for j in range(start, min(k, start + ROUND))
        ]
        rollouts = roll(pair, review, asked, room)
        graded = grade(pair, rollouts, temperature=review.grades.temperature, top_k=1, all_divergences=False)
        for i, token in enumerate(tokens):
            mine = [(t, g) for t, g in zip(rollouts, graded, strict=True) if t.completion_ids[at] == token]
            kl[i] = np.concatenate([kl[i], *(g.reverse_kl[at + 1 :] for _, g in mine)])
            right = None
            if verified:
                passed = sum(bool(verify(task, example, pair.student, t)) for t, _ in mine)
                right = (options[i].right or 0) + passed
            options[i] = replace(
                options[i],
                n=options[i].n + len(mine),
                right=right,
                kl=float(kl[i].mean()) if len(kl[i]) else None,
            )
        yield judge_fork(at, options, k)


def judge_fork(at: int, options: Sequence[Option], k: int) -> ForkValue:
    """Turn the counts of a fork's options into a finding, decided only by ``k`` rollouts of each."""
    taken, best = options[0], options[1]
    if taken.right is None or best.right is None:
        kls = " and ".join(
            f"{'nothing to measure' if o.kl is None else f'{o.kl:.3f} nats a token'} after {quoted(o.text)}"
            for o in (best, taken)
        )
        sentence = (
            "Nobody verifies these answers, so what is right is not known. The student then strays from "
            f"the teacher by {kls} ({best.n} rollouts each)."
        )
        return ForkValue(at, tuple(options), "undecided", None, None, None, None, sentence)
    points = 100 * (best.right / best.n - taken.right / taken.n)
    low, high = (100 * bound for bound in newcombe(best.right, best.n, taken.right, taken.n))
    counts = (
        f"right in {best.right} of {best.n} rollouts after {quoted(best.text)}, "
        f"in {taken.right} of {taken.n} after {quoted(taken.text)}"
    )
    figures = f"{points:+.0f} points [{low:+.0f}, {high:+.0f}]"
    decision: Decision = "undecided"
    more = None
    if best.n < k:
        sentence = f"{best.n} of {k} rollouts each so far: {counts}."
    elif low >= -STYLE_POINTS and high <= STYLE_POINTS:
        decision = "style only"
        sentence = f"Style only: {counts}, {figures}, surely within {STYLE_POINTS:.0f} points."
    elif low > 0 or high < 0:
        decision = "decisive"
        sentence = f"Decisive: {counts}, {figures}."
    else:
        more = more_rollouts(best.right, taken.right, k)
        sentence = f"Undecided: {counts}, {figures}. About {more:,} more rollouts of each would decide."
    return ForkValue(at, tuple(options), decision, points, low, high, more, sentence)


def more_rollouts(right: int, other_right: int, n: int) -> int:
    """Return about how many rollouts of each option, besides ``n``, decide if the rates stay what they are.

    By the normal approximation, with d the difference of the rates and v the sum of their variances
    p (1 - p), the interval's half-width after m rollouts is z sqrt(v / m). It excludes 0 from
    m = v (z / d)^2 on and lies within :data:`STYLE_POINTS` from m = v (z / (0.1 - |d|))^2 on; the smaller m
    counts. The rates are shrunk by one right and one wrong rollout (Agresti and Caffo 2000), or 0 of 8 would
    have no variance. The figure has two digits: it is no more certain.
    """
    p, q = (right + 1) / (n + 2), (other_right + 1) / (n + 2)
    difference, variance = abs(p - q), p * (1 - p) + q * (1 - q)
    widths = [difference, STYLE_POINTS / 100 - difference]
    more = max(ROUND, ceil(min(variance * (Z95 / width) ** 2 for width in widths if width > 0)) - n)
    digit = 10 ** max(0, len(str(more)) - 2)
    return ceil(more / digit) * digit
