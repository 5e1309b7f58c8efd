"""What is asked of an engine: to sample completions, to score them, and to say why where it cannot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from opd.divergence import Predictions
from opd.objectives import Need
from opd.trajectory import FinishReason, Side, Trajectory


class EngineError(RuntimeError):
    """An engine outside this process cannot go on; the message says what happened and the way out."""


class NotFiniteError(ValueError):
    """What a model says is no number, so nothing can be made of it; the message says which model."""


def must_be_finite(name: str, *columns: NDArray[np.float32] | None) -> None:
    """Refuse the scores of a model that says NaN or infinity.

    Args:
        name: the model's, for the message.
        columns: what it says; None where an engine does not say.

    Raises:
        NotFiniteError: one of the values is not finite.
    """
    if not all(np.isfinite(column).all() for column in columns if column is not None):
        raise NotFiniteError(
            f"{name} gives tokens log-probs that are not finite (NaN or infinity). Either its dtype is too "
            "narrow for it (float16 is for many: try bfloat16 or float32), or its weights are damaged (a "
            "student's by too high a learning rate, for one)."
        )


@dataclass(frozen=True, eq=False)
class SampleRequest:
    """One completion to sample.

    Attributes:
        prompt_ids: int64 ``[P]``, what the student sees.
        uniforms: float64 ``[max_tokens]`` in [0, 1), the random number of each completion position. They are
            made before sampling starts, so batching and resuming cannot change them.
        prefix_ids: int64, tokens the completion is forced to begin with.
        teacher_prompt_ids: int64, what the teacher will see; None = ``prompt_ids``.
        prompt_index: passed on to the trajectory.
        sample_index: passed on to the trajectory.
    """

    prompt_ids: NDArray[np.int64]
    uniforms: NDArray[np.float64]
    prefix_ids: NDArray[np.int64] | None = None
    teacher_prompt_ids: NDArray[np.int64] | None = None
    prompt_index: int = 0
    sample_index: int = 0

    @property
    def begin_ids(self) -> NDArray[np.int64]:
        """What the student reads before it writes: the prompt and the forced prefix, int64."""
        return self.prompt_ids if self.prefix_ids is None else np.append(self.prompt_ids, self.prefix_ids)

    def answered(
        self,
        ids: NDArray[np.int64],
        logprobs: NDArray[np.float32],
        reason: FinishReason | None,
        temperature: float,
    ) -> Trajectory:
        """Return the trajectory that a completion, ``[T]``, with its behaviour log-probs makes."""
        return Trajectory(
            prompt_ids=self.prompt_ids,
            completion_ids=ids,
            behaviour_logprobs=logprobs,
            finish_reason=reason,
            teacher_prompt_ids=self.prompt_ids
            if self.teacher_prompt_ids is None
            else self.teacher_prompt_ids,
            temperature=temperature,
            prompt_index=self.prompt_index,
            sample_index=self.sample_index,
        )


class Sampler(Protocol):
    """Samples completions from one model.

    What stands here beside :meth:`sample` is right for whoever samples from the model itself.

    Attributes:
        apart: whether it samples from a copy of the model, so that after a sync it has to be shown that the
            weights arrived.
    """

    apart: bool = False

    def sample(
        self, requests: Sequence[SampleRequest], *, temperature: float = 1.0, snapshot_every: int = 0
    ) -> Iterator[Trajectory]:
        """Yield each trajectory as it finishes.

        Args:
            requests: what to sample; the length of ``uniforms`` bounds the completion.
            temperature: 0 takes the likeliest token.
            snapshot_every: also yield the unfinished trajectories every so many tokens; 0 = never.
        """
        ...

    def sync(self) -> None:
        """Sample from the model's weights as they are now; awake."""

    def sleep(self) -> None:
        """Give the device's memory to the update until :meth:`wake`, if it was made to."""

    def wake(self) -> None:
        """Take the memory back, if it sleeps."""


class Scorer(Protocol):
    """Scores given completions with one model, wherever that model lives.

    A log-prob that it gives is exact (to round-off). A divergence formed from its likeliest tokens and the
    tail's mass is a lower bound of the one over the vocabulary.

    Attributes:
        name: the model's, for messages.
        vocabulary: number of token ids that count.
        device: where in this process it computes; None = elsewhere.
        writes: whether its model is in this process, so that it can write text, too.
        packs: whether it reads texts of any lengths together without padding.
    """

    name: str
    vocabulary: int
    device: torch.device | None
    writes: bool
    packs: bool

    def gives(self, top_k: int) -> int:
        """Return how many of its likeliest tokens it gives at each position where ``top_k`` are asked for."""
        ...

    def refusal(self, need: Need, *, temperature: float = 1.0, tokens: int = 0) -> str | None:
        """Say in a sentence why a need cannot be served, before a run begins; None where it can.

        Args:
            need: what the objective wants to know.
            temperature: to score at.
            tokens: prompt and completion tokens of one call, at most.
        """
        ...

    def score(
        self, trajectories: Sequence[Trajectory], *, side: Side, temperature: float = 1.0, top_k: int = 0
    ) -> Predictions:
        """Score every token of every trajectory: all of them, or an exception.

        Args:
            trajectories: what to score.
            side: whose prompt goes before the completion.
            temperature: divides the logits.
            top_k: how many of the model's likeliest tokens are wanted at each position, if it does not give
                whole distributions anyway.

        Returns:
            What the model says, packed row by row in the order of the trajectories, ``N = sum(len(t))``.

        Raises:
            ValueError: this cannot be asked of it.
            EngineError: it cannot go on.
        """
        ...
