"""A causal language model with its network: hidden states, logits, and which shorter ways it can take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opd.models.hf import DynamicCache, GenerationConfig, PreTrainedModel
from opd.models.kernels.attention import NAME, additive
from opd.models.kernels.packing import Packing
from opd.models.text import ModelText

# How far a head that is applied to hidden states by us may be from the model's own logits, relative to the
# largest logit: round-off of one matrix product in fp32 and in bf16.
HEAD_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}

MASKED = -1e4
"""Logit of a token that a model forbids itself, by minus infinity or nearly: its probability is 0 just the
same, and 0 times its log-prob is 0."""


class LanguageModel(ModelText):
    """A causal language model that is ready to sample and to be scored.

    What differs between families (a head that can be applied apart, packed rows, additive masks) is not known
    by their names: it is tried once, on a few tokens, and taken where the model's own states come out.

    Attributes:
        model: the transformers model, or the PEFT model around it.
        compiled: its step of sampling is to be compiled, at the first one.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, *, compiled: bool = False) -> None:  # noqa: ANN401
        """Put a network, which :func:`opd.models.kernels.prepare` may have made faster, to its tokenizer."""
        self.model, self.compiled = model, compiled
        self._compiled: dict[Callable, Callable] = {}
        own = self.causal_lm
        super().__init__(name, tokenizer, own.config.get_text_config(), own.generation_config)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.model.device

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model itself, adapter layers in place."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def whole(self) -> LanguageModel:
        """The model with all its tokens: itself, but for a view that knows only some."""
        return self

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """What turns rows of :meth:`hidden` into logits.

        A model whose logits are more than a known function of its last hidden states keeps its own forward:
        then "hidden states" are its logits and the head is the identity. Slower and larger, never wrong.
        """
        return self._project if self._fast_head else torch.nn.Identity()

    def hidden(self, input_ids: Tensor, **inputs: Any) -> Tensor:  # noqa: ANN401
        """Run the body on ``[B, L]`` ids and return what :attr:`head` expects, ``[B, L, H]``.

        ``inputs`` go to the model as they are (attention_mask, position_ids, past_key_values, use_cache), the
        cache under the model's own name for it.
        """
        if "past_key_values" in inputs:
            inputs[self._cache_name] = inputs.pop("past_key_values")
        if self._fast_head:
            return self.causal_lm.base_model(input_ids=input_ids, **inputs).last_hidden_state
        return self.causal_lm(input_ids=input_ids, **inputs).logits.clamp_min(MASKED)

    def read(self, sequences: Sequence[NDArray[np.int64]], **inputs: Any) -> tuple[Tensor, list[int]]:  # noqa: ANN401
        """Run the body once on sequences of ids, of different lengths, as if each were alone.

        ``inputs`` go to the model as they are; a cache among them works only where the model :attr:`packs`.

        Returns:
            What :attr:`head` expects, ``[S, H]``, the sequences one behind the other with padding between;
            and the row of each one's first token.
        """
        if self.packs and len(sequences) > 1:
            return self._read_packed(sequences, **inputs)
        input_ids = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
        for row, ids in zip(input_ids, sequences, strict=True):
            row[: len(ids)] = ids
        # Padding is behind what counts, where causal attention does not look: no mask is needed.
        hidden = self.hidden(self._ids(input_ids), **{"use_cache": False, **inputs})
        return hidden.flatten(0, 1), list(range(0, input_ids.size, input_ids.shape[1]))

    def _read_packed(self, sequences: Sequence[NDArray[np.int64]], **inputs: Any) -> tuple[Tensor, list[int]]:  # noqa: ANN401
        packing = Packing.of([len(ids) for ids in sequences], self.device)
        input_ids, position_ids = np.zeros((2, 1, packing.size), np.int64)
        for ids, start in zip(sequences, packing.starts, strict=True):
            input_ids[0, start : start + len(ids)] = ids
            position_ids[0, start : start + len(ids)] = np.arange(len(ids))
        hidden = self.hidden(
            self._ids(input_ids),
            position_ids=self._ids(position_ids),
            # A mask that is made already: transformers would make one of tokens x tokens, which nobody reads.
            attention_mask=torch.zeros(1, 1, 1, 1, device=self.device),
            packing=packing,
            **{"use_cache": False, **inputs},
        )
        return hidden[0], packing.starts

    def _ids(self, ids: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(ids).to(self.device)

    def step_mask(self, visible: Tensor) -> Tensor | None:
        """Return what :meth:`hidden` takes as attention_mask for one new token a row.

        ``visible`` says which columns it may look at, bool ``[B, L]``. A pure recurrence looks at none.
        """
        if self._cache_name != "past_key_values":
            return None
        if not self.takes_additive_mask:
            return visible.long()
        return additive(visible, self.model.dtype)[:, None, None]

    def compile(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of this model compiled, at its first call, for it alone and for any sizes."""
        if step not in self._compiled:
            options = {
                # Many small operations are called from C++: on a CPU the calling is most of what they cost.
                "cpp_wrapper": self.device.type == "cpu",
                # Whether modules are what they were is not asked at every call, as no other model is meant.
                "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
            }
            self._compiled[step] = torch.compile(step, dynamic=True, options=options, isolate_recompiles=True)
        return self._compiled[step]

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the model and its tokenizer (or its adapter) as a folder that :func:`load_model` reads.

        Generation settings stay as they came, those too that transformers reads and refuses to write.

        Args:
            folder: where to.
            weights: the whole weights by name, where the model holds but a share of them; None = the model's
                own.
        """
        network = self.causal_lm
        settings, network.generation_config = network.generation_config, GenerationConfig()
        try:
            self.model.save_pretrained(folder, state_dict=weights)
        finally:
            network.generation_config = settings
        if settings is not None and (file := folder / "generation_config.json").exists():
            settings.to_json_file(file, keys_to_pop=["compile_config"])
        self.tokenizer.save_pretrained(folder)

    def try_saving(self, folder: Path) -> None:
        """Write what :meth:`save` does but the weights; of an adapter zeros, as many as it has.

        No weights are read, so no other process that holds a share of them need take part.
        """
        adapter = getattr(self.model, "active_adapter", None)  # which is part of its parameters' names
        own = {n: p for n, p in self.model.named_parameters() if adapter in n.split(".")}
        self.save(folder, {name: torch.zeros(p.shape, dtype=p.dtype) for name, p in own.items()})

    @cached_property
    def keeps_state(self) -> bool:
        """Whether the model goes on from the cache that it filled; a pure recurrence is probed (once)."""
        if self._cache_name == "past_key_values":
            return True
        ids = self._probe

        def by_steps() -> list[Tensor]:
            inputs = {"past_key_values": DynamicCache(config=self.causal_lm.config), "use_cache": True}
            return [self.hidden(part, **inputs)[:, -1] for part in (ids[:, :6], ids[:, 6:7], ids[:, 7:])][-1:]

        return self._agree(lambda: [self.hidden(ids, use_cache=False)[:, -1]], by_steps)

    @cached_property
    def packs(self) -> bool:
        """Whether sequences can be read in one row, each as if it were alone (probed once)."""
        if not self._attends_fully:
            return False
        probe = [np.arange(start, end) % self.vocabulary for start, end in ((1, 9), (9, 14))]

        def alone() -> list[Tensor]:
            return [self.hidden(self._ids(ids[None]), use_cache=False)[0] for ids in probe]

        def packed() -> list[Tensor]:
            hidden, starts = self._read_packed(probe)
            return [hidden[start : start + len(ids)] for start, ids in zip(starts, probe, strict=True)]

        return self._agree(alone, packed)

    @cached_property
    def takes_additive_mask(self) -> bool:
        """Whether one new token needs no other mask than what is added to its scores (probed once).

        transformers would make that of any other one anew at every step, in a twentieth of its time.
        """
        if not self._attends_fully:
            return False
        ids = torch.arange(1, 11, device=self.device).view(2, 5) % self.vocabulary
        visible = torch.tensor([[True] * 5, [False] * 2 + [True] * 3], device=self.device)
        places = (visible.cumsum(1) - 1).clamp_min(0)

        def step(mask: Tensor) -> list[Tensor]:
            rest = {"past_key_values": DynamicCache(config=self.causal_lm.config), "use_cache": True}
            before = visible[:, :4].long()
            self.hidden(ids[:, :4], attention_mask=before, position_ids=places[:, :4], **rest)
            return [self.hidden(ids[:, 4:], attention_mask=mask, position_ids=places[:, 4:], **rest)]

        scores = additive(visible, self.model.dtype)[:, None, None]
        return self._agree(lambda: step(visible.long()), lambda: step(scores))

    @cached_property
    def _fast_head(self) -> bool:
        """Whether body + head, applied apart, give the model's own logits (probed once)."""
        inputs = {"input_ids": self._probe, "use_cache": False}

        def apart() -> list[Tensor]:
            return [self._project(self.causal_lm.base_model(**inputs).last_hidden_state)]

        # Measured by the logits that are made apart: of the model's own ones some may be masked.
        return self._agree(apart, lambda: [self.causal_lm(**inputs).logits])

    def _project(self, hidden: Tensor) -> Tensor:
        """Hidden states to logits, with the scalings that families put behind the output matrix."""
        logits = self.causal_lm.get_output_embeddings()(hidden)
        if (scale := getattr(self.config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * scale
        if (scaling := getattr(self.config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / scaling
        if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:  # Gemma
            logits = torch.tanh(logits / cap) * cap
        return logits

    @cached_property
    def _cache_name(self) -> str | None:
        """What the model calls the cache that it is given; None where it takes none by a name we know."""
        taken = inspect.signature(type(self.causal_lm.base_model).forward).parameters
        return next((name for name in ("past_key_values", "cache_params") if name in taken), None)

    @property
    def _attends_fully(self) -> bool:
        """Whether every layer lets a token look at all before it, by attention of ours, on one device."""
        kinds = set(getattr(self.config, "layer_types", None) or ["full_attention"])
        windows = kinds != {"full_attention"} or getattr(self.config, "sliding_window", None)
        spread = len(set(getattr(self.causal_lm, "hf_device_map", {}).values())) > 1
        return not windows and not spread and self.causal_lm.config._attn_implementation == NAME

    @property
    def _probe(self) -> Tensor:
        """A few ids, ``[1, 8]``, on which ways are tried."""
        return torch.arange(1, 9, device=self.device)[None] % self.vocabulary

    def _agree(self, own: Callable[[], list[Tensor]], other: Callable[[], list[Tensor]]) -> bool:
        """Say whether another way works at all and leads to the model's own states, up to round-off."""
        tolerance = HEAD_TOLERANCE.get(self.model.dtype, 2e-2)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            expected = own()
            try:
                found = other()
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever a model has against it
                return False
        return all(
            a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())
            for a, b in zip(found, expected, strict=True)
        )
