"""What the student minimises: one pure function an objective, on one chunk of tokens.

An objective returns a loss per token ``[n]``; the loop weights the tokens, sums and divides. What cannot be
expressed here, on purpose: the sampled log-ratio as a loss (its expected gradient is zero), its k3 estimator
as a loss (that is the gradient of the *forward* KL), and a truncated KL without the tail's mass (it pushes
probability out of the support even between equal models).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opd import divergence
from opd.config import DistillConfig
from opd.divergence import TopK, sampled
from opd.objectives import OBJECTIVES

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


def topk_reverse_kl(chunk: Chunk, config: DistillConfig) -> Tensor:
    """Reverse KL over the k likeliest tokens of one model and a bucket for all others."""
    if isinstance(chunk.teacher, TopK):
        support = chunk.teacher.top_ids[:, : config.top_k]
    else:
        chooser = chunk.student if config.top_k_from == "student" else chunk.teacher
        support = chooser.detach().topk(min(config.top_k, chooser.shape[1]), dim=-1).indices
    return divergence.topk_reverse_kl(chunk.student, chunk.teacher, support)


LOSSES: dict[str, Callable[[Chunk, DistillConfig], Tensor]] = {
    "reverse_kl": lambda c, _: divergence.reverse_kl(c.student, c.teacher),
    "importance_sampling": importance_sampling,
    "forward_kl": lambda c, _: divergence.reverse_kl(c.teacher, c.student),
    "jsd": lambda c, config: divergence.jsd(c.student, c.teacher, config.beta),
    "topk_reverse_kl": topk_reverse_kl,
    "sft": lambda c, _: -sampled(c.student, c.ids),
    "gkd": lambda c, config: divergence.jsd(c.student, c.teacher, config.beta),
    "rl": lambda c, config: policy_gradient(c, c.rewards, config.clip),
}
"""The loss of every objective, a chunk's ``[n]``, by its name in :data:`opd.objectives.OBJECTIVES`.

The Jensen-Shannon divergence is the generalised one of Agarwal et al. 2024, "GKD".
"""


def alternatives(config: DistillConfig, vocabulary: int) -> int:
    """Return how many of its likeliest tokens a run asks a teacher for that computes elsewhere."""
    return vocabulary if config.need == "full" else min(vocabulary, max(TOP_K, config.top_k or 0))


def token_loss(chunk: Chunk, config: DistillConfig) -> Tensor:
    """Return the loss of each token ``[n]``: the objective, plus the task reward where it is mixed in."""
    loss = LOSSES[config.objective](chunk, config)
    if config.reward_weight and not OBJECTIVES[config.objective].policy_gradient:
        loss = loss + policy_gradient(chunk, chunk.rewards, None)
    return loss
