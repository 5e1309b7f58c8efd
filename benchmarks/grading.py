"""Grading against the least it could cost: one bare forward of each model over the same batches."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import Figure, Ratio, alternate
from opd.engines.sampling import sample
from opd.grading.grading import grade
from opd.models.kernels.packing import alike
from opd.models.pair import Pair, load_pair
from opd.tasks import load_task
from opd.trajectory import Trajectory

TRAJECTORIES, ROUNDS = 256, 7

Batch = tuple[Tensor, Tensor, Tensor]


def measure() -> list[Figure]:
    """Measure ``opd.grade`` with every divergence and top-20 lists against two bare forwards."""
    pair = load_pair()
    examples = load_task("demo").heldout(TRAJECTORIES)
    trajectories = sample(pair, [e.prompt for e in examples], max_tokens=192)
    tokens = sum(map(len, trajectories))
    lengths = [len(t.prompt_ids) + len(t) for t in trajectories]
    prepared = [_padded([trajectories[i] for i in group]) for group in alike(lengths)]

    def forwards(logits: Callable[..., Tensor]) -> int:
        with torch.inference_mode():
            for batch in prepared:
                for model in (pair.student, pair.teacher):
                    logits(model.causal_lm, *batch)
        return tokens

    costs = alternate(
        {
            "ours": lambda k: _graded(pair, trajectories),
            "needed": lambda k: forwards(_needed_logits),
            "all": lambda k: forwards(_all_logits),
        },
        ROUNDS,
    )
    needed, full = (Ratio.of(costs["ours"], costs[side]) for side in ("needed", "all"))
    seconds = {side: median(c.wall for c in costs[side]) for side in costs}
    return [
        Figure(
            "grading_vs_forwards",
            needed.wall,
            at_most=1.3,
            detail=f"{TRAJECTORIES} trajectories, {tokens:,} tokens; "
            f"logits of completion tokens alone; {needed}; "
            f"{seconds['ours']:.3f} s against {seconds['needed']:.3f} s",
        ),
        Figure(
            "grading_vs_full_forwards",
            full.wall,
            detail=f"as model(ids) computes them, logits of every place; {full}; {seconds['all']:.3f} s",
        ),
    ]


def _graded(pair: Pair, trajectories: list[Trajectory]) -> int:
    return sum(len(g) for g in grade(pair, trajectories))


def _padded(trajectories: list[Trajectory]) -> Batch:
    """Ids and mask, padded on the right ``[B, L]``, and the places that predict a completion token."""
    rows = [np.concatenate([t.prompt_ids, t.completion_ids[:-1]]) for t in trajectories]
    ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    mask, predicts = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, (row, t) in enumerate(zip(rows, trajectories, strict=True)):
        ids[i, : len(row)] = torch.from_numpy(row)
        mask[i, : len(row)] = 1
        predicts[i, len(t.prompt_ids) - 1 : len(row)] = True
    return ids, mask, predicts


def _needed_logits(model: torch.nn.Module, ids: Tensor, mask: Tensor, predicts: Tensor) -> Tensor:
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return model.get_output_embeddings()(hidden[predicts])


def _all_logits(model: torch.nn.Module, ids: Tensor, mask: Tensor, predicts: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits
