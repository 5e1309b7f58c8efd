"""A key-value cache that completions enter and leave while others grow.

All rows write the same next column; a row's own columns are contiguous and end there, so to the model it is a
batch padded on the left, and any attention over keys and values works unchanged, sliding windows included.
A new row's prompt is copied into the columns just before the next one. Columns that no row needs any more are
dropped on the left now and then, room is added on the right.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

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
        """Write the next columns of every row and return all columns so far."""
        end = self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            self.keys, self.values = (_wider(part, end) for part in (self.keys, self.values))
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Return how many columns are written."""
        return self.length

    def enter(self, rows: Tensor, source: DynamicLayer, lines: Tensor) -> None:
        """Copy lines of a prefilled cache, padded on the left, in front of the next column."""
        width = min(source.keys.shape[2], self.length)
        cut = slice(self.length - width, self.length)
        self.keys[rows, :, cut] = source.keys[lines, :, -width:]
        self.values[rows, :, cut] = source.values[lines, :, -width:]

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

    def enter(self, rows: Tensor, prefilled: DynamicCache, lines: Tensor) -> None:
        """Copy ``lines`` of a prefilled cache into ``rows`` of this one."""
        for layer, source in zip(self.layers, prefilled.layers, strict=True):
            layer.enter(rows, source, lines)

    def drop_left(self, columns: int) -> None:
        """Forget the first columns of every row."""
        for layer in self.layers:
            layer.drop_left(columns)
