"""What the tests of runs share."""

from __future__ import annotations

import pytest
from running import train

from opd.config import DistillConfig
from opd.runs.run import Run, create_run


@pytest.fixture
def config(folders: dict[str, str]) -> DistillConfig:
    """A quick run on a tiny random pair that lies on disk."""
    return DistillConfig(
        student=folders["student"],
        teacher=folders["teacher"],
        steps=4,
        warmup_steps=1,
        prompts_per_step=4,
        max_tokens=12,
        eval_prompts=4,
        eval_every=2,
        save_every=2,
        learning_rate=1e-2,
        ignore_doctor=True,
    )


@pytest.fixture
def run() -> Run:
    """A run that nobody has worked on."""
    return create_run("live", DistillConfig(steps=2000))


@pytest.fixture
def trained(config: DistillConfig) -> Run:
    """A run that is finished, with checkpoints of steps 2 and 4."""
    return train(create_run("trained", config))
