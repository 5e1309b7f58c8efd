"""Text that somebody typed stays text, also where it spells a control token of the model.

To a tokenizer the ``<|end|>`` that a chat template wrote is the same as one that a user wrote. So what is
typed goes through the template with marks in place of spelled control tokens. Then the template's own ones
are renamed to tokens that nobody can type, and a copy of the tokenizer encodes the whole, knowing only those.
"""

from __future__ import annotations

import copy
import itertools
import re
import secrets
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

from tokenizers import AddedToken

TYPED, MEANT, CUT = "tmc"
"""Kinds of marks: a control token that was typed, one that the template wrote, and nothing at all."""

LAST = "\ufdd1"
"""Ends a mark."""


class TypedText:
    """Hides the control tokens that a text spells, and encodes what was rendered with it."""

    def __init__(self, tokenizer: Any, special_ids: Collection[int]) -> None:  # noqa: ANN401
        """Prepare for a tokenizer and the tokens that no typed text may become."""
        added = tokenizer.added_tokens_decoder
        self.tokenizer, self.control = tokenizer, {i: added[i] for i in special_ids if i in added}
        self._meant: dict[str, tuple[int, int]] = {}  # the twin's id and ours of control tokens met so far
        self._one_at_a_time = threading.Lock()
        # A noncharacter, which Unicode reserves for a program's own use, and what nobody can guess.
        self._key = f"\ufdd0{secrets.token_hex(4)}"
        longest_first = sorted({token.content for token in self.control.values()}, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def hide(self, text: str) -> str:
        """Return a text with marks in place of the control tokens that it spells."""
        return self._spelled.sub(lambda match: self._mark(TYPED, match[0]), text)

    def spelled_in(self, pieces: Sequence[str]) -> list[int]:
        """Return the places of those pieces of a text that spell control tokens, alone or together."""
        starts = list(itertools.accumulate(map(len, pieces), initial=0))
        found: list[int] = []
        for match in self._spelled.finditer("".join(pieces)):
            found += range(bisect_right(starts, match.start()) - 1, bisect_left(starts, match.end()))
        return found

    def encode(self, rendered: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of a rendered text: what was hidden is text, and all other control tokens are meant.

        ``add_special_tokens`` is what tokenizers mean by it.
        """
        if self._key not in rendered:
            return self.tokenizer(rendered, add_special_tokens=add_special_tokens)["input_ids"]
        with self._one_at_a_time:
            return self._encode(rendered, add_special_tokens)

    def _encode(self, rendered: str, add_special_tokens: bool) -> list[int]:
        twin = self._twin
        for token in set(self._spelled.findall(rendered)) - self._meant.keys():
            self._meant[token] = self._name(token)
        text = self._spelled.sub(lambda match: self._mark(MEANT, match[0]), rendered)
        cut = self._mark(CUT, "")

        def ids(inside: str, *, split: bool) -> list[int]:
            """Encode, with something behind the first character of each control token that was typed."""

            def as_typed(match: re.Match[str]) -> str:
                token = bytes.fromhex(match[1]).decode()
                return token[:1] + inside + token[1:]

            typed = re.sub(f"{self._key}{TYPED}([0-9a-f]*){LAST}", as_typed, text)
            return twin(typed, add_special_tokens=add_special_tokens, split_special_tokens=split)["input_ids"]

        found = ids("", split=True) if twin.is_fast else None  # the others then know no tokens at all
        added = self.tokenizer("", add_special_tokens=add_special_tokens)["input_ids"]
        if found is None or self.control.keys() & set(found) - set(added):  # as words they are in it, too
            found = ids(cut, split=False)
        meant = dict(self._meant.values())
        nothing = twin.convert_tokens_to_ids(cut)
        return [meant.get(i, i) for i in found if i != nothing]

    def _mark(self, kind: str, token: str) -> str:
        return f"{self._key}{kind}{token.encode().hex()}{LAST}"

    @cached_property
    def _twin(self) -> Any:  # noqa: ANN401
        """A copy of the tokenizer, in which control tokens get a second name as they are meant."""
        twin = copy.deepcopy(self.tokenizer)
        twin.add_tokens([AddedToken(self._mark(CUT, ""), normalized=False, special=False)])
        return twin

    def _name(self, content: str) -> tuple[int, int]:
        """Give a control token its second name; return the twin's id for it and the tokenizer's."""
        ident, token = next((i, t) for i, t in self.control.items() if t.content == content)
        how = {"lstrip": token.lstrip, "rstrip": token.rstrip, "normalized": False, "special": False}
        name = self._mark(MEANT, content)
        self._twin.add_tokens([AddedToken(name, **how)])
        return self._twin.convert_tokens_to_ids(name), ident
