"""The loop: sample from the student, let the teacher grade every token, update the student with the grades.

What it leaves out on purpose. No reference-model penalty: the teacher is the reference. No value network and
no whitening of advantages: the grade of a token is already dense, and centring it would shift the optimum.
No replay: a trajectory trains once, by the student that wrote it.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from opd.config import DistillConfig
from opd.divergence import Distributions, TopK, over_chunks, sampled, token_signals
from opd.engines.sampling import sample
from opd.engines.transformers import TransformersSampler, batches, distributions
from opd.grading.evaluation import evaluate
from opd.grading.grading import Told, grade, teacher_distributions, to_grades
from opd.grading.reviewing import review
from opd.models.language_model import LanguageModel
from opd.models.load import resolve_dtype
from opd.models.pair import Pair
from opd.models.parallel import (
    cut_like,
    exchange,
    gathered,
    on_first,
    rank,
    shard,
    share,
    spread,
    sum_gradients,
    whole,
    world,
)
from opd.packed import cut, pack
from opd.phases import announce, count
from opd.protocols import Sampler, must_be_finite
from opd.tasks import verify
from opd.traces import FrozenScores, Push
from opd.training.doctor import check_sampler
from opd.training.lessons import PROBES, load_lessons
from opd.training.losses import TOP_K, Chunk, alternatives, token_loss
from opd.training.memory import forget_peak, peak_memory
from opd.training.overlap import EarlyScores, computes_elsewhere
from opd.training.rollouts import Rollout, gather, given_advantage, settle
from opd.training.step_metrics import mean_kl, shape, step_metrics
from opd.trajectory import Grades, Review, StepReport, Trajectory

BETAS = (0.9, 0.95)  # of AdamW, as in the Tinker recipe
SAMPLES_PER_STEP = 4  # graded trajectories that go into the report
PUSHES_FROM = 16  # rollouts of a step from which scoring those again costs at most 3 % (of 128: 0.4 %)
FEW_HELDOUT = 16  # held-out prompts below which a figure of them is told to be uncertain
PROBES_KEPT = 8  # of them, how many graded completions go into the report
FROZEN_IDS = ("prompt_ids", "completion_ids", "teacher_prompt_ids")


@dataclass(frozen=True)
class Updated:
    """What an update found out.

    Attributes:
        grades: of every rollout, from the update's own forward.
        loss: mean over the tokens that count.
        gradient_norm: before clipping.
        stop_mass: the student's probability of ending at the last token of each rollout.
    """

    grades: list[Grades]
    loss: float
    gradient_norm: float
    stop_mass: list[float]


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
    """A run in progress: an iterator of :class:`StepReport` whose state can be saved and restored."""

    def __init__(self, config: DistillConfig, pair: Pair | None = None) -> None:
        """Load what the config names and prepare the student for training."""
        forget_peak()
        self.config = config
        self.lessons = load_lessons(config, pair)
        self.student = self.lessons[0].pair.student
        if pair is not None:
            pair.student = self.student
        if config.asynchronous and world() > 1:
            raise ValueError(
                "asynchronous works in one process only: leave it out, or start without torchrun."
            )
        self.sampler = _sampler(self.student, config)
        self.early = EarlyScores(self._score_teacher, self.precision, lambda: self.micro_batch_tokens)
        self._teacher_seconds = 0.0  # of the step under way
        self._writer = ThreadPoolExecutor(1, "opd-rollouts")
        self._ahead: dict[int, Future[list[Rollout]]] = {}  # by step
        if config.shard:
            shard(self.student)
        self.parameters = {n: p for n, p in self.student.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=0.0, betas=BETAS, weight_decay=config.weight_decay, fused=True
        )
        self.micro_batch_tokens = config.micro_batch_tokens
        self.next_step = 0
        self.teacher_accuracies: dict[str, float] = {}
        self.frozen: list[Trajectory] = []  # the probes that the student wrote at step 0
        self._teacher_of_frozen: Distributions | TopK | None = None

    def __iter__(self) -> Iterator[StepReport]:
        """Return itself: iterating again goes on where it stopped."""
        return self

    def __next__(self) -> StepReport:
        """Make one step and report it.

        Raises:
            NotFiniteError: the student or a teacher says what is no number; the message says which.
            RuntimeError: the loss or the gradient is not finite; the weights are those before the update.
        """
        if self.next_step > self.config.steps:
            raise StopIteration
        report = self._step(self.next_step) if self.next_step else self._before()
        if self.next_step % self.config.eval_every == 0 or self.next_step == self.config.steps:
            with gathered(self.student):
                heldout, probes = self._evaluate()
                if self.next_step == 0:
                    self.frozen = [probe.trajectory for probe in probes]
                frozen = self._score_frozen()
            report = replace(report, metrics={**report.metrics, **heldout}, probes=probes, frozen=frozen)
        self.next_step += 1
        return report

    def _before(self) -> StepReport:
        """Say of what step 0 knows beside its evaluation: how many prompts train and are held out."""
        sizes, notes = {}, []
        for number, lesson in enumerate(self.lessons):
            sizes |= {f"prompts_{split}{self._suffix(number)}": n for split, n in lesson.task.sizes().items()}
            split = self.config.eval_split
            if self.config.eval_prompts and (n := lesson.task.sizes().get(split, FEW_HELDOUT)) < FEW_HELDOUT:
                notes.append(
                    f"{lesson.task.name} holds out {n} {'prompt' if n == 1 else 'prompts'} in its {split} "
                    "split: what is measured there, and which step is the best, is little more than chance. "
                    "Add prompts, or raise heldout_share."
                )
        return StepReport(0, sizes, notes=notes)

    def _suffix(self, number: int) -> str:
        """What ends the names of a lesson's metrics; the first one's have none."""
        return f"/{self.lessons[number].task.name}" if number else ""

    def _step(self, step: int) -> StepReport:
        config, started, notes = self.config, self._now(), []
        rate = learning_rate(config, step)
        self._teacher_seconds = 0.0

        with gathered(self.student), self.precision():
            rollouts = self._rollouts(step)
        if config.vllm_sleeps:
            self.sampler.sleep()
        sampled_at = self._now()
        if config.grades_first:
            rollouts = settle(config, rollouts, self._grade(rollouts))
        parts = _parts(rollouts, config.substeps)
        updates = [self._update(part, rate, notes) for part in parts]
        self._synchronise()
        updated_at = self._now()

        self.early.forget(r.trajectory for r in rollouts)
        rollouts = [r for part in parts for r in part]
        grades = [g for update in updates for g in update.grades]
        tokens = sum(len(r.trajectory) for r in rollouts)
        metrics = {
            "loss": float(np.mean([update.loss for update in updates])),
            **step_metrics(rollouts, grades, self.student, fresh=len(parts[0])),
            "stop_mass": float(np.mean([p for update in updates for p in update.stop_mass])),
            "gradient_norm": float(np.mean([update.gradient_norm for update in updates])),
            "learning_rate": rate,
            "tokens_per_second": tokens / (updated_at - started),
            "seconds_sample": sampled_at - started,
            "seconds_teacher": self._teacher_seconds,
            "seconds_update": updated_at - sampled_at - self._teacher_seconds,
            "memory_peak_bytes": max(exchange(peak_memory(self.student.device))),
        }
        kept = list(zip(rollouts, grades, strict=True))[:SAMPLES_PER_STEP]
        samples = [self.review_of(rollout, g) for rollout, g in kept]
        pushes = self._pushes(kept) if len(rollouts) >= PUSHES_FROM else []
        notes = [note for part in exchange(notes) for note in part]
        return StepReport(step, metrics, samples, pushes, notes=notes)

    def _rollouts(self, step: int) -> list[Rollout]:
        """Return the step's rollouts; asynchronous, the next ones begin, to be there when they are wanted."""

        announce("Sampling")

        def written(step: int) -> list[Rollout]:
            return gather(self.config, self.lessons, self.sampler, step, self._finished)

        if not self.config.asynchronous:
            return written(step)
        ahead = self._ahead.pop(step, None)
        rollouts = ahead.result() if ahead else written(step)
        if step < self.config.steps:
            self._ahead[step + 1] = self._writer.submit(written, step + 1)
        return rollouts

    def _synchronise(self) -> None:
        """Give the sampler the student's weights; where they have to travel, a probe shows that they arrived.

        Raises:
            RuntimeError: they did not.
            EngineError: the engine cannot go on.
        """
        wait(self._ahead.values())  # an engine does one thing at a time
        if self.config.vllm_sleeps:
            self.sampler.wake()
        self.sampler.sync()
        if self.config.engine != "transformers":
            with self.precision():
                probe = check_sampler(self.student, self.sampler, temperature=self.config.temperature)
            if probe.level == "fail":
                raise RuntimeError(probe.message)

    def review_of(self, rollout: Rollout, grades: Grades) -> Review:
        """Put text to a graded rollout."""
        r = rollout
        return review(
            r.lesson.pair, r.example.prompt, r.trajectory, grades, seed=self.config.seed, correct=r.right
        )

    def rehearse(self) -> tuple[list[tuple[Rollout, Grades]], float]:
        """Do all of the next step but the update, and forget the gradient.

        Returns:
            The graded rollouts, and how many seconds it took.
        """
        announce("Sampling")
        started = self._now()
        with gathered(self.student), self.precision():
            rollouts = gather(self.config, self.lessons, self.sampler, max(1, self.next_step))
        if self.config.grades_first:
            rollouts = settle(self.config, rollouts, self._grade(rollouts))
        graded = [
            pair
            for part in _parts(rollouts, self.config.substeps)
            for pair in zip(part, self._gradient(part).grades, strict=True)
        ]
        self.optimizer.zero_grad(set_to_none=True)
        self.early.forget(rollout.trajectory for rollout, _ in graded)
        return graded, self._now() - started

    def _pushes(self, graded: Sequence[tuple[Rollout, Grades]]) -> list[Push]:
        """Score rollouts anew after the update: what it was meant to do to their tokens, and what it did."""
        trajectories = [rollout.trajectory for rollout, _ in graded]
        with gathered(self.student), torch.inference_mode(), self.precision():
            now = self._score(trajectories)
            signals = over_chunks(
                lambda student, _, ids: (None, {"logprobs": sampled(student, ids)}),
                now,
                now,
                self._ids(trajectories),
            )
        parts = cut(signals["logprobs"].cpu().numpy(), trajectories)
        must_be_finite(self.student.name, *parts)
        return [
            Push(given_advantage(self.config, rollout, g), after - g.student.logprobs)
            for (rollout, g), after in zip(graded, parts, strict=True)
        ]

    def _score_frozen(self) -> list[FrozenScores]:
        """Let the student as it is now score the probes of step 0; the teacher's part is computed once."""
        if not self.frozen:
            return []
        lesson = self.lessons[0]
        with torch.inference_mode(), self.precision():
            teacher = self._teacher_of_frozen
            if teacher is None or lesson.pair.teacher is self.student:
                teacher, _ = self._score_teacher(lesson.pair, self.frozen)
            self._teacher_of_frozen = teacher
            signals = over_chunks(
                lambda student, teacher, ids: (None, token_signals(student, teacher, ids, 1)),
                self._score(self.frozen),
                teacher,
                self._ids(self.frozen),
            )
        signals["logprobs"] = signals["student.logprobs"]
        columns = [cut(signals[f.name].cpu().numpy(), self.frozen) for f in fields(FrozenScores)]
        return [FrozenScores(*column) for column in zip(*columns, strict=True)]

    def _score(self, trajectories: Sequence[Trajectory]) -> Distributions:
        """Return the student's distributions of a few trajectories."""
        return distributions(
            self.student,
            trajectories,
            side="student",
            temperature=self.config.temperature,
            vocabulary=self.lessons[0].pair.vocabulary,
        )

    def _score_teacher(self, pair: Pair, trajectories: Sequence[Trajectory]) -> Told:
        """Return what a teacher says of some trajectories, and its scores where it computes elsewhere."""
        top_k = alternatives(self.config, pair.vocabulary)
        return teacher_distributions(pair, trajectories, temperature=self.config.temperature, top_k=top_k)

    def _ask_teacher(self, pair: Pair, trajectories: Sequence[Trajectory]) -> Told:
        """Return what the teacher says, and count the step's time that is spent waiting for it."""
        started = self._now()
        told = self.early.take(pair, trajectories)
        self._teacher_seconds += self._now() - started
        return told

    def _finished(self, pair: Pair, trajectory: Trajectory) -> None:
        """Let a teacher that computes elsewhere score what is finished while the student writes the rest."""
        if computes_elsewhere(pair) and world() == 1:  # of several processes another one may train on it
            self.early.begin(pair, [trajectory])

    def _ids(self, trajectories: Sequence[Trajectory]) -> Tensor:
        return pack((t.completion_ids for t in trajectories), self.student.device)

    def _grade(self, rollouts: Sequence[Rollout]) -> list[Grades]:
        """Grade before the update, for objectives that must see the whole step first.

        Each process grades what it trains on, so that it alone asks the teacher about it.
        """
        announce("Grading")
        grades: dict[Rollout, Grades] = {}
        scoring = {
            "temperature": self.config.temperature,
            "top_k": TOP_K,
            "all_divergences": False,
            "ask": lambda pair, trajectories, **_: self._ask_teacher(pair, trajectories),
        }
        with gathered(self.student), self.precision():
            for part, lesson in itertools.product(_parts(rollouts, self.config.substeps), self.lessons):
                own = [r for r in part if r.lesson is lesson]
                scored = spread(partial(grade, lesson.pair, **scoring), [r.trajectory for r in own], len)
                grades |= zip(own, scored, strict=True)
        return [grades[r] for r in rollouts]

    def _update(self, rollouts: Sequence[Rollout], rate: float, notes: list[str]) -> Updated:
        """Make one optimizer step; out of memory, repeat it with smaller micro-batches."""
        while True:
            try:
                updated = self._gradient(rollouts)
                break
            except torch.OutOfMemoryError:
                longest = max(len(r.trajectory.prompt_ids) + len(r.trajectory) for r in rollouts)
                alone = world() > 1 and self.config.shard  # the others wait inside the step that failed
                if self.micro_batch_tokens <= longest or alone:
                    raise
                self.micro_batch_tokens = max(longest, self.micro_batch_tokens // 2)
                notes.append(
                    f"Out of memory: the micro-batch was halved to {self.micro_batch_tokens} tokens and the "
                    "step repeated. The gradient is the same."
                )
            # Outside the except clause: inside it the traceback keeps the failed step's tensors alive.
            torch.cuda.empty_cache()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return updated

    def _gradient(self, rollouts: Sequence[Rollout]) -> Updated:
        """Accumulate the gradient of the mean loss per token; the grades fall out of the same forward."""
        config = self.config
        # Of the step's chosen tokens none may fall into this part: then there is nothing to learn from it.
        total = max(1, sum(r.trained_tokens for r in rollouts))
        settled = any(r.advantages is not None for r in rollouts)

        def loss_and_grades(
            student: Tensor, teacher: Tensor | TopK, ids: Tensor, columns: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            behaviour, weights, rewards, advantages = columns.unbind(1)
            chunk = Chunk(student, teacher, ids, behaviour, advantages if settled else None, rewards)
            loss = token_loss(chunk, config) * weights / total
            signals = token_signals(student, teacher, ids, TOP_K)
            signals["stop_mass"] = student.detach()[:, self.student.eos_ids].exp().sum(-1)
            return loss, signals

        announce("Grading and taking the gradient")
        self.optimizer.zero_grad(set_to_none=True)
        found: dict[int, tuple[Grades, float]] = {}  # of each rollout, its grades and stop mass
        loss = 0.0
        for lesson in self.lessons:
            own = [i for i, r in enumerate(rollouts) if r.lesson is lesson]
            scoring = {"temperature": config.temperature, "vocabulary": lesson.pair.vocabulary}
            for group, part in self._micro_batches(rollouts, own, lesson.pair.packs):
                trajectories = [r.trajectory for r in part]
                with torch.no_grad(), self.precision():
                    teacher, told = self._ask_teacher(lesson.pair, trajectories)
                with self.precision(), _training(self.student):
                    student = distributions(self.student, trajectories, side="student", **scoring)
                    signals = over_chunks(
                        loss_and_grades,
                        student,
                        teacher,
                        pack((t.completion_ids for t in trajectories), student.hidden.device),
                        pack(map(_columns, part), student.hidden.device),
                        backward=True,
                    )
                loss += float(signals.pop("loss").sum())
                stop_mass = [float(part[-1]) for part in cut(signals.pop("stop_mass").cpu(), trajectories)]
                graded = to_grades(lesson.pair, signals, trajectories, config.temperature, told)
                # One that counts for nothing has no index.
                found |= zip(group, zip(graded, stop_mass, strict=True), strict=False)
                count(len(found), len(rollouts))
        losses, parts = zip(*exchange((loss, found)), strict=True)
        sum_gradients(self.parameters.values())
        loss, found = sum(losses), {i: known for part in parts for i, known in part.items()}
        grades, stop_mass = zip(*(found[i] for i in range(len(rollouts))), strict=True)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.parameters.values(), config.max_grad_norm)))
        if not np.isfinite(loss) or not np.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise RuntimeError(
                f"The loss ({loss}) or the gradient norm ({norm}) is not finite, although what both models "
                "say is; the step was not made. Lower the learning rate, or use float32."
            )
        return Updated(list(grades), loss, norm, list(stop_mass))

    def _micro_batches(
        self, rollouts: Sequence[Rollout], own: Sequence[int], packed: bool
    ) -> Iterator[tuple[list[int], list[Rollout]]]:
        """Cut this process's share of some rollouts into micro-batches: their indices, and they themselves.

        Sharded weights want as many forwards of every process. Whoever has fewer takes part with a rollout
        that counts for nothing, under no index: one of its own if it has any, which no teacher elsewhere is
        asked about again.
        """
        lengths = [len(rollouts[i].trajectory) for i in own]

        def dealt(process: int) -> list[list[int]]:
            mine = [own[i] for i in share(lengths, process)]
            trajectories = [rollouts[i].trajectory for i in mine]
            groups = batches(trajectories, self.micro_batch_tokens, packed=packed)
            return [[mine[i] for i in group] for group in groups]

        mine = dealt(rank())
        for group in mine:
            yield group, [rollouts[i] for i in group]
        if self.config.shard:
            for _ in range(max(len(dealt(process)) for process in range(world())) - len(mine)):
                known = [i for group in mine for i in group] or own
                shortest = min((rollouts[i] for i in known), key=lambda r: len(r.trajectory))
                yield [], [replace(shortest, weights=np.zeros(len(shortest.trajectory), np.float32))]

    def _evaluate(self) -> tuple[dict[str, float], list[Review]]:
        """Measure held-out accuracy and KL of every lesson; those of further ones carry the task's name.

        Also returns the first lesson's probes: graded answers to prompts that are the same at every call.
        """
        config, started = self.config, self._now()
        metrics: dict[str, float] = {}
        kept: list[Review] = []
        if not config.eval_prompts:
            return metrics, kept
        sampling = {"temperature": config.temperature, "max_tokens": config.max_tokens, "seed": config.seed}
        options = {"n": config.eval_prompts, "split": config.eval_split, **sampling}
        for number, lesson in enumerate(self.lessons):
            suffix = self._suffix(number)
            announce("Asking the probes")
            problems = lesson.task.heldout(PROBES, split=config.eval_split)
            with self.precision():
                probes = sample(self.student, [e.prompt for e in problems], **sampling)
                # By the teacher that trains: with its hint and its system prompt.
                probes = lesson.informed(probes, problems, room=config.max_tokens)
                scoring = partial(grade, lesson.pair, temperature=config.temperature, top_k=TOP_K)
                grades = spread(scoring, probes, len)
            metrics |= mean_kl("heldout_kl", grades, suffix)
            metrics[f"heldout_prompts{suffix}"] = len(problems)
            looks = shape(probes, self.student)
            metrics |= {f"heldout_{name}{suffix}": value for name, value in looks.items()}
            if not number:
                for e, t, g in list(zip(problems, probes, grades, strict=True))[:PROBES_KEPT]:
                    correct = verify(lesson.task, e, self.student, t)
                    kept.append(review(lesson.pair, e.prompt, t, g, seed=config.seed, correct=correct))
            if problems[0].answer is None:
                continue
            if f"{number}" not in self.teacher_accuracies and lesson.pair.scorer is None:
                told = lesson.teacher_messages if lesson.privileged else None
                taught = evaluate(lesson.pair.teacher, lesson.task, prompt_of=told, **options)
                self.teacher_accuracies[f"{number}"] = taught.value
            with self.precision():
                student = evaluate(self.student, lesson.task, **options)
            low, high = student.interval
            metrics |= {
                f"heldout_accuracy{suffix}": student.value,
                f"heldout_accuracy_low{suffix}": low,
                f"heldout_accuracy_high{suffix}": high,
                f"heldout_n{suffix}": student.n,
            }
            if f"{number}" in self.teacher_accuracies:  # a teacher that only scores answers nothing
                metrics[f"teacher_accuracy{suffix}"] = self.teacher_accuracies[f"{number}"]
        return metrics | {"seconds_evaluate": self._now() - started}, kept

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """float32 weights compute in the config's dtype."""
        device = self.student.device
        dtype = resolve_dtype(self.config.dtype, device)
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def _now(self) -> float:
        """The time in seconds, once the device has done what was asked of it."""
        if self.student.device.type == "cuda":
            torch.cuda.synchronize(self.student.device)
        return time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on: trained weights, optimizer tensors, the place in the run.

        Random numbers and prompts are functions of seed and step, so there is no generator to save. Nothing
        depends on the number of processes. Where weights are sharded, the first process's state is complete.
        """
        optimizer = {
            f"{name}.{key}": on_first(value)
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        return {
            "next_step": self.next_step,
            "micro_batch_tokens": self.micro_batch_tokens,
            "teacher_accuracies": self.teacher_accuracies,
            "frozen": [{name: getattr(t, name).tolist() for name in FROZEN_IDS} for t in self.frozen],
            "weights": {name: on_first(p.detach()) for name, p in self.parameters.items()},
            "optimizer": optimizer,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Go on from a saved state.

        Raises:
            ValueError: the state belongs to a model with other parameters.
        """
        if state["weights"].keys() != self.parameters.keys():
            raise ValueError("The saved state belongs to another student: its parameters have other names.")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(cut_like(state["weights"][name], parameter))
        for key, value in state["optimizer"].items():
            name, _, field = key.rpartition(".")
            parameter = self.parameters[name]
            # AdamW's count of steps is a number, which it wants on the parameter's device.
            kept = value.to(parameter.device) if field == "step" else cut_like(value, parameter)
            self.optimizer.state[parameter][field] = kept.clone()
        self.next_step = int(state["next_step"])
        self.micro_batch_tokens = int(state["micro_batch_tokens"])
        self.teacher_accuracies = dict(state["teacher_accuracies"])
        self.frozen = [
            Trajectory(
                **{k: np.array(v) for k, v in ids.items()}, behaviour_logprobs=None, finish_reason=None
            )
            for ids in state.get("frozen", ())
        ]
        self._teacher_of_frozen = None
        self._synchronise()
        self._ahead.clear()  # written by other weights
        return self


def _sampler(student: LanguageModel, config: DistillConfig) -> Sampler:
    """Return what samples from the student.

    Raises:
        ValueError: vLLM is not installed, or cannot do what is asked.
        EngineError: vLLM cannot start.
    """
    if config.engine == "transformers":
        return TransformersSampler(student)
    from opd.engines.vllm import VllmEngine

    share = {"memory_share": config.vllm_memory} if config.vllm_memory else {}
    return VllmEngine(
        student, dtype=config.dtype, hot_swap=config.vllm_hot_swap, sleeps=config.vllm_sleeps, **share
    )


def learning_rate(config: DistillConfig, step: int) -> float:
    """Return the learning rate of update ``step`` (from 1): linear warm-up, then linear decay."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / (config.warmup_steps + 1)
    return config.learning_rate * (config.steps - step + 1) / (config.steps - config.warmup_steps)


@contextlib.contextmanager
def _training(model: LanguageModel) -> Iterator[None]:
    """Train mode while the gradient is made: gradient checkpointing is off outside of it."""
    model.model.train()
    try:
        yield
    finally:
        model.model.eval()


def _parts(rollouts: Sequence[Rollout], count: int) -> list[Sequence[Rollout]]:
    """Cut the step's rollouts into ``count`` parts, none of them empty, each with a share of every lesson."""
    lessons = [list(own) for _, own in itertools.groupby(rollouts, key=lambda r: r.lesson)]
    parts = (
        [r for own in lessons for r in own[len(own) * k // count : len(own) * (k + 1) // count]]
        for k in range(count)
    )
    return [part for part in parts if part]


def _columns(rollout: Rollout) -> np.ndarray:
    """Per token: behaviour log-prob, weight, reward, settled advantage; float32 ``[T, 4]``."""
    t = rollout.trajectory
    columns = np.zeros((len(t), 4), np.float32)
    columns[:, 0] = 0 if t.behaviour_logprobs is None else t.behaviour_logprobs
    columns[:, 1] = 1 if rollout.weights is None else rollout.weights
    columns[:, 2] = rollout.reward
    columns[:, 3] = 0 if rollout.advantages is None else rollout.advantages
    return columns
