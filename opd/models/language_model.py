"""A causal language model that is ready: its text, its network, and what it can do faster."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from opd.models.kernels.attention import NAME, additive, use_grouped_attention
from opd.models.kernels.linear import use_onednn
from opd.models.kernels.norms import use_fast_norms
from opd.models.kernels.packing import Packing
from opd.models.typed_text import TypedText
from opd.trajectory import Messages, Prompt

# How far a head that is applied to hidden states by us may be from the model's own logits, relative to the
# largest logit: round-off of one matrix product in fp32 and in bf16.
HEAD_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}

MASKED = -1e4
"""Logit of a token that a model forbids itself, by minus infinity or nearly: its probability is 0 just the
same, and 0 times its log-prob is 0."""

_BYTE_OF = {letter: byte for byte, letter in bytes_to_unicode().items()}
"""How byte-level tokenizers spell a byte."""

_FALLBACK = re.compile("<0x([0-9A-F]{2})>")
"""How other tokenizers spell a byte that no token of theirs covers."""


@dataclass
class LanguageModel:
    """A causal language model that is ready to sample and to be scored.

    Attributes:
        name: what the user called it: a folder, a hub id, "demo-student" or "demo-teacher".
        model: the transformers model, or the PEFT model around it.
        tokenizer: its tokenizer.
        compiled: its step of sampling is to be compiled, at the first one.
    """

    name: str
    model: Any
    tokenizer: Any
    compiled: bool = False
    _token_texts: dict[int, str] = field(default_factory=dict, init=False, repr=False)
    _compiled: dict[Callable, Callable] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Choose the faster of equal ways to attend, to multiply, to normalise and to find memory."""
        use_grouped_attention(self.causal_lm)
        use_onednn(self.causal_lm)
        use_fast_norms(self.causal_lm)
        # glibc keeps freed memory for the next tensor only if one as large (up to 32 MiB) was freed before;
        # else larger tensors lie on pages that the system has to clear first.
        torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.model.device

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model itself, adapter layers in place."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def context(self) -> int:
        """The most tokens, prompt and completion together, that the model can read."""
        config = self.causal_lm.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 2**31)

    @cached_property
    def vocabulary(self) -> int:
        """Number of token ids that mean something; the matrix may have more rows."""
        return min(
            max(self.tokenizer.get_vocab().values()) + 1, self.causal_lm.config.get_text_config().vocab_size
        )

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion: those of the generation config and the tokenizer's own."""
        ids: set[int] = set()
        for source in (self.causal_lm.generation_config, self.tokenizer):
            eos = getattr(source, "eos_token_id", None)
            ids.update([eos] if isinstance(eos, int) else eos or [])
        return tuple(sorted(ids))

    @cached_property
    def _fast_head(self) -> bool:
        """Whether body + head, applied apart, give the model's own logits (probed once)."""
        probe = torch.arange(1, 9, device=self.device)[None] % self.vocabulary
        with torch.no_grad():
            own = self.causal_lm(input_ids=probe, use_cache=False).logits.float()
            body = self.causal_lm.base_model(input_ids=probe, use_cache=False).last_hidden_state
            apart = self._project(body).float()
        scale = apart.abs().max().clamp_min(1.0)  # not of its own logits, which may be masked
        tolerance = HEAD_TOLERANCE.get(self.model.dtype, 2e-2)
        return own.shape == apart.shape and bool((own - apart).abs().max() <= tolerance * scale)

    def _project(self, hidden: Tensor) -> Tensor:
        """Hidden states to logits, with the scalings that families put behind the output matrix."""
        config = self.causal_lm.config.get_text_config()
        logits = self.causal_lm.get_output_embeddings()(hidden)
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * scale
        if (scaling := getattr(config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / scaling
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
            logits = torch.tanh(logits / cap) * cap
        return logits

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

    @cached_property
    def _cache_name(self) -> str | None:
        """What the model calls the cache that it is given; None where it takes none by a name we know."""
        taken = inspect.signature(type(self.causal_lm.base_model).forward).parameters
        return next((name for name in ("past_key_values", "cache_params") if name in taken), None)

    @cached_property
    def keeps_state(self) -> bool:
        """Whether the model goes on from the cache that it filled; a pure recurrence is probed (once)."""
        if self._cache_name == "past_key_values":
            return True
        ids = torch.arange(1, 9, device=self.device)[None] % self.vocabulary

        def by_steps() -> list[Tensor]:
            inputs = {"past_key_values": DynamicCache(config=self.causal_lm.config), "use_cache": True}
            return [self.hidden(part, **inputs)[:, -1] for part in (ids[:, :6], ids[:, 6:7], ids[:, 7:])][-1:]

        return self._agree(lambda: [self.hidden(ids, use_cache=False)[:, -1]], by_steps)

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

    @property
    def _attends_fully(self) -> bool:
        """Whether every layer lets a token look at all before it, by attention of ours, on one device."""
        config = self.causal_lm.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        windows = kinds != {"full_attention"} or getattr(config, "sliding_window", None)
        spread = len(set(getattr(self.causal_lm, "hf_device_map", {}).values())) > 1
        return not windows and not spread and self.causal_lm.config._attn_implementation == NAME

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

    def step_mask(self, visible: Tensor) -> Tensor | None:
        """Return what :meth:`hidden` takes as attention_mask for one new token a row.

        ``visible`` says which columns it may look at, bool ``[B, L]``. A pure recurrence looks at none.
        """
        if self._cache_name != "past_key_values":
            return None
        if not self.takes_additive_mask:
            return visible.long()
        return additive(visible, self.model.dtype)[:, None, None]

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
            bool((a - b).abs().max() <= tolerance * b.abs().max())
            for a, b in zip(found, expected, strict=True)
        )

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

    def render(self, prompt: Prompt, *, room: int = 1) -> NDArray[np.int64]:
        """Render a prompt with the chat template and return its ids, int64 ``[P]``.

        A string is one user message. A model without a chat template reads the contents, joined by newlines.
        A control token that a message spells is text; the template's own ones are meant.

        Args:
            prompt: a string or a list of ``{"role": ..., "content": ...}`` messages.
            room: how many completion tokens must still fit into the context.

        Raises:
            ValueError: the prompt is empty, malformed, refused by the template, or too long for the context.
        """
        messages = as_messages(prompt)
        if getattr(self.tokenizer, "chat_template", None):
            ids = self._from_template(messages, add_generation_prompt=True)
        else:
            text = "\n".join(self._typed.hide(m["content"]) for m in messages)
            ids = self._typed.encode(text, add_special_tokens=True)
        self.must_fit(len(ids), room)
        return np.array(ids, dtype=np.int64)

    def must_fit(
        self, prompt: int, completion: int, way_out: str = "Shorten the prompt or ask for fewer tokens."
    ) -> None:
        """Refuse what is too long for the model: beyond its context some fail and others read nonsense.

        Args:
            prompt: tokens of the prompt.
            completion: tokens of the completion, or that it may have.
            way_out: what to do about it, for the message.

        Raises:
            ValueError: together they are more than the model can read.
        """
        if prompt + completion > self.context:
            raise ValueError(
                f"The prompt is {prompt} tokens long; with {completion} more for the completion that exceeds "
                f"the {self.context} tokens {self.name} can read. {way_out}"
            )

    def _from_template(self, messages: Messages, **options: Any) -> list[int]:  # noqa: ANN401
        """Let the chat template render messages.

        Raises:
            ValueError: it refuses them, or fails: it is a program of whoever made the model.
        """
        hidden = [{**m, "content": self._typed.hide(m["content"])} for m in messages]
        plain = hidden == messages  # then all is left to the tokenizer, of whatever kind it is
        try:
            found = self.tokenizer.apply_chat_template(hidden, tokenize=plain, return_dict=False, **options)
        except TemplateError as error:
            raise ValueError(f"The chat template of {self.name} refuses this: {error}.") from error
        except Exception as error:  # of Python, at whatever the template does
            raise ValueError(
                f"The chat template of {self.name} fails on this: {type(error).__name__}: {error}. Mend its "
                "chat_template.jinja (or chat_template in tokenizer_config.json)."
            ) from error
        return found if plain else self._typed.encode(found, add_special_tokens=False)

    @cached_property
    def end_of_turn(self) -> int | None:
        """The id that the chat template puts behind an answer; without a template the tokenizer's eos."""
        if getattr(self.tokenizer, "chat_template", None):
            chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
            ids = self._from_template(chat)
            ends = [i for i in ids if i in self.eos_ids]
            if ends:
                return ends[-1]
        return self.tokenizer.eos_token_id

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the ids of a text that nobody sampled, int64 ``[T]``, as they stand behind a prompt.

        A control token that it spells is text.

        Raises:
            ValueError: the text cannot be encoded.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The text holds a character that cannot be encoded, at place {error.start + 1}: half of a "
                "surrogate pair, or a byte that is no UTF-8. Take it out."
            ) from error
        ids = np.array(self._typed.encode(self._typed.hide(text), add_special_tokens=False), dtype=np.int64)
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown not in self.eos_ids and unknown in ids:
            raise ValueError(f"The text holds characters that the tokenizer of {self.name} does not know.")
        return ids

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

    def token_text(self, token_id: int) -> str:
        """Return the text of one token as it reads in the middle of a sentence, leading space kept.

        Bytes that are no character by themselves come back in the tokenizer's own spelling.
        """
        texts = self._token_texts
        if token_id not in texts:
            # Decoding one id alone loses the leading space in some tokenizers: decode it behind an anchor.
            anchor = self.tokenizer("a", add_special_tokens=False)["input_ids"]
            before = self._decode(anchor)
            text = self._decode([*anchor, token_id])[len(before) :]
            if "\ufffd" in text or not text:
                text = self.tokenizer.convert_ids_to_tokens(token_id) or ""
            texts[token_id] = text
        return texts[token_id]

    def pieces(self, ids: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Return the text of each token of a sequence; joined they are the decoded sequence.

        A character whose bytes are spread over several tokens belongs to the last of them.
        """
        ids = [int(i) for i in ids]
        pieces: list[str] = []
        start, read = 0, 0  # decode from `start`; what ends before `read` has been given out
        for end in range(1, len(ids) + 1):
            known = self._decode(ids[start:read])
            text = self._decode(ids[start:end])
            if text.endswith("\ufffd") and end < len(ids):
                pieces.append("")
                continue
            pieces.append(text[len(known) :])
            start, read = read, end
        return pieces

    def token_bytes(self, ids: Sequence[int] | NDArray[np.int64]) -> tuple[list[bytes], NDArray[np.bool_]]:
        """Return the UTF-8 bytes of each token of a sequence; joined they are the decoded sequence.

        A character whose bytes are spread over several tokens is shared out where their spelling tells how,
        and belongs to the last of them elsewhere. The second value, bool ``[T]``, is False where tokens are
        no text: half a character, which is decoded as U+FFFD.
        """
        found: list[bytes] = []
        legible: list[bool] = []
        group: list[int] = []  # tokens up to the end of a character
        for token, piece in zip(ids, self.pieces(ids), strict=True):
            group.append(int(token))
            if piece or len(found) + len(group) == len(ids):
                text = piece.encode()
                spelled = [_spelled_bytes(t) for t in self.tokenizer.convert_ids_to_tokens(group)]
                known = b"".join(spelled) == text
                found += spelled if known else [*[b""] * (len(group) - 1), text]
                legible += [known or "\ufffd" not in piece] * len(group)
                group = []
        return found, np.array(legible, dtype=bool)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The tokens that are no text: those that mark turns and ends, in whatever list they stand."""
        marked = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(marked | set(self.eos_ids))

    @cached_property
    def _typed(self) -> TypedText:
        added = self.tokenizer.added_tokens_decoder
        return TypedText(self.tokenizer, {i: added[i] for i in self.special_ids if i in added})

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def text(self, ids: Sequence[int] | NDArray[np.int64]) -> str:
        """Return the decoded text without special tokens: what a verifier reads."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def _spelled_bytes(token: str) -> bytes:
    """Return the bytes that a token's spelling stands for; of one that is no spelling of bytes, none."""
    if fallback := _FALLBACK.fullmatch(token):
        return bytes.fromhex(fallback[1])
    return bytes(_BYTE_OF[letter] for letter in token) if _BYTE_OF.keys() >= set(token) else b""


def as_messages(prompt: Prompt) -> list[dict[str, str]]:
    """Return a prompt as chat messages; a string is one user message.

    Raises:
        ValueError: there is nothing in it, or a message lacks role or content.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not messages or not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
        raise ValueError('A prompt is a text or a list of messages like {"role": "user", "content": "…"}.')
    if not messages[-1]["content"].strip():
        raise ValueError("The prompt is empty. Write a question for the student to answer.")
    return [{"role": m["role"], "content": m["content"]} for m in messages]
