"""GGUF files, as llama.cpp has them: each becomes a folder of safetensors, once, under ``$OPD_HOME/models``.

Weights that are stored in blocks of a few bits are multiplied out (dequantised) to float32, where they are
exactly what the file says; config and tokenizer are made of its metadata. transformers reads the file and
passes over what it has no place for: that is put right here, or the file is refused.
"""

from __future__ import annotations

import copy
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers

from opd.files import make_folder, models_dir, size_in_words
from opd.models.downloads import must_have_room
from opd.models.hf import (
    ROPE_INIT_FUNCTIONS,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    one_at_a_time,
)
from opd.phases import announce

PLAIN = {"F32", "F16", "BF16", "F64"}
"""Types of tensors that are no blocks: nothing was rounded to store them."""

DIGIT_BY_DIGIT = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
LIKE_GPT2 = {None, "default", "gpt-2", "mpt", "olmo", "jais", "phi-2", "roberta-bpe", "exaone4"}
"""Rules by which byte-level vocabularies cut text before they merge it, by llama.cpp's names: digits apart
and the rest as GPT-2 does, or just as GPT-2 does."""

FREQUENCIES = "rope_freqs.weight"
"""What each rotary frequency is divided by: Llama 3.1's scaling, made into numbers."""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What those numbers are made of, beside the factor; a file holds only the numbers."""


ORIGINAL = "Name the folder or the hub id of the model that the file was made from."


def is_gguf(name: str) -> bool:
    """Whether a model's name is that of a GGUF file; it need not exist."""
    return name.lower().endswith(".gguf")


def check_gguf(name: str) -> Path:
    """Look whether a GGUF file can be read, without reading it, and return its path.

    Raises:
        ValueError: it cannot; the message says what is wrong and the way out.
    """
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"There is no GGUF file {name!r}.")
    must_have_gguf(name)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{name} is no GGUF file: it does not begin as one. Download it anew.")
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise ValueError(
            f"{name} is one part of a model. Join them: llama-gguf-split --merge {name} whole.gguf."
        )
    return path


def must_have_gguf(name: str) -> None:
    """Refuse a model that needs the package gguf where that is not installed.

    Raises:
        ValueError: it is not.
    """
    if find_spec("gguf") is None:
        raise ValueError(f"{name} needs the package gguf: pip install opd-studio[gguf].")


def folder_of(name: str) -> Path:
    """Return the folder that a GGUF file was made into; at the first time it is made.

    Another file, or the same one after a change, has a folder of its own.

    Raises:
        ValueError: the file cannot be used; the message says why.
        OSError: it cannot be read, or the folder cannot be written.
    """
    path = check_gguf(name)
    stat = path.stat()
    key = hashlib.sha256(f"{path}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:8]
    return make_folder(models_dir() / f"{path.stem}-{key}", lambda folder: convert(path, folder))


def convert(file: Path, folder: Path) -> None:
    """Write what a GGUF file holds as a folder that transformers reads.

    Raises:
        ValueError: transformers cannot read it, or would lose some of it.
    """
    from gguf import GGUFReader

    announce(f"Reading {file.name}")
    reader = GGUFReader(file)
    facts = {name: field.contents() for name, field in reader.fields.items() if len(field.data) == 1}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    divisors = tensors.pop(FREQUENCIES, None)
    sizes = Counter()
    for tensor in tensors.values():
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    types = [name for name, _ in sizes.most_common() if name not in PLAIN]
    must_have_room(file.name, 4 * sizes.total(), folder, "OPD_HOME")
    words = f"{', '.join(types)} weights are dequantised to" if types else "weights become"
    announce(said := f"Converting {file.name}, once: {words} float32 ({size_in_words(4 * sizes.total())})")
    print(said, file=sys.stderr)
    with one_at_a_time:
        model, found = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
        )
    tokenizer = _load_tokenizer(file, facts)
    config = copy.deepcopy(model.config)
    del config.quantization_config  # of a "quantised" model transformers would write nothing
    config._name_or_path = ""
    config.gguf = {"file": file.name, "types": types}
    if _is_cut_by_unknown_rule(tokenizer, facts):
        config.gguf["unknown_rule"] = facts["tokenizer.ggml.pre"]
    _scale_positions(config, facts, divisors)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    found_sizes = {
        weight.data_ptr(): weight.numel() for weight in model.state_dict().values()
    }  # tied ones once
    if found["missing_keys"] or sum(found_sizes.values()) != sizes.total():
        raise ValueError(
            f"it holds {sizes.total():,} weights, and the {type(model).__name__} that transformers makes of "
            f"them others. {ORIGINAL}"
        )
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    if (end_of_turn := facts.get("tokenizer.ggml.eot_token_id")) is not None:
        plain.generation_config.eos_token_id = sorted({tokenizer.eos_token_id, end_of_turn})
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _scale_positions(config: Any, facts: Mapping[str, Any], divisors: Any) -> None:  # noqa: ANN401
    """Put into a config how the file scales positions, which transformers passes over.

    Args:
        config: transformers' config of the model.
        facts: the file's metadata.
        divisors: its tensor :data:`FREQUENCIES`, if it has one.

    Raises:
        ValueError: the file does not say enough of it.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    if rope.get("rope_type") != "default":  # there is nothing to scale, or transformers did it
        return
    scaling = f"{facts['general.architecture']}.rope.scaling"
    kind = facts.get(f"{scaling}.type", "none")
    if kind == "linear":
        rope |= {"rope_type": "linear", "factor": facts[f"{scaling}.factor"]}
    elif kind != "none":
        raise ValueError(
            f"it scales positions by {kind}, of which a GGUF file does not say enough. {ORIGINAL}"
        )
    if divisors is not None:
        wanted = torch.tensor(divisors.data).double()
        rope |= {"rope_type": "llama3", "factor": round(float(wanted.max()), 4), **LLAMA3}
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        unscaled = rope["rope_theta"] ** -(torch.arange(len(scaled)).double() / len(scaled))
        if not torch.allclose(unscaled / scaled.double(), wanted, rtol=1e-4):
            raise ValueError(f"it scales positions by numbers of its own. {ORIGINAL}")


def _load_tokenizer(file: Path, facts: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Load the tokenizer of a GGUF file, and let it begin and cut texts as the file says."""
    with one_at_a_time:
        read = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # Of a plain class: that of the model's family would cut as most of them do, whatever stands in the file.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=read.backend_tokenizer, chat_template=read.chat_template, **read.special_tokens_map
    )
    if facts.get("tokenizer.ggml.pre") in DIGIT_BY_DIGIT:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    of_sentencepiece = facts["tokenizer.ggml.model"] == "llama"  # which begin so unless they say otherwise
    tokenizer.add_bos_token = facts.get("tokenizer.ggml.add_bos_token", of_sentencepiece)
    return tokenizer


def _is_cut_by_unknown_rule(tokenizer: Any, facts: Mapping[str, Any]) -> bool:  # noqa: ANN401
    """Whether a byte-level tokenizer cuts text as GPT-2 does because nobody knows the rule that it names."""
    return (
        facts["tokenizer.ggml.model"] == "gpt2"
        and facts.get("tokenizer.ggml.pre") not in LIKE_GPT2
        and isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
    )
