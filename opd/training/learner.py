"""The student in training: which of its weights are open, what moves them, and how it is asked meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from opd.config import DistillConfig
from opd.divergence import Distributions
from opd.models.kernels import prepare
from opd.models.load import resolve_dtype
from opd.models.network import LanguageModel
from opd.models.pair import Pair
from opd.models.parallel import gathered, shard
from opd.models.scoring import distributions
from opd.trajectory import Trajectory

BETAS = (0.9, 0.95)  # of AdamW, as in the Tinker recipe


class Learner:
    """The student in training.

    Attributes:
        config: of the run.
        student: the model; its weights change in place.
        parameters: the weights that are open, by name.
        optimizer: moves them.
        micro_batch_tokens: the most tokens of one forward; fewer once memory has run out.
    """

    def __init__(self, student: LanguageModel, config: DistillConfig) -> None:
        """Give a student that is :func:`trainable` its optimizer, and shard it if the config says so."""
        self.config, self.student = config, student
        if config.shard:
            shard(student)
        self.parameters = {n: p for n, p in student.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=0.0, betas=BETAS, weight_decay=config.weight_decay, fused=True
        )
        self.micro_batch_tokens = config.micro_batch_tokens

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Compute in the config's dtype where weights are float32."""
        device = self.student.device
        dtype = resolve_dtype(self.config.dtype, device)
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Let models sample and score, in the run's precision and with the student's weights whole.

        All processes enter together.
        """
        with gathered(self.student), self.precision():
            yield

    def score(self, pair: Pair, trajectories: Sequence[Trajectory]) -> Distributions:
        """Return the student's distributions of some trajectories; gradients flow if they are enabled."""
        return distributions(
            self.student,
            trajectories,
            side="student",
            temperature=self.config.temperature,
            vocabulary=pair.vocabulary,
        )


def learning_rate(config: DistillConfig, step: int) -> float:
    """Return the learning rate of update ``step`` (from 1): linear warm-up, then linear decay."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / (config.warmup_steps + 1)
    return config.learning_rate * (config.steps - step + 1) / (config.steps - config.warmup_steps)


def trainable(student: LanguageModel, config: DistillConfig) -> LanguageModel:
    """Open the student's weights, or those of an adapter: its own if it came with one, else a fresh one.

    An adapter on merged weights could be saved only together with them: no folder would hold its base.

    Raises:
        ValueError: the student's own adapter has another rank than the config's.
    """
    model = student.model
    adapted = hasattr(model, "peft_config")
    if adapted and not config.lora_rank:
        model = model.merge_and_unload()
    if config.lora_rank and adapted:
        rank = getattr(model.active_peft_config, "r", None)
        if rank != config.lora_rank:
            raise ValueError(
                f"{student.name} comes with an adapter of rank {rank}. Set lora_rank to {rank} to train it "
                "further, or to 0 to merge it and train all weights."
            )
        model.set_adapter(model.active_adapter)  # opens its weights
    elif config.lora_rank:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(config.seed)  # peft draws the adapter's first weights from torch's generator
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
    opened = LanguageModel(student.name, model.eval(), student.tokenizer, compiled=config.compile)
    opened = opened.prompted(student.template_options, control_tokens=student.control_tokens)
    prepare(opened.causal_lm)  # the adapter's layers are new
    return opened
