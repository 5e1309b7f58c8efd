"""A step's gradient without the loop around it, for models that have no task.

The same calls as in ``opd.training.distillation``: full reverse KL, and the grades out of the same forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from opd.divergence import over_chunks, reverse_kl, token_signals
from opd.engines.transformers import batches
from opd.models.pair import Pair
from opd.models.scoring import distributions
from opd.trajectory import Trajectory

TOP_K = 8
MICRO_BATCH_TOKENS = 8192


def loss_and_grades(tokens: int) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]:
    """Return what a step of so many tokens does with a chunk; see :func:`opd.divergence.over_chunks`."""
    return lambda student, teacher, ids: (
        reverse_kl(student, teacher) / tokens,
        token_signals(student, teacher, ids, TOP_K),
    )


def make_gradient(pair: Pair, trajectories: Sequence[Trajectory]) -> None:
    """Add the gradient of the mean reverse KL a token to the student's parameters."""
    on_chunk = loss_and_grades(sum(map(len, trajectories)))
    scoring = {"temperature": 1.0, "vocabulary": pair.vocabulary}
    for group in batches(trajectories, MICRO_BATCH_TOKENS, packed=pair.packs):
        part = [trajectories[i] for i in group]
        with torch.no_grad():
            teacher = distributions(pair.teacher, part, side="teacher", **scoring)
        student = distributions(pair.student, part, side="student", **scoring)
        ids = torch.from_numpy(np.concatenate([t.completion_ids for t in part]))
        over_chunks(on_chunk, student, teacher, ids.to(student.hidden.device), backward=True)
