"""Load a causal language model with its tokenizer and adapter, by its name."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from opd.files import assets_dir
from opd.models import hub
from opd.models.gguf import check_gguf, folder_of, is_gguf
from opd.models.hf import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    one_at_a_time,
)
from opd.models.hf import logging as transformers_logging
from opd.models.hub import no_safetensors
from opd.models.kernels import prepare
from opd.models.network import LanguageModel
from opd.models.sources import source_of
from opd.phases import announce

transformers_logging.disable_progress_bar()

DEMO_MODELS = {"demo-student": "pair/student", "demo-teacher": "pair/teacher"}

NAMES = (
    "an existing folder, a .gguf file, a hub id like Qwen/Qwen3-0.6B, or one of smollm2, smollm2-pruned, "
    f"{', '.join(DEMO_MODELS)}"
)
"""What a model's name can be."""

QUANTIZED = ("8bit", "4bit")
"""Weight formats that bitsandbytes provides, where it is installed."""

LOADING = (OSError, ValueError, LookupError, TypeError, ImportError, RuntimeError, SafetensorError)
"""What the libraries raise at files that are no model."""

SHOWN = 2
"""Tensors that a message names."""


def resolve_device(device: str) -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1", "mps" into a device that is there and computes.

    "offload" means the default device, with what does not fit on it kept in main memory or on disk.

    Raises:
        ValueError: the device is unknown or absent, or it is there and cannot be used.
    """
    by_default = device in ("auto", "offload")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if by_default else device
    try:
        chosen = torch.device(name)
        torch.ones(1, device=chosen).sum().item()  # a GPU can be seen and yet run no kernel of this PyTorch
    except (RuntimeError, AssertionError, ImportError) as error:
        built_without = isinstance(error, (NotImplementedError, AssertionError, ImportError))
        reason = (
            "this PyTorch is built without it" if built_without else str(error).splitlines()[0].rstrip(".")
        )
        way_out = (
            "Choose cpu, or hide it from the program with CUDA_VISIBLE_DEVICES="
            if by_default
            else "Try auto or cpu"
        )
        raise ValueError(f"The device {name!r} cannot be used here: {reason}. {way_out}.") from error
    return chosen


def check_dtype(dtype: str) -> None:
    """Refuse a dtype that nobody knows, or that a missing package provides.

    Raises:
        ValueError: it is one.
    """
    resolve_dtype(dtype, torch.device("cpu"))
    if dtype in QUANTIZED and find_spec("bitsandbytes") is None:
        raise ValueError(f"{dtype} weights need the package bitsandbytes: pip install bitsandbytes.")


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Turn "auto", "float32", "bfloat16", "float16" into a dtype; auto is float32 on a CPU, else bfloat16.

    "8bit" and "4bit" (weights only) compute in what auto stands for.

    Raises:
        ValueError: the dtype is unknown.
    """
    if dtype in ("auto", *QUANTIZED):
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ValueError(f"The dtype {dtype!r} is not one of auto, {', '.join([*known, *QUANTIZED])}.")
    return known[dtype]


def load_model(name: str, *, device: str = "auto", dtype: str = "auto") -> LanguageModel:
    """Load a causal language model from a folder, a GGUF file, a source of models, or the embedded pair.

    Weights come from safetensors only and no code from the model's folder is run. An adapter folder (PEFT)
    loads its base model and puts the adapter on it.

    Args:
        name: a folder, a GGUF file, a hub id, "smollm2", "smollm2-pruned", "demo-student" or "demo-teacher".
        device: "auto" (the first GPU if there is one), a torch device, or "offload" (spread over GPU, main
            memory and disk; slow, for a teacher that does not fit).
        dtype: "auto" (float32 on a CPU, bfloat16 elsewhere), a dtype's name, "8bit" or "4bit".

    Raises:
        ValueError: the name, device or dtype cannot be used; the message says what is wrong and the way out.
    """
    announce(f"Loading {name}")
    where = resolve_device(device)
    options: dict[str, Any] = {"dtype": resolve_dtype(dtype, where)}
    if dtype in QUANTIZED:
        options |= {"quantization_config": _quantization(dtype), "device_map": {"": where}}
    if device == "offload":
        options["device_map"] = "auto"
    path = Path(locate(name))
    _must_be_no_run(name, path)
    try:
        if (path / "adapter_config.json").exists():
            model, source = _load_adapter(path, options)
        else:
            model, source = _load_weights(name, path, options), path
        tokenizer = _load_tokenizer(source)
    except LOADING as error:
        raise ValueError(f"{name} cannot be loaded: {_first_sentence(error)}") from error
    model.eval().requires_grad_(False)
    loaded = LanguageModel(name, model if "device_map" in options else model.to(where), tokenizer)
    prepare(loaded.causal_lm)
    return loaded


def load_skeleton(name: str) -> LanguageModel:
    """Load all of a model but its weights, for one that lives in another process or on another machine.

    It renders prompts and knows its vocabulary, its context and its end tokens; it computes nothing.

    Raises:
        ValueError: the name cannot be used.
    """
    path = Path(locate(name, weights=False))
    if (path / "adapter_config.json").exists():
        raise ValueError(f"{name} is an adapter. Merge it into its base model, and give the folder of that.")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        tokenizer = _load_tokenizer(path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        with contextlib.suppress(OSError):  # not every model has one
            model.generation_config = GenerationConfig.from_pretrained(path)
    except LOADING as error:
        raise ValueError(f"{name} cannot be loaded: {_first_sentence(error)}") from error
    return LanguageModel(name, model, tokenizer)


def check_model(name: str, *, weights: bool = True) -> None:
    """Look whether a name is that of a model, as far as that shows with nothing loaded and the hub not asked.

    Args:
        name: see :func:`load_model`.
        weights: whether they will be wanted.

    Raises:
        ValueError: it is none; the message says what is wrong and the way out.
    """
    if source := source_of(name):
        source.check_reachable(name, weights=weights)
        return
    if is_gguf(name):
        check_gguf(name)
        return
    path = Path(locate(name))
    _must_be_no_run(name, path)
    try:
        if (path / "adapter_config.json").exists():
            base, weights = _base_of(path), True
            if source := source_of(base):
                source.check_reachable(base)
                return
            path = Path(locate(base))
        _must_be_model(path)
        if weights:
            _must_have_weights(path)
        AutoConfig.from_pretrained(path, trust_remote_code=False)
    except LOADING as error:
        raise ValueError(f"{name} cannot be loaded: {_first_sentence(error)}") from error


def _must_be_no_run(name: str, path: Path) -> None:
    if checkpoints := sorted(path.glob("checkpoints/step-*")):
        raise ValueError(
            f"{name} is a run, not a model. Point to one of its checkpoints, such as {checkpoints[-1]}."
        )


def _must_be_model(path: Path) -> None:
    if not (path / "config.json").exists() and not any(path.glob("*.gguf")):
        raise ValueError(
            "it holds neither config.json nor adapter_config.json, so it is no model. Point to the folder "
            "that save_pretrained wrote."
        )


def _must_have_weights(path: Path) -> None:
    if not any(path.glob("*.safetensors")):
        if file := next(path.glob("*.gguf"), None):
            raise ValueError(f"it is a folder of GGUF files. Name one of the files, such as {file}.")
        raise ValueError(no_safetensors("it", [file.name for file in path.iterdir()]))


def _base_of(adapter: Path) -> str:
    """Return the name of the model that an adapter folder was trained on.

    Raises:
        ValueError: it names none, or an adapter; or its weights are not there.
    """
    if not (adapter / "adapter_model.safetensors").exists():
        raise ValueError(no_safetensors("it", [file.name for file in adapter.iterdir()]))
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not isinstance(base, str) or not base.strip():
        raise ValueError("its adapter_config.json names no base model.")
    if (Path(base).expanduser() / "adapter_config.json").exists():
        raise ValueError(
            f"its adapter_config.json names {base} as its base model, which is an adapter. Merge that into "
            "its own base model, and name the folder of the result."
        )
    return base


def locate(name: str, *, weights: bool = True) -> str:
    """Return the folder behind a name, after a download or the conversion of a GGUF file if need be.

    Args:
        name: see :func:`load_model`.
        weights: without them, config and tokenizer are all that is downloaded.

    Raises:
        ValueError: there is no such folder or file, and no source gives it.
    """
    if not name.strip():
        raise ValueError(f"No model was named. Give {NAMES}.")
    if name in DEMO_MODELS:
        return str(assets_dir() / DEMO_MODELS[name])
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser().resolve())  # an adapter names its base: that must hold anywhere
    if is_gguf(name):
        try:
            return str(folder_of(name))
        except Exception as error:  # of transformers and the tokenizer's library, at whatever a file holds
            raise ValueError(f"{name} cannot be loaded: {_first_sentence(error)}") from error
    if source := source_of(name):
        return source.folder(name, weights=weights)
    raise ValueError(f"There is no model folder {name!r}. Give {NAMES}.")


def _load_weights(name: str, path: Path, options: dict[str, Any]) -> PreTrainedModel:
    """Load a model whose every weight comes from its files, which lie in the folder ``path``.

    Raises:
        ValueError: the files are not safetensors, or lack a tensor, or hold one of another model.
    """
    _must_be_model(path)
    _must_have_weights(path)
    with one_at_a_time:
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            use_safetensors=True,
            trust_remote_code=False,
            low_cpu_mem_usage=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in what was found, and refused below
            **options,
        )
    misshapen = {key: (tuple(there), tuple(wanted)) for key, there, wanted in found["mismatched_keys"]}
    if faults := _faults(
        found["missing_keys"], misshapen, _of_another_model(model, found["unexpected_keys"])
    ):
        raise ValueError(
            f"its weights are not those that its config.json describes: {faults}. Fetch its folder anew, or "
            "the config.json that belongs to the weights."
        )
    if hub.has(name):  # what an adapter of it will name as its base
        model.name_or_path = model.config._name_or_path = name
    return model


def _of_another_model(model: torch.nn.Module, unexpected: Iterable[str]) -> list[str]:
    """Return those of a file's surplus tensors that would change what this model computes.

    A weight or bias of a layer that there is, or of one more like it, means another model. What else files
    hold beside a language model (images' encoders, further heads, buffers of old versions) is left aside.
    """
    layers = {
        _any_layer(path)
        for path, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    parts = ((key, *key.rpartition(".")) for key in unexpected)
    return [key for key, path, _, kind in parts if kind in ("weight", "bias") and _any_layer(path) in layers]


def _any_layer(path: str) -> str:
    return re.sub(r"\d+", "*", path)


def _faults(
    missing: Iterable[str],
    misshapen: Mapping[str, tuple[Sequence[int], Sequence[int]]],
    foreign: Iterable[str],
) -> str:
    """Say in words which tensors do not fit a model; nothing where all do.

    Args:
        missing: those that the model wants and no file has.
        misshapen: their shape in the file and in the model, by name.
        foreign: those that the file has and the model does not.
    """
    shapes = [
        f"{key}, {' x '.join(map(str, there))} instead of {' x '.join(map(str, wanted))}"
        for key, (there, wanted) in misshapen.items()
    ]
    kinds = ((missing, "missing"), (shapes, "of another shape"), (foreign, "of another model"))
    said = []
    for tensors, what in kinds:
        if tensors := sorted(tensors):
            shown, more = "; ".join(tensors[:SHOWN]), len(tensors) - SHOWN
            said.append(
                f"{len(tensors)} tensor{'s' * (len(tensors) > 1)} {what} ({shown}"
                f"{f'; and {more} more' if more > 0 else ''})"
            )
    return ", ".join(said)


def _load_tokenizer(path: Path) -> Any:  # noqa: ANN401
    """Load the tokenizer of a folder.

    Raises:
        ValueError: there is none that can be read.
    """
    try:
        with one_at_a_time:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        known = getattr(tokenizer, "vocab_files_names", {}).values()
        if known and not any((path / file).exists() for file in known):  # an empty one was made up
            raise ValueError(f"there is no {' or '.join(sorted(set(known)))}")
    except LOADING as error:
        raise ValueError(
            f"its tokenizer cannot be read ({_first_sentence(error)}). Put the tokenizer's files, as "
            "save_pretrained writes them, beside its weights."
        ) from error
    return tokenizer


def _quantization(dtype: str) -> Any:  # noqa: ANN401
    """Return transformers' settings for 8-bit or 4-bit weights.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    check_dtype(dtype)
    return BitsAndBytesConfig(load_in_8bit=dtype == "8bit", load_in_4bit=dtype == "4bit")


def _load_adapter(path: Path, options: dict[str, Any]) -> tuple[Any, Path]:
    """Load an adapter folder on its base; return the PEFT model and where the tokenizer lies.

    Raises:
        ValueError: it cannot be used, or its tensors are not those of its base model.
    """
    from peft import PeftConfig, PeftModelForCausalLM

    config = PeftConfig.from_pretrained(path)
    if config.is_prompt_learning:  # virtual tokens live in PEFT's forward, beside which we score
        raise ValueError(f"{config.peft_type.value} adapters are not supported. Use a LoRA adapter.")
    base = _base_of(path)
    base_path = Path(locate(base))
    adapted = PeftModelForCausalLM(_load_weights(base, base_path, options), config)
    try:
        found = adapted.load_adapter(path, adapted.active_adapter)
    except RuntimeError as error:
        if not (misshapen := _misshapen(error)):
            raise
        faults = _faults((), misshapen, ())
    else:
        faults = _faults(found.missing_keys, {}, found.unexpected_keys)
    if faults:
        raise ValueError(
            f"its tensors are not those of an adapter of {base}: {faults}. Name the base model that it was "
            "trained on in its adapter_config.json, or save the adapter anew."
        )
    _untie(adapted.get_base_model())
    own_tokenizer = (path / "tokenizer_config.json").exists()
    return adapted, path if own_tokenizer else base_path


def _untie(model: PreTrainedModel) -> None:
    """Give head and embedding a matrix each where an adapter changes one: merged, it would change both."""
    ends = (model.get_output_embeddings(), model.get_input_embeddings())
    head, embedding = (getattr(end, "base_layer", end) for end in ends)
    if head.weight is embedding.weight and ends != (head, embedding):
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.get_text_config().tie_word_embeddings = False


def _misshapen(error: RuntimeError) -> dict[str, tuple[list[int], list[int]]]:
    """Read from torch's message which tensors have another shape: there, and as the model wants it."""
    named = re.findall(r"size mismatch for (\S+): .*?Size\(\[(.*?)\]\).*?Size\(\[(.*?)\]\)", str(error))
    return {key: tuple([*map(int, shape.split(","))] for shape in shapes) for key, *shapes in named}


def _first_sentence(error: Exception) -> str:
    """The part of a loader's message that a person can use."""
    text = " ".join(str(error).split())
    if not isinstance(error, (OSError, ValueError)):  # a library's own failing, which says little by itself
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 600 else text[:600].rsplit(" ", 1)[0] + " …"
