"""The loop: sample from the student, let the teacher grade every token, update the student with the grades.

What it leaves out on purpose. No reference-model penalty: the teacher is the reference. No value network and
no whitening of advantages: the grade of a token is already dense, and centring it would shift the optimum.
No replay: a trajectory trains once, by the student that wrote it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np

from opd.config import DistillConfig
from opd.grading.grading import grade
from opd.grading.reviewing import review
from opd.models.pair import Pair
from opd.models.parallel import exchange, spread
from opd.phases import announce
from opd.reports import WORKS, StepReport
from opd.reviews import Review
from opd.training.doctor import check_sampler
from opd.training.learner import Learner, learning_rate
from opd.training.lessons import load_lessons
from opd.training.losses import TOP_K
from opd.training.memory import forget_peak, peak_memory
from opd.training.rollouts import Rollout, divide, gather, load_sampler, settle
from opd.training.state import restore, state_of
from opd.training.step_metrics import Clock, step_metrics
from opd.training.teacher_scores import TeacherScores
from opd.training.update import Updated, gradient, update
from opd.training.watch import Watch
from opd.trajectory import Grades

SAMPLES_PER_STEP = 4  # graded trajectories that go into the report
PUSHES_FROM = 16  # rollouts of a step from which scoring those again costs at most 3 % (of 128: 0.4 %)


def distill(config: DistillConfig, pair: Pair | None = None) -> Distillation:
    """Run on-policy distillation; iterate to make it go on, stop iterating to pause it.

    Args:
        config: what to do.
        pair: a loaded pair, if there is one; its student is trained in place. Else the config's is loaded.

    Returns:
        An iterator of :class:`StepReport`: step 0 is an evaluation, step k comes after k updates.

    Raises:
        ValueError: a model or the task cannot be used.
    """
    return Distillation(config, pair)


class Distillation:
    """A run in progress: an iterator of :class:`StepReport` whose state can be saved and restored.

    Attributes:
        config: what to do.
        lessons: the teachers and their prompts, the main one first.
        student: the model that trains.
        parameters: its weights that are open, by name.
        learner: the student with its optimizer.
        sampler: samples from the student.
        teachers: what they say of the step under way.
        watch: what is looked at beside the training.
        next_step: the step that comes next; 0 is an evaluation.
    """

    def __init__(self, config: DistillConfig, pair: Pair | None = None) -> None:
        """Load what the config names and prepare the student for training."""
        forget_peak()
        self.config = config
        self.lessons = load_lessons(config, pair)
        self.student = self.lessons[0].pair.student
        if pair is not None:
            pair.student = self.student
        self.sampler = load_sampler(self.student, config)
        self.learner = Learner(self.student, config)
        self.parameters = self.learner.parameters
        self.clock = Clock(self.student.device)
        self.teachers = TeacherScores(self.learner, self.clock)
        self.watch = Watch(self.learner, self.lessons, self.teachers)
        self.next_step = 0
        self._writer = ThreadPoolExecutor(1, "opd-rollouts")
        self._ahead: dict[int, Future[list[Rollout]]] = {}  # by step

    def __iter__(self) -> Iterator[StepReport]:
        """Return itself: iterating again goes on where it stopped."""
        return self

    def __next__(self) -> StepReport:
        """Make one step and report it, with an evaluation where one is due.

        Raises:
            NotFiniteError: the student or a teacher says what is no number; the message says which.
            RuntimeError: the loss or the gradient is not finite; the weights are those before the update.
        """
        if self.next_step > self.config.steps:
            raise StopIteration
        self.clock.seconds.clear()
        report = self.step(self.next_step) if self.next_step else self.watch.before()
        if self.next_step % self.config.eval_every == 0 or self.next_step == self.config.steps:
            report = self.evaluate(report)
        self.next_step += 1
        return report

    def step(self, step: int) -> StepReport:
        """Make a training step: sample, grade, settle, update, report."""
        rollouts = self.sample(step)  # the student writes
        if self.config.grades_first:  # else the update's own forward grades
            grades = self.grade(rollouts)  # the teacher scores every token
            rollouts = settle(self.config, rollouts, grades)  # which tokens train, and which way
        parts = divide(rollouts, self.config.substeps)
        updates = [self.update(part, step) for part in parts]  # the grade you look at trains
        self.synchronise()  # the sampler gets the student's new weights
        return self.report(step, parts, updates)

    def sample(self, step: int) -> list[Rollout]:
        """Return the step's rollouts; asynchronous, the next ones begin, to be there when they are wanted."""
        announce("Sampling")
        with self.clock("sample"):
            with self.learner.asking():
                ahead = self._ahead.pop(step, None)
                rollouts = ahead.result() if ahead else self._write(step)
            if self.config.asynchronous and step < self.config.steps:
                self._ahead[step + 1] = self._writer.submit(self._write, step + 1)
            self.sampler.sleep()
        return rollouts

    def _write(self, step: int) -> list[Rollout]:
        return gather(self.config, self.lessons, self.sampler, step, self.teachers.finished)

    def grade(self, rollouts: Sequence[Rollout]) -> list[Grades]:
        """Grade before the update, for objectives that must see the whole step first.

        Each process grades what it trains on, so that it alone asks the teacher about it.
        """
        announce("Grading")
        grades: dict[Rollout, Grades] = {}
        scoring = {
            "temperature": self.config.temperature,
            "top_k": TOP_K,
            "all_divergences": False,
            "ask": self.teachers.ask,
        }
        with self.clock("update"), self.learner.asking():
            for part in divide(rollouts, self.config.substeps):
                for lesson, own in itertools.groupby(part, key=lambda r: r.lesson):
                    own = list(own)
                    scored = spread(partial(grade, lesson.pair, **scoring), [r.trajectory for r in own], len)
                    grades |= zip(own, scored, strict=True)
        return [grades[r] for r in rollouts]

    def update(self, part: Sequence[Rollout], step: int) -> Updated:
        """Make one update of a step, with a part of its rollouts; see :func:`opd.training.update.update`."""
        with self.clock("update"):
            return update(self.learner, part, self.teachers, learning_rate(self.config, step))

    def synchronise(self) -> None:
        """Give the sampler the student's weights; where they have to travel, a probe shows that they arrived.

        Raises:
            RuntimeError: they did not.
            EngineError: the engine cannot go on.
        """
        with self.clock("update"):
            wait(self._ahead.values())  # an engine does one thing at a time
            self.sampler.wake()
            self.sampler.sync()
            if self.sampler.apart:
                with self.learner.asking():
                    probe = check_sampler(self.student, self.sampler, temperature=self.config.temperature)
                if probe.level == "fail":
                    raise RuntimeError(probe.message)

    def report(self, step: int, parts: Sequence[Sequence[Rollout]], updates: Sequence[Updated]) -> StepReport:
        """Say what the updates of a step have found, and show a few of its rollouts."""
        rollouts = [r for part in parts for r in part]
        grades = [g for updated in updates for g in updated.grades]
        seconds = self.clock.seconds
        metrics = {
            "loss": float(np.mean([updated.loss for updated in updates])),
            **step_metrics(rollouts, grades, self.student, fresh=len(parts[0])),
            "stop_mass": float(np.mean([p for updated in updates for p in updated.stop_mass])),
            "gradient_norm": float(np.mean([updated.gradient_norm for updated in updates])),
            "learning_rate": learning_rate(self.config, step),
            "tokens_per_second": sum(len(r.trajectory) for r in rollouts) / sum(seconds.values()),
            **{f"seconds_{work}": seconds[work] for work in WORKS},
            "memory_peak_bytes": max(exchange(peak_memory(self.student.device))),
        }
        self.teachers.forget(r.trajectory for r in rollouts)
        kept = list(zip(rollouts, grades, strict=True))[:SAMPLES_PER_STEP]
        pushes = []
        if len(rollouts) >= PUSHES_FROM:
            with self.learner.asking():
                pushes = self.watch.pushes(kept)
        notes = [note for own in exchange([n for updated in updates for n in updated.notes]) for note in own]
        return StepReport(step, metrics, [self.review_of(*one) for one in kept], pushes, notes=notes)

    def evaluate(self, report: StepReport) -> StepReport:
        """Add to a report how the student does on held-out prompts, and how its frozen probes fare."""
        with self.learner.asking():
            with self.clock("evaluate"):
                heldout, probes = self.watch.evaluate()
            if report.step == 0:
                self.watch.freeze([probe.trajectory for probe in probes])
            frozen = self.watch.score_frozen()
        seconds = {"seconds_evaluate": self.clock.seconds["evaluate"]} if heldout else {}
        return replace(report, metrics={**report.metrics, **heldout, **seconds}, probes=probes, frozen=frozen)

    def review_of(self, rollout: Rollout, grades: Grades) -> Review:
        """Put text to a graded rollout."""
        r = rollout
        return review(
            r.lesson.pair, r.example.prompt, r.trajectory, grades, seed=self.config.seed, correct=r.right
        )

    def preview_step(self) -> tuple[list[tuple[Rollout, Grades]], float]:
        """Do all of the next step but the update, and forget the gradient.

        Returns:
            The graded rollouts, and how many seconds it took.
        """
        self.clock.seconds.clear()
        with self.clock("sample"), self.learner.asking():
            announce("Sampling")
            rollouts = self._write(max(1, self.next_step))
        if self.config.grades_first:
            rollouts = settle(self.config, rollouts, self.grade(rollouts))
        graded: list[tuple[Rollout, Grades]] = []
        with self.clock("update"):
            for part in divide(rollouts, self.config.substeps):
                graded += zip(part, gradient(self.learner, part, self.teachers).grades, strict=True)
            self.learner.optimizer.zero_grad(set_to_none=True)
        self.teachers.forget(r.trajectory for r in rollouts)
        return graded, sum(self.clock.seconds.values())

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on; see :mod:`opd.training.state`."""
        return state_of(self.learner, self.watch, self.next_step)

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Go on from a saved state.

        Raises:
            ValueError: the state belongs to a model with other parameters.
        """
        self.next_step = restore(state, self.learner, self.watch)
        self.synchronise()
        self._ahead.clear()  # written by other weights
        return self
