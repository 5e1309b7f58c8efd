"""Two checkpoints side by side."""

from __future__ import annotations

from collections.abc import Iterator

from opd.engines.sampling import sample
from opd.grading.grading import grade
from opd.grading.reviewing import review
from opd.models.load import load_model
from opd.models.pair import Pair
from opd.phases import announce
from opd.reviews import Review
from opd.runs.run import Run
from opd.tasks import TaskOptions, load_task, verify
from opd.training.lessons import Lesson, load_teacher


def compare_checkpoints(
    first: tuple[Run, int], second: tuple[Run, int], *, n: int = 8, seed: int = 0
) -> Iterator[tuple[Review, Review]]:
    """Let two checkpoints answer the same held-out prompts with the same random numbers, and grade both.

    Both checkpoints are pinned, so that training does not remove what is being looked at. The prompts and the
    teacher are those of the first run.

    Args:
        first: a run and a step of it.
        second: another step, or that of another run.
        n: how many prompts.
        seed: of the sampling.

    Yields:
        For each prompt the review of the first and of the second.

    Raises:
        ValueError: a checkpoint was not kept or holds no model, or a model or the task cannot be used.
    """
    config = first[0].config
    folders = []
    for run, step in (first, second):
        folders.append(run.model_of(step))
        run.pin(step)
    task = load_task(config.task, TaskOptions.of(config))
    examples = task.heldout(n, split=config.eval_split)
    students = [
        load_model(str(folder), device=config.device, dtype=config.dtype).prompted(
            config.template_options, control_tokens=config.control_tokens
        )
        for folder in folders
    ]
    teacher = load_teacher(config.teacher, students[0], config.model_copy(update={"teacher_live": False}))
    for number, example in enumerate(examples, start=1):
        announce(f"Answering prompt {number} of {len(examples)}")
        reviews = []
        for student, (run, step) in zip(students, (first, second), strict=True):
            student.name = f"{run.name}, step {step}"
            pair = Pair(student, teacher, shared_vocabulary=config.shared_vocabulary)
            (trajectory,) = sample(pair, [example.prompt], seed=seed, max_tokens=config.max_tokens)
            lesson = Lesson(task, pair, 1, config.teacher_system, config.teacher_hint)
            (trajectory,) = lesson.informed([trajectory], [example], room=config.max_tokens)
            (grades,) = grade(pair, [trajectory])
            correct = verify(task, example, student, trajectory)
            reviews.append(review(pair, example.prompt, trajectory, grades, seed=seed, correct=correct))
        yield reviews[0], reviews[1]
