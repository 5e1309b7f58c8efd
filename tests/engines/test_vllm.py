"""What the vLLM engine does before there is a vLLM; tests/on_vllm has the rest."""

import pytest
import torch
from tiny import adapted, make_model

from opd.engines import vllm
from opd.engines.vllm import VllmEngine, beside, weights
from opd.models.network import LanguageModel


@pytest.mark.skipif(vllm.installed(), reason="vLLM is installed")
def test_without_vllm_the_way_to_it_is_said():
    with pytest.raises(ValueError, match="make vllm"):
        VllmEngine(make_model(0))


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_merged_weights_are_those_of_peft_and_the_trainers_stay(options):
    plain = make_model(0)
    model = LanguageModel("tiny", adapted(plain, lora_alpha=8, **options), plain.tokenizer)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    merged, base = (weights(model, torch.float32, merged=m) for m in (True, False))
    assert all(torch.equal(model.model.state_dict()[name], tensor) for name, tensor in before.items())
    untouched = make_model(0).model.state_dict()
    assert merged.keys() == base.keys() == untouched.keys() - {"lm_head.weight"}, "the tied head goes once"
    assert all(torch.equal(base[name], untouched[name]) for name in base)
    assert not torch.equal(*(w["model.layers.0.mlp.up_proj.weight"] for w in (merged, base)))
    theirs = model.model.merge_and_unload().state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("device", "visible", "seen"),
    [
        ("cuda", None, "0"),
        ("cuda:1", None, "1"),
        ("cuda:0", "5", "5"),
        ("cuda:2", "6,4,3,0", "3"),
        ("cuda:1", "GPU-8f2a, GPU-31c0", "GPU-31c0"),
    ],
)
def test_vllm_sits_on_the_students_gpu(device, visible, seen):
    assert beside(torch.device(device), visible) == {"CUDA_VISIBLE_DEVICES": seen}


def test_the_process_of_vllm_is_told_the_students_gpu(monkeypatch):
    told = []

    def refuse(*_, env, **__):
        told.append(env)
        raise OSError("no process")

    monkeypatch.setattr(vllm, "installed", lambda: True)
    monkeypatch.setattr(LanguageModel, "device", torch.device("cuda:1"))
    monkeypatch.setattr(vllm.subprocess, "Popen", refuse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with pytest.raises(OSError, match="no process"):
        VllmEngine(make_model(0))
    assert told[0]["CUDA_VISIBLE_DEVICES"] == "6"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_a_gpu_of_the_student_vllm_sees_what_the_trainer_sees(device):
    assert beside(torch.device(device), "1,2") == {}
