"""What branches and rollouts share: what may be forced and where, and how the student goes on behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from opd.engines.sampling import uniforms
from opd.engines.transformers import TransformersSampler
from opd.models.pair import Pair
from opd.protocols import SampleRequest
from opd.reviews import Review
from opd.tasks import Example
from opd.trajectory import Trajectory

NO_BRANCHES = (
    "Branches need a teacher with the student's tokenizer: its choices here are no tokens of the student. "
    "Grade with a teacher of the student's family."
)

ROUND = 8
"""Rollouts of every option between two partial results."""

# Rollouts draw from streams of their own (numbers that no lesson has). The main line's numbers would
# not do: whoever asks has seen what they led to. And each option has its own: Newcombe's interval is for
# independent samples, which common random numbers are not.
NO_RETURN_STREAM = 2**20

OPTION_STREAM = 2**20 + 1  # plus the id of the forced token


@dataclass(frozen=True)
class Cost:
    """What a measurement will take: rollouts, and tokens to sample if they are as long as the main line."""

    rollouts: int
    tokens: int

    def __str__(self) -> str:
        """One phrase."""
        return f"{self.rollouts:,} rollouts, about {self.tokens:,} tokens"


def must_be_verified(example: Example | None) -> None:
    """Refuse a prompt to which no right answer is known.

    Raises:
        ValueError: it is one.
    """
    if example is None or example.answer is None:
        raise ValueError("Nobody verifies the answers to this prompt, so what is right is not known.")


def roll(
    pair: Pair, review: Review, asked: Sequence[tuple[NDArray[np.int64], int, int]], room: int
) -> list[Trajectory]:
    """Sample the student's continuations of (prefix, stream, number), in order.

    A greedy text is continued at temperature 1: greedy rollouts would all be one.
    """
    main = review.trajectory
    done: dict[int, Trajectory] = {}
    requests = []
    for place, (prefix, stream, number) in enumerate(asked):
        if len(prefix) and prefix[-1] in pair.student.eos_ids:
            done[place] = ended(main, prefix)
            continue
        request = request_behind(review, prefix, room, stream=stream, number=number)
        requests.append(replace(request, prompt_index=place))
    for t in TransformersSampler(pair.student).sample(requests, temperature=main.temperature or 1.0):
        done[t.prompt_index] = t
    return [done[place] for place in range(len(asked))]


def request_behind(
    review: Review, prefix: NDArray[np.int64], room: int, *, stream: int | None = None, number: int = 0
) -> SampleRequest:
    """Ask for a continuation of ``prefix``; without a stream with the random numbers of the main line."""
    main = review.trajectory
    place = {"step": 0, "prompt_index": main.prompt_index, "sample_index": main.sample_index}
    if stream is not None:
        place = {"step": len(prefix), "prompt_index": main.prompt_index, "sample_index": number}
    return SampleRequest(
        prompt_ids=main.prompt_ids,
        uniforms=uniforms(room, seed=review.seed or 0, stream=stream or 0, **place),
        prefix_ids=prefix,
        teacher_prompt_ids=main.teacher_prompt_ids,
        prompt_index=main.prompt_index,
        sample_index=main.sample_index,
    )


def ended(main: Trajectory, ids: NDArray[np.int64]) -> Trajectory:
    """Return the trajectory of a text whose end was forced: nothing is left to sample."""
    return replace(main, completion_ids=ids, behaviour_logprobs=None, finish_reason="stop")


def check_count(k: int) -> None:
    """Refuse to measure by no rollouts, with a ValueError."""
    if k < 1:
        raise ValueError(f"It takes at least 1 rollout of each kind, not {k}.")


def check_index(review: Review, at: int) -> None:
    """Refuse a token that is not there or that was graded by spans, with a ValueError."""
    if review.grades.spans is not None:
        raise ValueError(NO_BRANCHES)
    if not 0 <= at < len(review.trajectory):
        raise ValueError(f"There is no such token: the text has {len(review.trajectory)}.")


def check(pair: Pair, review: Review, at: int) -> None:
    """Refuse a place that is not there, and a review whose ids mean something else to this pair.

    Raises:
        ValueError: it is so.
    """
    check_index(review, at)
    if pair.cross_tokenizer:
        raise ValueError(NO_BRANCHES)
    ids = review.trajectory.completion_ids
    if ids.max() >= pair.vocabulary or "".join(pair.student.pieces(ids)) != review.text:
        raise ValueError(
            f"The review's tokens are not those of {pair.student.name}. Load the pair that it was made with: "
            f"{review.student} and {review.teacher}."
        )


def room_behind(pair: Pair, main: Trajectory, before: int, max_tokens: int) -> int:
    """Return the bound on a completion that begins with ``before`` given tokens.

    Raises:
        ValueError: nothing could follow them.
    """
    if before >= max_tokens:
        raise ValueError(
            f"{before} tokens stand before the branch, which leaves nothing of the {max_tokens} asked for. "
            "Allow a longer answer."
        )
    prompts = ((pair.student, main.prompt_ids), (pair.teacher, main.teacher_prompt_ids))
    for model, prompt in prompts:
        if len(prompt) + before >= model.context:
            raise ValueError(
                f"{len(prompt) + before} tokens stand before the branch, and {model.name} can read "
                f"{model.context}. Branch earlier."
            )
    return min(max_tokens, *(model.context - len(prompt) for model, prompt in prompts))


def quoted(text: str) -> str:
    """Return a token's text as sentences quote it."""
    return f"“{text}”"
