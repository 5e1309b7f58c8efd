"""Two vocabularies that agree but for a few ids: what they share, and a model that knows no more than that.

Models of one family often differ in some added tokens (Qwen2.5 and Qwen3, a distilled model and its base).
Ids still travel between them. What only one of them knows is taken out of both: out of the distributions,
which are renormalised over what is left, and out of what is sampled. So the sampled penalty stays an unbiased
estimate of a KL divergence, the one between the two models without those tokens.

An id is shared where both tokenizers map it to the same token. One token may have two: where the student's
end of turn is not shared, the teacher's own end stands against it, for both say that the answer is over.
Prompts need not be shared: each model reads its own rendering.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opd.models.network import MASKED, LanguageModel
from opd.models.text import ModelText
from opd.models.typed_text import TypedText

ENOUGH = 0.9
"""Share of the larger vocabulary that must be shared: unrelated ones have ids in common by chance."""


@dataclass(frozen=True)
class SharedVocabulary:
    """The tokens that two models may both write, as ids of the student.

    Attributes:
        masked: the ids below :attr:`size` that are left out, in order.
        size: all ids that may be written lie below it.
        ends: those that end a completion.
        end: the student's end of turn and the teacher's, where that is another id; None where it is the same.
    """

    masked: tuple[int, ...]
    size: int
    ends: tuple[int, ...]
    end: tuple[int, int] | None

    @property
    def tokens(self) -> int:
        """How many tokens are shared."""
        return self.size - len(self.masked)

    @staticmethod
    def of(student: ModelText, teacher: ModelText) -> SharedVocabulary:
        """Find what a student and a teacher share."""
        rows = min(student.vocabulary, teacher.vocabulary)
        shared = {i for i in same_ids(student, teacher) if i < rows}
        end = None
        if None not in (ours := student.end_of_turn, theirs := teacher.end_of_turn) and ours not in shared:
            end = ours, theirs
            shared = (shared - {theirs}) | {ours}
        size = max(shared, default=-1) + 1
        return SharedVocabulary(
            masked=tuple(sorted(set(range(size)) - shared)),
            size=size,
            ends=tuple(i for i in student.eos_ids if i in shared),
            end=end,
        )


def same_ids(student: ModelText, teacher: ModelText) -> set[int]:
    """Return the ids that two tokenizers map to the same token."""
    theirs = teacher.tokenizer.get_vocab()
    return {i for token, i in student.tokenizer.get_vocab().items() if theirs.get(token) == i}


class LimitedModel(LanguageModel):
    """A view of a model that writes, scores and ends with the tokens that it shares with another one.

    Its ids are the student's, on both sides. Training it trains the model itself, and saving it saves that.
    """

    def __init__(self, whole: LanguageModel, shared: SharedVocabulary, *, teaches: bool = False) -> None:
        """Limit a model.

        Args:
            whole: the model.
            shared: what it may write.
            teaches: it is the teacher, whose end of turn may have another id.
        """
        vars(self).update(vars(whole))  # what was found out about the network holds here too
        self._whole, self.shared, self.teaches = whole, shared, teaches
        self._compiled: dict[Callable, Callable] = {}
        with torch.inference_mode(False):  # a gradient may need them
            self._masked = torch.tensor(shared.masked, dtype=torch.long)
            self._end = torch.tensor(shared.end if teaches and shared.end else (), dtype=torch.long)

    @property
    def whole(self) -> LanguageModel:
        """The model that this is a view of, which reads prompts as this one does."""
        return self._whole.prompted(self.template_options, control_tokens=self.control_tokens)

    @property
    def vocabulary(self) -> int:
        """Number of token ids among which the shared ones lie."""
        return self.shared.size

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion."""
        return self.shared.ends

    @property
    def end_of_turn(self) -> int | None:
        """The id that stands behind a whole answer."""
        whole = self._whole.end_of_turn
        return whole if whole in self.eos_ids else next(iter(self.eos_ids), None)

    @cached_property
    def left_out(self) -> list[int]:
        """The ids of the whole model, by its own tokenizer, that are not shared."""
        kept = set(range(self.shared.size)) - set(self.shared.masked)
        if self.teaches and self.shared.end:
            ours, theirs = self.shared.end
            kept = (kept - {ours}) | {theirs}
        return [i for i in range(self._whole.vocabulary) if i not in kept]

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """What turns rows of :meth:`hidden` into logits, ``[n, size]``, of the shared tokens alone."""
        own = super().head
        return lambda hidden: self._limit(own(hidden))

    def _limit(self, logits: Tensor) -> Tensor:
        """Leave out of logits ``[n, rows]`` what is not shared: it gets no mass and no gradient."""
        known = torch.nn.functional.pad(logits, (0, self.vocabulary - logits.shape[1]))
        if len(self._end):
            ours, theirs = self._end.to(logits.device).split(1)
            known = known.index_copy(1, ours, logits.index_select(1, theirs))
        return known.index_fill(1, self._masked.to(logits.device), MASKED)

    def must_know(self, ids: NDArray[np.int64], what: str) -> None:
        """Refuse ids that no completion of the student may hold; see :meth:`ModelText.must_know`."""
        self._whole.must_know(ids, what)
        if (foreign := ids[np.isin(ids, self.left_out)]).size:
            token = self._whole.tokenizer.convert_ids_to_tokens(int(foreign[0]))
            raise ValueError(
                f"Only shared tokens can be graded, and {what} has {token!r}, which the other model of the "
                "pair does not know. Leave it out, or grade aligned text (--cross-tokenizer)."
            )

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the ids of a text that nobody sampled; see :meth:`ModelText.encode`.

        An added token that is not shared is text, as control tokens are: both models can read that. Where
        control tokens are meant, so is it, and refused.

        Raises:
            ValueError: the text cannot be encoded, or not with shared tokens alone.
        """
        ids = super().encode(text)
        if not self.control_tokens:
            typed = self._typed_by_both
            ids = np.array(typed.encode(typed.hide(text), add_special_tokens=False), dtype=np.int64)
        self.must_know(ids, "The text")
        return ids

    @cached_property
    def _typed_by_both(self) -> TypedText:
        return TypedText(self.tokenizer, self.special_ids | set(self.left_out))
