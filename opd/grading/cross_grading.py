"""Grades by a teacher with another tokenizer: it reads the same text, and is compared span by span.

The student's completion is decoded, the teacher encodes that text behind its own rendering of the prompt, and
the two tokenizations are aligned over the bytes (:mod:`opd.spans`). The penalty of a span is the difference
of what both models assign to it, and each of its student tokens carries an equal share. So sums over tokens
are sums over spans, a span of several tokens has one colour, and a span of one token, which is the common
case, is graded as ever. The student's end of turn stands against the teacher's own.

What cannot be graded is absent: other special tokens, which the teacher never reads; half characters; text
that the teacher's tokenizer does not give back byte for byte. So are the signals that compare distributions,
and the verdicts made of them: the two vocabularies have no tokens in common.

The teacher's log-prob is that of *its* tokenization of the text. Other tokenizations of the same text have a
little mass too, so a penalty is, if anything, too high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from opd.divergence import chunk_rows, scores
from opd.models.network import LanguageModel
from opd.models.pair import Pair
from opd.models.scoring import distributions
from opd.packed import completions, cut
from opd.protocols import must_be_finite
from opd.spans import Span, align
from opd.trajectory import Grades, Side, TokenScores, Trajectory


def grade_spans(
    pair: Pair, trajectories: Sequence[Trajectory], temperature: float, top_k: int
) -> list[Grades]:
    """Grade trajectories by aligned text, as one batch; forks and bias are not found yet.

    Args:
        pair: the student and the teacher, whose vocabularies may differ.
        trajectories: what to grade; the ``teacher_prompt_ids`` of each are ids of the teacher.
        temperature: to score both models at.
        top_k: alternatives kept of each model.

    Raises:
        ValueError: a text is too long for the teacher.
    """
    readings = [read_as_teacher(pair, t.completion_ids) for t in trajectories]
    read = [
        replace(t, completion_ids=ids) for t, (ids, _) in zip(trajectories, readings, strict=True) if len(ids)
    ]
    student = _score(pair.student, trajectories, "student", temperature, top_k)
    teacher = iter(_score(pair.teacher, read, "teacher", temperature, top_k))
    return [
        _grades(scores, next(teacher) if len(ids) else None, spans, temperature)
        for scores, (ids, spans) in zip(student, readings, strict=True)
    ]


def read_as_teacher(pair: Pair, completion_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Span]]:
    """Return a completion in the teacher's ids, int64 ``[T']``, and the spans that can be graded."""
    student, teacher = pair.student, pair.teacher
    ids: list[int] = []
    spans: list[Span] = []
    end = 0
    for special, group in groupby(completion_ids.tolist(), key=student.special_ids.__contains__):
        run = list(group)
        start, end = end, end + len(run)
        if not special:
            written, legible = student.token_bytes(run)
            text = b"".join(written).decode()
            # A special token that the text spells out is text: the student did not mean the token.
            read = teacher.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            for span in align(written, teacher.token_bytes(read)[0]):
                if span.same and legible[span.student].all():
                    spans.append(_moved(span, start, len(ids)))
            ids += read
        elif end == len(completion_ids) and run[-1] in student.eos_ids and teacher.end_of_turn is not None:
            spans.append(Span(range(end - 1, end), range(len(ids), len(ids) + 1), same=True))
            ids.append(teacher.end_of_turn)
    return np.array(ids, dtype=np.int64), spans


def _moved(span: Span, student: int, teacher: int) -> Span:
    """Return a span whose tokens stand so much further behind."""
    ours, theirs = span.student, span.teacher
    return replace(
        span,
        student=range(ours.start + student, ours.stop + student),
        teacher=range(theirs.start + teacher, theirs.stop + teacher),
    )


def _grades(student: TokenScores, teacher: TokenScores | None, spans: Sequence[Span], at: float) -> Grades:
    """Put two scorings of one text together; ``teacher`` is None where it had nothing to read."""
    tokens, top_k = student.top_ids.shape
    penalty, logprobs = np.full((2, tokens), np.nan, dtype=np.float32)
    first = np.full(tokens, -1, dtype=np.int32)
    top_ids = np.full((tokens, top_k if teacher is None else teacher.top_ids.shape[1]), -1, dtype=np.int32)
    top_logprobs = np.full(top_ids.shape, np.nan, dtype=np.float32)
    for span in spans:
        ours, theirs = span.student, span.teacher
        given = teacher.logprobs[theirs].sum(dtype=np.float64)
        penalty[ours] = (student.logprobs[ours].sum(dtype=np.float64) - given) / len(ours)
        first[ours] = ours.start
        if len(ours) == 1:
            logprobs[ours] = given
        top_ids[ours.start] = teacher.top_ids[theirs.start]
        top_logprobs[ours.start] = teacher.top_logprobs[theirs.start]
    return Grades(
        penalty=penalty,
        reverse_kl=None,
        student=student,
        teacher=TokenScores(logprobs, None, None, top_ids, top_logprobs),
        verdicts=None,
        forks=np.zeros(tokens, dtype=bool),
        temperature=at,
        spans=first,
    )


@torch.inference_mode()
def _score(
    model: LanguageModel, trajectories: Sequence[Trajectory], side: Side, temperature: float, top_k: int
) -> list[TokenScores]:
    """Score completions by one model alone."""
    if not trajectories:
        return []
    found = distributions(
        model, trajectories, side=side, temperature=temperature, vocabulary=model.vocabulary
    )
    rows = chunk_rows(model.vocabulary)
    ids = completions(trajectories, found.hidden.device)
    parts = []
    for hidden, taken in zip(found.hidden.split(rows), ids.split(rows), strict=True):
        logprobs = found.log_probs(hidden)
        parts.append(scores(logprobs, taken, top_k, logprobs.exp()).values())
    kinds = (np.float32, np.float32, np.int32, np.int32, np.float32)
    columns = [
        torch.cat(c).cpu().numpy().astype(kind)
        for c, kind in zip(zip(*parts, strict=True), kinds, strict=True)
    ]
    must_be_finite(model.name, *(column for column in columns if column.dtype == np.float32))
    cuts = (cut(column, trajectories) for column in columns)
    return [TokenScores(*scores) for scores in zip(*cuts, strict=True)]
