"""The loop: sample from the student, let the teacher grade every token, update the student with the grades.

What it leaves out on purpose. No reference-model penalty: the teacher is the reference. No value network and
no whitening of advantages: the grade of a token is already dense, and centring it would shift the optimum.
No replay: a trajectory trains once, by the student that wrote it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from opd.config import DistillConfig
from opd.divergence import over_chunks, token_signals
from opd.engines.transformers import TransformersSampler, batches, distributions
from opd.evaluation import evaluate
from opd.grading import to_grades
from opd.models import LanguageModel, Pair, load_model, resolve_device, resolve_dtype
from opd.objectives import OBJECTIVES
from opd.reviewing import review
from opd.sampling import requests
from opd.tasks import Example, load_task
from opd.trajectory import Grades, Review, StepReport, Trajectory

BETAS = (0.9, 0.95)  # of AdamW, as in the Tinker recipe
TOP_K = 8  # alternatives kept of each token in the loop
SAMPLES_PER_STEP = 4  # graded trajectories that go into the report


@dataclass(frozen=True)
class _Graded:
    """What the update knows of its trajectories afterwards."""

    grades: list[Grades]
    loss: float
    gradient_norm: float
    teacher_seconds: float


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
        self.config = config
        self.task = load_task(config.task)
        self.objective = OBJECTIVES[config.objective]
        self.pair = pair or load_training_pair(config)
        self.student = self.pair.student = _trainable(self.pair.student, config)
        self.sampler = TransformersSampler(self.student)
        self.parameters = {n: p for n, p in self.student.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=0.0, betas=BETAS, weight_decay=config.weight_decay
        )
        self.micro_batch_tokens = config.micro_batch_tokens
        self.next_step = 0
        self.teacher_accuracy: float | None = None

    def __iter__(self) -> Iterator[StepReport]:
        """Return itself: iterating again goes on where it stopped."""
        return self

    def __next__(self) -> StepReport:
        """Make one step and report it.

        Raises:
            RuntimeError: the loss or the gradient is not finite; the weights are those before the step.
        """
        if self.next_step > self.config.steps:
            raise StopIteration
        report = self._step(self.next_step) if self.next_step else StepReport(0, self._evaluate())
        self.next_step += 1
        return report

    def _step(self, step: int) -> StepReport:
        config, started = self.config, time.perf_counter()

        examples = self.task.batch(config.prompts_per_step, step=step, seed=config.seed)
        trajectories = self._sample(examples, step)
        sampled_at = self._now()
        graded, notes = self._update(trajectories, learning_rate(config, step))
        updated_at = self._now()

        tokens = sum(len(t) for t in trajectories)
        metrics = {
            "loss": graded.loss,
            **_token_metrics(trajectories, graded.grades),
            "gradient_norm": graded.gradient_norm,
            "learning_rate": learning_rate(config, step),
            "tokens": tokens,
            "tokens_per_second": tokens / (updated_at - started),
            "seconds_sample": sampled_at - started,
            "seconds_teacher": graded.teacher_seconds,
            "seconds_update": updated_at - sampled_at - graded.teacher_seconds,
        }
        if step % config.eval_every == 0 or step == config.steps:
            metrics |= self._evaluate()
        return StepReport(step, metrics, self._reviews(examples, trajectories, graded.grades), notes)

    def _sample(self, examples: Sequence[Example], step: int) -> list[Trajectory]:
        config = self.config
        asked = requests(
            self.student,
            [e.prompt for e in examples],
            n=config.samples_per_prompt,
            seed=config.seed,
            step=step,
            max_tokens=config.max_tokens,
        )
        with self._precision():
            done = list(self.sampler.sample(asked, temperature=config.temperature))
        return sorted(done, key=lambda t: (t.prompt_index, t.sample_index))

    def _update(self, trajectories: Sequence[Trajectory], rate: float) -> tuple[_Graded, list[str]]:
        """Grade the trajectories and update the student; out of memory, with smaller micro-batches."""
        notes: list[str] = []
        while True:
            try:
                graded = self._gradient(trajectories)
                break
            except torch.OutOfMemoryError:
                longest = max(len(t.prompt_ids) + len(t) for t in trajectories)
                if self.micro_batch_tokens <= longest:
                    raise
                self.micro_batch_tokens = max(longest, self.micro_batch_tokens // 2)
                notes.append(
                    f"Out of memory: the micro-batch was halved to {self.micro_batch_tokens} tokens and the "
                    "step repeated. The gradient is the same."
                )
            # Outside the except clause: there the traceback would keep the failed step's tensors alive.
            torch.cuda.empty_cache()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return graded, notes

    def _gradient(self, trajectories: Sequence[Trajectory]) -> _Graded:
        """Accumulate the gradient of the mean loss per token; the grades fall out of the same forward."""
        config, total = self.config, sum(len(t) for t in trajectories)

        def loss_and_grades(
            student: Tensor, teacher: Tensor, ids: Tensor, behaviour: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            loss = self.objective.loss(student, teacher, ids, behaviour) / total
            return loss, token_signals(student, teacher, ids, TOP_K)

        self.optimizer.zero_grad(set_to_none=True)
        grades: list[Grades | None] = [None] * len(trajectories)
        loss = teacher_seconds = 0.0
        score = {"temperature": config.temperature, "vocabulary": self.pair.vocabulary}
        for indices in batches(trajectories, self.micro_batch_tokens):
            part = [trajectories[i] for i in indices]
            started = self._now()
            with torch.no_grad():
                teacher = distributions(self.pair.teacher, part, side="teacher", **score)
            teacher_seconds += self._now() - started
            with self._precision(), _training(self.student):
                student = distributions(self.student, part, side="student", **score)
                columns = (
                    torch.from_numpy(np.concatenate([t.completion_ids for t in part])),
                    torch.from_numpy(np.concatenate([t.behaviour_logprobs for t in part])),
                )
                signals = over_chunks(
                    loss_and_grades,
                    student,
                    teacher,
                    *(c.to(student.hidden.device) for c in columns),
                    backward=True,
                )
            loss += float(signals.pop("loss").sum())
            for i, g in zip(indices, to_grades(signals, part, config.temperature), strict=True):
                grades[i] = g
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), config.max_grad_norm))
        if not np.isfinite(loss) or not np.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise RuntimeError(
                f"The loss ({loss}) or the gradient norm ({norm}) is not finite; the step was not made. "
                "Lower the learning rate, or use float32."
            )
        return _Graded([g for g in grades if g is not None], loss, norm, teacher_seconds)

    def _evaluate(self) -> dict[str, float]:
        config = self.config
        if not config.eval_prompts:
            return {}
        started = self._now()
        options = {"n": config.eval_prompts, "split": config.eval_split, "seed": config.seed}
        options |= {"temperature": config.temperature, "max_tokens": config.max_tokens}
        if self.teacher_accuracy is None:
            self.teacher_accuracy = evaluate(self.pair.teacher, self.task, **options).value
        with self._precision():
            student = evaluate(self.student, self.task, **options)
        return {
            "heldout_accuracy": student.value,
            "teacher_accuracy": self.teacher_accuracy,
            "heldout_n": student.n,
            "seconds_evaluate": self._now() - started,
        }

    def _reviews(
        self, examples: Sequence[Example], trajectories: Sequence[Trajectory], grades: Sequence[Grades]
    ) -> list[Review]:
        out = []
        for t, g in list(zip(trajectories, grades, strict=True))[:SAMPLES_PER_STEP]:
            example = examples[t.prompt_index]
            known = {"seed": self.config.seed, "task": self.task, "example": example}
            out.append(review(self.pair, example.prompt, t, g, **known))
        return out

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """fp32 weights compute in the config's dtype; small learning rates vanish in bf16 weights."""
        device = self.student.device
        dtype = resolve_dtype(self.config.dtype, device)
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def _now(self) -> float:
        """The time, once the device has done what was asked of it."""
        if self.student.device.type == "cuda":
            torch.cuda.synchronize(self.student.device)
        return time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on: trained weights, optimizer tensors, the place in the run.

        Random numbers and prompts are functions of seed and step, so there is no generator to save.
        """
        optimizer = {
            f"{name}.{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        return {
            "next_step": self.next_step,
            "micro_batch_tokens": self.micro_batch_tokens,
            "teacher_accuracy": self.teacher_accuracy,
            "weights": {name: p.detach() for name, p in self.parameters.items()},
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
                parameter.copy_(state["weights"][name])
        for key, value in state["optimizer"].items():
            name, _, field = key.rpartition(".")
            parameter = self.parameters[name]
            # AdamW keeps its step counter on the CPU.
            kept = value.clone() if field == "step" else value.to(parameter.device, copy=True)
            self.optimizer.state[parameter][field] = kept
        self.next_step = int(state["next_step"])
        self.micro_batch_tokens = int(state["micro_batch_tokens"])
        self.teacher_accuracy = state["teacher_accuracy"]
        return self


def learning_rate(config: DistillConfig, step: int) -> float:
    """Return the learning rate of update ``step`` (from 1): linear warm-up, then linear decay."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / (config.warmup_steps + 1)
    return config.learning_rate * (config.steps - step + 1) / (config.steps - config.warmup_steps)


def load_training_pair(config: DistillConfig) -> Pair:
    """Load the config's pair for training: weights that will change are kept in float32."""
    device = resolve_device(config.device)
    resolve_dtype(config.dtype, device)
    student_dtype = config.dtype if config.lora_rank else "float32"
    return Pair(
        load_model(config.student, device=config.device, dtype=student_dtype),
        load_model(
            config.teacher,
            device=config.teacher_device or config.device,
            dtype=config.teacher_dtype or config.dtype,
        ),
    )


def _trainable(student: LanguageModel, config: DistillConfig) -> LanguageModel:
    """Open the student's weights, or put a fresh adapter on it; an adapter it came with is merged first."""
    model = student.model
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    if config.lora_rank:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_rank,
            target_modules="all-linear",
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, lora)
    else:
        model.requires_grad_(True)
    for module in model.modules():  # dropout would make the trainer's log-probs differ from the sampler's
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return LanguageModel(student.name, model.eval(), student.tokenizer)


@contextlib.contextmanager
def _training(model: LanguageModel) -> Iterator[None]:
    """Train mode while the gradient is made: gradient checkpointing is off outside of it."""
    model.model.train()
    try:
        yield
    finally:
        model.model.eval()


def _token_metrics(trajectories: Sequence[Trajectory], grades: Sequence[Grades]) -> dict[str, float]:
    """Means over all tokens of the step, and what the completions looked like."""

    def mean(columns: Sequence[np.ndarray]) -> float:
        return float(np.concatenate(columns).mean(dtype=np.float64))

    log_ratio = [g.student.logprobs - t.behaviour_logprobs for g, t in zip(grades, trajectories, strict=True)]
    return {
        "penalty": mean([g.penalty for g in grades]),
        "reverse_kl": mean([g.reverse_kl for g in grades]),
        "student_entropy": mean([g.student.entropy for g in grades]),
        "teacher_entropy": mean([g.teacher.entropy for g in grades]),
        "sampler_mismatch": mean([-r for r in log_ratio]),
        "completion_tokens": float(np.mean([len(t) for t in trajectories])),
        "clipped_share": float(np.mean([t.finish_reason == "length" for t in trajectories])),
    }
