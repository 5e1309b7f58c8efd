"""Loading: what is refused is refused in a sentence that names the way out."""

import json

import numpy as np
import pytest
import torch
from tiny import make_model, make_tokenizer, model_of
from transformers import GPT2Config

import opd
from opd.models.language_model import LanguageModel
from opd.models.load import load_model, resolve_device
from opd.models.pair import Pair, VocabularyMismatch, load_pair
from opd.training.lessons import load_lessons, trainable
from opd.training.rollouts import gather


@pytest.fixture
def saved(tmp_path):
    model = make_model(0)
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def gpt2(seed, *, name, max_position_embeddings):
    model = model_of(
        GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=max_position_embeddings), sharpness=3
    )
    model.name = name
    return model


def add_adapter(base, path, rank=4, scale=0.5):
    from peft import LoraConfig, get_peft_model

    model = make_model(0).model
    model.name_or_path = str(base)
    adapted = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(std=scale)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(path)
    return path


def test_a_folder_loads_and_is_the_same_model(saved):
    loaded = load_model(str(saved))
    ids = torch.arange(10)[None]
    assert torch.equal(loaded.model(ids).logits, make_model(0).model(ids).logits)
    assert loaded.model.dtype == torch.float32


def test_an_adapter_folder_loads_its_base(saved, tmp_path):
    adapted = load_model(str(add_adapter(saved, tmp_path / "adapter")))
    grades = opd.grade(Pair(adapted, load_model(str(saved))), opd.sample(adapted, ["hi"], n=4, max_tokens=10))
    assert np.abs(np.concatenate([g.penalty for g in grades])).max() > 0.01


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder", "There is no model folder 'no/such/folder'"),
        ("./nothing", "There is no model folder './nothing'"),
        ("", "No model was named"),
        ("just-a-word", "Give an existing folder, a hub id"),
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


def settle(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


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
        with pytest.raises(ValueError, match=r"GGUF files, made for llama\.cpp: name the model that"):
            load_model(str(saved))
        (saved / "config.json").unlink(missing_ok=True)


def test_code_in_the_model_folder_is_not_run(saved, tmp_path):
    proof = tmp_path / "ran"
    (saved / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nfrom transformers import *\nclass M: pass\n")
    settings = json.loads((saved / "config.json").read_text())
    settings |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.M", "AutoModelForCausalLM": "evil.M"}}
    (saved / "config.json").write_text(json.dumps(settings))
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
    adapter = add_adapter(saved, tmp_path / "adapter")
    rewrite(adapter, change, "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message) as refused:
        load_model(str(adapter))
    assert f"an adapter of {saved}" in str(refused.value)


def test_a_pickled_adapter_is_refused(saved, tmp_path):
    adapter = add_adapter(saved, tmp_path / "adapter")
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
    from peft import LoraConfig, get_peft_model

    plain = make_model(0, tie_word_embeddings=tied)
    plain.model.save_pretrained(tmp_path / "model")
    plain.tokenizer.save_pretrained(tmp_path / "model")
    plain.model.name_or_path = str(tmp_path / "model")
    own = get_peft_model(plain.model, LoraConfig(r=4, task_type="CAUSAL_LM", **settings)).eval()
    with torch.no_grad():
        for name, weight in own.named_parameters():
            if "lora_" in name:
                weight.add_(torch.rand_like(weight) * 0.1)
    own.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        wanted = own(ids).logits
        loaded = load_model(str(tmp_path / "adapter"))
        torch.testing.assert_close(loaded.model(ids).logits, wanted)
        whole = trainable(loaded, opd.DistillConfig(lora_rank=0))
        torch.testing.assert_close(whole.model(ids).logits, wanted, atol=1e-4, rtol=1e-4)
        whole.model.save_pretrained(tmp_path / "whole")
        whole.tokenizer.save_pretrained(tmp_path / "whole")
        again = load_model(str(tmp_path / "whole"))
        torch.testing.assert_close(again.model(ids).logits, wanted, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_does_not_fit_is_refused(saved, tmp_path):
    adapter = add_adapter(saved, tmp_path / "adapter")
    other = make_model(0, hidden_size=64)
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "other")
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    message = (
        "an adapter of .*other: 14 tensors of another shape .* 4 x 32 instead of 4 x 64; .* Name the base"
    )
    with pytest.raises(ValueError, match=message):
        load_model(str(adapter))


@pytest.mark.parametrize("base", [None, 7, [], "itself"])
def test_an_adapter_without_a_base_model_is_refused(saved, tmp_path, base):
    adapter = add_adapter(saved, tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(adapter) if base == "itself" else base
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"names no base model|as its base model, which is an adapter"):
        load_model(str(adapter))


def test_a_prompt_learning_adapter_is_refused(saved, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    settings = PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    settings.base_model_name_or_path = str(saved)
    get_peft_model(make_model(0).model, settings).save_pretrained(tmp_path / "soft")
    with pytest.raises(ValueError, match="PROMPT_TUNING adapters are not supported"):
        load_model(str(tmp_path / "soft"))


@pytest.mark.parametrize("where", ["target_modules", "modules_to_save"])
def test_an_adapter_on_the_head_is_scored(where):
    """Body and head are applied apart; what an adapter does to the head must not be lost between them."""
    from peft import LoraConfig, get_peft_model

    plain = make_model(0, tie_word_embeddings=False)
    lora = LoraConfig(
        **{"target_modules": ["q_proj"], "r": 4, "task_type": "CAUSAL_LM"} | {where: ["lm_head"]}
    )
    own = get_peft_model(plain.model, lora).eval()
    with torch.no_grad():
        for name, weight in own.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.add_(torch.ones_like(weight) * 0.1 + torch.rand_like(weight))
        adapted, ids = LanguageModel("adapted", own, plain.tokenizer), torch.arange(12)[None]
        torch.testing.assert_close(adapted.head(adapted.hidden(ids)), own(ids).logits)


def test_different_vocabularies_are_refused_and_padded_ones_are_not():
    teacher = make_model(1, rows=300)
    assert Pair(make_model(0), teacher).vocabulary == teacher.vocabulary == 261
    teacher.tokenizer = make_tokenizer(extra=("<|tool|>",))
    with pytest.raises(VocabularyMismatch, match=r"261 and 262 tokens.*'<\|tool\|>'"):
        Pair(make_model(0), teacher)
    swapped = make_model(1)
    vocabulary = swapped.tokenizer.get_vocab()
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    swapped.tokenizer.get_vocab = lambda: vocabulary
    with pytest.raises(VocabularyMismatch, match="2 of them mapped differently"):
        Pair(make_model(0), swapped)


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompts": [""]}, "The prompt is empty"),
        ({"prompts": ["   \n"]}, "The prompt is empty"),
        ({"prompts": [[{"content": "x"}]]}, "A prompt is a text or a list of messages"),
        ({"prompts": ["x" * 400]}, "400|exceeds the 256 tokens"),
        ({"prompts": ["hi"], "max_tokens": 255}, "exceeds the 256 tokens"),
        ({"prompts": ["hi"], "n": 0}, "at least 1, not 0"),
        ({"prompts": ["hi"], "max_tokens": 0}, "at least 1 token, not 0"),
        ({"prompts": ["hi"], "temperature": -1.0}, "not -1.0"),
        ({"prompts": ["hi"], "temperature": float("nan")}, "not nan"),
        ({"prompts": ["hi"], "seed": -1}, "not -1"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(pair, call, message):
    with pytest.raises(ValueError, match=message):
        opd.sample(pair, **{"max_tokens": 8} | call)


@pytest.mark.parametrize("make", [make_model, gpt2])
def test_a_teacher_of_a_shorter_context_is_never_read_beyond_it(pair, make):
    """Rotary positions go on in silence, learned ones end in an IndexError."""
    short = Pair(pair.student, make(1, name="short", max_position_embeddings=40))
    assert len(opd.grade(short, opd.sample(short, ["hi"], max_tokens=10))) == 1
    message = "the 40 tokens short can read"
    with pytest.raises(ValueError, match=message):
        opd.sample(short, ["hi"], max_tokens=60)
    with pytest.raises(ValueError, match=message):
        next(opd.review_prompts(short, ["hi"], max_tokens=60))
    (long,) = (t for t in opd.sample(pair, ["hi"], n=20, max_tokens=60) if t.sample_index == 3)
    assert len(long) == 60
    with pytest.raises(ValueError, match=message + r"\. Shorten the text, or use a model"):
        opd.grade(short, [long])
    config = opd.DistillConfig(max_tokens=60, prompts_per_step=4, device="cpu")
    with pytest.raises(ValueError, match=message):
        gather(config, load_lessons(config, short), None, 1)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ messages[0].content + 1 }}",
            r"template of tiny fails on this: TypeError: .* Mend its chat_template",
        ),
        ("{{ 1 / 0 }}", "template of tiny fails on this: ZeroDivisionError: division by zero. Mend"),
        ("{{ raise_exception('No system!') }}", "template of tiny refuses this: No system!"),
        ("{% if %}", "template of tiny refuses this"),
    ],
)
def test_a_chat_template_that_fails_is_said_in_a_sentence(template, message):
    model = make_model(0)
    model.tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        opd.sample(model, ["hi"], max_tokens=4)
    with pytest.raises(ValueError, match=message):
        _ = model.end_of_turn


def test_nothing_to_grade_is_refused(pair):
    (t,) = opd.sample(pair, ["hi"], max_tokens=3)
    empty = opd.Trajectory(t.prompt_ids, t.completion_ids[:0], None, "stop", t.prompt_ids)
    with pytest.raises(ValueError, match="nothing to grade"):
        opd.grade(pair, [empty])
    alien = opd.Trajectory(t.prompt_ids, t.completion_ids + 10**6, None, "stop", t.prompt_ids)
    with pytest.raises(ValueError, match="Token ids"):
        opd.grade(pair, [alien])


@pytest.mark.parametrize(
    "text", ["plain words", "naïve café", "😀 emoji 👩‍👩‍👧", "日本語", "\x00\u202e", "  a\n\n b\t"]
)
def test_pieces_join_to_the_text(pair, text):
    ids = pair.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = pair.student.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


def test_pieces_of_broken_bytes_lose_nothing(pair):
    ids = [
        *pair.tokenizer("é", add_special_tokens=False)["input_ids"][:1],
        *pair.tokenizer("ok")["input_ids"],
    ]
    assert "".join(pair.student.pieces(ids)) == "\ufffdok"


def test_token_text_keeps_the_leading_space(pair):
    (space,) = pair.tokenizer(" ", add_special_tokens=False)["input_ids"]
    assert pair.student.token_text(space) == " "


def test_load_pair_takes_a_device_and_dtype_per_model(saved):
    mixed = load_pair(str(saved), str(saved), dtype="float32", teacher_dtype="bfloat16")
    assert (mixed.student.model.dtype, mixed.teacher.model.dtype) == (torch.float32, torch.bfloat16)
    grades = opd.grade(mixed, opd.sample(mixed, ["hi"], n=4, max_tokens=20))
    assert 0 < np.abs(np.concatenate([g.penalty for g in grades])).mean() < 0.2


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
        model.__dict__.pop("_fast_head", None)  # as a model that is just loaded
    sampled = opd.sample(pair, ["Who?"], n=4, max_tokens=8, temperature=temperature)
    assert max(int(t.completion_ids.max()) for t in sampled) < 100
    for grades in opd.grade(pair, sampled, temperature=temperature):
        for column in (grades.reverse_kl, grades.student.entropy, grades.teacher.entropy, grades.jsd):
            assert np.isfinite(column).all()
            assert float(column.max()) < 100
        assert int(grades.teacher.top_ids.max()) < 100
