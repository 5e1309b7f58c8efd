"""Attention by products of all heads at once against torch's kernel."""

import pytest
import torch
from torch import nn

from opd.models.kernels.attention import grouped_attention


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("tokens", [1, 2, 60])
def test_whole_sequences_attend_as_with_torchs_kernel(tokens, groups):
    generator = torch.Generator().manual_seed(tokens)
    states = [
        torch.randn(3, heads, tokens, 16, generator=generator) for heads in (4, 4 // groups, 4 // groups)
    ]
    ours, theirs = ([part.clone().requires_grad_() for part in states] for _ in range(2))
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = True, groups
    out, _ = grouped_attention(module, *ours, None, scaling=0.2)
    wanted = nn.functional.scaled_dot_product_attention(
        *theirs, is_causal=True, scale=0.2, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(out, wanted)
    gradient = torch.randn(out.shape, generator=generator)
    out.backward(gradient)
    wanted.backward(gradient)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
