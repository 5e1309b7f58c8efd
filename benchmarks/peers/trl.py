"""TRL's DistillationTrainer: the same pair, prompts, batch, optimizer and schedule as ours.

Its own loop runs (``trainer.train()``), in a process of its own; after each of its steps it waits until the
other side has made one. What was tried to make it fast is told in ``benchmarks/NOTES.md``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl import DistillationConfig, DistillationTrainer

from benchmarks.measuring import Cost, Stopwatch, partner
from opd.config import DistillConfig
from opd.files import assets_dir
from opd.models.load import DEMO_MODELS
from opd.training.learner import BETAS, learning_rate
from opd.trajectory import Prompt, as_messages

Weights = dict[str, NDArray[np.float32]]
Replay = Sequence[list[list[int]]]


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

    replay: Replay | None = None

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> list[list[int]]:  # noqa: ANN401
        if self.replay is None:
            completions = super()._generate_single_turn(*args, **kwargs)
        else:
            completions = self.replay[self.state.global_step]
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
        update = self.trainer.since_rollout.stop(tokens)  # first: it is a part of the step
        step = PeerStep(state.global_step, self.watch.stop(tokens), update)
        control.should_training_stop = not self.act(step)
        self.watch = Stopwatch()


def train_demo(
    config: DistillConfig,
    prompts: Sequence[Sequence[Prompt]],
    after_step: Callable[[PeerStep, Weights], bool],
    *,
    replay: Replay | None = None,
) -> None:
    """Let TRL distil the embedded pair in a process of its own; see :func:`train`.

    ``after_step`` is also given what the student's weights are after the step.
    """
    with partner(_train_demo, config, prompts, replay) as peer:
        while (step := peer.recv()) is not None:
            peer.send(after_step(*step))


def _train_demo(
    connection: Connection,
    config: DistillConfig,
    prompts: Sequence[Sequence[Prompt]],
    replay: Replay | None,
) -> None:
    folders = [str(assets_dir() / DEMO_MODELS[name]) for name in ("demo-student", "demo-teacher")]
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)

    def after_step(step: PeerStep) -> bool:
        connection.send((step, {name: value.numpy() for name, value in student.state_dict().items()}))
        return connection.recv()

    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    train(student, teacher, tokenizer, config, prompts, after_step, replay=replay)
    connection.send(None)


def train(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: DistillConfig,
    prompts: Sequence[Sequence[Prompt]],
    after_step: Callable[[PeerStep], bool],
    *,
    replay: Replay | None = None,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Let TRL distil a pair, the student in place.

    Args:
        student: who trains.
        teacher: who grades.
        tokenizer: that of both.
        config: rate, schedule, limits and seed, as our side has them.
        prompts: those of each step.
        after_step: is told of each step, and says whether to go on.
        replay: the completions of each step, where they shall not be sampled.
        settings: further ones of TRL's ``DistillationConfig``.
    """
    student.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        student.parameters(),
        lr=config.learning_rate,
        betas=BETAS,
        weight_decay=config.weight_decay,
        fused=True,
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
            model=student,
            teacher_model=teacher,
            args=DistillationConfig(**options),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[callback],
            optimizers=(optimizer, schedule),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.replay = replay
        callback.trainer = trainer
        trainer.train()
