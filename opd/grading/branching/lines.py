"""Another line of a text: force a token and let the student go on, or let the teacher go on instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from opd.engines.sampling import check_temperature
from opd.engines.transformers import TransformersSampler
from opd.grading.branching.rolling import check, ended, request_behind, room_behind
from opd.grading.reviewing import SNAPSHOT_TOKENS, grade_growing
from opd.models.pair import Pair
from opd.reviews import BranchPoint, Review
from opd.tasks import Example, Task
from opd.trajectory import Trajectory

FORCED = (
    "Part of the text was forced, not sampled, so the mean penalty of the whole does not estimate the KL."
)


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
    check(pair, review, at)
    main = review.trajectory
    prefix = np.concatenate([main.completion_ids[:at], ids])
    if ids[-1] in pair.student.eos_ids:
        growing: Iterable[Trajectory] = [ended(main, prefix)]
    else:
        request = request_behind(review, prefix, room_behind(pair, main, len(prefix), max_tokens))
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
    check(pair, review, at)
    main = review.trajectory
    room = room_behind(pair, main, at, max_tokens)
    request = request_behind(review, main.completion_ids[:at], room)
    as_teacher = replace(request, prompt_ids=main.teacher_prompt_ids)
    written = TransformersSampler(pair.teacher).sample(
        [as_teacher], temperature=temperature, snapshot_every=SNAPSHOT_TOKENS
    )
    growing = (
        replace(t, prompt_ids=main.prompt_ids, behaviour_logprobs=None, temperature=main.temperature)
        for t in written
    )
    point = BranchPoint(parent, at, "teacher", forced=0)
    yield from _graded(pair, review, growing, point, None, task, example)


def _forced_ids(pair: Pair, forced: int | Sequence[int] | str) -> NDArray[np.int64]:
    """Return what is to be forced as token ids, int64 ``[F]``.

    Raises:
        ValueError: it is empty, outside the vocabulary, or goes on after an end.
    """
    if isinstance(forced, str):
        ids = pair.student.encode(forced)
    else:
        ids = np.atleast_1d(np.asarray(forced, dtype=np.int64))
    if not len(ids):
        raise ValueError("There is nothing to force: the text is empty.")
    pair.must_know(ids, "what is to be forced")
    if np.isin(ids[:-1], pair.student.eos_ids).any():
        raise ValueError("What is to be forced goes on after a token that ends the text. Cut it there.")
    return ids


def _graded(
    pair: Pair,
    review: Review,
    growing: Iterable[Trajectory],
    point: BranchPoint,
    bias: str | None,
    task: Task | None,
    example: Example | None,
) -> Iterator[Review]:
    """Grade a branch as it grows, and say where it leaves the review and why it is biased, if it is."""
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
