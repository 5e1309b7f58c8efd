"""Two scorings of the same tokens become grades. Every threshold of a verdict stands in this file.

Colour follows the penalty in nats, which has no bound; a verdict follows the bounded drop

    D = p_teacher(best) - p_teacher(token)    in [0, 1],

which gates itself when the teacher is unsure (as chess sites judge by win chance, not by centipawns). The
cut-offs are starting values. A teacher is an opinion: a blunder is what *this* teacher would never write.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from opd.divergence import over_chunks, token_signals
from opd.engines.transformers import batches, distributions
from opd.models import Pair
from opd.trajectory import VERDICTS, Grades, TokenScores, Trajectory

BLUNDER, MISTAKE, INACCURACY = 0.60, 0.30, 0.10
"""A drop D of at least this much is a blunder, a mistake, an inaccuracy."""

FORCED_ENTROPY = 0.05
"""Below this student entropy (nats), with both models' first choice taken, nothing was chosen."""

BRILLIANT_GAIN, BRILLIANT_STUDENT = 0.30, 0.20
"""Brilliant: p_teacher - p_student at least the first, p_student below the second."""

FORK_PENALTY, FORK_RADIUS = 1.0, 3
"""A fork is a penalty of at least this many nats that no token within the radius exceeds."""

SCORE_TOKENS = 8192
"""Padded tokens scored in one forward."""


def grade(
    pair: Pair, trajectories: Sequence[Trajectory], *, temperature: float | None = None, top_k: int = 20
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
            graded.update(zip(indices, _grade_batch(pair, part, at, top_k), strict=True))
    return [graded[i] for i in range(len(trajectories))]


@torch.inference_mode()
def _grade_batch(
    pair: Pair, trajectories: Sequence[Trajectory], temperature: float, top_k: int
) -> list[Grades]:
    ids = torch.from_numpy(np.concatenate([t.completion_ids for t in trajectories]))
    student, teacher = (
        distributions(model, trajectories, side=side, temperature=temperature, vocabulary=pair.vocabulary)
        for model, side in ((pair.student, "student"), (pair.teacher, "teacher"))
    )
    signals = over_chunks(
        lambda s, t, i: (None, token_signals(s, t, i, top_k)), student, teacher, ids.to(student.hidden.device)
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
        penalty = columns["penalty"][part].astype(np.float32)
        forks = find_forks(penalty)
        out.append(
            Grades(
                penalty=penalty,
                reverse_kl=columns["reverse_kl"][part].astype(np.float32),
                student=student,
                teacher=teacher,
                verdicts=verdicts(student, teacher),
                forks=forks,
                temperature=temperature,
                bias=sampling_bias(trajectory, temperature),
            )
        )
    return out


def drop(teacher: TokenScores) -> NDArray[np.float32]:
    """Return D = p_teacher(best) - p_teacher(token) of each token, float32 ``[T]`` in [0, 1]."""
    return np.exp(teacher.top_logprobs[:, 0]) - np.exp(teacher.logprobs)


def fork_score(grades: Grades) -> NDArray[np.float32]:
    """Return student entropy x D, float32 ``[T]`` in nats: the student hesitates where the teacher minds."""
    return grades.student.entropy * drop(grades.teacher)


def verdicts(student: TokenScores, teacher: TokenScores) -> NDArray[np.uint8]:
    """Judge each token by the drop D, uint8 ``[T]`` of indices into :data:`opd.trajectory.VERDICTS`."""
    taken_teacher, taken_student = np.exp(teacher.logprobs), np.exp(student.logprobs)
    lost = drop(teacher)
    best = teacher.ranks == 0
    forced = best & (student.ranks == 0) & (student.entropy < FORCED_ENTROPY)
    brilliant = (taken_teacher - taken_student >= BRILLIANT_GAIN) & (taken_student < BRILLIANT_STUDENT)
    index = {name: i for i, name in enumerate(VERDICTS)}
    choices = [
        (forced, "forced"),
        (lost >= BLUNDER, "blunder"),
        (lost >= MISTAKE, "mistake"),
        (lost >= INACCURACY, "inaccuracy"),
        (brilliant, "brilliant"),
        (best & (student.ranks > 0), "great"),
        (best, "best"),
    ]
    return np.select(
        [mask for mask, _ in choices], [index[name] for _, name in choices], index["good"]
    ).astype(np.uint8)


def find_forks(penalty: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mark the peaks of the penalty, ``[T]`` -> bool ``[T]``: where the student leaves the teacher's road.

    Of equal neighbours the first one is the fork.
    """
    forks = penalty >= FORK_PENALTY
    for i in np.flatnonzero(forks):
        before = penalty[max(0, i - FORK_RADIUS) : i]
        after = penalty[i + 1 : i + 1 + FORK_RADIUS]
        forks[i] = (before < penalty[i]).all() and (after <= penalty[i]).all()
    return forks


def sampling_bias(trajectory: Trajectory, temperature: float) -> str | None:
    """Say in words why the sampled penalty is biased, or return None where it is not."""
    if trajectory.behaviour_logprobs is None:
        return "The text was not sampled from the student, so its mean penalty does not estimate the KL."
    if trajectory.temperature == 0:
        return "The completion was taken greedily, so its mean penalty does not estimate the KL."
    if trajectory.temperature != temperature:
        return (
            f"Sampled at temperature {trajectory.temperature:g} but scored at {temperature:g}, so the mean "
            "penalty does not estimate the KL."
        )
    return None
