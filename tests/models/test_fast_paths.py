"""Every fast path against the plain one: a speed-up must not change a result."""

import copy
import pickle
import shutil
from itertools import pairwise, takewhile

import numpy as np
import pytest
import torch
from tiny import make_model, model_of
from torch import nn
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    Qwen3Config,
    Qwen3NextConfig,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

import opd
from opd.engines.sampling import requests
from opd.engines.transformers import TransformersSampler, next_tokens
from opd.models.kernels.attention import grouped_attention
from opd.models.kernels.linear import OneDnnLinear, available, use_onednn
from opd.models.kernels.norms import FastRMSNorm, use_fast_norms
from opd.models.kernels.packing import alike
from opd.models.language_model import LanguageModel
from opd.models.scoring import distributions
from opd.training.lessons import load_lessons

SHAPES = {
    "below every threshold": (3, 8, 16),
    "forward by oneDNN, weights by MKL": (64, 128, 520),
    "weights as a convolution": (600, 128, 256),
    "weights by oneDNN, more columns": (40, 1024, 512),
    "weights by oneDNN, more rows": (40, 512, 1024),
}


@pytest.mark.skipif(not available(), reason="torch has no oneDNN products for this processor")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_linear_layers_and_their_gradients_equal_float64(shape, bias):
    m, k, n = shape
    generator = torch.Generator().manual_seed(m)
    layer = nn.Linear(k, n, bias=bias)
    exact = nn.Linear(k, n, bias=bias).double()
    exact.load_state_dict(layer.state_dict())
    use_onednn(layer)
    assert type(layer) is OneDnnLinear
    x = (
        torch.randn(2, m // 2, k, generator=generator)
        if m % 2 == 0
        else torch.randn(m, k, generator=generator)
    )
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    out, wanted = layer(ours), exact(theirs)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        assert torch.equal(layer(x), out)
    gradient = torch.randn(out.shape, generator=generator)
    out.backward(gradient)
    wanted.backward(gradient.double())
    for a, b in [(ours, theirs), *zip(layer.parameters(), exact.parameters(), strict=True)]:
        scale = float(b.grad.abs().max())
        torch.testing.assert_close(a.grad.double() / scale, b.grad / scale, rtol=0, atol=2e-6)


@pytest.mark.skipif(not available(), reason="torch has no oneDNN products for this processor")
def test_a_gradient_that_lies_in_no_order_is_the_same():
    """An expanded one has strides of 0, in a transposed one no row lies together; the input can be so too."""
    layer = nn.Linear(128, 256)
    use_onednn(layer)
    own = torch.randn(600, 128), torch.randn(1, 128).expand(600, 128), torch.randn(128, 600).t()
    for x in own:
        for loss in (lambda y: y.sum(), lambda y: (y.t() * torch.linspace(0, 1, 600)).sum()):
            inputs = [x.detach().requires_grad_(), layer.weight, layer.bias]
            found = torch.autograd.grad(loss(layer(inputs[0])), inputs)
            wanted = torch.autograd.grad(loss(nn.functional.linear(*inputs)), inputs)
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.skipif(not available(), reason="torch has no oneDNN products for this processor")
def test_frozen_layers_keep_no_input_for_the_backward():
    """Which is what makes an adapter's update lean."""
    layer = nn.Linear(128, 512).requires_grad_(False)
    use_onednn(layer)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
        layer(torch.randn(600, 128, requires_grad=True))
    assert kept == [layer.weight.shape]


def test_what_onednn_is_not_for_is_left_alone():
    layer = nn.Linear(256, 256)
    use_onednn(layer)
    x = torch.randn(128, 256)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64

    class Own(nn.Linear):
        pass

    other = nn.Sequential(Own(2, 2))
    use_onednn(other)
    assert type(other[0]) is Own


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
            PACK["learned positions"],
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


def test_sequences_of_like_length_are_grouped():
    lengths = [30] * 20 + [400] * 3 + [300] * 4
    groups = alike(lengths)
    assert sorted(i for group in groups for i in group) == list(range(27))
    assert all(lengths[a] >= lengths[b] for group in groups for a, b in pairwise(group))
    assert alike([]) == []


SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 264, "head_dim": 16,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
PACK = {
    "qwen3": Qwen3Config(**SMALL),
    "llama": LlamaConfig(**SMALL),
    "cohere": CohereConfig(**{**SMALL, "num_key_value_heads": 2}, logit_scale=0.25, pad_token_id=0),
    "learned positions": GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=264, n_positions=256),
}
DO_NOT = {
    "windows": Gemma2Config(**SMALL, sliding_window=12, query_pre_attn_scalar=16),
    "attention without sdpa": Qwen3Config(**SMALL, attn_implementation="eager"),
    "convolutions": Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
}
# One is longer than what attends by two products, and they make more than one group.
LENGTHS = (17, 1, 40, 39, 2, 17, 140, *[90] * 8, *[12] * 6)


@pytest.mark.parametrize("kind", [*PACK, *DO_NOT])
def test_sequences_are_read_as_if_each_were_alone(kind):
    model = model_of({**PACK, **DO_NOT}[kind], sharpness=2)
    assert model.packs == model.takes_additive_mask == (kind in PACK)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 250, n) for n in LENGTHS]
    weights = [torch.randn(n, 32) for n in LENGTHS]
    parameters = [p for p in model.model.parameters() if p.requires_grad]

    def alone(ids):
        return model.hidden(torch.from_numpy(ids)[None], use_cache=False)[0]

    hidden, starts = model.read(sequences)
    found = [hidden[start : start + n] for start, n in zip(starts, LENGTHS, strict=True)]
    wanted = [alone(ids) for ids in sequences]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    gradients = []
    for states in (found, wanted):
        loss = sum((h * w).sum() for h, w in zip(states, weights, strict=True))
        gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_packing_works_under_gradient_checkpointing():
    model = model_of(PACK["qwen3"], sharpness=2)
    done = opd.sample(model, ["hi", "What is 7 + 3?"], n=3, max_tokens=20)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.model.gradient_checkpointing_enable({"use_reentrant": False})
            model.model.train()
        model.model.zero_grad()
        distributions(
            model, done, side="student", temperature=1.0, vocabulary=260
        ).hidden.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_a_model_that_cannot_take_a_packed_row_is_read_in_batches(monkeypatch):
    model = model_of(PACK["qwen3"], sharpness=2)
    hidden = LanguageModel.hidden

    def refuses(self, input_ids, **inputs):
        if "packing" in inputs:
            raise TypeError("an unexpected argument")
        return hidden(self, input_ids, **inputs)

    monkeypatch.setattr(LanguageModel, "hidden", refuses)
    assert not model.packs
    assert len(opd.sample(model, ["hi", "What is 7 + 3?"], n=3, max_tokens=20)) == 6


def test_a_model_that_reads_across_the_packed_sequences_is_found_out(monkeypatch):
    """Which is what ignoring the packing does."""
    model = model_of(PACK["qwen3"], sharpness=2)
    hidden = LanguageModel.hidden

    def ignores(self, input_ids, **inputs):
        if inputs.pop("packing", None):
            inputs["attention_mask"] = None
            inputs["position_ids"] = torch.arange(input_ids.shape[1])[None]
        return hidden(self, input_ids, **inputs)

    monkeypatch.setattr(LanguageModel, "hidden", ignores)
    assert not model.packs


def test_a_model_that_overlooks_an_additive_mask_is_given_its_own(monkeypatch):
    asked = ["hi", "What is 7 + 3?"]
    wanted = opd.sample(model_of(PACK["qwen3"], sharpness=2), asked, n=3, max_tokens=20)
    hidden, seen = LanguageModel.hidden, []

    def overlooks(self, input_ids, **inputs):
        mask = inputs.get("attention_mask")
        seen.append(mask is not None and mask.dim() == 4)
        return hidden(self, input_ids, **inputs | ({"attention_mask": None} if seen[-1] else {}))

    monkeypatch.setattr(LanguageModel, "hidden", overlooks)
    model = model_of(PACK["qwen3"], sharpness=2)
    model.__dict__["packs"] = False  # which gives a mask of its own
    assert not model.takes_additive_mask
    del seen[:]
    for ours, theirs in zip(opd.sample(model, asked, n=3, max_tokens=20), wanted, strict=True):
        np.testing.assert_array_equal(ours.completion_ids, theirs.completion_ids)
    assert seen
    assert not any(seen)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler to compile with")
def test_a_compiled_student_samples_what_the_plain_one_samples():
    """51 requests through 8 rows, which are refilled and dropped down to the last one; two models in turn."""
    prompts, flips = ["hi", "What is 7 + 3?", "A somewhat longer question?"], 0
    for model in (make_model(0), make_model(0, num_hidden_layers=1)):
        steps, step = [], model.compile(next_tokens)
        model._compiled[next_tokens] = lambda *a, steps=steps, step=step, **k: (
            steps.append(1) or step(*a, **k)
        )
        for temperature in (1.0, 0.7, 0.0):
            asked = requests(model, prompts, n=17, seed=4, max_tokens=90)
            done = []
            for model.compiled in (True, False):
                some = TransformersSampler(model, 8).sample(asked, temperature=temperature)
                done.append(sorted(some, key=lambda t: (t.prompt_index, t.sample_index)))
            for ours, plain in zip(*done, strict=True):
                pairs = zip(ours.completion_ids, plain.completion_ids, strict=False)
                equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                np.testing.assert_allclose(
                    ours.behaviour_logprobs[:equal], plain.behaviour_logprobs[:equal], atol=1e-4
                )
                if equal < max(len(ours), len(plain)):
                    # Round-off decides on which side of a boundary a random number lies: rarely.
                    flips += 1
                    assert abs(int(ours.completion_ids[equal]) - int(plain.completion_ids[equal])) == 1
            with torch.no_grad():  # as an update does
                for p in model.model.parameters():
                    p.mul_(1.1)
        assert len(steps) > 150
    assert flips <= 2, "of 25,000 tokens"


@pytest.mark.parametrize("others", [{"shard": True}, {"engine": "vllm"}])
def test_only_what_samples_here_is_compiled(others):
    with pytest.raises(ValueError, match="compile is for engine transformers"):
        opd.DistillConfig(compile=True, **others)


def test_without_a_compiler_compile_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"compile needs a C\+\+ compiler .* no-such-compiler"):
        load_lessons(opd.DistillConfig(compile=True))
