"""Two scorings of the same tokens become grades."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
import torch

from opd.divergence import Predictions, over_chunks, token_signals
from opd.engines.transformers import batches
from opd.grading.cross_grading import grade_spans
from opd.models.pair import Pair
from opd.models.scoring import distributions
from opd.packed import completions, places
from opd.protocols import must_be_finite
from opd.trajectory import Grades, TokenScores, Trajectory
from opd.verdicts import find_forks, verdicts

SCORE_TOKENS = 8192
"""Tokens scored in one forward."""

BY_SPANS = (
    "Graded by aligned spans of text, because the teacher has another tokenizer; each token of a span "
    "carries an equal share."
)
NO_ESTIMATE = "The mean penalty does not estimate the KL."

LOWER_BOUND = (
    "The reverse KL is a lower bound and the agreement an upper one, over the {} tokens that the teacher "
    "finds likeliest and one bucket for all others. The penalty is exact."
)

MASKED = (
    "Graded over the {} ids that both models share, renormalised; the student cannot write the others, and "
    "each model read its own rendering of the prompt."
)

AskTeacher = Callable[[Pair, Sequence[Trajectory]], Predictions]


def grade(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    *,
    temperature: float | None = None,
    top_k: int = 20,
    all_divergences: bool = True,
    ask: AskTeacher | None = None,
) -> list[Grades]:
    """Grade every token of every trajectory: score with both models, compare.

    Both models are scored at one temperature. With the sampling temperature the mean penalty is an unbiased
    estimate of the reverse KL between the tempered distributions; with another one :attr:`Grades.bias` says
    that it is not. A ``cross_tokenizer`` pair is graded by spans of text (:mod:`opd.grading.cross_grading`).

    Args:
        pair: the student and the teacher.
        trajectories: what to grade; the teacher reads each one's ``teacher_prompt_ids``.
        temperature: to score at; None = the one each trajectory was sampled at (1 for greedy ones).
        top_k: alternatives kept of each model.
        all_divergences: forward KL and JSD too; the training loop does without.
        ask: returns what the teacher says, where it may have been asked already.

    Returns:
        One :class:`Grades` a trajectory, in their order.

    Raises:
        ValueError: a trajectory is empty or contains ids outside the vocabulary, or ``temperature`` <= 0.
        NotFiniteError: one of the models says what is no number; the message says which.
        EngineError: the teacher computes elsewhere and cannot go on.
    """
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ValueError(f"Grades need a temperature above 0, not {temperature}.")
    for t in trajectories:
        if not len(t):
            raise ValueError("There is nothing to grade: the completion has no tokens.")
        pair.must_know(t.completion_ids, "this trajectory")
    scored_at = [temperature or t.temperature or 1.0 for t in trajectories]
    graded: dict[int, Grades] = {}
    for at in sorted(set(scored_at)):
        chosen = [i for i, s in enumerate(scored_at) if s == at]
        for group in batches([trajectories[i] for i in chosen], SCORE_TOKENS, packed=pair.packs):
            indices = [chosen[i] for i in group]
            part = [trajectories[i] for i in indices]
            done = _grade_batch(pair, part, at, top_k, all_divergences, ask)
            graded.update(zip(indices, done, strict=True))
    return [graded[i] for i in range(len(trajectories))]


@torch.inference_mode()
def _grade_batch(
    pair: Pair,
    trajectories: Sequence[Trajectory],
    temperature: float,
    top_k: int,
    all_divergences: bool,
    ask: AskTeacher | None,
) -> list[Grades]:
    if pair.cross_tokenizer:
        spans = grade_spans(pair, trajectories, temperature, top_k)
        return _marked(
            [
                replace(g, bias=f"{BY_SPANS} {sampling_bias(t, temperature) or NO_ESTIMATE}")
                for g, t in zip(spans, trajectories, strict=True)
            ]
        )
    student = distributions(
        pair.student, trajectories, side="student", temperature=temperature, vocabulary=pair.vocabulary
    )
    teacher = (
        ask(pair, trajectories)
        if ask
        else pair.scorer.score(trajectories, side="teacher", temperature=temperature, top_k=top_k)
    )
    signals = over_chunks(
        lambda s, t, i: (None, token_signals(s, t, i, top_k, all_divergences)),
        student,
        teacher,
        completions(trajectories, student.hidden.device),
    )
    return to_grades(pair, signals, trajectories, temperature)


def to_grades(
    pair: Pair, signals: dict[str, torch.Tensor], trajectories: Sequence[Trajectory], temperature: float
) -> list[Grades]:
    """Cut what :func:`opd.divergence.token_signals` says of packed rows into :class:`Grades`.

    Raises:
        NotFiniteError: one of the models says what is no number.
    """
    columns = {name: value.cpu().numpy() for name, value in signals.items()}
    student, teacher = (
        TokenScores(*(columns.get(f"{side}.{field.name}") for field in fields(TokenScores)))
        for side in ("student", "teacher")
    )
    for model, scores in ((pair.student, student), (pair.teacher, teacher)):
        must_be_finite(model.name, scores.logprobs, scores.entropy, scores.top_logprobs)
    judged = verdicts(student, teacher)
    out = []
    for trajectory, part in zip(trajectories, places(trajectories), strict=True):
        divergences = {
            name: columns[name][part].astype(np.float32)
            for name in ("penalty", "reverse_kl", "forward_kl", "jsd", "agreement")
            if name in columns
        }
        out.append(
            Grades(
                **divergences,
                student=_cut(student, part),
                teacher=_cut(teacher, part),
                verdicts=judged[part].copy(),
                forks=np.zeros(len(trajectory), dtype=bool),
                temperature=temperature,
                bias=sampling_bias(trajectory, temperature),
                bound=LOWER_BOUND.format(teacher.top_ids.shape[1]) if teacher.entropy is None else None,
                masked=MASKED.format(f"{pair.shared.tokens:,}") if pair.shared else None,
            )
        )
    return _marked(out)


def _marked(graded: Sequence[Grades]) -> list[Grades]:
    """Mark the forks of trajectories that are graded together."""
    return [replace(g, forks=marks) for g, marks in zip(graded, find_forks(graded), strict=True)]


def _cut(scores: TokenScores, part: slice) -> TokenScores:
    """Copy the scores of one trajectory: a view would keep those of all others alive."""
    return TokenScores(
        logprobs=scores.logprobs[part].astype(np.float32),
        entropy=None if scores.entropy is None else scores.entropy[part].astype(np.float32),
        ranks=scores.ranks[part].astype(np.int32),
        top_ids=scores.top_ids[part].astype(np.int32),
        top_logprobs=scores.top_logprobs[part].astype(np.float32),
    )


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
