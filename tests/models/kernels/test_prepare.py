"""One switch: with the kernels off a loaded model is transformers' own, with them on it says the same."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import opd
from opd.models.kernels.norms import FastRMSNorm
from opd.models.load import load_model
from opd.models.pair import Pair


@pytest.fixture
def plain(folders, monkeypatch):
    """A student as transformers alone has it, and the pair loaded with the kernels off and on."""
    on = Pair(load_model(folders["student"]), load_model(folders["teacher"]))
    monkeypatch.setenv("OPD_KERNELS", "0")
    off = Pair(load_model(folders["student"]), load_model(folders["teacher"]))
    return AutoModelForCausalLM.from_pretrained(folders["student"]).eval(), off, on


def classes(network):
    return [type(module) for module in network.modules()]


@torch.inference_mode()
def test_with_the_kernels_off_a_model_is_transformers_own(plain):
    network, off, on = plain
    assert classes(off.student.model) == classes(network)
    assert off.student.model.config._attn_implementation == network.config._attn_implementation == "sdpa"
    assert any(issubclass(kind, FastRMSNorm) for kind in classes(on.student.model))
    assert on.student.packs
    assert not off.student.packs

    ids = torch.arange(40).view(2, 20)
    assert torch.equal(off.student.model(ids).logits, network(ids).logits)
    hidden, starts = off.student.read([ids[0].numpy(), ids[1, :7].numpy()])
    padded = torch.where(torch.arange(20) < torch.tensor([[20], [7]]), ids, 0)
    assert torch.equal(hidden, network.model(padded).last_hidden_state.flatten(0, 1))
    assert starts == [0, 20]


def test_with_them_on_it_samples_and_grades_the_same(plain):
    _, off, on = plain
    asked = {"prompts": ["hi", "What is 7 + 3?"], "n": 4, "max_tokens": 30}
    ours, theirs = opd.sample(on, **asked), opd.sample(off, **asked)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.completion_ids, b.completion_ids)
        np.testing.assert_allclose(a.behaviour_logprobs, b.behaviour_logprobs, atol=1e-4)
    for a, b in zip(opd.grade(on, ours), opd.grade(off, ours), strict=True):
        np.testing.assert_allclose(a.penalty, b.penalty, atol=2e-4)
        np.testing.assert_allclose(a.reverse_kl, b.reverse_kl, atol=2e-4)
