"""What would have happened: force a token, let the student go on, and see what it was worth.

A branch is one other way the text could have gone, graded like the main line. *Fork value* and *point of no
return* are measurements: many rollouts, counted by a verifier, with intervals. Only ids travel: what stands
before a branch is the very ids of its parent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from opd.engines.sampling import check_temperature, uniforms
from opd.engines.transformers import TransformersSampler
from opd.grading.evaluation import Z95, newcombe, wilson
from opd.grading.grading import grade
from opd.grading.reviewing import SNAPSHOT_TOKENS, grade_growing
from opd.models.pair import Pair
from opd.protocols import SampleRequest
from opd.reviews import BranchPoint, Review
from opd.tasks import Example, Task, verify
from opd.trajectory import Trajectory

FORCED = (
    "Part of the text was forced, not sampled, so the mean penalty of the whole does not estimate the KL."
)

NO_BRANCHES = (
    "Branches need a teacher with the student's tokenizer: its choices here are no tokens of the student. "
    "Grade with a teacher of the student's family."
)

STYLE_POINTS = 10.0
"""A difference of pass rates that surely is less than this many percentage points is a matter of style."""

CHOICE_PROBABILITY = 0.05
"""What the teacher gives less than this is no choice of its."""

ROUND = 8
"""Rollouts of every option between two partial results."""

# Rollouts draw from streams of their own ("lessons" that no training step has). The main line's numbers would
# not do: whoever asks has seen what they led to. And each option has its own: Newcombe's interval is for
# independent samples, which common random numbers are not.
NO_RETURN_STREAM = 2**20
OPTION_STREAM = 2**20 + 1  # plus the id of the forced token

Verdict = Literal["decisive", "style only", "undecided"]


def branch(
    pair: Pair,
    review: Review,
    at: int,
    forced: int | Sequence[int] | str,
    *,
    parent: int = 0,
    max_tokens: int = 256,
    task: Task | None = None,
    example: Example | None = None,
) -> Iterator[Review]:
    """Force tokens at one place of a trajectory, let the student go on, and grade the whole text as it grows.

    The student goes on as it did: same temperature, and the random numbers of the same positions, so forcing
    the token it had taken gives the text it had written.

    Args:
        pair: the student that goes on and the teacher.
        review: the main line.
        at: index of the first token that is replaced, in [0, T).
        forced: an id, several, or a text, which is encoded once.
        parent: index of ``review`` in the list that the branch is kept in.
        max_tokens: bound on the whole completion.
        task: verifies the answer, with ``example``.
        example: the problem that the prompt poses.

    Yields:
        States of the branch; the last one has a finish reason.

    Raises:
        ValueError: nothing is forced, the place or an id is not there, the review is of another vocabulary,
            the text goes on after its end, or no room is left.
    """
    ids = _forced_ids(pair, forced)
    _check(pair, review, at)
    main = review.trajectory
    prefix = np.concatenate([main.completion_ids[:at], ids])
    if ids[-1] in pair.student.eos_ids:
        growing: Iterable[Trajectory] = [_ended(main, prefix)]
    else:
        request = _request(main, prefix, _room(pair, main, len(prefix), max_tokens), seed=review.seed or 0)
        growing = TransformersSampler(pair.student).sample(
            [request], temperature=main.temperature, snapshot_every=SNAPSHOT_TOKENS
        )
    point = BranchPoint(parent, at, "student", forced=len(ids))
    yield from _graded(pair, review, growing, point, FORCED, task, example)


def teacher_line(
    pair: Pair,
    review: Review,
    at: int,
    *,
    parent: int = 0,
    temperature: float = 0.0,
    max_tokens: int = 256,
    task: Task | None = None,
    example: Example | None = None,
) -> Iterator[Review]:
    """Let the teacher write from before a token on, seeing its own prompt, and grade the whole text.

    Args:
        pair: the student and the teacher that goes on.
        review: the main line.
        at: index of the first token that the teacher writes, in [0, T).
        parent: index of ``review`` in the list that the line is kept in.
        temperature: the teacher's; 0 takes its likeliest token.
        max_tokens: bound on the whole completion.
        task: verifies the answer, with ``example``.
        example: the problem that the prompt poses.

    Yields:
        States of the line; the last one has a finish reason. Off-policy: there are no behaviour log-probs.

    Raises:
        ValueError: see :func:`branch`; or a negative temperature.
    """
    check_temperature(temperature)
    _check(pair, review, at)
    main = review.trajectory
    request = _request(
        main, main.completion_ids[:at], _room(pair, main, at, max_tokens), seed=review.seed or 0
    )
    told = replace(request, prompt_ids=main.teacher_prompt_ids)
    written = TransformersSampler(pair.teacher).sample(
        [told], temperature=temperature, snapshot_every=SNAPSHOT_TOKENS
    )
    growing = (
        replace(t, prompt_ids=main.prompt_ids, behaviour_logprobs=None, temperature=main.temperature)
        for t in written
    )
    point = BranchPoint(parent, at, "teacher", forced=0)
    yield from _graded(pair, review, growing, point, None, task, example)


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
    verdict: Verdict
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


@dataclass(frozen=True)
class Cost:
    """What a measurement will take: rollouts, and tokens to sample if they are as long as the main line."""

    rollouts: int
    tokens: int

    def __str__(self) -> str:
        """One phrase."""
        return f"{self.rollouts:,} rollouts, about {self.tokens:,} tokens"


def teacher_choices(review: Review, at: int, top: int = 2) -> list[int]:
    """Return up to ``top`` ids that the teacher finds likely at ``at`` and that were not taken, best first.

    Raises:
        ValueError: ``at`` is no token of the review, or the teacher sees no other way to go on there.
    """
    _check_index(review, at)
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
    _check_count(k)
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

    The verdict compares the token taken with the teacher's *likeliest* other choice, which is known before
    any rollout. Picking the one that came out best would find differences where there are none (the winner's
    curse). The further choices are shown without a verdict.

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
        The state after every :data:`ROUND` rollouts of each option. There is a verdict after the last one
        only: who looks at every partial result and stops at a decisive one finds too many.

    Raises:
        ValueError: k is below 1; see also :func:`branch` and :func:`teacher_choices`.
    """
    _check_count(k)
    choices = teacher_choices(review, at, top)
    _check(pair, review, at)
    main = review.trajectory
    tokens = [int(main.completion_ids[at]), *choices]
    options = [
        Option(token, pair.student.token_text(token), "teacher" if i else "student")
        for i, token in enumerate(tokens)
    ]
    room = _room(pair, main, at + 1, max_tokens)
    verified = task is not None and example is not None and example.answer is not None
    kl = [np.zeros(0) for _ in options]
    for start in range(0, k, ROUND):
        asked = [
            (np.append(main.completion_ids[:at], token), OPTION_STREAM + token, j)
            for token in tokens
            for j in range(start, min(k, start + ROUND))
        ]
        rollouts = _roll(pair, review, asked, room)
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
    """Turn the counts of a fork's options into a finding; no verdict before ``k`` rollouts of each."""
    taken, best = options[0], options[1]
    if taken.right is None or best.right is None:
        kls = " and ".join(
            f"{'nothing to measure' if o.kl is None else f'{o.kl:.3f} nats a token'} after {_quoted(o.text)}"
            for o in (best, taken)
        )
        sentence = (
            "Nobody verifies these answers, so right and wrong cannot be told. The student then strays from "
            f"the teacher by {kls} ({best.n} rollouts each)."
        )
        return ForkValue(at, tuple(options), "undecided", None, None, None, None, sentence)
    points = 100 * (best.right / best.n - taken.right / taken.n)
    low, high = (100 * bound for bound in newcombe(best.right, best.n, taken.right, taken.n))
    counts = (
        f"right in {best.right} of {best.n} rollouts after {_quoted(best.text)}, "
        f"in {taken.right} of {taken.n} after {_quoted(taken.text)}"
    )
    figures = f"{points:+.0f} points [{low:+.0f}, {high:+.0f}]"
    verdict: Verdict = "undecided"
    more = None
    if best.n < k:
        sentence = f"{best.n} of {k} rollouts each so far: {counts}."
    elif low >= -STYLE_POINTS and high <= STYLE_POINTS:
        verdict = "style only"
        sentence = f"Style only: {counts}, {figures}, surely within {STYLE_POINTS:.0f} points."
    elif low > 0 or high < 0:
        verdict = "decisive"
        sentence = f"Decisive: {counts}, {figures}."
    else:
        more = more_rollouts(best.right, taken.right, k)
        sentence = f"Undecided: {counts}, {figures}. About {more:,} more rollouts of each would decide."
    return ForkValue(at, tuple(options), verdict, points, low, high, more, sentence)


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
    _check_count(k)
    places = _grid(len(review.trajectory), grid)
    gap = max((b - a for a, b in pairwise(places)), default=1)
    halvings = (gap - 1).bit_length()
    tokens = sum(len(review.trajectory) - i for i in places) + halvings * len(review.trajectory)
    return Cost(k * (len(places) + halvings), k * tokens)


def must_be_verified(example: Example | None) -> None:
    """Refuse a prompt to which no right answer is known.

    Raises:
        ValueError: it is one.
    """
    if example is None or example.answer is None:
        raise ValueError("Nobody verifies the answers to this prompt, so right and wrong cannot be told.")


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
    _check_count(k)
    must_be_verified(example)
    _check(pair, review, 0)
    main = review.trajectory
    room = _room(pair, main, len(main) - 1, max_tokens)
    rates: dict[int, PassRate] = {}

    def measure(index: int) -> None:
        prefix = main.completion_ids[:index]
        rollouts = _roll(pair, review, [(prefix, NO_RETURN_STREAM, j) for j in range(k)], room)
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
        f"Lost at {_quoted(review.pieces[at])}: before it {before.right} of {before.n} rollouts are right, "
        f"after it {after.right} of {after.n}, and the rate does not recover (from the start: {counts})."
    )
    return NoReturn(at, rates, sentence)


def with_evidence(review: Review, found: ForkValue | NoReturn) -> Review:
    """Return the review with a finding kept in its evidence, beside earlier ones."""
    evidence = dict(review.evidence or {})
    if isinstance(found, NoReturn):
        evidence["noReturn"] = found.to_dict()
    else:
        evidence["forkValue"] = {**evidence.get("forkValue", {}), str(found.at): found.to_dict()}
    return replace(review, evidence=evidence)


def _roll(
    pair: Pair, review: Review, asked: Sequence[tuple[NDArray[np.int64], int, int]], room: int
) -> list[Trajectory]:
    """Sample the student's continuations of (prefix, stream, number), in order.

    A greedy text is continued at temperature 1: greedy rollouts would all be one.
    """
    main = review.trajectory
    done: dict[int, Trajectory] = {}
    requests = []
    for place, (prefix, stream, number) in enumerate(asked):
        if len(prefix) and prefix[-1] in pair.student.eos_ids:
            done[place] = _ended(main, prefix)
            continue
        request = _request(main, prefix, room, seed=review.seed or 0, stream=stream, number=number)
        requests.append(replace(request, prompt_index=place))
    for t in TransformersSampler(pair.student).sample(requests, temperature=main.temperature or 1.0):
        done[t.prompt_index] = t
    return [done[place] for place in range(len(asked))]


def _request(
    main: Trajectory,
    prefix: NDArray[np.int64],
    room: int,
    *,
    seed: int,
    stream: int | None = None,
    number: int = 0,
) -> SampleRequest:
    """Ask for a continuation of ``prefix``; without a stream with the random numbers of the main line."""
    place = {"step": 0, "prompt_index": main.prompt_index, "sample_index": main.sample_index}
    if stream is not None:
        place = {"step": len(prefix), "prompt_index": main.prompt_index, "sample_index": number}
    return SampleRequest(
        prompt_ids=main.prompt_ids,
        uniforms=uniforms(room, seed=seed, stream=stream or 0, **place),
        prefix_ids=prefix,
        teacher_prompt_ids=main.teacher_prompt_ids,
        prompt_index=main.prompt_index,
        sample_index=main.sample_index,
    )


def _ended(main: Trajectory, ids: NDArray[np.int64]) -> Trajectory:
    """Return the trajectory of a text whose end was forced: nothing is left to sample."""
    return replace(main, completion_ids=ids, behaviour_logprobs=None, finish_reason="stop")


def _graded(
    pair: Pair,
    review: Review,
    growing: Iterable[Trajectory],
    point: BranchPoint,
    bias: str | None,
    task: Task | None,
    example: Example | None,
) -> Iterator[Review]:
    states = grade_growing(
        pair,
        review.messages,
        growing,
        seed=review.seed,
        temperature=review.grades.temperature,
        task=task,
        example=example,
    )
    for (state,) in states:
        grades = state.grades if bias is None else replace(state.grades, bias=bias)
        yield replace(state, branch=point, grades=grades)


def _forced_ids(pair: Pair, forced: int | Sequence[int] | str) -> NDArray[np.int64]:
    if isinstance(forced, str):
        ids = pair.student.encode(forced)
    else:
        ids = np.atleast_1d(np.asarray(forced, dtype=np.int64))
    if not len(ids):
        raise ValueError("There is nothing to force: the text is empty.")
    if ids.min() < 0 or ids.max() >= pair.vocabulary:
        raise ValueError(f"Token ids must lie in [0, {pair.vocabulary}); what is to be forced has others.")
    if np.isin(ids[:-1], pair.student.eos_ids).any():
        raise ValueError("What is to be forced goes on after a token that ends the text. Cut it there.")
    return ids


def _check_count(k: int) -> None:
    if k < 1:
        raise ValueError(f"It takes at least 1 rollout of each kind, not {k}.")


def _check_index(review: Review, at: int) -> None:
    if review.grades.spans is not None:
        raise ValueError(NO_BRANCHES)
    if not 0 <= at < len(review.trajectory):
        raise ValueError(f"There is no such token: the text has {len(review.trajectory)}.")


def _check(pair: Pair, review: Review, at: int) -> None:
    """Refuse a place that is not there, and a review whose ids mean something else to this pair.

    Raises:
        ValueError: it is so.
    """
    _check_index(review, at)
    if pair.cross_tokenizer:
        raise ValueError(NO_BRANCHES)
    ids = review.trajectory.completion_ids
    if ids.max() >= pair.vocabulary or "".join(pair.student.pieces(ids)) != review.text:
        raise ValueError(
            f"The review's tokens are not those of {pair.student.name}. Load the pair that it was made with: "
            f"{review.student} and {review.teacher}."
        )


def _room(pair: Pair, main: Trajectory, before: int, max_tokens: int) -> int:
    """Return the bound on a completion that begins with ``before`` given tokens.

    Raises:
        ValueError: nothing could follow them.
    """
    if before >= max_tokens:
        raise ValueError(
            f"{before} tokens stand before the branch, which leaves nothing of the {max_tokens} asked for. "
            "Allow a longer answer."
        )
    prompts = ((pair.student, main.prompt_ids), (pair.teacher, main.teacher_prompt_ids))
    for model, prompt in prompts:
        if len(prompt) + before >= model.context:
            raise ValueError(
                f"{len(prompt) + before} tokens stand before the branch, and {model.name} can read "
                f"{model.context}. Branch earlier."
            )
    return min(max_tokens, *(model.context - len(prompt) for model, prompt in prompts))


def _quoted(text: str) -> str:
    return f"“{text}”"
