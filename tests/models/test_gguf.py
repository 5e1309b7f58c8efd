"""A GGUF file becomes a folder whose every weight, position and token is the file's, or is refused."""

import os

import numpy as np
import pytest
import torch
from tiny import make_model, make_tokenizer
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from opd.models import gguf as converter
from opd.models.load import check_model, load_model
from opd.phases import listening
from opd.training.doctor import examine

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

Q8_0 = gguf.GGMLQuantizationType.Q8_0
NAMES = {
    "model.layers": "blk", "model.embed_tokens": "token_embd", "model.norm": "output_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""What llama.cpp calls the tensors."""


def tiny_model(**shape):
    """A tiny model whose vocabulary has a merge, as every file's has."""
    return make_model(0, tokenizer=make_tokenizer(("ab",)), **{"head_dim": 128} | shape)


def write(path, model, *, leave_out="lm_head", add=(), blocks="none", **facts):
    """Write a tiny model as a GGUF file.

    Tensors that begin with ``leave_out`` are left out, those with ``blocks`` stored as Q8_0; ``add`` holds
    further ones, ``facts`` further metadata or other.
    """
    writer, config = gguf.GGUFWriter(path, "qwen3"), model.causal_lm.config
    vocabulary = model.tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    tokens += [f"[PAD{i}]" for i in range(len(tokens), config.vocab_size)]
    metadata = {
        "qwen3.context_length": config.max_position_embeddings,
        "qwen3.embedding_length": config.hidden_size,
        "qwen3.block_count": config.num_hidden_layers,
        "qwen3.feed_forward_length": config.intermediate_size,
        "qwen3.attention.head_count": config.num_attention_heads,
        "qwen3.attention.head_count_kv": config.num_key_value_heads,
        "qwen3.attention.key_length": config.head_dim,  # transformers takes it for 128
        "qwen3.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "qwen3.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": vocabulary["<|end|>"],
        "tokenizer.ggml.bos_token_id": vocabulary["<|system|>"],
        "tokenizer.ggml.add_bos_token": False,
    } | {name.replace("__", "."): value for name, value in facts.items()}
    for name, value in metadata.items():
        kinds = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        kinds[type(value)](name, value)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in model.special_ids else 1 for i in range(len(tokens))])
    writer.add_token_merges(["a b"])
    for name, weight in model.model.state_dict().items():
        for here, there in NAMES.items():
            name = name.replace(here, there)
        if name.startswith(blocks):
            writer.add_tensor(name, gguf.quantize(weight.numpy(), Q8_0), raw_dtype=Q8_0)
        elif not name.startswith(leave_out):
            writer.add_tensor(name, weight.numpy())
    for name, values in add:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def test_every_weight_is_the_file_s_and_it_is_made_into_a_folder_once(tmp_path):
    model, heard = tiny_model(), []
    path = write(tmp_path / "tiny.gguf", model, blocks="token_embd")
    with listening(heard.append):
        loaded = load_model(path)
        assert heard[2].startswith("Converting tiny.gguf, once: Q8_0 weights are dequantised to float32")
        load_model(path)
        assert heard[3:] == [f"Loading {path}"]
        os.utime(path, (1, 1))
        load_model(path)
        assert heard[6].startswith("Converting"), "after a change it is another file"
    own, found = model.model.state_dict(), loaded.model.state_dict()
    stored = gguf.dequantize(gguf.quantize(own["lm_head.weight"].numpy(), Q8_0), Q8_0)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        own[name] = torch.tensor(stored)
    assert own.keys() == found.keys()
    assert all(torch.equal(weight, found[name]) for name, weight in own.items())
    assert loaded.tokenizer("Tokens, 12!")["input_ids"] == model.tokenizer("Tokens, 12!")["input_ids"]
    assert loaded.eos_ids == model.eos_ids
    weights = next(finding for finding in examine((loaded, loaded)) if finding.check == "weights")
    assert weights.level == "pass"
    assert "dequantised from Q8_0 of tiny.gguf" in weights.message


@pytest.mark.parametrize(
    "file",
    [{"leave_out": ("lm_head", "blk.0.attn_q.")}, {"add": [("blk.0.attn_q.bias", np.ones(256, np.float32))]}],
)
def test_a_weight_that_is_missing_or_has_no_place_is_refused(tmp_path, file):
    path = write(tmp_path / "tiny.gguf", tiny_model(), **file)
    with pytest.raises(
        ValueError, match=r"tiny.gguf cannot be loaded: it holds [\d,]+ weights, and .* others"
    ):
        load_model(path)
    assert not [*tmp_path.glob("models/tiny*")], "nothing half-made stays"


def divisors(**scaling):
    """What a file of a model with Llama 3.1's scaling holds: each frequency's divisor."""
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, **converter.LLAMA3, **scaling}
    config = LlamaConfig(head_dim=128, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return [(converter.FREQUENCIES, (10000.0 ** -(torch.arange(64) / 64) / scaled).numpy())]


def test_positions_are_scaled_as_the_file_says_or_it_is_refused(tmp_path):
    def rope(name, **file):
        return load_model(write(tmp_path / name, tiny_model(), **file)).config.rope_parameters

    assert rope("plain.gguf")["rope_type"] == "default"
    llama = rope("llama.gguf", add=divisors(factor=32.0))
    assert llama == {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 32.0, **converter.LLAMA3}
    linear = {"qwen3__rope__scaling__type": "linear", "qwen3__rope__scaling__factor": 8.0}
    assert rope("linear.gguf", **linear) == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0}
    with pytest.raises(ValueError, match="scales positions by numbers of its own"):
        rope("own.gguf", add=divisors(factor=32.0, original_max_position_embeddings=4096))
    with pytest.raises(ValueError, match="scales positions by yarn"):
        rope("yarn.gguf", qwen3__rope__scaling__type="yarn")


def test_text_begins_ends_and_is_cut_as_the_file_says(tmp_path):
    model = tiny_model()
    system, user = (model.tokenizer.convert_tokens_to_ids(t) for t in ("<|system|>", "<|user|>"))
    plain = load_model(write(tmp_path / "plain.gguf", model))
    facts = {"pre": "smollm", "add_bos_token": True, "eot_token_id": user}
    told = load_model(
        write(tmp_path / "told.gguf", model, **{f"tokenizer__ggml__{name}": v for name, v in facts.items()})
    )
    assert [int(m.render("hi")[0] == system) for m in (plain, told)] == [0, 1]
    assert told.eos_ids == tuple(sorted((user, *plain.eos_ids)))
    words = [
        [word for word, _ in m.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")]
        for m in (plain, told)
    ]
    assert words == [["a", "Ġ", "Ġ12"], ["a", "ĠĠ", "1", "2"]]
    odd = load_model(write(tmp_path / "odd.gguf", model, tokenizer__ggml__pre="of-tomorrow"))
    levels = [
        next(
            f.level
            for f in examine((m, m))
            if f.check == "weights" and ("of-tomorrow" in f.message) == (m is odd)
        )
        for m in (told, odd)
    ]
    assert levels == ["pass", "warn"]


def test_what_cannot_be_read_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    path = write(tmp_path / "tiny.gguf", tiny_model())
    (tmp_path / "page.gguf").write_text("<html>")
    (tmp_path / "half.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes()[:30_000])
    part = tmp_path / "big-00001-of-00002.gguf"
    part.write_bytes(b"GGUF")
    for check in (check_model, load_model):
        for name, sentence in (
            ("none.gguf", "There is no GGUF file"),
            ("page.gguf", "is no GGUF file"),
            (part.name, "is one part of a model"),
            (".", "Name one of the files, such as"),
        ):
            with pytest.raises(ValueError, match=sentence):
                check(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"half\.gguf cannot be loaded"):
        load_model(str(tmp_path / "half.gguf"))
    check_model(path)
    monkeypatch.setattr(converter, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install opd-studio\[gguf\]"):
        check_model(path)
