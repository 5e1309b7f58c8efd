"""Engines: where trajectories come from and who scores them. An engine knows of no tab, run or objective."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from opd.trajectory import Trajectory


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


class Sampler(Protocol):
    """Samples completions from one model."""

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
