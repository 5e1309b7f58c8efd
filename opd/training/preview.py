"""The dry run: one step's batch sampled and graded, nothing learnt. What would it punish?"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter

import numpy as np
from torch import Tensor

from opd.config import DistillConfig
from opd.engines.sampling import sample
from opd.files import size_in_words
from opd.grading.grading import grade
from opd.models.network import LanguageModel
from opd.models.pair import Pair
from opd.models.parallel import exchange, spread, world
from opd.phases import announce
from opd.reviews import Review
from opd.tasks import Example
from opd.training.distillation import Distillation, distill
from opd.training.doctor import Finding, examine_run
from opd.training.lessons import PROBES
from opd.training.losses import TOP_K
from opd.training.memory import Memory, estimate_memory, free_memory
from opd.training.rollouts import given_advantage
from opd.trajectory import Prompt, Trajectory

TIMED = 24
"""Held-out prompts whose answers are timed."""

BEFORE, AFTER = 30, 15
"""Characters shown before and after a token."""


@dataclass(frozen=True)
class PushedToken:
    """A token that the step would make more or less likely.

    Attributes:
        text: the token.
        before: what the student wrote just before it.
        after: what it wrote next.
        advantage: what it is given; negative: it becomes less likely.
        teacher_choice: the token that the teacher finds likeliest there.
        review: the completion it stands in, an index into :attr:`Preview.reviews`.
        position: its index in the completion.
    """

    text: str
    before: str
    after: str
    advantage: float
    teacher_choice: str
    review: int
    position: int


@dataclass(frozen=True, eq=False)
class Preview:
    """What the first step of a run would do.

    Attributes:
        punished: the tokens with the lowest advantages, lowest first.
        rewarded: the tokens with the highest advantages, highest first.
        reviews: the completions that these tokens stand in, graded.
        completions: trajectories of a step.
        tokens: their tokens.
        trained_tokens: how many of them train.
        effective_tokens: tokens that would do as much if all were pushed alike: (sum |a|)^2 / sum a^2.
        clipped_share: share of the completions that the length limit cuts off, in [0, 1].
        right_share: share of right answers, in [0, 1]; None where there are none to compare with.
        steps: updates of the run.
        seconds_per_step: measured on this batch: sampling (not compiled), teacher, gradient; no evaluation.
        evaluations: how many the run makes.
        seconds_per_evaluation: estimated from a few held-out answers of the student, and their grading.
        seconds_of_teacher: the same for the teacher's own accuracy, which is measured once.
        plan: what sits where, and who talks to whom.
        memory: what each process needs on the student's device, estimated from the models' shapes.
        memory_free: bytes that are free on the student's device; None where that is not known.
    """

    punished: Sequence[PushedToken]
    rewarded: Sequence[PushedToken]
    reviews: Sequence[Review]
    completions: int
    tokens: int
    trained_tokens: int
    effective_tokens: float
    clipped_share: float
    right_share: float | None
    steps: int
    seconds_per_step: float
    evaluations: int
    seconds_per_evaluation: float
    seconds_of_teacher: float
    plan: Sequence[str]
    memory: Memory
    memory_free: int | None

    def sentences(self) -> list[str]:
        """Say what a step is, takes and needs."""
        right = "" if self.right_share is None else f", {self.right_share:.0%} right"
        free = "" if self.memory_free is None else f"; {self.memory_free / 2**30:.1f} GiB are free"
        return [
            f"A step: {self.completions} completions{right}, {self.clipped_share:.0%} cut off by the length "
            "limit.",
            f"Of {self.tokens} tokens {self.trained_tokens} train; their advantages weigh like "
            f"{self.effective_tokens:.0f} equal ones.",
            *self._durations(),
            f"Memory: about {self.memory.total / 2**30:.1f} GiB{' a process' if world() > 1 else ''} "
            f"({self.memory}){free}.",
            *self.plan,
        ]

    @property
    def seconds(self) -> float:
        """What the whole run takes; loading the models comes on top."""
        evaluating = self.evaluations * self.seconds_per_evaluation + self.seconds_of_teacher
        return self.steps * self.seconds_per_step + evaluating

    def _durations(self) -> list[str]:
        total = f"All {self.steps} steps: about {self.seconds / 60:.1f} minutes"
        if not self.evaluations:
            return [f"About {self.seconds_per_step:.1f} s a step.", f"{total}; nothing is evaluated."]
        teacher = f"; the teacher's own, once, takes {self.seconds_of_teacher:.1f} s"
        return [
            f"About {self.seconds_per_step:.1f} s a step and {self.seconds_per_evaluation:.1f} s an "
            f"evaluation of the student{teacher if self.seconds_of_teacher else ''}.",
            f"{total}, {self.evaluations} evaluations included.",
        ]


def preview(config: DistillConfig, pair: Pair | None = None, *, top: int = 12) -> Preview:
    """Sample and grade the first step's batch and say what its update would push; no update is made.

    Args:
        config: the run.
        pair: a loaded pair, if there is one. Its student gets ready to train (an adapter, open weights) but
            keeps its weights.
        top: how many tokens to show of each kind.

    Raises:
        ValueError: a model or the task cannot be used.
    """
    # What is compiled takes many seconds at its first step: too long for a look.
    run = distill(config.model_copy(update={"compile": False}), pair)
    graded, seconds = run.preview_step()
    evaluations, of_student, of_teacher = estimate_evaluations(run)
    given = [given_advantage(config, rollout, grades) for rollout, grades in graded]
    owner = np.repeat(np.arange(len(given)), [len(g) for g in given])
    position = np.concatenate([np.arange(len(g)) for g in given])
    flat = np.concatenate(given)
    order = np.argsort(flat, kind="stable")
    chosen = [order[:top][flat[order[:top]] < 0], order[::-1][:top][flat[order[::-1][:top]] > 0]]
    shown = sorted({int(owner[i]) for part in chosen for i in part})
    reviews = [run.review_of(*graded[i]) for i in shown]
    punished, rewarded = (
        [_token(reviews, shown.index(int(owner[i])), int(position[i]), float(flat[i])) for i in part]
        for part in chosen
    )
    rollouts = [rollout for rollout, _ in graded]
    right = [r.right for r in rollouts]
    squares = float((flat.astype(np.float64) ** 2).sum())
    return Preview(
        punished=punished,
        rewarded=rewarded,
        reviews=reviews,
        completions=len(rollouts),
        tokens=len(flat),
        trained_tokens=sum(r.trained_tokens for r in rollouts),
        effective_tokens=float(np.abs(flat).sum(dtype=np.float64)) ** 2 / squares if squares else 0.0,
        clipped_share=float(np.mean([r.trajectory.finish_reason == "length" for r in rollouts])),
        right_share=None if None in right else float(np.mean(right)),
        steps=config.steps,
        seconds_per_step=seconds,
        evaluations=evaluations,
        seconds_per_evaluation=of_student,
        seconds_of_teacher=of_teacher,
        plan=plan(run),
        memory=_memory(run, max(len(r.trajectory.prompt_ids) for r in rollouts)),
        memory_free=free_memory(run.student.device),
    )


def dry_run(config: DistillConfig) -> tuple[list[Finding], Preview | None]:
    """Examine a run and preview its first step; no preview where a finding forbids the run.

    Raises:
        ValueError: a model or a task cannot be used.
    """
    looked = examine_run(config)
    _, pair, found = next(looked)
    # Of further lessons no pair is kept, not even in a name here: each teacher makes room for the next.
    findings = [*found, *itertools.chain.from_iterable(map(itemgetter(2), looked))]
    if any(f.level == "fail" for f in findings) and not config.ignore_doctor:
        return findings, None
    return findings, preview(
        config, pair if isinstance(pair, Pair) else Pair(*pair, shared_vocabulary=config.shared_vocabulary)
    )


def estimate_evaluations(run: Distillation) -> tuple[int, float, float]:
    """Return how many evaluations a run makes, and the seconds of each and of the teacher's own, once."""
    config = run.config
    if not config.eval_prompts:
        return 0, 0.0, 0.0
    of_student = of_teacher = 0.0
    for lesson in run.lessons:
        examples = lesson.task.heldout(max(PROBES, config.eval_prompts), split=config.eval_split)
        probes = examples[:PROBES]
        measured = len(examples[: config.eval_prompts]) if examples[0].answer is not None else 0
        seconds, written = _sampling(run, run.student, examples)
        of_student += seconds(len(probes)) + seconds(measured)
        started = time.perf_counter()
        with run.learner.asking():
            informed = lesson.informed(written, probes, room=config.max_tokens)
            spread(partial(grade, lesson.pair, top_k=TOP_K), informed, len)
        of_student += (time.perf_counter() - started) * len(probes) / len(written)
        if measured and lesson.pair.scorer.writes:
            of_teacher += _sampling(run, lesson.pair.teacher, examples)[0](measured)
    return 1 + -(-config.steps // config.eval_every), of_student, of_teacher


def _sampling(
    run: Distillation, model: LanguageModel, examples: Sequence[Example]
) -> tuple[Callable[[int], float], list[Trajectory]]:
    """Return how many seconds a model takes for so many prompts, and what it answered to the timed ones.

    Two timings part what each prompt costs from what a batch costs that is as long as its longest answer.
    """
    announce(f"Timing an evaluation of {model.name}")
    config = run.config

    def timed(prompts: Sequence[Prompt]) -> tuple[float, list[Trajectory]]:
        started = time.perf_counter()
        with run.learner.asking():
            done = sample(
                model, prompts, seed=0, temperature=config.temperature, max_tokens=config.max_tokens
            )
        return time.perf_counter() - started, done

    prompts = [example.prompt for example in examples[:TIMED]]
    few = len(prompts) // 3
    short = timed(prompts[:few])[0] if few else 0.0
    whole, written = timed(prompts)
    each = min(max(0.0, (whole - short) / (len(prompts) - few)), whole / len(prompts))
    return lambda count: whole + (count - len(prompts)) * each if count else 0.0, written


def _memory(run: Distillation, prompt_tokens: int) -> Memory:
    teacher = run.lessons[0].pair.teacher
    need = estimate_memory(
        run.student.causal_lm, teacher.causal_lm, run.config, prompt_tokens=prompt_tokens, processes=world()
    )
    return need if teacher.device == run.student.device else replace(need, teacher=0)


def plan(run: Distillation) -> list[str]:
    """Say what sits where in a run, and who talks to whom."""
    config, count = run.config, world()
    weights, gradients = _bytes(run.student.model.parameters()), _bytes(run.parameters.values())
    devices = exchange(str(run.student.device))
    sharded = config.shard and count > 1
    said = [f"One process trains the student, on {devices[0]}."]
    if count > 1:
        held = f"1/{count} of" if sharded else "all of"
        said = [
            f"{count} processes train the student, on {', '.join(devices)}; each holds {held} its "
            "weights, gradients and moments, and samples and grades a share of every step. They exchange "
            "trajectories and grades."
        ]
    if config.engine == "vllm":
        where = "each of them, on its device" if count > 1 else f"it, on {devices[0]}"
        said.append(
            f"Beside {where}, a vLLM in a process of its own samples, with {run.sampler.memory_share:.0%} of "
            f"the device's memory. After every step it is handed the student's weights ({weights})."
        )
    for lesson in run.lessons:
        teacher = lesson.pair.teacher
        where = f"sits on {teacher.device} ({_bytes(teacher.model.parameters())}"
        where += ", once for each process)" if count > 1 else ")"
        if teacher is run.student:
            where = "is the student as it trains"
        elif not lesson.pair.scorer.writes:
            where = f"is asked at {config.teacher_url}" + (", by each process" if count > 1 else "")
        said.append(f"The teacher {teacher.name} {where}.")
    if sharded:
        said.append(
            f"To sample, every process gathers the weights once ({weights}). A micro-batch gathers them by "
            f"layers, forth and back, and adds up the gradients ({gradients})."
        )
    elif count > 1:
        said.append(f"At each update the processes add up their gradients ({gradients}).")
    return said


def _bytes(tensors: Iterable[Tensor]) -> str:
    return size_in_words(sum(t.numel() * t.element_size() for t in tensors))


def _token(reviews: Sequence[Review], number: int, position: int, advantage: float) -> PushedToken:
    review = reviews[number]
    best = int(review.grades.teacher.top_ids[position, 0])
    return PushedToken(
        text=review.pieces[position],
        before="".join(review.pieces[:position])[-BEFORE:],
        after="".join(review.pieces[position + 1 :])[:AFTER],
        advantage=advantage,
        teacher_choice=review.vocabulary[best],
        review=number,
        position=position,
    )
