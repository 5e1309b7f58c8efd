"""Load a causal language model, its tokenizer and adapter, and pair a student with a teacher."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import logging as transformers_logging

from opd.engines import Scorer
from opd.engines.attention import NAME, additive, use_grouped_attention
from opd.engines.linear import use_onednn
from opd.engines.norms import use_fast_norms
from opd.engines.packing import Packing
from opd.hub import check_reachable, is_hub_id, no_safetensors
from opd.hub import folder as hub_folder
from opd.paths import assets_dir
from opd.phases import announce
from opd.trajectory import Messages, Prompt
from opd.typed_text import TypedText

transformers_logging.disable_progress_bar()

DEMO_MODELS = {"demo-student": "pair/student", "demo-teacher": "pair/teacher"}

QUANTIZED = ("8bit", "4bit")
"""Weight formats that bitsandbytes provides, where it is installed."""

# How far a head that is applied to hidden states by us may be from the model's own logits, relative to the
# largest logit: round-off of one matrix product in fp32 and in bf16.
HEAD_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


LOADING = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError)
"""What the libraries raise at files that are no model."""

SHOWN = 2
"""Tensors that a message names."""

_BYTE_OF = {letter: byte for byte, letter in bytes_to_unicode().items()}
"""How byte-level tokenizers spell a byte."""

_FALLBACK = re.compile("<0x([0-9A-F]{2})>")
"""How other tokenizers spell a byte that no token of theirs covers."""


class VocabularyMismatch(ValueError):
    """Two models whose token ids do not mean the same tokens."""


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
        scale = own.abs().max().clamp_min(1.0)
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
        return self.causal_lm(input_ids=input_ids, **inputs).logits

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

    def must_fit(self, prompt: int, completion: int) -> None:
        """Refuse what is too long for the model: beyond its context some fail and others read nonsense.

        Args:
            prompt: tokens of the prompt.
            completion: tokens of the completion, or that it may have.

        Raises:
            ValueError: together they are more than the model can read.
        """
        if prompt + completion > self.context:
            raise ValueError(
                f"The prompt is {prompt} tokens long; with {completion} more for the completion that exceeds "
                f"the {self.context} tokens {self.name} can read. Shorten the prompt or ask for fewer tokens."
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
            weights: the whole weights by name, where the model holds but a share of them; without any, all
                but the weights is written.
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


@dataclass
class Pair:
    """A student and the teacher that grades it, with one meaning per token id unless ``cross_tokenizer``.

    Attributes:
        student: who writes.
        teacher: who grades; a skeleton (:func:`load_skeleton`) where it computes elsewhere.
        scorer: the engine that scores for the teacher where it computes elsewhere.
        cross_tokenizer: the vocabularies may map differently, and then the teacher grades text instead of ids
            (:mod:`opd.cross_grading`). False once it turns out that they do not.
    """

    student: LanguageModel
    teacher: LanguageModel
    scorer: Scorer | None = None
    cross_tokenizer: bool = False

    def __post_init__(self) -> None:
        """Refuse a pair whose token ids mean different tokens, unless that was asked for.

        Raises:
            VocabularyMismatch: the two vocabularies map differently; the message says how.
        """
        ours, theirs = self.student.tokenizer.get_vocab(), self.teacher.tokenizer.get_vocab()
        self.cross_tokenizer = self.cross_tokenizer and ours != theirs
        if ours == theirs or self.cross_tokenizer:
            return
        different = sorted((t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)), key=repr)
        example = different[0]
        raise VocabularyMismatch(
            f"{self.student.name} and {self.teacher.name} do not share a vocabulary: {len(ours)} and "
            f"{len(theirs)} tokens, {len(different)} of them mapped differently. {example!r}, for example, "
            f"has id {ours.get(example)} here and {theirs.get(example)} there. Choose a student and a "
            "teacher of one model family. (Such a pair can be graded by aligned text, though not trained: "
            "opd grade --cross-tokenizer, cross_tokenizer=True, or the switch among the page's models.)"
        )

    @property
    def packs(self) -> bool:
        """Whether all that is computed here needs no padding; see :attr:`LanguageModel.packs`."""
        return self.student.packs and (self.scorer is not None or self.teacher.packs)

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """The tokenizer of the completions, which both models understand unless ``cross_tokenizer``."""
        return self.student.tokenizer

    @property
    def vocabulary(self) -> int:
        """Number of token ids that a completion may hold: those the student knows, and the teacher too."""
        if self.cross_tokenizer:
            return self.student.vocabulary
        return min(self.student.vocabulary, self.teacher.vocabulary)


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
    """Load a causal language model from a folder, the hub, or the embedded pair.

    Weights come from safetensors only and no code from the model's folder is run. An adapter folder (PEFT)
    loads its base model and puts the adapter on it.

    Args:
        name: "demo-student", "demo-teacher", a folder, or a hub id.
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
    model.eval()
    model.requires_grad_(False)
    return LanguageModel(name, model if "device_map" in options else model.to(where), tokenizer)


def load_pair(
    student: str = "demo-student",
    teacher: str = "demo-teacher",
    *,
    device: str = "auto",
    dtype: str = "auto",
    teacher_device: str | None = None,
    teacher_dtype: str | None = None,
    cross_tokenizer: bool = False,
) -> Pair:
    """Load a student and a teacher; without arguments, the embedded demo pair.

    Args:
        student: folder, hub id or "demo-student"; an adapter folder loads its base.
        teacher: the same for the teacher.
        device: where the models go; see :func:`load_model`.
        dtype: their dtype; see :func:`load_model`.
        teacher_device: overrides ``device`` for the teacher.
        teacher_dtype: overrides ``dtype`` for the teacher.
        cross_tokenizer: the vocabularies may differ: the pair can then be graded, by text, but not trained.

    Raises:
        ValueError: one of them cannot be loaded, or their vocabularies differ (:class:`VocabularyMismatch`).
    """
    return Pair(
        load_model(student, device=device, dtype=dtype),
        load_model(teacher, device=teacher_device or device, dtype=teacher_dtype or dtype),
        cross_tokenizer=cross_tokenizer,
    )


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
    if is_hub_id(name):
        check_reachable(name, weights=weights)
        return
    path = Path(locate(name))
    _must_be_no_run(name, path)
    try:
        if (adapter := path / "adapter_config.json").exists():
            _must_have_weights(path)
            check_model(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
        else:
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
        raise ValueError(no_safetensors("it", [file.name for file in path.iterdir()]))


def locate(name: str, *, weights: bool = True) -> str:
    """Return the folder behind a name; what the hub has of it is downloaded first.

    Args:
        name: a folder, a hub id, "demo-student" or "demo-teacher".
        weights: without them, config and tokenizer are all that is downloaded.

    Raises:
        ValueError: there is no such folder, and the hub does not give it.
    """
    if not name.strip():
        raise ValueError("No model was named. Give a folder, a hub id, demo-student or demo-teacher.")
    if name in DEMO_MODELS:
        return str(assets_dir() / DEMO_MODELS[name])
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser().resolve())  # an adapter names its base: that must hold anywhere
    if not is_hub_id(name):
        raise ValueError(
            f"There is no model folder {name!r}. Give an existing folder, a hub id like Qwen/Qwen3-0.6B, "
            f"or one of {', '.join(DEMO_MODELS)}."
        )
    return hub_folder(name, weights=weights)


def _load_weights(name: str, path: Path, options: dict[str, Any]) -> PreTrainedModel:
    """Load a model whose every weight comes from its files, which lie in the folder ``path``.

    Raises:
        ValueError: the files are not safetensors, or lack a tensor, or hold one of another model.
    """
    _must_be_model(path)
    _must_have_weights(path)
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
    if is_hub_id(name):  # what an adapter of it will name as its base
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
    from transformers import BitsAndBytesConfig

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
    base = config.base_model_name_or_path
    if not base:
        raise ValueError("its adapter_config.json names no base model.")
    if not (path / "adapter_model.safetensors").exists():
        raise ValueError(no_safetensors("it", [file.name for file in path.iterdir()]))
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
    told = re.findall(r"size mismatch for (\S+): .*?Size\(\[(.*?)\]\).*?Size\(\[(.*?)\]\)", str(error))
    return {key: tuple([*map(int, shape.split(","))] for shape in shapes) for key, *shapes in told}


def _first_sentence(error: Exception) -> str:
    """The part of a loader's message that a person can use."""
    text = " ".join(str(error).split())
    if not isinstance(error, (OSError, ValueError)):  # a library's own failing, which says little by itself
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 600 else text[:600].rsplit(" ", 1)[0] + " …"
