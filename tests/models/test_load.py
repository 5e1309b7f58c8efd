"""Loading: what is refused is refused in a sentence that names the way out."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tiny import adapted, make_model, save_adapter

import opd
from opd.models.load import load_model, load_skeleton, resolve_device
from opd.models.pair import Pair
from opd.training.learner import trainable


@pytest.fixture
def saved(tmp_path):
    make_model(0).save(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_loads_and_is_the_same_model(saved):
    loaded = load_model(str(saved))
    ids = torch.arange(10)[None]
    assert torch.equal(loaded.model(ids).logits, make_model(0).model(ids).logits)
    assert loaded.model.dtype == torch.float32


def test_an_adapter_folder_loads_its_base(saved, tmp_path):
    model = load_model(str(save_adapter(saved, tmp_path / "adapter")))
    grades = opd.grade(Pair(model, load_model(str(saved))), opd.sample(model, ["hi"], n=4, max_tokens=10))
    assert np.abs(np.concatenate([g.penalty for g in grades])).max() > 0.01


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder", "There is no model folder 'no/such/folder'"),
        ("./nothing", "There is no model folder './nothing'"),
        ("", "No model was named"),
        ("just-a-word", "Give an existing folder, a .gguf file, a hub id"),
    ],
)
def test_an_unknown_folder_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        load_model(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither config\.json nor adapter_config\.json"):
        load_model(str(tmp_path))


def test_damaged_weights_are_refused(saved):
    (saved / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(str(saved))


def test_pickled_weights_are_refused(saved):
    model = make_model(0).model
    (saved / "model.safetensors").unlink()
    torch.save(model.state_dict(), saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        load_model(str(saved))


def rewrite(folder, change, file="model.safetensors"):
    """Change a folder's tensors: ``change`` takes and returns them by name."""
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(folder / file)), folder / file, metadata={"format": "pt"})


def settle(folder, file="config.json", **settings):
    """Change some settings in a folder's file."""
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | settings))


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


QUERY = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda t: without(t, f"{QUERY}.weight"), {}, rf"1 tensor missing \({QUERY}.weight\)"),
        (
            lambda t: {f"other.{name}": tensor for name, tensor in t.items()},
            {},
            r"25 tensors missing \(lm_head.weight; model.embed_tokens.weight; and 23 more\)",
        ),
        (lambda t: t, {"num_hidden_layers": 3, "layer_types": None}, "11 tensors missing .*layers.2"),
        (
            lambda t: t,
            {"num_hidden_layers": 1, "layer_types": None},
            "11 tensors of another model .*layers.1",
        ),
        (lambda t: t | {f"{QUERY}.bias": torch.zeros(64)}, {}, f"1 tensor of another model .{QUERY}.bias"),
        (lambda t: t, {"intermediate_size": 32}, "6 tensors of another shape .*32 x 64 instead of 32 x 32"),
    ],
)
def test_weights_of_another_model_are_refused_and_named(saved, change, settings, message):
    rewrite(saved, change)
    settle(saved, **settings)
    with pytest.raises(ValueError, match=message):
        load_model(str(saved))


def test_what_a_language_model_does_not_need_may_lie_beside_it(saved):
    """A tied head is in no file; an image's encoder, a head of values and old buffers are of no harm."""
    surplus = ("visual.blocks.0.weight", "v_head.weight", "model.layers.0.self_attn.bias")
    rewrite(saved, lambda t: t | {name: torch.zeros(4) for name in surplus})
    ids = torch.arange(10)[None]
    assert torch.equal(load_model(str(saved)).model(ids).logits, make_model(0).model(ids).logits)
    rewrite(saved, lambda t: {name.removeprefix("model."): tensor for name, tensor in t.items()})
    assert torch.equal(load_model(str(saved)).model(ids).logits, make_model(0).model(ids).logits)


def test_a_tokenizer_that_is_not_there_is_not_made_up(saved):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (saved / file).unlink()
    with pytest.raises(ValueError, match=r"its tokenizer cannot be read .there is no .*tokenizer.json"):
        load_model(str(saved))


def test_gguf_files_are_told_apart(saved):
    (saved / "model.safetensors").rename(saved / "model.gguf")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a folder of GGUF files\. Name one of the files"):
            load_model(str(saved))
        (saved / "config.json").unlink(missing_ok=True)


def test_code_in_the_model_folder_is_not_run(saved, tmp_path):
    proof = tmp_path / "ran"
    (saved / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nfrom transformers import *\nclass M: pass\n")
    auto_map = {"AutoConfig": "evil.M", "AutoModelForCausalLM": "evil.M"}
    settle(saved, model_type="evil", auto_map=auto_map)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(str(saved))
    assert not proof.exists()


PART = "base_model.model.model.layers.0.self_attn.q_proj.lora_A"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: without(t, f"{PART}.weight"), f"1 tensor missing .{PART}"),
        (lambda t: {}, "28 tensors missing .*; and 26 more"),
        (lambda t: t | {PART.replace("0", "7") + ".weight": torch.zeros(4, 32)}, "1 tensor of another model"),
        (lambda t: {f"x.{k}": v for k, v in t.items()}, "28 tensors missing .* 28 tensors of another model"),
    ],
)
def test_an_adapter_whose_tensors_are_not_its_own_is_refused(saved, tmp_path, change, message):
    adapter = save_adapter(saved, tmp_path / "adapter")
    rewrite(adapter, change, "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message) as refused:
        load_model(str(adapter))
    assert f"an adapter of {saved}" in str(refused.value)


def test_a_pickled_adapter_is_refused(saved, tmp_path):
    adapter = save_adapter(saved, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights as safetensors"):
        load_model(str(adapter))
    torch.save({}, adapter / "adapter_model.bin")
    with pytest.raises(
        ValueError, match=r"no weights as safetensors, .* pickled files, which could run code"
    ):
        load_model(str(adapter))


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear", "use_dora": True, "use_rslora": True},
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_adapters_of_every_make_load_as_they_were_saved_and_merge_to_the_same(tmp_path, settings, tied):
    plain = make_model(0, tie_word_embeddings=tied)
    plain.save(tmp_path / "model")
    plain.model.name_or_path = str(tmp_path / "model")
    own = adapted(plain, **settings)
    own.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        wanted = own(ids).logits
        loaded = load_model(str(tmp_path / "adapter"))
        torch.testing.assert_close(loaded.model(ids).logits, wanted)
        whole = trainable(loaded, opd.DistillConfig(lora_rank=0))
        torch.testing.assert_close(whole.model(ids).logits, wanted, atol=1e-4, rtol=1e-4)
        whole.save(tmp_path / "whole")
        again = load_model(str(tmp_path / "whole"))
        torch.testing.assert_close(again.model(ids).logits, wanted, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_does_not_fit_is_refused(saved, tmp_path):
    adapter = save_adapter(saved, tmp_path / "adapter")
    make_model(0, hidden_size=64).save(tmp_path / "other")
    settle(adapter, "adapter_config.json", base_model_name_or_path=str(tmp_path / "other"))
    message = (
        "an adapter of .*other: 14 tensors of another shape .* 4 x 32 instead of 4 x 64; .* Name the base"
    )
    with pytest.raises(ValueError, match=message):
        load_model(str(adapter))


@pytest.mark.parametrize("base", [None, 7, [], "itself"])
def test_an_adapter_without_a_base_model_is_refused(saved, tmp_path, base):
    adapter = save_adapter(saved, tmp_path / "adapter")
    named = str(adapter) if base == "itself" else base
    settle(adapter, "adapter_config.json", base_model_name_or_path=named)
    with pytest.raises(ValueError, match=r"names no base model|as its base model, which is an adapter"):
        load_model(str(adapter))


def test_a_prompt_learning_adapter_is_refused(saved, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    settings = PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    settings.base_model_name_or_path = str(saved)
    get_peft_model(make_model(0).model, settings).save_pretrained(tmp_path / "soft")
    with pytest.raises(ValueError, match="PROMPT_TUNING adapters are not supported"):
        load_model(str(tmp_path / "soft"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "cannot be used here"),
        ({"device": "toaster"}, "cannot be used here: Expected one of cpu, cuda"),
        (
            {"device": "vulkan"},
            r"'vulkan' cannot be used here: this PyTorch is built without it\. Try auto or cpu\.$",
        ),
        ({"device": "hpu"}, "built without it"),
        ({"device": "meta"}, "cannot be used here"),
        ({"dtype": "float8"}, "not one of auto"),
    ],
)
def test_an_impossible_device_or_dtype_is_refused(saved, options, message):
    with pytest.raises(ValueError, match=message):
        load_model(str(saved), **options)


def test_a_gpu_that_is_there_and_cannot_be_used_is_said(monkeypatch):
    def broken(*size, device):
        if device.type == "cuda":
            raise torch.AcceleratorError("CUDA error: no kernel image is available for execution\nMore.")
        return torch.zeros(size)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", broken)
    message = "'cuda' cannot be used here: CUDA error: no kernel image is available for execution. "
    for device, way_out in (
        ("auto", "Choose cpu, or hide it"),
        ("offload", "Choose cpu"),
        ("cuda", "Try auto"),
    ):
        with pytest.raises(ValueError, match=message + way_out):
            load_model("demo-student", device=device)
    assert resolve_device("cpu").type == "cpu"


def test_a_skeleton_knows_all_of_a_model_but_its_weights():
    skeleton, whole = load_skeleton("demo-teacher"), load_model("demo-teacher")
    assert skeleton.device.type == "meta"
    assert skeleton.eos_ids == whole.eos_ids
    assert skeleton.vocabulary == whole.vocabulary
    assert skeleton.context == whole.context
    np.testing.assert_array_equal(skeleton.render("What is 7 + 3?"), whole.render("What is 7 + 3?"))
    Pair(whole, skeleton)


def test_a_skeleton_of_an_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter"):
        load_skeleton(str(tmp_path))


def test_threads_may_load_at_once():
    """As when two people press a button on one page: transformers patches modules while it loads."""
    with ThreadPoolExecutor(3) as pool:
        loaded = list(pool.map(load_model, ["demo-student", "demo-teacher", "demo-student"]))
    assert [model.name for model in loaded] == ["demo-student", "demo-teacher", "demo-student"]
