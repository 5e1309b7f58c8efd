"""What a step reports: figures, graded trajectories, how frozen texts fare, what the update did to tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from opd.alarms import Alarm
from opd.reviews import Review


class _Columns:
    """A dataclass of float32 columns that is written as JSON with four significant digits."""

    def to_dict(self) -> dict[str, list[float]]:
        """Return the columns as JSON-ready data."""
        return {
            name: [float(f"{x:.4g}") for x in np.nan_to_num(column).tolist()]
            for name, column in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild the columns.

        Raises:
            ValueError: one is missing, or is none.
        """
        try:
            columns = {name: np.array(data[name], np.float32) for name in cls.__dataclass_fields__}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"What was kept of the tokens is damaged: {error}.") from error
        return cls(**columns)


@dataclass(frozen=True, eq=False)
class FrozenScores(_Columns):
    """How a probe trajectory that the untrained student wrote is graded at a later step.

    Attributes:
        penalty: float32 ``[T]``, log p_student - log p_teacher of each token, nats.
        reverse_kl: float32 ``[T]``, KL(student || teacher) at each position, nats.
        logprobs: float32 ``[T]``, the student's log-prob of each token.
    """

    penalty: NDArray[np.float32]
    reverse_kl: NDArray[np.float32]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Push(_Columns):
    """What a step meant to do to the tokens of a rollout, and what it did.

    Attributes:
        advantage: float32 ``[T]``, what the token was given: its advantage where the objective has one, else
            the negative penalty, 1 for imitation; 0 where it did not train.
        change: float32 ``[T]``, log-prob after the step's updates minus before, nats. The two come from
            batches of different rows: exact to 1e-5 in float32, to some 1e-2 in bfloat16.
    """

    advantage: NDArray[np.float32]
    change: NDArray[np.float32]


@dataclass(frozen=True)
class StepReport:
    """What one training step did. Row 0 is an evaluation only; step k is the state after k updates.

    Attributes:
        step: number of updates made.
        metrics: the figures by name, as they stand in ``metrics.jsonl``; absent means not measured.
        samples: a few graded trajectories of the step.
        pushes: what the update was meant to do and did to the tokens of ``samples``; empty where that was not
            measured.
        probes: at an evaluation, the student's graded answers to the first held-out prompts, always the same.
        frozen: at an evaluation, how the student now scores the probes that it wrote at step 0.
        notes: sentences for the user (a halved micro-batch, for instance).
        alarms: what has gone wrong with the student; a job fills them in from the run's rows.
    """

    step: int
    metrics: Mapping[str, float]
    samples: Sequence[Review] = ()
    pushes: Sequence[Push] = ()
    probes: Sequence[Review] = ()
    frozen: Sequence[FrozenScores] = ()
    notes: Sequence[str] = ()
    alarms: Sequence[Alarm] = ()

    def row(self) -> dict[str, float]:
        """Return the line of ``metrics.jsonl``."""
        return {"step": self.step, **self.metrics}


WORKS = ("sample", "teacher", "update")
"""What a training step spends its time on."""


def training_seconds(metrics: Mapping[str, float]) -> float:
    """Return how long a step's training took, evaluations not counted."""
    return sum(metrics.get(f"seconds_{work}", 0.0) for work in WORKS)


def moved_as_meant(pushes: Sequence[Push]) -> tuple[float, int]:
    """Return the share of pushed tokens whose log-prob moved as they were pushed, and how many those are.

    Tokens that did not move at all, or were not pushed, do not count. The share is 0 where none do.
    """
    advantage, change = (np.concatenate([getattr(p, n) for p in pushes]) for n in ("advantage", "change"))
    counted = (advantage != 0) & (change != 0)
    meant = np.sign(advantage[counted]) == np.sign(change[counted])
    return (float(meant.mean()) if len(meant) else 0.0), len(meant)
