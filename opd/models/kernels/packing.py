"""Sequences of different lengths in one row, without padding: each token attends to its own sequence alone.

Everything in a transformer but attention treats tokens one by one, so it needs no padding. Attention gets it
back, for sequences of like length at a time
(:func:`opd.models.kernels.attention.grouped_attention` asks for it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# A group is not continued with a sequence that would be padding for more than this share, once it is worth a
# product of its own: this many tokens.
PADDING_SHARE = 0.2
SPLIT_FROM = 512


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Group sequences of like length.

    Returns:
        Lists of indices into ``lengths``, longest first; each index occurs once.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        widest = lengths[groups[-1][0]] if groups else 0
        wasteful = groups and len(groups[-1]) * widest >= SPLIT_FROM
        if groups and not (wasteful and lengths[i] < (1 - PADDING_SHARE) * widest):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


@dataclass(frozen=True)
class Group:
    """Sequences of like length, side by side in the row.

    Attributes:
        tokens: which tokens of the row they are.
        rows: how many sequences.
        padded: int64 ``[rows * width]``, which token of the group stands at each place of the padded batch;
            behind the end of a sequence its last one.
        kept: int64 ``[tokens]``, the place of each token of the group.
    """

    tokens: slice
    rows: int
    padded: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Packing:
    """How sequences lie in one row, and idle tokens behind them.

    Attributes:
        size: tokens of the row. Few sizes occur, since kernels are made anew for each.
        starts: where each sequence begins.
        groups: those of like length.
    """

    size: int
    starts: list[int]
    groups: list[Group]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Packing:
        """Lay out sequences of these lengths."""
        starts, groups, end = [0] * len(lengths), [], 0
        for group in alike(lengths):
            sizes = torch.tensor([lengths[i] for i in group])
            width = int(sizes[0])
            ends = sizes.cumsum(0)
            place = torch.arange(width)
            inside = place < sizes[:, None]
            token = (ends - sizes)[:, None] + torch.minimum(place, sizes[:, None] - 1)
            kept = inside.flatten().nonzero().squeeze(1)
            groups.append(
                Group(
                    slice(end, end + int(ends[-1])), len(group), token.flatten().to(device), kept.to(device)
                )
            )
            for i, start in zip(group, (ends - sizes).tolist(), strict=True):
                starts[i] = end + start
            end += int(ends[-1])
        return cls(_round(end), starts, groups)

    def attend(self, attention: Callable[[Tensor, Tensor, Tensor], Tensor], *states: Tensor) -> Tensor:
        """Attend group by group.

        Args:
            attention: attends causally: queries, keys, values ``[B, heads, L, D]`` -> ``[B, L, heads, D]``.
            states: queries, keys, values of the row, each ``[1, heads, S, D]``.

        Returns:
            ``[1, S, heads, D]``; idle tokens get zeros.
        """
        out = []
        for group in self.groups:
            padded = [
                _Padded.apply(part[0, :, group.tokens].transpose(0, 1), group).transpose(1, 2)
                for part in states
            ]
            out.append(_Unpadded.apply(attention(*padded), group))
        idle = self.size - sum(len(part) for part in out)
        out.append(out[0].new_zeros(idle, *out[0].shape[1:]))
        return torch.cat(out)[None]


def _round(total: int) -> int:
    """Round up to six significant bits: less than a thirty-second is idle."""
    step = 1 << max(0, total.bit_length() - 6)
    return -(-total // step) * step


class _Padded(torch.autograd.Function):
    """Tokens of a group ``[tokens, heads, D]`` as a padded batch ``[rows, width, heads, D]``."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, group: Group) -> Tensor:  # noqa: ANN401
        ctx.group = group
        return _pad(tokens, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        # No gradient comes to the padding: nothing that is kept looks at it.
        return _unpad(gradient, ctx.group), None


class _Unpadded(torch.autograd.Function):
    """The opposite of :class:`_Padded`."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor, group: Group) -> Tensor:  # noqa: ANN401
        ctx.group = group
        return _unpad(batch, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        group = ctx.group
        batch = gradient.new_zeros(len(group.padded), *gradient.shape[1:])
        return batch.index_copy_(0, group.kept, gradient).view(group.rows, -1, *gradient.shape[1:]), None


def _pad(tokens: Tensor, group: Group) -> Tensor:
    return tokens.index_select(0, group.padded).view(group.rows, -1, *tokens.shape[1:])


def _unpad(batch: Tensor, group: Group) -> Tensor:
    return batch.flatten(0, 1).index_select(0, group.kept)
