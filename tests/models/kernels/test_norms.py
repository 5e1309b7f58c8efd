"""RMSNorm in fewer operations against float64, and which norms are replaced."""

import copy
import pickle

import pytest
import torch
from tiny import SMALL, model_of
from transformers import Gemma2Config, GPT2Config, LlamaConfig, Mamba2Config, Qwen3NextConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

import opd
from opd.models.kernels.norms import FastRMSNorm, use_fast_norms


@pytest.mark.parametrize("shape", [(3, 7, 32), (5, 4, 3, 16), (200, 128)])
def test_norms_and_their_gradients_equal_float64(shape):
    generator = torch.Generator().manual_seed(0)
    norm = Qwen3RMSNorm(shape[-1], eps=1e-2)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(shape[-1], generator=generator))
    use_fast_norms(norm)
    assert isinstance(norm, FastRMSNorm)
    use_fast_norms(norm)  # a second time is no time
    ours = torch.randn(shape, generator=generator).requires_grad_()
    theirs, weight = ours.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    out, wanted = norm(ours), theirs * (theirs.square().mean(-1, keepdim=True) + 1e-2).rsqrt() * weight
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(norm(ours), out)
    gradient = torch.randn(shape, generator=generator)
    out.backward(gradient)
    wanted.backward(gradient.double())
    for a, b in ((ours, theirs), (norm.weight, weight)):
        scale = float(b.grad.abs().max())
        torch.testing.assert_close(a.grad.double() / scale, b.grad / scale, rtol=0, atol=2e-6)


def test_only_norms_that_are_what_they_seem_are_replaced():
    gated = {"layer_types": ["linear_attention", "full_attention"], "num_experts": 0}
    llama, gemma, gpt, qwen_next, mamba = (
        model_of(config, sharpness=1)
        for config in (
            LlamaConfig(**SMALL),
            Gemma2Config(**SMALL),
            GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=264),
            Qwen3NextConfig(**SMALL, **gated),
            Mamba2Config(
                hidden_size=32, num_heads=4, head_dim=16, n_groups=1, num_hidden_layers=1, vocab_size=264
            ),
        )
    )

    def fast(model):
        return {name for name, m in model.model.named_modules() if isinstance(m, FastRMSNorm)}

    assert len(fast(llama)) == 5  # two a layer and the last one
    assert fast(gemma) == fast(gpt) == set(), "Gemma's multiply by 1 + weight, GPT-2's are no RMSNorm"
    assert not any("linear_attn" in name for name in fast(qwen_next)), "theirs want a gate"
    assert fast(mamba) == {"backbone.layers.0.norm", "backbone.norm_f"}, "its mixer's may get one"
    for model in (qwen_next, mamba):
        assert len(opd.sample(model, ["hi"], max_tokens=3)[0]) <= 3
    norm, x = llama.causal_lm.base_model.norm, torch.randn(3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), LlamaRMSNorm.forward(norm, x))
    again = pickle.loads(pickle.dumps(norm))
    assert torch.equal(again(x), norm(x))
    assert torch.equal(copy.deepcopy(norm)(x), norm(x))
    assert norm.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
