"""The rollouts of a step: who writes them, what the teacher sees, what they are worth, what trains."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from opd.config import DistillConfig
from opd.engines.sampling import requests, sample_together, uniforms
from opd.engines.transformers import TransformersSampler
from opd.models.network import LanguageModel
from opd.models.pair import Pair
from opd.models.parallel import world
from opd.objectives import OBJECTIVES
from opd.packed import cut
from opd.protocols import Sampler, SampleRequest
from opd.tasks import Example, verify
from opd.training.lessons import Lesson
from opd.trajectory import Grades, Trajectory
from opd.verdicts import fork_score


@dataclass(frozen=True, eq=False)
class Rollout:
    """A trajectory of the step with what decides how it trains.

    Attributes:
        lesson: the teacher that grades it and the task it comes from.
        example: the problem it answers.
        trajectory: the tokens.
        right: the verifier's word; None where the problem has no answer.
        reward: the task reward, centred in its group and weighted; 0 where none is asked for.
        weights: float32 ``[T]``, 1 for tokens that train and 0 for the others; None = all train.
        advantages: float32 ``[T]`` where they must be known before the update begins, else None.
    """

    lesson: Lesson
    example: Example
    trajectory: Trajectory
    right: bool | None
    reward: float = 0.0
    weights: NDArray[np.float32] | None = None
    advantages: NDArray[np.float32] | None = None

    @property
    def trained_tokens(self) -> int:
        """How many of its tokens count."""
        return len(self.trajectory) if self.weights is None else int(self.weights.sum())


def load_sampler(student: LanguageModel, config: DistillConfig) -> Sampler:
    """Return what samples from the student.

    Raises:
        ValueError: vLLM is not installed, or cannot do what is asked.
        EngineError: vLLM cannot start.
    """
    if config.asynchronous and world() > 1:
        raise ValueError("asynchronous works in one process only: leave it out, or start without torchrun.")
    if config.engine == "transformers":
        return TransformersSampler(student)
    from opd.engines.vllm import VllmEngine

    share = {"memory_share": config.vllm_memory} if config.vllm_memory else {}
    return VllmEngine(
        student, dtype=config.dtype, hot_swap=config.vllm_hot_swap, sleeps=config.vllm_sleeps, **share
    )


def gather(
    config: DistillConfig,
    lessons: Sequence[Lesson],
    sampler: Sampler,
    step: int,
    finished: Callable[[Pair, Trajectory], None] = lambda *_: None,
) -> list[Rollout]:
    """Sample the trajectories of a step and let the verifier look at them.

    Args:
        config: says who writes: the student, for the baselines also the teacher.
        lessons: where prompts come from.
        sampler: samples from the student.
        step: the training step, from 1; decides prompts and random numbers.
        finished: is given each trajectory of the student with its pair while others still grow.
    """
    out: list[Rollout] = []
    for number, lesson in enumerate(lessons):
        # With a fixed set of teacher samples, step k repeats an earlier step's prompts and random numbers.
        source_step = step
        if config.sft_prompts:
            source_step = (step - 1) % (config.sft_prompts // config.prompts_per_step) + 1
        examples = lesson.task.batch(lesson.prompts, step=source_step, seed=config.seed)
        asked = requests(
            lesson.pair,
            [e.prompt for e in examples],
            n=config.samples_per_prompt,
            seed=config.seed,
            step=source_step,
            stream=number,
            max_tokens=config.max_tokens,
        )
        asked = lesson.informed(asked, examples, room=config.max_tokens)
        by_student = [r for r in asked if _student_writes(config, r, source_step)]
        written = sample_together(
            sampler, by_student, temperature=config.temperature, finished=partial(finished, lesson.pair)
        )
        by_teacher = [r for r in asked if not _student_writes(config, r, source_step)]
        written += _of_teacher(lesson, by_teacher, config.temperature)
        for t in sorted(written, key=lambda t: (t.prompt_index, t.sample_index)):
            example = examples[t.prompt_index]
            right = verify(lesson.task, example, lesson.pair.student, t)
            out.append(Rollout(lesson, example, t, right))
    return _with_rewards(config, out)


def _student_writes(config: DistillConfig, request: SampleRequest, step: int) -> bool:
    """Say who writes a completion; a share is drawn anew for each, as a function of the seed."""
    source = OBJECTIVES[config.objective].source
    if source != "both":
        return source == "student"
    apart = request.sample_index + 2**20  # another number than that of the completion's first token
    place = {"step": step, "prompt_index": request.prompt_index, "sample_index": apart}
    return bool(uniforms(1, seed=config.seed, **place)[0] < config.student_share)


def _of_teacher(lesson: Lesson, asked: Sequence[SampleRequest], temperature: float) -> list[Trajectory]:
    """Let the teacher write under its own prompt: the student has no log-probs to form a ratio with."""
    prompts = {(r.prompt_index, r.sample_index): r.prompt_ids for r in asked}
    own = [r if r.teacher_prompt_ids is None else replace(r, prompt_ids=r.teacher_prompt_ids) for r in asked]
    written = sample_together(TransformersSampler(lesson.pair.teacher), own, temperature=temperature)
    ours = (prompts[t.prompt_index, t.sample_index] for t in written)
    return [replace(t, prompt_ids=p, behaviour_logprobs=None) for t, p in zip(written, ours, strict=True)]


def _with_rewards(config: DistillConfig, rollouts: list[Rollout]) -> list[Rollout]:
    """Give each rollout its reward minus the mean of its group.

    With a chain of c problems, the j-th samples of c consecutive prompts share one reward: 1 if all are
    right.
    """
    if not config.rewarded:
        return rollouts
    right = np.array([r.right for r in rollouts], dtype=float)
    chains = right.reshape(-1, config.chain or 1, config.samples_per_prompt).min(axis=1)
    centred = config.reward_scale * (chains - chains.mean(axis=1, keepdims=True))
    spread = np.repeat(centred[:, None], config.chain or 1, axis=1).ravel()
    return [replace(r, reward=float(c)) for r, c in zip(rollouts, spread, strict=True)]


def divide(rollouts: Sequence[Rollout], count: int) -> list[Sequence[Rollout]]:
    """Cut the step's rollouts into ``count`` parts, none of them empty, each with a share of every lesson."""
    lessons = [list(own) for _, own in itertools.groupby(rollouts, key=lambda r: r.lesson)]
    parts = (
        [r for own in lessons for r in own[len(own) * k // count : len(own) * (k + 1) // count]]
        for k in range(count)
    )
    return [part for part in parts if part]


def settle(config: DistillConfig, rollouts: Sequence[Rollout], grades: Sequence[Grades]) -> list[Rollout]:
    """Decide from the grades which tokens train, and settle advantages that look ahead.

    A token's advantage is the negative penalty of it and, discounted, of all that follows it.
    """
    weights = select_tokens(config, grades)
    out = []
    for rollout, grade, weight in zip(rollouts, grades, weights, strict=True):
        advantages = None
        if OBJECTIVES[config.objective].settles:
            advantages = -config.kl_coefficient * discounted(grade.penalty, config.discount)
        out.append(replace(rollout, weights=weight, advantages=advantages))
    return out


def given_advantage(config: DistillConfig, rollout: Rollout, grades: Grades) -> NDArray[np.float32]:
    """Return what each token of a rollout is given, float32 ``[T]``; 0 where it does not train.

    That is its advantage in a policy gradient, and 1 in imitation. The gradient of a divergence over the
    vocabulary gives a sampled token no number of its own: the negative penalty says which way it is pushed.
    """
    objective = OBJECTIVES[config.objective]
    if objective.judge is None:
        given = np.ones(len(grades), np.float32)
    elif objective.judge == "verifier":
        given = np.full(len(grades), rollout.reward, np.float32)
    else:
        scale = config.kl_coefficient if objective.settles else 1.0
        given = -scale * grades.penalty if rollout.advantages is None else rollout.advantages
        given = given + rollout.reward
    return (given if rollout.weights is None else given * rollout.weights).astype(np.float32)


def discounted(penalty: NDArray[np.float32], discount: float) -> NDArray[np.float32]:
    """Return each token's penalty plus the discounted penalties after it, ``[T]`` -> ``[T]``."""
    out = penalty.astype(np.float64)
    if discount:
        for t in range(len(out) - 2, -1, -1):
            out[t] += discount * out[t + 1]
    return out.astype(np.float32)


def select_tokens(config: DistillConfig, grades: Sequence[Grades]) -> list[NDArray[np.float32] | None]:
    """Mark the step's top share of tokens by student entropy, penalty or fork score; None = all train."""
    if config.tokens == "all":
        return [None] * len(grades)
    definition = "entropy_drop" if config.tokens == "fork_score" else config.tokens
    scores = np.concatenate([fork_score(g, definition) for g in grades])
    count = max(1, round(config.token_share * len(scores)))
    chosen = np.zeros(len(scores), np.float32)
    chosen[np.argsort(-scores, kind="stable")[:count]] = 1
    return cut(chosen, grades)
