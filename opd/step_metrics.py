"""The figures of one training step: means over its tokens, and what its completions looked like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opd.rollouts import Rollout
from opd.trajectory import Grades


def step_metrics(rollouts: Sequence[Rollout], grades: Sequence[Grades]) -> dict[str, float]:
    """Return the step's metrics by name; KL, entropies and penalties in nats per token.

    ``sampler_mismatch`` estimates KL(sampler || trainer): 0 up to round-off while both are one model.
    ``topk_overlap`` is the share of the student's likeliest tokens that are among the teacher's,
    ``shared_mass`` the student's probability on those.
    """

    def mean(columns: Sequence[np.ndarray]) -> float:
        return float(np.concatenate(columns).mean(dtype=np.float64))

    shared = [(g.student.top_ids[:, :, None] == g.teacher.top_ids[:, None, :]).any(-1) for g in grades]
    masses = [(np.exp(g.student.top_logprobs) * s).sum(-1) for g, s in zip(grades, shared, strict=True)]
    trajectories = [r.trajectory for r in rollouts]
    metrics = {
        "penalty": mean([g.penalty for g in grades]),
        "reverse_kl": mean([g.reverse_kl for g in grades]),
        "student_entropy": mean([g.student.entropy for g in grades]),
        "teacher_entropy": mean([g.teacher.entropy for g in grades]),
        "topk_overlap": mean([s.mean(-1) for s in shared]),
        "shared_mass": mean(masses),
        "tokens": sum(len(t) for t in trajectories),
        "trained_tokens": sum(r.trained_tokens for r in rollouts),
        "completion_tokens": float(np.mean([len(t) for t in trajectories])),
        "clipped_share": float(np.mean([t.finish_reason == "length" for t in trajectories])),
    }
    log_ratios = [
        g.student.logprobs - t.behaviour_logprobs
        for g, t in zip(grades, trajectories, strict=True)
        if t.behaviour_logprobs is not None
    ]
    if log_ratios:
        ratios = np.exp(np.concatenate(log_ratios).astype(np.float64))
        metrics |= {
            "importance_ratio": float(ratios.mean()),
            "importance_ratio_max": float(ratios.max()),
            "sampler_mismatch": -mean(log_ratios),
        }
    if all(r.right is not None for r in rollouts):
        metrics["reward"] = float(np.mean([r.right for r in rollouts]))
    return metrics


def degenerate(rollouts: Sequence[Rollout], eos_ids: Sequence[int]) -> list[str]:
    """Return an alarm if the rollouts have collapsed: all empty, or each one token over and over."""
    bodies = [t.completion_ids[~np.isin(t.completion_ids, eos_ids)] for t in (r.trajectory for r in rollouts)]
    if all(len(body) == 0 for body in bodies):
        return ["Every completion of the step is empty: the student ends at once."]
    if all(len(body) > 3 and len(np.unique(body)) == 1 for body in bodies):
        return ["Every completion of the step repeats a single token."]
    return []
