"""The vLLM engine: samples from a model, or scores with it, in a process of its own.

The trainer keeps its model; vLLM has a copy, which :meth:`VllmEngine.sync` brings up to date. A request is
sampled with a seed made of its random numbers, so a completion does not depend on its batch; but vLLM draws
from it in its own way, so tokens are those of a run, not those of the transformers engine.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

from opd.divergence import TopK
from opd.engines.prompt_logprobs import PromptLogprobScorer
from opd.models.load import locate, resolve_dtype
from opd.models.network import LanguageModel
from opd.protocols import EngineError, SampleRequest, must_be_finite
from opd.trajectory import Trajectory

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the worker is the one process
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one token more: it asks for a next token even to score
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer lives on the same cores
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
CPU_ENVIRONMENT = {"TORCH_COMPILE_DISABLE": "1"}  # what vLLM compiles there takes longer than it saves
VISIBLE = "CUDA_VISIBLE_DEVICES"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Bounds on an adapter's rank that vLLM can be started with."""

LAST_LINES = 5


class VllmEngine(PromptLogprobScorer):
    """A :class:`opd.protocols.Sampler` and :class:`opd.protocols.Scorer` on vLLM."""

    apart = True

    def __init__(
        self,
        model: LanguageModel,
        *,
        dtype: str = "auto",
        context: int | None = None,
        memory_share: float = 0.3,
        hot_swap: bool = False,
        sleeps: bool = False,
    ) -> None:
        """Start vLLM with a model and wait until it serves.

        Args:
            model: the model; if :func:`opd.models.load.load_skeleton` made it, vLLM reads the weights itself.
            dtype: vLLM's dtype, a name that :func:`opd.models.load.resolve_dtype` knows.
            context: most tokens of a prompt and its completion together, if fewer than the model can read:
                room for so many must be in the cache.
            memory_share: share of the device's memory for weights and key-value cache together.
            hot_swap: give vLLM the adapter at each sync, instead of weights with the adapter merged in.
            sleeps: whether :meth:`sleep` gives memory back (CUDA only).

        Raises:
            ValueError: vLLM is not installed, or this cannot be asked of it.
            EngineError: vLLM cannot start; the message has its own words.
        """
        must_be_installed()
        if not 0 < memory_share < 1:
            raise ValueError(f"memory_share is a share of the memory, between 0 and 1, not {memory_share:g}.")
        if sleeps and not torch.cuda.is_available():
            raise ValueError("vLLM can sleep during the update on a CUDA device only. Leave sleep off here.")
        if model.whole is not model:
            raise ValueError(
                f"vLLM samples from the whole vocabulary of {model.name}, not from the tokens that it shares "
                "with another model. Use the transformers engine."
            )
        adapter = _lora_options(model) if hot_swap else {}
        self.name, self.vocabulary = model.name, model.vocabulary
        self.context = min(model.context, context or model.context)
        self.model, self.memory_share, self.hot_swap, self.sleeps = model, memory_share, hot_swap, sleeps
        self.dtype = resolve_dtype(dtype, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self._folder = tempfile.TemporaryDirectory(prefix="opd-vllm-", ignore_cleanup_errors=True)
        self._log = Path(self._folder.name) / "log.txt"
        self._asked = False
        source = self._source()
        self._connection, self.process = self._start()
        self._finalizer = weakref.finalize(self, _stop, self._connection, self.process, self._folder)
        self._do(
            "start",
            folder=source,
            vocabulary=self.vocabulary,
            dtype=str(self.dtype).removeprefix("torch."),
            max_model_len=self.context + 1,
            gpu_memory_utilization=memory_share,
            enable_sleep_mode=sleeps,
            **adapter,
        )
        if hot_swap:
            self.sync()

    def sample(
        self, requests: Sequence[SampleRequest], *, temperature: float = 1.0, snapshot_every: int = 0
    ) -> Iterator[Trajectory]:
        """Yield trajectories as they finish; see :class:`opd.protocols.Sampler`.

        Raises:
            ValueError: a request does not fit into the context, or a forced prefix at a temperature other
                than 1, whose log-probs vLLM does not give.
            EngineError: vLLM died.
        """
        begins, prefixes, budgets = [], [], []
        for request in requests:
            prefix = len(request.begin_ids) - len(request.prompt_ids)
            if prefix and temperature not in (0.0, 1.0):
                raise ValueError(
                    f"vLLM does not give the log-probs of a forced prefix at temperature {temperature:g}. "
                    "Branch at temperature 1, or with the transformers engine."
                )
            self._must_fit(len(request.prompt_ids), len(request.uniforms))
            begins.append(request.begin_ids)
            prefixes.append(prefix)
            budgets.append(len(request.uniforms) - prefix)
        seeds = [int(request.uniforms[0] * 2**53) for request in requests]  # all the bits of a random number
        options = {
            "eos_ids": self.model.eos_ids,
            "temperature": temperature,
            "snapshot_every": snapshot_every,
        }
        for index, ids, logprobs, reason in self._ask("sample", begins, prefixes, budgets, seeds, **options):
            logprobs = np.array(logprobs, dtype=np.float32)
            must_be_finite(self.name, logprobs)
            yield requests[index].answered(np.array(ids, dtype=np.int64), logprobs, reason, temperature)

    def sync(self) -> None:
        """Give vLLM the model's weights as they are now; what it computed with the old ones is forgotten.

        Raises:
            EngineError: vLLM died.
        """
        if self.hot_swap:
            folder = Path(self._folder.name) / "adapter"
            self.model.model.save_pretrained(folder, save_embedding_layers=False)
            self._do("swap", str(folder))
        else:
            self._do("load", self._write_weights())

    def sleep(self) -> None:
        """Give the device's memory to the trainer until :meth:`wake`, with ``sleeps``.

        Raises:
            EngineError: vLLM died.
        """
        if self.sleeps:
            self._do("sleep")

    def wake(self) -> None:
        """Take the memory back, before a sync or a rollout.

        Raises:
            EngineError: vLLM died.
        """
        if self.sleeps:
            self._do("wake")

    def close(self) -> None:
        """End vLLM's process."""
        self._finalizer()

    def prompt_logprobs(
        self, sequences: Sequence[NDArray[np.int64]], lengths: Sequence[int], top_k: int
    ) -> list[TopK]:
        """Score the end of sequences; see :class:`PromptLogprobScorer`."""
        found = {}
        for index, logprobs, ids, ranks in self._ask("score", sequences, lengths, top_k=top_k):
            must_be_finite(self.name, logprobs)
            given, ids, ranks = (torch.from_numpy(column) for column in (logprobs, ids, ranks))
            found[index] = TopK(given[:, 0], ranks.long(), ids[:, 1:].long(), given[:, 1:])
        return [found[i] for i in range(len(sequences))]

    def _source(self) -> str:
        """Return the folder vLLM loads: the model's own, or one with the weights that are in memory."""
        if self.model.device.type == "meta":
            return locate(self.model.name)
        self._write_weights()
        config = copy.deepcopy(self.model.causal_lm.config)
        config.architectures = [type(self.model.causal_lm).__name__]
        config.save_pretrained(self._folder.name)
        return self._folder.name

    def _write_weights(self) -> str:
        path = Path(self._folder.name) / "model.safetensors"
        save_file(weights(self.model, self.dtype, merged=not self.hot_swap), path)
        return str(path)

    def _start(self) -> tuple[Connection, subprocess.Popen[bytes]]:
        ours, theirs = Pipe()
        own = {} if torch.cuda.is_available() else CPU_ENVIRONMENT
        with theirs, self._log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "opd.engines.vllm_worker", str(theirs.fileno())],
                env=os.environ | ENVIRONMENT | own | beside(self.model.device, os.environ.get(VISIBLE)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the trainer, which ends this process with it
            )
        return ours, process

    def _do(self, command: str, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        for _ in self._ask(command, *arguments, **options):
            pass

    def _ask(self, command: str, *arguments: Any, **options: Any) -> Iterator[Any]:  # noqa: ANN401
        """Send a command and yield what comes back; whoever stops listening stops the command."""
        if self._asked:
            raise RuntimeError("vLLM is still sampling: take or drop those trajectories first.")
        self._asked = True
        try:
            self._send((command, arguments, options))
            while (item := self._receive()) is not None:
                yield item
        except GeneratorExit:
            self._send("stop")
            while self._receive() is not None:
                pass
        finally:
            self._asked = False

    def _send(self, message: Any) -> None:  # noqa: ANN401
        with contextlib.suppress(BrokenPipeError):  # a dead process is noticed when its answer is awaited
            self._connection.send(message)

    def _receive(self) -> Any:  # noqa: ANN401
        """Return the next item; None after the last."""
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            raise EngineError(self._death()) from None
        if kind == "failed":
            said = _shortened(value).rstrip(".")
            raise EngineError(f"vLLM cannot serve {self.name}: {said}. {self._advice(value)}")
        return value

    def _death(self) -> str:
        code = self.process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        last = self._log.read_text(errors="replace").split("\n")[-LAST_LINES:] if self._log.exists() else []
        said = _shortened(" | ".join(line.strip() for line in last if line.strip()))
        advice = self._advice("memory" if code == -signal.SIGKILL else said)
        last_words = f" Its last words: {said}" if said else ""
        return f"The vLLM process of {self.name} {how}. {advice}{last_words}"

    def _advice(self, said: str) -> str:
        # "Could not create a primitive" is what oneDNN says when it gets no memory.
        if any(word in said.lower() for word in ("memory", "alloc", "cache", "create a primitive")):
            return (
                f"Memory is the likely reason: change memory_share (now {self.memory_share:g}), lower the "
                "number of prompts a step, or use a smaller model. A run goes on from its last checkpoint."
            )
        return "A run goes on from its last checkpoint; the transformers engine does without vLLM."


def installed() -> bool:
    """Say whether vLLM is there; a folder of that name, which Python takes for a package, is not it."""
    spec = find_spec("vllm")
    return spec is not None and spec.origin is not None


def must_be_installed() -> None:
    """Refuse to go on without vLLM.

    Raises:
        ValueError: it is not installed.
    """
    if not installed():
        raise ValueError(
            "The vLLM engine needs vLLM: pip install opd-studio[vllm] for an NVIDIA GPU; on a machine "
            "without one, make vllm prepares .venv-vllm."
        )


def beside(device: torch.device, visible: str | None) -> dict[str, str]:
    """Return what a process's environment needs so that its first GPU is this process's ``device``.

    Args:
        device: anywhere; a GPU counts among those that this process sees.
        visible: this process's own ``CUDA_VISIBLE_DEVICES``: numbers or UUIDs; None = all are seen.
    """
    if device.type != "cuda":
        return {}
    index = device.index or 0
    return {VISIBLE: visible.split(",")[index].strip() if visible else str(index)}


def weights(model: LanguageModel, dtype: torch.dtype, *, merged: bool) -> Mapping[str, torch.Tensor]:
    """Return a model's weights under the names of its checkpoint, adapters merged in or left out.

    The model's own weights are, to the last bit, what they were before.
    """
    causal_lm = model.causal_lm
    replaced: dict[str, torch.Tensor] = {}
    if merged:
        for name, layer in _adapted_layers(model):
            weight = layer.get_base_layer().weight
            kept = weight.detach().clone()
            layer.merge()
            replaced[f"{name}.base_layer.weight"] = weight.detach().clone()
            layer.unmerge()
            weight.data.copy_(kept)
    tied = causal_lm.config.get_text_config().tie_word_embeddings
    out = {}
    for name, tensor in causal_lm.state_dict().items():
        if ".lora_" in name or (tied and name.endswith("lm_head.weight")):
            continue
        kept = replaced.get(name, tensor).detach()
        out[name.replace(".base_layer.", ".")] = kept.to("cpu", dtype, copy=False).contiguous()
    return out


def _adapted_layers(model: LanguageModel) -> list[tuple[str, BaseTunerLayer]]:
    modules = model.causal_lm.named_modules()
    return [(name, module) for name, module in modules if isinstance(module, BaseTunerLayer)]


def _lora_options(model: LanguageModel) -> dict[str, Any]:
    """Return vLLM's settings for the adapter of a model.

    Raises:
        ValueError: the model has none, or vLLM cannot swap it.
    """
    if not hasattr(model.model, "peft_config"):
        raise ValueError(f"hot_swap needs an adapter, and {model.name} is trained whole. Set lora_rank.")
    config = model.model.active_peft_config
    fits = [rank for rank in LORA_RANKS if rank >= config.r]
    if not fits or config.use_dora or config.modules_to_save or config.bias != "none":
        raise ValueError("vLLM can swap plain LoRA adapters up to rank 512 only. Leave hot_swap off.")
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": fits[0],
        # named, so that the head stays as it is: with a wrapped head vLLM cannot score
        "lora_target_modules": sorted({name.rpartition(".")[2] for name, _ in _adapted_layers(model)}),
    }


def _shortened(text: str, characters: int = 600) -> str:
    text = " ".join(text.split())
    return text if len(text) <= characters else f"{text[:characters]} …"


def _stop(
    connection: Connection, process: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]
) -> None:
    connection.close()
    process.kill()  # it has nothing to save, and its own farewell takes seconds
    process.wait()
    folder.cleanup()
