"""What the student minimises: one pure function an objective, on one chunk of tokens.

An objective sees log-probs ``[n, V]`` of both models, the ids taken ``[n]`` and what the sampler assigned to
them ``[n]``, and returns a loss per token ``[n]``, not yet divided by the number of tokens of the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from opd import divergence
from opd.divergence import sampled


@dataclass(frozen=True)
class Objective:
    """An objective and what to tell a user about it."""

    loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    sentence: str
    formula: str


def reverse_kl(student: Tensor, teacher: Tensor, ids: Tensor, behaviour: Tensor) -> Tensor:
    """KL(student || teacher) over the whole vocabulary at each visited prefix."""
    return divergence.reverse_kl(student, teacher)


def importance_sampling(student: Tensor, teacher: Tensor, ids: Tensor, behaviour: Tensor) -> Tensor:
    """The post's policy gradient: ratio to the sampler's log-prob, times the detached penalty.

    Its gradient at ratio 1 is penalty x grad log p_student, whose expectation over the sampled token is the
    gradient of the reverse KL (Thinking Machines Lab, "On-Policy Distillation", 2025).
    """
    logprob = sampled(student, ids)
    penalty = (logprob - sampled(teacher, ids)).detach()
    return (logprob - behaviour).exp() * penalty


OBJECTIVES = {
    "reverse_kl": Objective(
        reverse_kl,
        "Pull the student's whole next-token distribution to the teacher's, at every token it wrote.",
        "sum over v of p_S(v) (log p_S(v) - log p_T(v))",
    ),
    "importance_sampling": Objective(
        importance_sampling,
        "Make each sampled token less likely by as much as the student rates it above the teacher.",
        "p_S(y) / p_sampler(y) x (log p_S(y) - log p_T(y), held fixed)",
    ),
}
"""Every objective by name."""
