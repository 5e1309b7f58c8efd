"""Packed rows: the tokens of many trajectories in one column, one trajectory behind the other, no padding.

Trajectories and grades are arrays of ``T`` tokens each; models and losses see columns of ``N = sum(T)`` rows.
Here they become the one and the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opd.divergence import Predictions
from opd.trajectory import Trajectory

Column = TypeVar("Column", NDArray, Tensor, Predictions)


def pack(parts: Iterable[NDArray], device: torch.device | str = "cpu") -> Tensor:
    """Put arrays of trajectories, ``[T, ...]`` each, behind one another, ``[N, ...]``, on a device."""
    return torch.from_numpy(np.concatenate(list(parts))).to(device)


def completions(trajectories: Iterable[Trajectory], device: torch.device | str = "cpu") -> Tensor:
    """Pack the tokens of some completions, int64 ``[N]``."""
    return pack((t.completion_ids for t in trajectories), device)


def cut(column: Column, like: Iterable[Sized]) -> list[Column]:
    """Cut a packed column ``[N, ...]`` into views ``[T, ...]``, one for each of some trajectories."""
    return [column[place] for place in places(like)]


def places(like: Iterable[Sized]) -> list[slice]:
    """Return where each of some trajectories lies in what is packed of them."""
    return [slice(*ends) for ends in pairwise(accumulate(map(len, like), initial=0))]
