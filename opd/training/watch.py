"""What a run looks at beside its training: held-out prompts, probes that stay the same, what updates did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial

import torch

from opd.divergence import Predictions, over_chunks, sampled, token_signals
from opd.engines.sampling import sample
from opd.grading.evaluation import evaluate
from opd.grading.grading import grade
from opd.grading.reviewing import review
from opd.models.parallel import spread
from opd.packed import completions, cut
from opd.phases import announce
from opd.protocols import must_be_finite
from opd.reports import FrozenScores, Push, StepReport
from opd.reviews import Review
from opd.tasks import Example, verify
from opd.training.learner import Learner
from opd.training.lessons import PROBES, Lesson
from opd.training.losses import TOP_K
from opd.training.rollouts import Rollout, given_advantage
from opd.training.step_metrics import mean_kl, shape
from opd.training.teacher_scores import TeacherScores
from opd.trajectory import Grades, Trajectory

FEW_HELDOUT = 16  # held-out prompts below which a figure of them is said to be uncertain
PROBES_KEPT = 8  # of them, how many graded completions go into the report


class Watch:
    """What a run keeps from one look to the next. Whoever looks has entered :meth:`Learner.asking`.

    Attributes:
        teacher_accuracies: held-out accuracy of each teacher, measured once, by the number of its lesson.
        frozen: the probes that the student wrote before it was trained.
    """

    def __init__(self, learner: Learner, lessons: Sequence[Lesson], teachers: TeacherScores) -> None:
        """Prepare; nothing is looked at yet."""
        self.learner, self.lessons, self.teachers = learner, lessons, teachers
        self.teacher_accuracies: dict[str, float] = {}
        self.freeze([])

    def freeze(self, frozen: Sequence[Trajectory]) -> None:
        """Score these from now on, whatever becomes of the student."""
        self.frozen = list(frozen)
        self._teacher_of_frozen: Predictions | None = None

    def before(self) -> StepReport:
        """Say what is known before the first evaluation: how many prompts train and are held out."""
        config, sizes, notes = self.learner.config, {}, []
        for number, lesson in enumerate(self.lessons):
            own = lesson.task.sizes()
            sizes |= self._named(number, {f"prompts_{split}": n for split, n in own.items()})
            if config.eval_prompts and (n := own.get(config.eval_split, FEW_HELDOUT)) < FEW_HELDOUT:
                notes.append(
                    f"{lesson.task.name} holds out {n} {'prompt' if n == 1 else 'prompts'} in its "
                    f"{config.eval_split} split: what is measured there, and which step is the best, is "
                    "little more than chance. Add prompts, or raise heldout_share."
                )
        return StepReport(0, sizes, notes=notes)

    def evaluate(self) -> tuple[dict[str, float], list[Review]]:
        """Measure held-out accuracy and KL of every lesson; those of further ones carry the task's name.

        Also returns the first lesson's probes: graded answers to prompts that are the same at every call.
        """
        config, student = self.learner.config, self.learner.student
        metrics: dict[str, float] = {}
        kept: list[Review] = []
        for number, lesson in enumerate(self.lessons if config.eval_prompts else ()):
            found, graded = self._evaluate(number, lesson)
            metrics |= self._named(number, found)
            for e, t, g in graded[:PROBES_KEPT] if number == 0 else ():
                right = verify(lesson.task, e, student, t)
                kept.append(review(lesson.pair, e.prompt, t, g, seed=config.seed, correct=right))
        return metrics, kept

    def _evaluate(
        self, number: int, lesson: Lesson
    ) -> tuple[dict[str, float], list[tuple[Example, Trajectory, Grades]]]:
        """Return the metrics of a lesson, and its probes."""
        config, student = self.learner.config, self.learner.student
        sampling = {"temperature": config.temperature, "max_tokens": config.max_tokens, "seed": config.seed}
        announce("Asking the probes")
        problems = lesson.task.heldout(PROBES, split=config.eval_split)
        probes = sample(student, [e.prompt for e in problems], **sampling)
        # By the teacher that trains: with its hint and its system prompt.
        probes = lesson.informed(probes, problems, room=config.max_tokens)
        scoring = partial(grade, lesson.pair, temperature=config.temperature, top_k=TOP_K)
        grades = spread(scoring, probes, len)
        found = mean_kl("heldout_kl", grades) | {"heldout_prompts": len(problems)}
        found |= {f"heldout_{name}": value for name, value in shape(probes, student).items()}
        if problems[0].answer is not None:
            found |= self._accuracies(number, lesson, sampling)
        return found, list(zip(problems, probes, grades, strict=True))

    def _accuracies(self, number: int, lesson: Lesson, sampling: dict[str, float]) -> dict[str, float]:
        """Measure how many held-out problems the student solves, and once how many its teacher does."""
        options = {"n": self.learner.config.eval_prompts, "split": self.learner.config.eval_split, **sampling}
        known, key = self.teacher_accuracies, f"{number}"
        if key not in known and lesson.pair.scorer.writes:  # one that only scores answers nothing
            seen = lesson.teacher_messages if lesson.privileged else None
            known[key] = evaluate(lesson.pair.teacher, lesson.task, prompt_of=seen, **options).value
        found = evaluate(self.learner.student, lesson.task, **options)
        low, high = found.interval
        return {
            "heldout_accuracy": found.value,
            "heldout_accuracy_low": low,
            "heldout_accuracy_high": high,
            "heldout_n": found.n,
        } | ({"teacher_accuracy": known[key]} if key in known else {})

    def _named(self, number: int, metrics: dict[str, float]) -> dict[str, float]:
        """Let the names of a further lesson's metrics end with its task's."""
        suffix = f"/{self.lessons[number].task.name}" if number else ""
        return {f"{name}{suffix}": value for name, value in metrics.items()}

    @torch.inference_mode()
    def score_frozen(self) -> list[FrozenScores]:
        """Let the student as it is now score the frozen probes; the teacher's part is computed once."""
        if not self.frozen:
            return []
        pair = self.lessons[0].pair
        if self._teacher_of_frozen is None or pair.teacher is self.learner.student:
            self._teacher_of_frozen = self.teachers.ask_anew(pair, self.frozen)
        signals = over_chunks(
            lambda student, teacher, ids: (None, token_signals(student, teacher, ids, 1)),
            self.learner.score(pair, self.frozen),
            self._teacher_of_frozen,
            completions(self.frozen, self.learner.student.device),
        )
        signals["logprobs"] = signals["student.logprobs"]
        columns = [cut(signals[f.name].cpu().numpy(), self.frozen) for f in fields(FrozenScores)]
        return [FrozenScores(*column) for column in zip(*columns, strict=True)]

    @torch.inference_mode()
    def pushes(self, graded: Sequence[tuple[Rollout, Grades]]) -> list[Push]:
        """Score rollouts anew after the update: what it was meant to do to their tokens, and what it did.

        Raises:
            NotFiniteError: the update has left the student saying what is no number.
        """
        trajectories = [rollout.trajectory for rollout, _ in graded]
        now = self.learner.score(self.lessons[0].pair, trajectories)
        signals = over_chunks(
            lambda student, _, ids: (None, {"logprobs": sampled(student, ids)}),
            now,
            now,
            completions(trajectories, self.learner.student.device),
        )
        parts = cut(signals["logprobs"].cpu().numpy(), trajectories)
        must_be_finite(self.learner.student.name, *parts)
        return [
            Push(given_advantage(self.learner.config, rollout, g), after - g.student.logprobs)
            for (rollout, g), after in zip(graded, parts, strict=True)
        ]
