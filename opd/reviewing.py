"""Graded trajectories as reviews: text beside every id, right or wrong; and their stream as they grow."""

from __future__ import annotations

from collections.abc import Iterator

from opd.engines.transformers import TransformersSampler
from opd.grading import grade
from opd.models import Pair, as_messages
from opd.sampling import check_temperature, requests
from opd.tasks import Example, Task
from opd.trajectory import Grades, Prompt, Review, Trajectory

SNAPSHOT_TOKENS = 16
"""A growing trajectory is graded anew every so many tokens."""


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
    shown = {int(i) for top in tops for i in top.ravel()}
    return Review(
        student=pair.student.name,
        teacher=pair.teacher.name,
        messages=as_messages(prompt),
        trajectory=trajectory,
        grades=grades,
        pieces=pair.student.pieces(trajectory.completion_ids),
        vocabulary={i: pair.student.token_text(i) for i in sorted(shown)},
        correct=correct,
        seed=seed,
    )


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
        ValueError: see :func:`opd.sampling.requests`.
    """
    check_temperature(temperature)
    asked = requests(pair.student, [prompt], n=n, seed=seed, max_tokens=max_tokens)
    newest: dict[int, Review] = {}
    waiting: list[Trajectory] = []

    def catch_up() -> list[Review]:
        for t, g in zip(waiting, grade(pair, waiting), strict=True):
            correct = None
            if t.finish_reason and task is not None and example is not None:
                correct = task.verify(example, pair.student.text(t.completion_ids))
            newest[t.sample_index] = review(pair, prompt, t, g, seed=seed, correct=correct)
        waiting.clear()
        return [newest[i] for i in sorted(newest)]

    sampler = TransformersSampler(pair.student)
    for trajectory in sampler.sample(asked, temperature=temperature, snapshot_every=SNAPSHOT_TOKENS):
        if any(t.sample_index == trajectory.sample_index for t in waiting):
            yield catch_up()
        waiting.append(trajectory)
        if len(waiting) + sum(r.trajectory.finish_reason is not None for r in newest.values()) >= n:
            yield catch_up()
    if waiting:
        yield catch_up()
