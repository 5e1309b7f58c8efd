"""A model that is here scores given completions: hidden states and a head, multiplied out chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from opd.divergence import Distributions
from opd.models.network import LanguageModel
from opd.protocols import Need
from opd.trajectory import Side, Trajectory


@dataclass(frozen=True)
class TransformersScorer:
    """A :class:`opd.protocols.Scorer` that gives whole distributions, by the model's own forward.

    Attributes:
        model: who scores.
        vocabulary: number of token ids that count.
    """

    model: LanguageModel
    vocabulary: int
    writes = True

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def packs(self) -> bool:
        """Whether it needs no padding; see :attr:`LanguageModel.packs`."""
        return self.model.packs

    def gives(self, top_k: int) -> int:
        """Return the size of the vocabulary: no token is left out."""
        return self.vocabulary

    def refusal(self, need: Need, *, temperature: float = 1.0, tokens: int = 0) -> None:
        """Refuse nothing."""

    def score(
        self, trajectories: Sequence[Trajectory], *, side: Side, temperature: float = 1.0, top_k: int = 0
    ) -> Distributions:
        """Score every token of every trajectory; see :func:`distributions`."""
        return distributions(
            self.model, trajectories, side=side, temperature=temperature, vocabulary=self.vocabulary
        )


def distributions(
    model: LanguageModel,
    trajectories: Sequence[Trajectory],
    *,
    side: Side,
    temperature: float,
    vocabulary: int,
) -> Distributions:
    """Score given completions: the distribution that predicts each completion token, packed row by row.

    Row order is that of the trajectories, ``N = sum(len(t))``. Gradients flow if they are enabled.

    Args:
        model: who scores.
        trajectories: what is scored.
        side: whose prompt goes before the completion.
        temperature: divides the logits.
        vocabulary: number of token ids that count.

    Raises:
        ValueError: a trajectory is too long for the model.
    """
    prompts = [t.seen_by(side) for t in trajectories]
    for prompt, t in zip(prompts, trajectories, strict=True):
        model.must_fit(len(prompt), len(t), "Shorten the text, or use a model of a longer context.")
    # The last token is predicted but predicts nothing that is graded: it stays out of the input.
    inputs = [np.concatenate([p, t.completion_ids[:-1]]) for p, t in zip(prompts, trajectories, strict=True)]
    hidden, starts = model.read(inputs)
    predicts = np.concatenate(
        [
            np.arange(start + len(prompt) - 1, start + len(ids))
            for start, prompt, ids in zip(starts, prompts, inputs, strict=True)
        ]
    )
    hidden = hidden.index_select(0, torch.from_numpy(predicts).to(hidden.device))
    return Distributions(hidden, model.head, vocabulary, temperature)
