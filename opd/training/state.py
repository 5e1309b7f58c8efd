"""The state of a run: all that its next step depends on, as tensors and JSON-ready data.

Random numbers and prompts are functions of seed and step, so there is no generator to save. Nothing depends
on the number of processes. Where weights are sharded, the first process's state is complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from opd.models.parallel import cut_like, on_first
from opd.training.learner import Learner
from opd.training.watch import Watch
from opd.trajectory import Trajectory

FROZEN_IDS = ("prompt_ids", "completion_ids", "teacher_prompt_ids")


def state_of(learner: Learner, watch: Watch, next_step: int) -> dict[str, Any]:
    """Return trained weights and optimizer tensors by name, the place in the run, and what is watched."""
    optimizer = {
        f"{name}.{key}": on_first(value)
        for name, parameter in learner.parameters.items()
        for key, value in learner.optimizer.state[parameter].items()
    }
    return {
        "next_step": next_step,
        "micro_batch_tokens": learner.micro_batch_tokens,
        "teacher_accuracies": watch.teacher_accuracies,
        "frozen": [{name: getattr(t, name).tolist() for name in FROZEN_IDS} for t in watch.frozen],
        "weights": {name: on_first(p.detach()) for name, p in learner.parameters.items()},
        "optimizer": optimizer,
    }


def restore(state: Mapping[str, Any], learner: Learner, watch: Watch) -> int:
    """Put a saved state back where it came from; return the next step.

    Raises:
        ValueError: it belongs to a model with other parameters.
        LookupError: it is not whole.
    """
    if state["weights"].keys() != learner.parameters.keys():
        raise ValueError("The saved state belongs to another student: its parameters have other names.")
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            parameter.copy_(cut_like(state["weights"][name], parameter))
    for key, value in state["optimizer"].items():
        name, _, field = key.rpartition(".")
        parameter = learner.parameters[name]
        # AdamW's count of steps is a number, which it wants on the parameter's device.
        kept = value.to(parameter.device) if field == "step" else cut_like(value, parameter)
        learner.optimizer.state[parameter][field] = kept.clone()
    learner.micro_batch_tokens = int(state["micro_batch_tokens"])
    watch.teacher_accuracies = dict(state["teacher_accuracies"])
    watch.freeze(
        [
            Trajectory(**{k: np.array(v) for k, v in t.items()}, behaviour_logprobs=None, finish_reason=None)
            for t in state.get("frozen", ())
        ]
    )
    return int(state["next_step"])
