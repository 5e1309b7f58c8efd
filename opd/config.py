"""The one configuration of a run: library, command line, saved file and app all use this model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

# Chosen on the tuning split of the embedded pair; for other pairs the figures of the post's recipe (LoRA) and
# of a cautious full fine-tuning.
DEMO_LEARNING_RATE, LORA_LEARNING_RATE, FULL_LEARNING_RATE = 2e-3, 1e-4, 1e-5


class DistillConfig(BaseModel):
    """Everything that decides what a run does. The same config and seed give the same run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    student: str = Field("demo-student", description="student: a folder, a hub id, or demo-student")
    teacher: str = Field("demo-teacher", description="teacher: a folder, a hub id, or demo-teacher")
    task: str = Field("demo", description="where prompts come from and how answers are verified")
    objective: Literal["reverse_kl", "importance_sampling"] = Field(
        "reverse_kl",
        description="reverse_kl: full-vocabulary KL(student || teacher) at every token; "
        "importance_sampling: the post's policy gradient on the sampled token",
    )
    steps: int = Field(60, ge=1, description="number of updates")
    prompts_per_step: int = Field(64, ge=1, description="prompts of one update")
    samples_per_prompt: int = Field(1, ge=1, description="trajectories sampled for each prompt")
    max_tokens: int = Field(192, ge=1, description="longest completion, in tokens")
    temperature: float = Field(1.0, gt=0, le=10, description="sampling and scoring temperature")
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description=f"peak learning rate of AdamW; default {DEMO_LEARNING_RATE:g} for the embedded student, "
        f"else {LORA_LEARNING_RATE:g} with LoRA and {FULL_LEARNING_RATE:g} without",
    )
    warmup_steps: int = Field(3, ge=0, description="steps of linear warm-up; then linear decay to zero")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    lora_rank: int = Field(0, ge=0, description="rank of the LoRA adapter; 0 trains all weights")
    micro_batch_tokens: int = Field(
        8192, ge=1, description="padded tokens of one forward; the gradient does not depend on it"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    eval_every: int = Field(10, ge=1, description="steps between two evaluations")
    eval_prompts: int = Field(512, ge=0, description="held-out problems of an evaluation; 0 = none")
    eval_split: Literal["test", "tuning"] = Field("test", description="which held-out problems")
    save_every: int = Field(20, ge=1, description="steps between two checkpoints; the last step has one")
    seed: int = Field(0, ge=0, description="decides every random number of the run")
    device: str = Field("auto", description="device of both models: auto, cpu, cuda, cuda:1, mps")
    dtype: str = Field("auto", description="compute dtype: auto, float32, bfloat16, float16")
    teacher_device: str | None = Field(None, description="device of the teacher, if another")
    teacher_dtype: str | None = Field(None, description="dtype of the teacher, if another")

    @model_validator(mode="before")
    @classmethod
    def _fill_learning_rate(cls, data: Any) -> Any:  # noqa: ANN401
        """Settle the default learning rate at once, so that a saved config says what was used."""
        if isinstance(data, dict) and data.get("learning_rate") is None:
            rate = LORA_LEARNING_RATE if data.get("lora_rank") else FULL_LEARNING_RATE
            if data.get("student", "demo-student") == "demo-student":
                rate = DEMO_LEARNING_RATE
            return {**data, "learning_rate": rate}
        return data

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_steps >= self.steps > 1:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be smaller than steps ({self.steps})")
        return self


def make_config(values: Mapping[str, Any]) -> DistillConfig:
    """Build a config from what a user gave, with an error a person can read.

    Raises:
        ValueError: one sentence that names each setting that is wrong.
    """
    try:
        return DistillConfig(**values)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
        raise ValueError("These settings cannot be used. " + "; ".join(problems) + ".") from None
