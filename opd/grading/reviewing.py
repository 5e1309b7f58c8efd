"""Graded trajectories as reviews: text beside every id, right or wrong; and their stream as they grow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from opd.engines.sampling import check_temperature, requests
from opd.engines.transformers import TransformersSampler
from opd.grading.grading import grade
from opd.grading.own_text import chat_trajectories, text_trajectory
from opd.models.pair import Pair
from opd.models.text import ModelText
from opd.reviews import Review
from opd.tasks import Example, Task, verify
from opd.trajectory import Grades, Messages, Prompt, Trajectory, as_messages

SNAPSHOT_TOKENS = 16
"""A growing trajectory is graded anew every so many tokens."""

SAMPLED_TOGETHER = 32
"""Trajectories of several prompts that are sampled before they are graded and shown."""


def review(
    pair: Pair,
    prompt: Prompt,
    trajectory: Trajectory,
    grades: Grades,
    *,
    seed: int | None = None,
    correct: bool | None = None,
) -> Review:
    """Put text to a graded trajectory.

    Args:
        pair: who wrote it and who graded it.
        prompt: what was asked.
        trajectory: the tokens.
        grades: their grades.
        seed: what it was sampled with.
        correct: what a verifier says of it.
    """
    tops = (grades.student.top_ids, grades.teacher.top_ids)
    ours, theirs = (set(top_ids[top_ids >= 0].tolist()) for top_ids in tops)
    apart = pair.cross_tokenizer
    read = pair.student.prompt_text(trajectory.prompt_ids)
    by_teacher = pair.teacher.prompt_text(trajectory.teacher_prompt_ids)
    same_ids = np.array_equal(trajectory.prompt_ids, trajectory.teacher_prompt_ids)
    alike = not apart and same_ids and read.pieces == by_teacher.pieces
    return Review(
        student=pair.student.name,
        teacher=pair.teacher.name,
        messages=as_messages(prompt),
        trajectory=trajectory,
        grades=grades,
        pieces=pair.student.pieces(trajectory.completion_ids),
        vocabulary=_texts(pair.student, ours if apart else ours | theirs),
        teacher_vocabulary=_texts(pair.teacher, theirs) if apart else None,
        correct=correct,
        seed=seed,
        prompt=read,
        teacher_prompt=None if alike else by_teacher,
    )


def _texts(model: ModelText, ids: set[int]) -> dict[int, str]:
    return {i: model.token_text(i) for i in sorted(ids)}


def stream_reviews(
    pair: Pair,
    prompt: Prompt,
    *,
    n: int = 4,
    seed: int = 0,
    temperature: float = 1.0,
    max_tokens: int = 256,
    task: Task | None = None,
    example: Example | None = None,
) -> Iterator[list[Review]]:
    """Sample ``n`` trajectories of one prompt and grade them while they grow.

    Each yield is the newest state of all of them, in sample order; one that still grows has the finish reason
    None. To stop, stop iterating.

    Args:
        pair: the student and the teacher.
        prompt: a text or a list of messages.
        n: how many trajectories.
        seed: the same seed gives the same trajectories.
        temperature: to sample and to grade at; 0 samples greedily and grades at 1.
        max_tokens: bound on each completion.
        task: verifies the answers, with ``example``.
        example: the problem that the prompt poses.

    Raises:
        ValueError: see :func:`opd.engines.sampling.requests`.
    """
    check_temperature(temperature)
    asked = requests(pair, [prompt], n=n, seed=seed, max_tokens=max_tokens)
    sampler = TransformersSampler(pair.student)
    growing = sampler.sample(asked, temperature=temperature, snapshot_every=SNAPSHOT_TOKENS)
    yield from grade_growing(pair, prompt, growing, n=n, seed=seed, task=task, example=example)


def grade_growing(
    pair: Pair,
    prompt: Prompt,
    growing: Iterable[Trajectory],
    *,
    n: int = 1,
    seed: int | None = None,
    temperature: float | None = None,
    task: Task | None = None,
    example: Example | None = None,
) -> Iterator[list[Review]]:
    """Grade trajectories of one prompt while a sampler writes them.

    Args:
        pair: the student and the teacher.
        prompt: a text or a list of messages.
        growing: states of trajectories, finished or not, as a sampler with ``snapshot_every`` yields them.
        n: how many trajectories there will be.
        seed: what they are sampled with.
        temperature: to grade at; None = the one they are sampled at.
        task: verifies the answers, with ``example``.
        example: the problem that the prompt poses.

    Yields:
        The newest state of all of them, in sample order.
    """
    newest: dict[int, Review] = {}
    waiting: list[Trajectory] = []

    def catch_up() -> list[Review]:
        for t, g in zip(waiting, grade(pair, waiting, temperature=temperature), strict=True):
            correct = _verify(pair, t, task, example) if t.finish_reason else None
            newest[t.sample_index] = review(pair, prompt, t, g, seed=seed, correct=correct)
        waiting.clear()
        return [newest[i] for i in sorted(newest)]

    for trajectory in growing:
        if any(t.sample_index == trajectory.sample_index for t in waiting):
            yield catch_up()
        waiting.append(trajectory)
        if len(waiting) + sum(r.trajectory.finish_reason is not None for r in newest.values()) >= n:
            yield catch_up()
    if waiting:
        yield catch_up()


def review_text(
    pair: Pair,
    prompt: Prompt,
    completion: str,
    *,
    complete: bool = True,
    task: Task | None = None,
    example: Example | None = None,
) -> Review:
    """Grade a text that nobody sampled, at temperature 1; its grades are labelled off-policy.

    Args:
        pair: the student, as whose writing the text is graded, and the teacher.
        prompt: what the text answers.
        completion: the text.
        complete: it is a whole answer, so the token that ends a turn is graded too.
        task: verifies the answer, with ``example``.
        example: the problem that the prompt poses.

    Raises:
        ValueError: see :func:`opd.grading.own_text.text_trajectory`.
    """
    trajectory = text_trajectory(pair, prompt, completion, complete=complete)
    (grades,) = grade(pair, [trajectory])
    return review(pair, prompt, trajectory, grades, correct=_verify(pair, trajectory, task, example))


def review_chat(pair: Pair, chat: Messages) -> list[Review]:
    """Grade every assistant turn of a chat in its context, one review a turn, labelled off-policy.

    Each turn is a trajectory of its own: what one costs is not mixed with the next, and turns line up as
    samples do.

    Raises:
        ValueError: see :func:`opd.grading.own_text.chat_trajectories`.
    """
    turns = chat_trajectories(pair, chat)
    grades = grade(pair, [trajectory for _, trajectory in turns])
    return [review(pair, before, t, g) for (before, t), g in zip(turns, grades, strict=True)]


def review_prompts(
    pair: Pair,
    prompts: Sequence[Prompt],
    completions: Sequence[str | None] | None = None,
    *,
    n: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    max_tokens: int = 256,
    task: Task | None = None,
    examples: Sequence[Example | None] | None = None,
) -> Iterator[list[Review]]:
    """Grade many prompts: ``n`` samples of each, or the text that it comes with.

    Each yield is all that has been graded so far, in the order of the prompts.

    Args:
        pair: the student and the teacher.
        prompts: texts or lists of messages.
        completions: the text to grade under each prompt; None where the student is to write.
        n: how many trajectories of each prompt without a text.
        seed: the same seed gives the same trajectories.
        temperature: to sample and to grade samples at; texts are graded at 1.
        max_tokens: bound on each sampled completion.
        task: verifies the answers, with ``examples``.
        examples: the problem that each prompt poses, None where it poses none.

    Raises:
        ValueError: see :func:`opd.engines.sampling.requests` and
            :func:`opd.grading.own_text.text_trajectory`.
    """
    check_temperature(temperature)
    given = {i: text for i, text in enumerate(completions or ()) if text is not None}
    asked = []
    if len(given) < len(prompts):
        asked = requests(pair, prompts, n=n, seed=seed, max_tokens=max_tokens)
    done: dict[tuple[int, int], Review] = {}

    def add(trajectories: Sequence[Trajectory], seed: int | None) -> list[Review]:
        for t, g in zip(trajectories, grade(pair, trajectories), strict=True):
            example = examples[t.prompt_index] if examples else None
            correct = _verify(pair, t, task, example)
            made = review(pair, prompts[t.prompt_index], t, g, seed=seed, correct=correct)
            done[t.prompt_index, t.sample_index] = made
        return [done[place] for place in sorted(done)]

    if given:
        texts = {i: text_trajectory(pair, prompts[i], text) for i, text in given.items()}
        yield add([replace(t, prompt_index=i) for i, t in texts.items()], None)
    sampler = TransformersSampler(pair.student)
    asked = [request for request in asked if request.prompt_index not in given]
    for start in range(0, len(asked), SAMPLED_TOGETHER):
        part = asked[start : start + SAMPLED_TOGETHER]
        yield add(list(sampler.sample(part, temperature=temperature)), seed)


def _verify(pair: Pair, trajectory: Trajectory, task: Task | None, example: Example | None) -> bool | None:
    """Say whether a trajectory solves the example; None where there is none."""
    if task is None or example is None:
        return None
    return verify(task, example, pair.student, trajectory)
