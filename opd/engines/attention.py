"""Attention of one new token a row over grouped heads, without copying the cache to undo the grouping.

transformers' ``sdpa`` repeats every key and value head once for each query head that shares it as soon as
there is a mask, and in a batch there always is one. For a single new token the queries of a group can stand
in as the positions of one head: the same products and sums, and the cache is read where it lies.

On a CPU the two products are made for all heads at once: torch's kernel calls a matrix product for every
head of every row, which for one token is mostly the calling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_grouped"

# Up to so many columns a CPU makes the products of all heads at once; beyond, reading the cache costs most.
AT_ONCE_COLUMNS = 1024


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """Attend as transformers' ``sdpa`` does.

    Args:
        module: the attention layer.
        query: ``[B, H, Q, D]``.
        key: ``[B, H / G, L, D]``.
        value: the same, of the values.
        attention_mask: ``[B or 1, 1, Q, L]``; for one new token what is added to the scores.
        kwargs: what else the layer says.

    Returns:
        ``[B, Q, H, D]`` and no weights.
    """
    batch, heads, new, size = query.shape
    scale, dropout = kwargs.get("scaling") or size**-0.5, kwargs.get("dropout", 0.0)
    at_once = query.device.type == "cpu" and key.shape[2] <= AT_ONCE_COLUMNS and not dropout
    # In half precision two products would round more.
    at_once &= query.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    grouped = heads > key.shape[1] or at_once
    # A bias by position differs between the heads of a group.
    if new > 1 or not grouped or attention_mask is None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    query = query.reshape(batch, key.shape[1], -1, size)
    if at_once:
        scores = (query * scale) @ key.transpose(2, 3) + attention_mask
        out = scores.softmax(-1) @ value
    else:
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scale
        )
    return out.reshape(batch, new, heads, -1), None


def mask_once(*args: Any, q_length: int, dtype: torch.dtype, **kwargs: Any) -> Tensor | None:  # noqa: ANN401
    """Make transformers' ``sdpa`` mask; for one new token in the additive form each layer would make.

    With several new tokens a row of padding may see nothing, which only the boolean mask survives.
    """
    mask = sdpa_mask(*args, q_length=q_length, dtype=dtype, **kwargs)
    if mask is None or q_length > 1:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, mask_once)


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Let a model that uses transformers' ``sdpa`` use this."""
    if model._supports_attention_backend and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
