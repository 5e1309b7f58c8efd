"""What a network says does not depend on which of its ways are taken: packed, masked, compiled or plain."""

import shutil
from itertools import takewhile

import numpy as np
import pytest
import torch
from tiny import SMALL, adapted, make_model, model_of
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    Qwen3Config,
)

import opd
from opd.engines.sampling import requests
from opd.engines.transformers import TransformersSampler, next_tokens
from opd.models.network import LanguageModel
from opd.models.scoring import distributions
from opd.training.lessons import load_lessons

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
        seen.append(mask is not None and mask.dim() == 4 and mask.shape[-1] > 1)  # not that of a packed row
        return hidden(self, input_ids, **inputs | ({"attention_mask": None} if seen[-1] else {}))

    monkeypatch.setattr(LanguageModel, "hidden", overlooks)
    model = model_of(PACK["qwen3"], sharpness=2)
    assert not model.takes_additive_mask
    del seen[:]
    for ours, theirs in zip(opd.sample(model, asked, n=3, max_tokens=20), wanted, strict=True):
        np.testing.assert_array_equal(ours.completion_ids, theirs.completion_ids)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("where", ["target_modules", "modules_to_save"])
def test_an_adapter_on_the_head_is_scored(where):
    """Body and head are applied apart; what an adapter does to the head must not be lost between them."""
    plain = make_model(0, tie_word_embeddings=False)
    own = adapted(plain, **{"target_modules": ["q_proj"]} | {where: ["lm_head"]})
    model, ids = LanguageModel("adapted", own, plain.tokenizer), torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.head(model.hidden(ids)), own(ids).logits)


@pytest.mark.parametrize("masked", [-torch.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_model_that_masks_tokens_is_graded_as_it_speaks(pair, masked, temperature):
    """The mask is the model's own, behind its head: it must neither be lost nor make NaN of a sum."""
    for model in (pair.student, pair.teacher):
        forward = model.model.forward

        def mask(*args, forward=forward, **inputs):
            out = forward(*args, **inputs)
            out.logits[..., 100:] = masked
            return out

        model.model.forward = mask
    sampled = opd.sample(pair, ["Who?"], n=4, max_tokens=8, temperature=temperature)
    assert max(int(t.completion_ids.max()) for t in sampled) < 100
    for grades in opd.grade(pair, sampled, temperature=temperature):
        for column in (grades.reverse_kl, grades.student.entropy, grades.teacher.entropy, grades.jsd):
            assert np.isfinite(column).all()
            assert float(column.max()) < 100
        assert int(grades.teacher.top_ids.max()) < 100


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler to compile with")
def test_a_compiled_student_samples_what_the_plain_one_samples():
    """51 requests through 8 rows, which are refilled and dropped down to the last one; two models in turn."""
    prompts, flips = ["hi", "What is 7 + 3?", "A somewhat longer question?"], 0
    for model in (make_model(0), make_model(0, num_hidden_layers=1)):
        steps, step = [], model.compile(next_tokens)
        model.compile = lambda _, steps=steps, step=step: lambda *a, **k: steps.append(1) or step(*a, **k)
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
