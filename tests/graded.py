"""Reviews made by hand, so that what a face must show is known to the last digit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from opd.reviews import Review
from opd.trajectory import Grades, TokenScores, Trajectory
from opd.verdicts import find_forks, verdicts

CHOICES = [" yes", " no", " perhaps"]


def make_review(
    pieces: Sequence[str],
    *,
    penalty: Sequence[float] | None = None,
    finish_reason: str | None = "stop",
    correct: bool | None = None,
    student_gives: float = 0.6,
    messages: list[dict[str, str]] | None = None,
    bias: str | None = None,
) -> Review:
    """A review whose student gave every token the same probability and whose teacher's follows the penalty.

    What the teacher takes from a token it gives to " yes", its alternative everywhere.
    """
    tokens = len(pieces)
    taken = np.asarray([0.0] * tokens if penalty is None else penalty, dtype=np.float32)
    student_logprobs = np.full(tokens, np.log(student_gives), dtype=np.float32)
    vocabulary = [*pieces, *CHOICES]
    ids = np.arange(tokens)

    def scores(logprobs: np.ndarray) -> TokenScores:
        given = np.exp(logprobs.astype(np.float64))[:, None]
        shares = np.concatenate([given, (1 - given) * [[0.8, 0.15, 0.05]]], axis=1)
        columns = np.tile([0, tokens, tokens + 1, tokens + 2], (tokens, 1))
        columns[:, 0] = ids
        order = np.argsort(-shares, axis=1, kind="stable")
        return TokenScores(
            logprobs=logprobs,
            entropy=-(shares * np.log(shares)).sum(1).astype(np.float32),
            ranks=(shares[:, 1:] > shares[:, :1]).sum(1).astype(np.int32),
            top_ids=np.take_along_axis(columns, order, 1).astype(np.int32),
            top_logprobs=np.log(np.take_along_axis(shares, order, 1)).astype(np.float32),
        )

    student, teacher = scores(student_logprobs), scores(student_logprobs - taken)
    # Whatever is not the token is shared out alike, so the two differ in two shares alone.
    both = np.exp([student.logprobs, teacher.logprobs])
    grades = Grades(
        penalty=taken,
        reverse_kl=np.abs(taken) / 2,
        student=student,
        teacher=teacher,
        verdicts=verdicts(student, teacher),
        forks=np.zeros(tokens, dtype=bool),
        temperature=1.0,
        bias=bias,
        agreement=(both.min(0) + (1 - both).min(0)).astype(np.float32),
    )
    prompt = np.arange(3)
    return Review(
        student="a-student",
        teacher="a-teacher",
        messages=messages or [{"role": "user", "content": "Which one?"}],
        trajectory=Trajectory(prompt, ids, student_logprobs, finish_reason, prompt),
        grades=replace(grades, forks=find_forks([grades])[0]),
        pieces=list(pieces),
        vocabulary=dict(enumerate(vocabulary)),
        correct=correct,
    )


def by_spans(review: Review, spans: Sequence[int]) -> Review:
    """The review as if its teacher had another tokenizer: ``spans`` as in :class:`opd.trajectory.Grades`."""
    first, grades = np.asarray(spans, dtype=np.int32), review.grades
    begins, graded = first == np.arange(len(first)), first >= 0
    alone = np.array([graded[i] and (first == first[i]).sum() == 1 for i in range(len(first))])
    penalty = np.full(len(first), np.nan, dtype=np.float32)
    for start in first[begins]:
        penalty[first == start] = grades.penalty[first == start].mean()
    teacher = TokenScores(
        logprobs=np.where(alone, grades.teacher.logprobs, np.float32(np.nan)),
        entropy=None,
        ranks=None,
        top_ids=np.where(begins[:, None], grades.teacher.top_ids, -1).astype(np.int32),
        top_logprobs=np.where(begins[:, None], grades.teacher.top_logprobs, np.float32(np.nan)),
    )
    changed = {"penalty": penalty, "reverse_kl": None, "teacher": teacher, "verdicts": None, "spans": first}
    changed["agreement"] = None
    bias = "Graded by aligned spans of text, because the teacher has another tokenizer; each "
    bias += "token of a span carries an equal share."
    return replace(
        review,
        grades=replace(grades, **changed, forks=grades.forks & begins, bias=bias),
        teacher_vocabulary=dict(review.vocabulary),
    )
