"""Scoring by vLLM's prompt log-probs, in a process beside this one or on a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from opd.divergence import Distributions, Predictions, TopK
from opd.protocols import Need
from opd.trajectory import Side, Trajectory

FULL_ENTRIES = 2_000_000
"""Log-probs of whole vocabularies that one call may ask for. vLLM makes a Python object of every one, and a
server sends each as text: a million took 15 seconds and 73 MiB."""


class PromptLogprobScorer(ABC):
    """A :class:`opd.protocols.Scorer` by prompt log-probs, which are always those at temperature 1.

    Close it, or use ``with``.

    Attributes:
        name: the model's, for messages.
        vocabulary: number of token ids that count.
        context: the most tokens, prompt and completion together, that can be scored.
    """

    name: str
    vocabulary: int
    context: int
    device = None
    writes = False
    packs = True

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @abstractmethod
    def prompt_logprobs(
        self, sequences: Sequence[NDArray[np.int64]], lengths: Sequence[int], top_k: int
    ) -> list[TopK]:
        """Score the last ``lengths[i]`` tokens of each sequence."""

    def gives(self, top_k: int) -> int:
        """Return how many likely tokens it gives at each position: those that are asked for."""
        return min(top_k, self.vocabulary)

    def refusal(self, need: Need, *, temperature: float = 1.0, tokens: int = 0) -> str | None:
        """Say why a need cannot be served; see :class:`opd.protocols.Scorer`."""
        if temperature != 1.0:
            return (
                f"{self.name} is scored by vLLM, which scores given tokens at temperature 1 only, not at "
                f"{temperature:g}. Set temperature to 1, or score with the transformers engine."
            )
        if need == "chosen":
            return (
                f"{self.name} is scored by vLLM, which gives the log-probs of its own likeliest tokens, not "
                "of the student's. Set top_k_from to teacher, or score with the transformers engine."
            )
        if need == "full" and tokens * self.vocabulary >= FULL_ENTRIES:
            return (
                f"{self.name} is scored by vLLM, which would have to send {tokens:,} x {self.vocabulary:,} "
                f"log-probs; it can send fewer than {FULL_ENTRIES:,}. Use importance_sampling or "
                "topk_reverse_kl, or score with the transformers engine."
            )
        return None

    def _must_fit(self, prompt: int, completion: int) -> None:
        """Refuse, with a ValueError, so many tokens of a prompt and a completion if they are too many."""
        if prompt + completion > self.context:
            raise ValueError(
                f"A prompt of {prompt} tokens and a completion of {completion} exceed the {self.context} "
                f"tokens that {self.name} can take. Shorten one of them."
            )

    def score(
        self, trajectories: Sequence[Trajectory], *, side: Side, temperature: float = 1.0, top_k: int = 0
    ) -> Predictions:
        """Score every token of every trajectory; see :class:`opd.protocols.Scorer`."""
        sequences = [np.append(t.seen_by(side), t.completion_ids) for t in trajectories]
        for ids, trajectory in zip(sequences, trajectories, strict=True):
            if not len(trajectory):
                raise ValueError("There is nothing to score: the completion has no tokens.")
            if ids.min() < 0 or ids.max() >= self.vocabulary:
                raise ValueError(f"Token ids must lie in [0, {self.vocabulary}); this trajectory has others.")
            self._must_fit(len(ids) - len(trajectory), len(trajectory))
        top_k = self.gives(top_k)
        need: Need = "full" if top_k == self.vocabulary else "top_k"
        tokens = sum(len(ids) for ids in sequences)
        if sentence := self.refusal(need, temperature=temperature, tokens=tokens):
            raise ValueError(sentence)
        known = TopK.joined(self.prompt_logprobs(sequences, [len(t) for t in trajectories], top_k))
        if need != "full":
            return known
        whole = torch.empty_like(known.top_logprobs).scatter_(1, known.top_ids, known.top_logprobs)
        return Distributions(whole, torch.nn.Identity(), self.vocabulary)
