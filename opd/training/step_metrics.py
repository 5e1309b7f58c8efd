"""The figures of one training step: means over its tokens, and what its completions looked like."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from opd.models.text import ModelText
from opd.training.rollouts import Rollout
from opd.trajectory import Grades, Trajectory


class Clock:
    """The seconds that a step spends on each work, once the device has done what was asked of it.

    Attributes:
        seconds: by work; what is done inside other work counts for itself alone.
    """

    def __init__(self, device: torch.device) -> None:
        """Wait for work of a device."""
        self.device, self._work, self._since = device, "", 0.0
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, work: str) -> Iterator[None]:
        """Let the time inside count for some work."""
        outer = self._turn_to(work)
        try:
            yield
        finally:
            self._turn_to(outer)

    def _turn_to(self, work: str) -> str:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, before = time.perf_counter(), self._work
        if before:
            self.seconds[before] += now - self._since
        self._work, self._since = work, now
        return before


def step_metrics(
    rollouts: Sequence[Rollout], grades: Sequence[Grades], student: ModelText, *, fresh: int
) -> dict[str, float]:
    """Return the step's metrics by name; KL, entropies and penalties in nats per token.

    ``sampler_mismatch`` estimates KL(sampler || trainer) on the first ``fresh`` rollouts, which were scored
    before the step's first update: 0 up to round-off while both are one model. The importance ratio is that
    of all rollouts; with substeps it also shows how far the updates moved the student.
    ``topk_overlap`` is the share of the student's likeliest tokens that are among the teacher's,
    ``shared_mass`` the student's probability on those. Of the others see :func:`shape`.
    """

    def mean(columns: Sequence[np.ndarray]) -> float:
        return float(np.concatenate(columns).mean(dtype=np.float64))

    # A teacher elsewhere may give more alternatives than are kept of the student.
    k = min(g.student.top_ids.shape[1] for g in grades)
    shared = [(g.student.top_ids[:, :, None] == g.teacher.top_ids[:, None, :k]).any(-1) for g in grades]
    masses = [(np.exp(g.student.top_logprobs) * s).sum(-1) for g, s in zip(grades, shared, strict=True)]
    trajectories = [r.trajectory for r in rollouts]
    metrics = {
        "penalty": mean([g.penalty for g in grades]),
        **mean_kl("reverse_kl", grades),
        "student_entropy": mean([g.student.entropy for g in grades]),
        "topk_overlap": mean([s.mean(-1) for s in shared]),
        "shared_mass": mean(masses),
        "tokens": sum(len(t) for t in trajectories),
        "trained_tokens": sum(r.trained_tokens for r in rollouts),
        **shape(trajectories, student),
    }
    if all(g.teacher.entropy is not None for g in grades):
        metrics["teacher_entropy"] = mean([g.teacher.entropy for g in grades])
    log_ratios = [
        g.student.logprobs - t.behaviour_logprobs if t.behaviour_logprobs is not None else np.empty(0)
        for g, t in zip(grades, trajectories, strict=True)
    ]
    ratios = np.exp(np.concatenate(log_ratios).astype(np.float64))
    if len(ratios):
        metrics |= {"importance_ratio": float(ratios.mean()), "importance_ratio_max": float(ratios.max())}
    if any(len(column) for column in log_ratios[:fresh]):
        metrics["sampler_mismatch"] = -mean(log_ratios[:fresh])
    if all(r.right is not None for r in rollouts):
        metrics["reward"] = float(np.mean([r.right for r in rollouts]))
    return metrics


def shape(trajectories: Sequence[Trajectory], student: ModelText) -> dict[str, float]:
    """Return what a student's completions look like by themselves, whatever a teacher thinks of them.

    Their mean length in tokens, and three shares: of those that the length limit cuts off, of the 4-grams
    that a completion has had before, and of those that are blank or one token over and over. The ids that end
    a completion are no part of it in the last two.
    """
    bodies = [t.completion_ids[~np.isin(t.completion_ids, student.eos_ids)] for t in trajectories]
    return {
        "completion_tokens": float(np.mean([len(t) for t in trajectories])),
        "clipped_share": float(np.mean([t.finish_reason == "length" for t in trajectories])),
        "repetition": float(np.mean([repetition(body) for body in bodies])),
        "degenerate_share": float(np.mean([_is_degenerate(body, student) for body in bodies])),
    }


def mean_kl(name: str, grades: Sequence[Grades]) -> dict[str, float]:
    """Return the mean reverse KL, nats per token, under ``name``.

    Where it is a lower bound, also over how many of the teacher's likeliest tokens, under ``name_top_k``.
    """
    kl = np.concatenate([g.reverse_kl for g in grades])
    found = {name: float(kl.mean(dtype=np.float64))}
    bounds = [g.teacher.top_ids.shape[1] for g in grades if g.bound]
    return found | ({f"{name}_top_k": min(bounds)} if bounds else {})


def repetition(ids: NDArray[np.int64]) -> float:
    """Return the share of the 4-grams of some token ids ``[T]`` that occurred before; 0 if there are none."""
    if len(ids) < 4:
        return 0.0
    grams = np.zeros(len(ids) - 3, np.uint64)
    for place in range(4):  # a polynomial hash, modulo 2^64
        grams = grams * np.uint64(1_000_003) + ids[place : len(ids) - 3 + place].astype(np.uint64)
    return 1 - len(np.unique(grams)) / len(grams)


def _is_degenerate(body: NDArray[np.int64], student: ModelText) -> bool:
    return (len(body) > 3 and len(np.unique(body)) == 1) or not student.text(body).strip()
