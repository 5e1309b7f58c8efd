"""Attention where transformers' own does more than it must.

One new token over grouped heads: transformers' ``sdpa`` repeats every key and value head once for each query
head that shares it as soon as there is a mask, and in a batch there always is one. For a single new token the
queries of a group can stand in as the positions of one head: the same products and sums, and the cache is
read where it lies.

A packed row: each sequence attends within itself (:mod:`opd.models.kernels.packing`).

On a CPU the two products of what is short are made for all heads at once: torch's kernel calls a matrix
product for every head of every row, and for few tokens that is mostly the calling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from opd.models.hf import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedModel,
    sdpa_attention_forward,
    sdpa_mask,
)

NAME = "sdpa_grouped"

# Up to so many columns a CPU makes the products of all heads at once; beyond, reading the cache costs most.
AT_ONCE_COLUMNS = 1024

# The same for whole sequences of so many tokens; beyond, most of the products would be masked.
AT_ONCE_TOKENS = 128


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """Attend as transformers' ``sdpa`` does; in a packed row within each sequence.

    Args:
        module: the attention layer.
        query: ``[B, H, Q, D]``.
        key: ``[B, H / G, L, D]``.
        value: the same, of the values.
        attention_mask: ``[B or 1, 1, Q, L]``; for one new token what is added to the scores.
        kwargs: what else the layer says; ``packing`` (:class:`Packing`) stands instead of a mask.

    Returns:
        ``[B, Q, H, D]`` and no weights.
    """
    if packing := kwargs.pop("packing", None):
        return packing.attend(
            lambda *states: grouped_attention(module, *states, None, **kwargs)[0], query, key, value
        ), None
    if _at_once(module, query, key, attention_mask, **kwargs):
        return _products(query, key, value, attention_mask, kwargs.get("scaling")), None
    batch, heads, new, size = query.shape
    if new > 1 or heads == key.shape[1] or attention_mask is None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    out = scaled_dot_product_attention(
        query.reshape(batch, key.shape[1], -1, size),
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=kwargs.get("dropout", 0.0),
        scale=kwargs.get("scaling"),
    )
    return out.reshape(batch, new, heads, -1), None


def _at_once(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> bool:
    """Say whether the products of all heads are made at once: in fp32 on a CPU, of what is short."""
    if query.device.type != "cpu" or kwargs.get("dropout") or kwargs.get("position_bias") is not None:
        return False
    # In half precision two products would round more.
    if query.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    new, columns = query.shape[2], key.shape[2]
    if new == 1:
        return columns <= AT_ONCE_COLUMNS
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return causal and attention_mask is None and new == columns <= AT_ONCE_TOKENS


def _products(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scale: float | None
) -> Tensor:
    """Attend by two products over all heads; several new tokens causally, as many as there are columns."""
    batch, heads, new, size = query.shape
    shared = query.reshape(batch, key.shape[1], -1, size)  # the queries of a group of heads
    scores = (shared * (scale or size**-0.5)) @ key.transpose(2, 3)
    if new > 1:
        attention_mask = query.new_full((new, new), -torch.inf).triu(1)
    if attention_mask is not None:
        scores.view(batch, heads, new, -1).add_(attention_mask)
    return (scores.softmax(-1) @ value).view(batch, heads, new, -1).transpose(1, 2)


def mask_once(*args: Any, q_length: int, dtype: torch.dtype, **kwargs: Any) -> Tensor | None:  # noqa: ANN401
    """Make transformers' ``sdpa`` mask; for one new token in the additive form each layer would make.

    With several new tokens a row of padding may see nothing, which only the boolean mask survives.
    """
    mask = sdpa_mask(*args, q_length=q_length, dtype=dtype, **kwargs)
    if mask is None or q_length > 1:
        return mask
    return additive(mask, dtype)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to scores: 0 where ``visible`` (bool, any shape) holds, else minus infinity."""
    return torch.where(visible, 0.0, -torch.inf).to(dtype)


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, mask_once)


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Let a model that uses transformers' ``sdpa`` use this."""
    if model._supports_attention_backend and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
