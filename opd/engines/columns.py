"""A key-value cache that completions enter and leave while others grow.

All rows write the same next column; a row's own columns are contiguous and end there, so to the model it is a
batch padded on the left, and any attention over keys and values works unchanged, sliding windows included.
A new row's prompt is copied into the columns just before the next one. Columns that no row needs any more are
dropped on the left now and then, room is added on the right. Both happen between the model's steps, so that a
step is the same code whatever the lengths and can be compiled once.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from opd.models.hf import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

GROWTH = 1.5  # of the allocated columns, where more are needed


class ColumnsLayer(DynamicLayer):
    """Keys and values ``[rows, heads, columns, D]`` of one layer, written in place."""

    def __init__(self, like: DynamicLayer, rows: int, start: int) -> None:
        """Make room for ``rows`` rows; ``start`` columns are there already."""
        super().__init__()
        self.dtype, self.device, self.is_initialized = like.keys.dtype, like.keys.device, True
        self.length = start
        # Zeros, not empty: what is masked must still be finite.
        self.keys, self.values = (
            part.new_zeros(rows, part.shape[1], start + 64, part.shape[3])
            for part in (like.keys, like.values)
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the next columns of every row, for which there is room, and return all columns so far."""
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Return how many columns are written."""
        return self.length

    def make_room(self) -> None:
        """See to it that there is room for the next column and another: a full cache is a case of its own."""
        needed = self.length + 2
        if needed > self.keys.shape[2]:
            self.keys, self.values = (_wider(part, needed) for part in (self.keys, self.values))

    def enter(self, rows: Tensor, source: DynamicLayer, lines: Tensor, behind: Tensor, width: int) -> None:
        """Copy what a prefilled cache holds into the last ``width`` columns that are written."""
        width = min(width, self.length, source.keys.shape[2])
        place = torch.arange(width, device=self.device) + (source.keys.shape[2] - width)
        place = (place - behind[:, None]).clamp_min(0)
        cut = slice(self.length - width, self.length)
        for part, prefilled in ((self.keys, source.keys), (self.values, source.values)):
            part[rows, :, cut] = prefilled[lines[:, None], :, place].transpose(1, 2)

    def drop_left(self, columns: int) -> None:
        """Forget the first columns."""
        kept = self.length - columns
        for part in (self.keys, self.values):
            part[:, :, :kept] = part[:, :, columns : self.length].clone()
        self.length = kept


def _wider(part: Tensor, needed: int) -> Tensor:
    wide = part.new_zeros(*part.shape[:2], max(needed, int(part.shape[2] * GROWTH)), part.shape[3])
    wide[:, :, : part.shape[2]] = part
    return wide


class ColumnsCache(Cache):
    """The layers of a model, each a :class:`ColumnsLayer`."""

    layers: list[ColumnsLayer]

    @classmethod
    def like(cls, prefilled: DynamicCache, rows: int, start: int) -> Self:
        """Make an empty cache for the model that filled another one."""
        return cls(layers=[ColumnsLayer(layer, rows, start) for layer in prefilled.layers])

    @staticmethod
    def serves(cache: DynamicCache) -> bool:
        """Say whether all that a model keeps are keys and values of its tokens."""
        return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)

    def make_room(self) -> None:
        """See to it that the next column can be written."""
        for layer in self.layers:
            layer.make_room()

    def enter(self, rows: Tensor, prefilled: DynamicCache, lines: Tensor, behind: Tensor, width: int) -> None:
        """Copy the end of prompts from a prefilled cache into the columns in front of the next one.

        Args:
            rows: int64 ``[R]``, where to.
            prefilled: where from.
            lines: int64 ``[R]``, the row of each prompt there.
            behind: int64 ``[R]``, how many columns are behind it in that row.
            width: columns to copy; what is not the row's own must be masked.
        """
        for layer, source in zip(self.layers, prefilled.layers, strict=True):
            layer.enter(rows, source, lines, behind, width)

    def drop_left(self, columns: int) -> None:
        """Forget the first columns of every row."""
        for layer in self.layers:
            layer.drop_left(columns)
