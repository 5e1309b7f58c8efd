"""What the student minimises: one pure function an objective, on one chunk of tokens.

An objective returns a loss per token ``[n]``; the loop weights the tokens, sums and divides. What cannot be
expressed here, on purpose: the sampled log-ratio as a loss (its expected gradient is zero), its k3 estimator
as a loss (that is the gradient of the *forward* KL), and a truncated KL without the tail's mass (it pushes
probability out of the support even between equal models).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from opd import divergence
from opd.config import DistillConfig
from opd.divergence import TopK, sampled
from opd.protocols import Need

TOP_K = 8
"""Alternatives kept of each token in the loop."""


@dataclass(frozen=True)
class Chunk:
    """What an objective sees of ``n`` tokens.

    Attributes:
        student: log-probs ``[n, V]``, with the graph.
        teacher: log-probs ``[n, V]``, or what is known of them.
        ids: the tokens taken, int64 ``[n]``.
        behaviour: the sampler's log-probs of them ``[n]``.
        advantages: ``[n]``, where they were settled before the update; None = from the live penalty.
        rewards: group-centred task reward of the trajectory ``[n]``.
    """

    student: Tensor
    teacher: Tensor | TopK
    ids: Tensor
    behaviour: Tensor
    advantages: Tensor | None
    rewards: Tensor


@dataclass(frozen=True)
class Objective:
    """An objective and what to tell a user about it.

    Attributes:
        loss: the function.
        sentence: what it does, in a sentence.
        formula: the loss of one token.
        source: who writes the trajectories.
        need: what it wants to know of the teacher; see :func:`need_of`.
        takes_rewards: whether the loss contains the task reward itself.
    """

    loss: Callable[[Chunk, DistillConfig], Tensor]
    sentence: str
    formula: str
    source: Literal["student", "teacher", "both"] = "student"
    need: Need = "full"
    takes_rewards: bool = False


def policy_gradient(chunk: Chunk, advantages: Tensor, clip: float | None) -> Tensor:
    """Importance-weighted policy gradient, ``[n]``; with ``clip``, PPO's pessimistic bound (Schulman 2017).

    The ratio is to the sampler's own log-probs.
    """
    ratio = (sampled(chunk.student, chunk.ids) - chunk.behaviour).exp()
    gain = ratio * advantages
    if clip is not None:
        gain = torch.minimum(gain, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -gain


def importance_sampling(chunk: Chunk, config: DistillConfig) -> Tensor:
    """The post's objective: the negative penalty of the sampled token is its advantage, held fixed.

    At ratio 1 its expected gradient is that of the reverse KL at each prefix, the prefixes held fixed
    (Thinking Machines Lab, "On-Policy Distillation", 2025).
    """
    advantages = chunk.advantages
    if advantages is None:
        penalty = (sampled(chunk.student, chunk.ids) - sampled(chunk.teacher, chunk.ids)).detach()
        advantages = -config.kl_coefficient * penalty
    return policy_gradient(chunk, advantages + chunk.rewards, config.clip)


def reverse_kl(chunk: Chunk, config: DistillConfig) -> Tensor:
    """KL(student || teacher) over the whole vocabulary at each visited prefix."""
    return divergence.reverse_kl(chunk.student, chunk.teacher)


def forward_kl(chunk: Chunk, config: DistillConfig) -> Tensor:
    """KL(teacher || student) over the whole vocabulary at each visited prefix."""
    return divergence.reverse_kl(chunk.teacher, chunk.student)


def jsd(chunk: Chunk, config: DistillConfig) -> Tensor:
    """Generalised Jensen-Shannon divergence (Agarwal et al. 2024, "GKD")."""
    return divergence.jsd(chunk.student, chunk.teacher, config.beta)


def topk_reverse_kl(chunk: Chunk, config: DistillConfig) -> Tensor:
    """Reverse KL over the k likeliest tokens of one model and a bucket for all others."""
    if isinstance(chunk.teacher, TopK):
        support = chunk.teacher.ids[:, : config.top_k]
    else:
        chooser = chunk.student if config.top_k_from == "student" else chunk.teacher
        support = chooser.detach().topk(min(config.top_k, chooser.shape[1]), dim=-1).indices
    return divergence.topk_reverse_kl(chunk.student, chunk.teacher, support)


def sft(chunk: Chunk, config: DistillConfig) -> Tensor:
    """Cross-entropy on the teacher's own samples."""
    return -sampled(chunk.student, chunk.ids)


def rl(chunk: Chunk, config: DistillConfig) -> Tensor:
    """Policy gradient on the verifier's reward alone, centred within each prompt's group."""
    return policy_gradient(chunk, chunk.rewards, config.clip)


OBJECTIVES = {
    "reverse_kl": Objective(
        reverse_kl,
        "Pull the student's whole next-token distribution to the teacher's, at every token it wrote.",
        "Σ_v p_S(v) (log p_S(v) - log p_T(v))",
    ),
    "importance_sampling": Objective(
        importance_sampling,
        "Make each sampled token less likely by as much as the student rates it above the teacher.",
        "-(p_S(y) / p_sampler(y)) A,  A = -(log p_S(y) - log p_T(y)), held fixed",
        need="sampled",
        takes_rewards=True,
    ),
    "forward_kl": Objective(
        forward_kl,
        "Make the student cover everything the teacher would say, at every token the student wrote.",
        "Σ_v p_T(v) (log p_T(v) - log p_S(v))",
    ),
    "jsd": Objective(
        jsd,
        "Pull both distributions to their mixture: between forward and reverse KL, and bounded.",
        "β KL(T || M) + (1 - β) KL(S || M),  M = β T + (1 - β) S",
    ),
    "topk_reverse_kl": Objective(
        topk_reverse_kl,
        "Reverse KL over the k likeliest tokens and one bucket for the rest.",
        "Σ_{v in top k} p_S(v) log (p_S(v) / p_T(v)) + p_S(rest) log (p_S(rest) / p_T(rest))",
        need="top_k",
    ),
    "sft": Objective(
        sft,
        "Baseline: imitate completions that the teacher wrote.",
        "-log p_S(y),  y from the teacher",
        source="teacher",
        need="sampled",
    ),
    "gkd": Objective(
        jsd,
        "Baseline: the JSD on a mixture of the student's and the teacher's completions.",
        "β KL(T || M) + (1 - β) KL(S || M),  a share λ of the completions from the student",
        source="both",
    ),
    "rl": Objective(
        rl,
        "Baseline: reward for a right answer, none for a wrong one, and no teacher.",
        "-(p_S(y) / p_sampler(y)) (r - mean of r in the group)",
        need="sampled",
        takes_rewards=True,
    ),
}
"""Every objective by name."""


def need_of(config: DistillConfig) -> Need:
    """Return what a run wants to know of its teacher's distribution at each token."""
    need = OBJECTIVES[config.objective].need
    return "chosen" if need == "top_k" and config.top_k_from == "student" else need


def alternatives(config: DistillConfig, vocabulary: int) -> int:
    """Return how many of its likeliest tokens a run asks a teacher for that computes elsewhere."""
    return vocabulary if need_of(config) == "full" else min(vocabulary, max(TOP_K, config.top_k or 0))


def token_loss(chunk: Chunk, config: DistillConfig) -> Tensor:
    """Return the loss of each token ``[n]``: the objective, plus the task reward where it is mixed in."""
    objective = OBJECTIVES[config.objective]
    loss = objective.loss(chunk, config)
    if config.reward_weight and not objective.takes_rewards:
        loss = loss + policy_gradient(chunk, chunk.rewards, None)
    return loss
