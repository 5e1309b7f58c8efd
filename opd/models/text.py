"""What a model reads and writes as text: all of it that needs no weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from opd.config import as_template_options
from opd.models.hf import bytes_to_unicode
from opd.models.typed_text import TypedText
from opd.reasoning import CLOSES, OPENS, spelled_out
from opd.reviews import PromptText
from opd.trajectory import Messages, Prompt, Side, as_messages

_BYTE_OF = {letter: byte for byte, letter in bytes_to_unicode().items()}
"""How byte-level tokenizers spell a byte."""

_FALLBACK = re.compile("<0x([0-9A-F]{2})>")
"""How other tokenizers spell a byte that no token of theirs covers."""

KEPT_PROMPTS = 64
"""Prompts whose text is remembered: that of one is asked for with each of its trajectories, as they grow."""


@dataclass
class ModelText:
    """Turns prompts into a model's ids, and its ids into text.

    Attributes:
        name: what the user called the model: a folder, a file, a hub id or another of its names.
        tokenizer: its tokenizer.
        config: transformers' settings of the language model: its context and its vocabulary.
        generation_config: transformers' settings of its sampling: what ends a completion; None without any.
        template_options: what its chat template is told beside the messages, such as
            ``{"enable_thinking": False}``.
        control_tokens: a control token that a prompt spells is meant as one; else it is text.
    """

    name: str
    tokenizer: Any
    config: Any
    generation_config: Any
    template_options: Mapping[str, Any] = field(default_factory=dict)
    control_tokens: bool = False
    _token_texts: dict[int, str] = field(default_factory=dict, init=False, repr=False)
    _prompt_texts: dict[bytes, PromptText] = field(default_factory=dict, init=False, repr=False)

    @property
    def context(self) -> int:
        """The most tokens, prompt and completion together, that the model can read."""
        return int(getattr(self.config, "max_position_embeddings", None) or 2**31)

    @cached_property
    def vocabulary(self) -> int:
        """Number of token ids that mean something; the matrix may have more rows."""
        return min(max(self.tokenizer.get_vocab().values()) + 1, self.config.vocab_size)

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion: those of the generation config and the tokenizer's own."""
        ids: set[int] = set()
        for source in (self.generation_config, self.tokenizer):
            eos = getattr(source, "eos_token_id", None)
            ids.update([eos] if isinstance(eos, int) else eos or [])
        return tuple(sorted(ids))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The tokens that are no text: those that mark turns and ends, in whatever list they stand."""
        marked = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(marked | set(self.eos_ids))

    def prompted(
        self, template_options: str | Mapping[str, Any] | None = None, *, control_tokens: bool = False
    ) -> Self:
        """Return this model, its network shared, as one that reads prompts so; see the attributes.

        Raises:
            ValueError: see :func:`opd.config.as_template_options`.
        """
        model = copy.copy(self)
        model.template_options = as_template_options(template_options or {})
        model.control_tokens = control_tokens
        return model

    @property
    def templated(self) -> bool:
        """Whether a chat template renders its prompts; a base model without one reads them as plain text."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def end_of_turn(self) -> int | None:
        """The id that the chat template puts behind an answer; without a template the tokenizer's eos."""
        if self.templated:
            chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
            ids = self._from_template(chat)
            ends = [i for i in ids if i in self.eos_ids]
            if ends:
                return ends[-1]
        return self.tokenizer.eos_token_id

    def render(self, prompt: Prompt, *, room: int = 1, side: Side | None = None) -> NDArray[np.int64]:
        """Render a prompt with the chat template and return its ids, int64 ``[P]``.

        A string is one user message. A model without a chat template reads the contents, joined by newlines.
        A control token that a message spells is text unless :attr:`control_tokens`; the template's own ones
        are meant.

        Args:
            prompt: a string or a list of ``{"role": ..., "content": ...}`` messages.
            room: how many completion tokens must still fit into the context.
            side: which of a pair the model is, for the message where its template refuses the prompt.

        Raises:
            ValueError: the prompt is empty, malformed, refused by the template, or too long for the context.
        """
        messages = as_messages(prompt)
        if self.templated:
            ids = self._from_template(messages, side, add_generation_prompt=True)
        else:
            text = "\n".join(self._hidden(spelled_out(m)) for m in messages)
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

    def must_know(self, ids: NDArray[np.int64], what: str) -> None:
        """Refuse ids that no completion may hold.

        Args:
            ids: int64 ``[T]``, at least one.
            what: has them, for the message.

        Raises:
            ValueError: some of them are not among the model's.
        """
        if ids.min() < 0 or ids.max() >= self.vocabulary:
            raise ValueError(f"Token ids must lie in [0, {self.vocabulary}); {what} has others.")

    def _from_template(self, messages: Messages, side: Side | None = None, **options: Any) -> list[int]:  # noqa: ANN401
        """Let the chat template render messages.

        Raises:
            ValueError: it refuses them, or fails: it is a program of whoever made the model.
        """
        hidden = [{k: v if k == "role" else self._hidden(v) for k, v in m.items()} for m in messages]
        whose = (
            f"The {side}'s chat template, of {self.name}," if side else f"The chat template of {self.name}"
        )
        plain = hidden == messages  # then all is left to the tokenizer, of whatever kind it is
        try:
            found = self.tokenizer.apply_chat_template(
                hidden, tokenize=plain, return_dict=False, **self.template_options, **options
            )
        except TemplateError as error:
            asks = any(m["role"] == "system" for m in messages)
            way_out = " Put what the system prompt says into the question." if asks else ""
            raise ValueError(f"{whose} refuses this: {str(error).rstrip('.')}.{way_out}") from error
        except Exception as error:  # of Python, at whatever the template does
            raise ValueError(
                f"{whose} fails on this: {type(error).__name__}: {error}. Mend its "
                "chat_template.jinja (or chat_template in tokenizer_config.json)."
            ) from error
        return found if plain else self._typed.encode(found, add_special_tokens=False)

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the ids of a text that nobody sampled, int64 ``[T]``, as they stand behind a prompt.

        A control token that it spells is text unless :attr:`control_tokens`.

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
        ids = np.array(self._typed.encode(self._hidden(text), add_special_tokens=False), dtype=np.int64)
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown not in self.eos_ids and unknown in ids:
            raise ValueError(f"The text holds characters that the tokenizer of {self.name} does not know.")
        return ids

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

        A character whose bytes are spread over several tokens is shared out where their spelling shows how,
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

    def _hidden(self, text: str) -> str:
        """Return what somebody typed with marks in place of the control tokens that are text."""
        return text if self.control_tokens else self._typed.hide(text)

    @cached_property
    def _typed(self) -> TypedText:
        return TypedText(self.tokenizer, self.special_ids - self._reasoning_ids)

    @cached_property
    def _reasoning_ids(self) -> frozenset[int]:
        """The tokens between which the model reasons; some tokenizers count them among the special ones."""
        known = self.tokenizer.get_vocab()
        return frozenset(known[mark] for mark in (OPENS, CLOSES) if mark in known)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def text(self, ids: Sequence[int] | NDArray[np.int64]) -> str:
        """Return the text that a verifier reads: without special tokens, but with the marks of reasoning."""
        dropped = self.special_ids - self._reasoning_ids
        return self._decode([int(i) for i in ids if int(i) not in dropped])

    def prompt_text(self, ids: NDArray[np.int64]) -> PromptText:
        """Return what the ids of a rendered prompt say, token by token."""
        texts, key = self._prompt_texts, ids.tobytes()
        if key not in texts:
            if len(texts) >= KEPT_PROMPTS:
                texts.clear()
            pieces, is_control = self.pieces(ids), [int(i) in self.special_ids for i in ids]
            typed = ["\0" if control else piece for piece, control in zip(pieces, is_control, strict=True)]
            texts[key] = PromptText(
                pieces=pieces,
                control=[i for i, control in enumerate(is_control) if control],
                spelled=self._typed.spelled_in(typed),
                templated=self.templated,
            )
        return texts[key]


def _spelled_bytes(token: str) -> bytes:
    """Return the bytes that a token's spelling stands for; of one that is no spelling of bytes, none."""
    if fallback := _FALLBACK.fullmatch(token):
        return bytes.fromhex(fallback[1])
    return bytes(_BYTE_OF[letter] for letter in token) if _BYTE_OF.keys() >= set(token) else b""
