"""TRL's DistillationTrainer: the same pair, prompts, batch, optimizer and schedule as ours.

Its own loop runs (``trainer.train()``); a callback after each of its steps lets the other side make one, so
that the two alternate in one process. What was tried to make it fast is told in ``benchmarks/NOTES.md``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from benchmarks.measuring import Cost, Stopwatch
from benchmarks.peers import without_our_layers
from opd.config import DistillConfig
from opd.distillation import BETAS, learning_rate
from opd.models import Pair, as_messages
from opd.trajectory import Prompt


@dataclass(frozen=True)
class PeerStep:
    """A step of TRL's.

    Attributes:
        number: from 1.
        cost: of the whole step, per token that trained.
        update: of what came after the rollout: the teacher's and the student's forward, backward, optimizer.
    """

    number: int
    cost: Cost
    update: Cost


class _Trainer(DistillationTrainer):
    """TRL's trainer, which says when its rollout ended; or, with ``replay``, takes given ids for it."""

    replay: Callable[[int], list[list[int]]] | None = None

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> list[list[int]]:  # noqa: ANN401
        if self.replay is None:
            completions = super()._generate_single_turn(*args, **kwargs)
        else:
            completions = self.replay(self.state.global_step + 1)
        self.tokens = sum(map(len, completions))
        self.since_rollout = Stopwatch()
        return completions


class _AfterEachStep(TrainerCallback):
    def __init__(self, act: Callable[[PeerStep], bool]) -> None:
        self.act = act

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self.watch = Stopwatch()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        tokens = self.trainer.tokens
        step = PeerStep(state.global_step, self.watch.stop(tokens), self.trainer.since_rollout.stop(tokens))
        control.should_training_stop = not self.act(step)
        self.watch = Stopwatch()


def train(
    pair: Pair,
    config: DistillConfig,
    prompts: Sequence[Sequence[Prompt]],
    after_step: Callable[[PeerStep], bool],
    *,
    replay: Callable[[int], list[list[int]]] | None = None,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Let TRL distil the pair, its student in place.

    Args:
        pair: the student and the teacher.
        config: rate, schedule, limits and seed, as our side has them.
        prompts: those of each step.
        after_step: is told of each step, and says whether to go on.
        replay: gives the completions of a step (from 1), where they shall not be sampled.
        settings: further ones of TRL's ``DistillationConfig``.
    """
    student, teacher = (without_our_layers(model) for model in (pair.student, pair.teacher))
    model = student.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=BETAS, weight_decay=config.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda made: learning_rate(config, made + 1) / config.learning_rate
    )
    rows = [{"prompt": as_messages(prompt)} for step in prompts for prompt in step]
    callback = _AfterEachStep(after_step)
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "output_dir": folder,
            "beta": 1.0,
            "per_device_train_batch_size": config.prompts_per_step,
            "max_steps": config.steps,
            "max_completion_length": config.max_tokens,
            "temperature": config.temperature,
            "max_grad_norm": config.max_grad_norm,
            "shuffle_dataset": False,
            "seed": config.seed,
            "use_cpu": not torch.cuda.is_available(),
            "bf16": torch.cuda.is_available(),
            "gradient_checkpointing": False,
            "dataloader_pin_memory": torch.cuda.is_available(),
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
        } | settings
        trainer = _Trainer(
            model=model,
            teacher_model=teacher.model,
            args=DistillationConfig(**options),
            train_dataset=Dataset.from_list(rows),
            processing_class=pair.tokenizer,
            callbacks=[callback],
            optimizers=(optimizer, schedule),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.replay = replay
        callback.trainer = trainer
        trainer.train()
