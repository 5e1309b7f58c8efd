"""Two scorings of the same tokens become grades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from opd.divergence import over_chunks, token_signals
from opd.engines.transformers import batches, distributions
from opd.models import Pair
from opd.trajectory import Grades, TokenScores, Trajectory
from opd.verdicts import find_forks, verdicts

SCORE_TOKENS = 8192
"""Padded tokens scored in one forward."""


def grade(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    *,
    temperature: float | None = None,
    top_k: int = 20,
    all_divergences: bool = True,
) -> list[Grades]:
    """Grade every token of every trajectory: score with both models, compare.

    Both models are scored at one temperature. With the sampling temperature the mean penalty is an unbiased
    estimate of the reverse KL between the tempered distributions; with another one :attr:`Grades.bias` says
    that it is not.

    Args:
        pair: the student and the teacher.
        trajectories: what to grade; the teacher reads each one's ``teacher_prompt_ids``.
        temperature: to score at; None = the one each trajectory was sampled at (1 for greedy ones).
        top_k: alternatives kept of each model.
        all_divergences: forward KL and JSD too; the training loop does without.

    Returns:
        One :class:`Grades` a trajectory, in their order.

    Raises:
        ValueError: a trajectory is empty or contains ids outside the vocabulary, or ``temperature`` <= 0.
    """
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ValueError(f"Grades need a temperature above 0, not {temperature}.")
    for t in trajectories:
        if not len(t):
            raise ValueError("There is nothing to grade: the completion has no tokens.")
        if t.completion_ids.min() < 0 or t.completion_ids.max() >= pair.vocabulary:
            raise ValueError(f"Token ids must lie in [0, {pair.vocabulary}); this trajectory has others.")
    scored_at = [temperature or t.temperature or 1.0 for t in trajectories]
    graded: dict[int, Grades] = {}
    for at in sorted(set(scored_at)):
        chosen = [i for i, s in enumerate(scored_at) if s == at]
        for group in batches([trajectories[i] for i in chosen], SCORE_TOKENS):
            indices = [chosen[i] for i in group]
            part = [trajectories[i] for i in indices]
            graded.update(zip(indices, _grade_batch(pair, part, at, top_k, all_divergences), strict=True))
    return [graded[i] for i in range(len(trajectories))]


@torch.inference_mode()
def _grade_batch(
    pair: Pair, trajectories: Sequence[Trajectory], temperature: float, top_k: int, all_divergences: bool
) -> list[Grades]:
    ids = torch.from_numpy(np.concatenate([t.completion_ids for t in trajectories]))
    student, teacher = (
        distributions(model, trajectories, side=side, temperature=temperature, vocabulary=pair.vocabulary)
        for model, side in ((pair.student, "student"), (pair.teacher, "teacher"))
    )
    signals = over_chunks(
        lambda s, t, i: (None, token_signals(s, t, i, top_k, all_divergences)),
        student,
        teacher,
        ids.to(student.hidden.device),
    )
    return to_grades(signals, trajectories, temperature)


def to_grades(
    signals: dict[str, torch.Tensor], trajectories: Sequence[Trajectory], temperature: float
) -> list[Grades]:
    """Cut what :func:`opd.divergence.token_signals` says of packed rows into :class:`Grades`."""
    columns = {name: value.cpu().numpy() for name, value in signals.items()}
    ends = np.cumsum([len(t) for t in trajectories])
    out = []
    for trajectory, end in zip(trajectories, ends, strict=True):
        part = slice(end - len(trajectory), end)
        student, teacher = (
            TokenScores(
                logprobs=columns[f"{side}.logprobs"][part].astype(np.float32),
                entropy=columns[f"{side}.entropy"][part].astype(np.float32),
                ranks=columns[f"{side}.ranks"][part].astype(np.int32),
                top_ids=columns[f"{side}.top_ids"][part].astype(np.int32),
                top_logprobs=columns[f"{side}.top_logprobs"][part].astype(np.float32),
            )
            for side in ("student", "teacher")
        )
        divergences = {
            name: columns[name][part].astype(np.float32)
            for name in ("penalty", "reverse_kl", "forward_kl", "jsd")
            if name in columns
        }
        out.append(
            Grades(
                **divergences,
                student=student,
                teacher=teacher,
                verdicts=verdicts(student, teacher),
                forks=np.zeros(len(trajectory), dtype=bool),
                temperature=temperature,
                bias=sampling_bias(trajectory, temperature),
            )
        )
    return [replace(g, forks=marks) for g, marks in zip(out, find_forks(out), strict=True)]


def sampling_bias(trajectory: Trajectory, temperature: float) -> str | None:
    """Say in words why the sampled penalty is biased, or return None where it is not."""
    if trajectory.behaviour_logprobs is None:
        return (
            "Off-policy: the student did not sample this text, so its mean penalty does not estimate the KL."
        )
    if trajectory.temperature == 0:
        return "The completion was taken greedily, so its mean penalty does not estimate the KL."
    if trajectory.temperature != temperature:
        return (
            f"Sampled at temperature {trajectory.temperature:g} but scored at {temperature:g}, so the mean "
            "penalty does not estimate the KL."
        )
    return None
