"""The nouns of the program: what a rollout is, what a model says of it, what the grading concludes.

Everything here is numpy and plain Python, so that a saved review opens on a machine that has no torch.
``T`` is the number of completion tokens (the sampled end-of-sequence token is one of them), ``K`` the number
of alternatives kept per token. All logarithms are natural: log-probs, penalties, KL and entropy are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from opd.reasoning import REASONING

FinishReason = Literal["stop", "length"]
Messages = list[dict[str, str]]
Prompt = str | Messages
Side = Literal["student", "teacher"]

VERDICTS = ("forced", "brilliant", "great", "best", "good", "slip", "inaccuracy", "mistake", "blunder")
"""Names of the verdicts, the best first; :attr:`Grades.verdicts` holds indices into it. Their cut-offs:
opd/verdicts.py."""


def as_messages(prompt: Prompt) -> Messages:
    """Return a prompt as chat messages; a string is one user message.

    Raises:
        ValueError: there is nothing in it, or a message lacks role or content.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not messages or not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
        raise ValueError('A prompt is a text or a list of messages like {"role": "user", "content": "…"}.')
    if not messages[-1]["content"].strip():
        raise ValueError("The prompt is empty. Write a question for the student to answer.")
    return [
        {"role": m["role"], "content": m["content"]} | ({REASONING: m[REASONING]} if m.get(REASONING) else {})
        for m in messages
    ]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One completion of one prompt, as token ids.

    Attributes:
        prompt_ids: int64 ``[P]``, the rendered prompt that the student saw.
        completion_ids: int64 ``[T]``, with the end-of-sequence token where one was sampled.
        behaviour_logprobs: float32 ``[T]``, what the sampler assigned to each token at ``temperature``;
            None for text that nobody sampled (off-policy).
        finish_reason: "stop" (end-of-sequence sampled), "length" (cut off), None while still being sampled.
        teacher_prompt_ids: int64 ``[P']``, what the teacher sees before the completion; equal to
            ``prompt_ids`` unless the teacher sees more.
        temperature: the temperature the completion was sampled at.
        prompt_index: place of the prompt in the request.
        sample_index: which of the prompt's samples this is.
    """

    prompt_ids: NDArray[np.int64]
    completion_ids: NDArray[np.int64]
    behaviour_logprobs: NDArray[np.float32] | None
    finish_reason: FinishReason | None
    teacher_prompt_ids: NDArray[np.int64]
    temperature: float = 1.0
    prompt_index: int = 0
    sample_index: int = 0

    def __len__(self) -> int:
        """Return T, the number of completion tokens."""
        return len(self.completion_ids)

    def seen_by(self, side: Side) -> NDArray[np.int64]:
        """Return the prompt that one of the two models sees, int64 ``[P]``."""
        return self.prompt_ids if side == "student" else self.teacher_prompt_ids


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What one model says of one completion.

    Attributes:
        logprobs: float32 ``[T]``, log-prob of each completion token.
        entropy: float32 ``[T]``, entropy of the model's distribution at each position; None where the engine
            knows only part of the distribution.
        ranks: int32 ``[T]``, how many tokens the model finds strictly likelier (0 = its first choice); None
            for a teacher that grades by spans.
        top_ids: int32 ``[T, K]``, the model's likeliest tokens, best first.
        top_logprobs: float32 ``[T, K]``, their log-probs.

    All are finite. A teacher that grades by spans (:attr:`Grades.spans`) has a log-prob where a span is one
    token, and its likeliest tokens, of its own vocabulary, where a span begins; there alone. Elsewhere NaN
    (of ids, -1) fills the place: the spans say what is absent, a NaN by itself says nothing.
    """

    logprobs: NDArray[np.float32]
    entropy: NDArray[np.float32] | None
    ranks: NDArray[np.int32] | None
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]

    @property
    def shown_ranks(self) -> NDArray[np.int32] | None:
        """The ranks as people read them, int32 ``[T]``: 1 is the first choice; None where there are none."""
        return None if self.ranks is None else self.ranks + np.int32(1)


@dataclass(frozen=True, eq=False)
class Grades:
    """The teacher's grade of every token of one trajectory.

    Attributes:
        penalty: float32 ``[T]``, log p_student - log p_teacher of the sampled token: the sampled reverse KL,
            signed; its negative is the advantage. Of a span, an equal share; NaN outside of all spans.
        reverse_kl: float32 ``[T]``, KL(student || teacher) over the whole vocabulary, >= 0; None for spans.
        student: the student's own scores of the trajectory.
        teacher: the teacher's scores of the trajectory.
        verdicts: uint8 ``[T]``, index into :data:`VERDICTS`; None for spans.
        forks: bool ``[T]``, the forking tokens.
        temperature: the one temperature both models were scored at.
        bias: why the sampled penalty is not an unbiased estimate of the reverse KL; None where it is one.
        bound: why ``reverse_kl`` is but a lower bound and ``agreement`` an upper one; None where both are
            over the whole vocabulary.
        forward_kl: float32 ``[T]``, KL(teacher || student) over the whole vocabulary, >= 0; None where it was
            not computed.
        jsd: float32 ``[T]``, Jensen-Shannon divergence of the two (beta 0.5), in [0, ln 2]; None where it was
            not computed.
        agreement: float32 ``[T]``, sum of min(p_student, p_teacher) over the whole vocabulary, in [0, 1]: the
            chance that speculative decoding would accept the student's draft there (Leviathan et al. 2023,
            arXiv:2211.17192), 1 minus the total variation. An upper bound where ``bound`` is set; None for
            spans, and in reviews from before it was computed.
        masked: what was left out of both distributions, where the vocabularies differ in a few ids; None
            where nothing was.
        spans: int32 ``[T]``, where a teacher with another tokenizer graded aligned spans of text
            (:mod:`opd.grading.cross_grading`): the index of the first token of each token's span, -1 for
            a token that could not be graded. None where each token was graded by itself.
    """

    penalty: NDArray[np.float32]
    reverse_kl: NDArray[np.float32] | None
    student: TokenScores
    teacher: TokenScores
    verdicts: NDArray[np.uint8] | None
    forks: NDArray[np.bool_]
    temperature: float
    bias: str | None = None
    forward_kl: NDArray[np.float32] | None = None
    jsd: NDArray[np.float32] | None = None
    bound: str | None = None
    agreement: NDArray[np.float32] | None = None
    masked: str | None = None
    spans: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        """Return T, the number of tokens."""
        return len(self.penalty)

    @property
    def graded(self) -> NDArray[np.bool_]:
        """Which tokens could be graded, bool ``[T]``: all, but for a teacher with another tokenizer."""
        return np.ones(len(self), dtype=bool) if self.spans is None else self.spans >= 0

    @property
    def student_entropy(self) -> NDArray[np.float32]:
        """Entropy of the student at each position, float32 ``[T]``, nats."""
        return self.student.entropy

    @property
    def teacher_entropy(self) -> NDArray[np.float32]:
        """Entropy of the teacher at each position, float32 ``[T]``, nats."""
        return self.teacher.entropy

    @property
    def teacher_rank(self) -> NDArray[np.int32]:
        """The teacher's rank of each sampled token, int32 ``[T]``, 0 = its first choice."""
        return self.teacher.ranks
