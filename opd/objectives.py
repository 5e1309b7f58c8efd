"""What a run can minimise: of each objective all that can be known without torch.

The loss functions lie in :mod:`opd.training.losses`, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Need = Literal["sampled", "top_k", "chosen", "full"]
"""What an objective wants to know of a model's distribution at each token: the log-prob of the token that was
taken; also those of the model's own likeliest tokens, of tokens that somebody else chose, or of all."""


@dataclass(frozen=True)
class Objective:
    """An objective, and what it asks of whom.

    Attributes:
        sentence: what it does, in a sentence.
        formula: the loss of one token.
        options: the settings that belong to it, with their defaults.
        source: who writes the trajectories.
        need: what it wants to know of the teacher.
        judge: whose word a token trains on: the teacher's penalty, the verifier's reward, or nobody's, when
            it is imitated.
        policy_gradient: whether the judge's word is an advantage, held fixed, that weighs the sampled token;
            a task reward then joins it there. Else the loss compares whole distributions.
    """

    sentence: str
    formula: str
    options: Mapping[str, Any] = field(default_factory=dict)
    source: Literal["student", "teacher", "both"] = "student"
    need: Need = "full"
    judge: Literal["teacher", "verifier"] | None = "teacher"
    policy_gradient: bool = False

    @property
    def settles(self) -> bool:
        """Whether penalties are advantages, which are settled before updates move the penalties."""
        return self.policy_gradient and self.judge == "teacher"

    @property
    def baseline(self) -> bool:
        """Whether it is no on-policy distillation, but what that is compared with."""
        return self.source != "student" or self.judge != "teacher"


# kl_coefficient, discount: the post's recipe. beta: the symmetric JSD, TRL's and GKD's default.
# top_k: thunlp/OPD's student top-16. student_share: GKD's lambda. chain: one problem, one reward.
OBJECTIVES = {
    "reverse_kl": Objective(
        "Pull the student's whole next-token distribution to the teacher's, at every token it wrote.",
        "Σ_v p_S(v) (log p_S(v) - log p_T(v))",
    ),
    "importance_sampling": Objective(
        "Make each sampled token less likely by as much as the student rates it above the teacher.",
        "-(p_S(y) / p_sampler(y)) A,  A = -(log p_S(y) - log p_T(y)), held fixed",
        {"kl_coefficient": 1.0, "discount": 0.0, "clip": None},
        need="sampled",
        policy_gradient=True,
    ),
    "forward_kl": Objective(
        "Make the student cover everything the teacher would say, at every token the student wrote.",
        "Σ_v p_T(v) (log p_T(v) - log p_S(v))",
    ),
    "jsd": Objective(
        "Pull both distributions to their mixture: between forward and reverse KL, and bounded.",
        "β KL(T || M) + (1 - β) KL(S || M),  M = β T + (1 - β) S",
        {"beta": 0.5},
    ),
    "topk_reverse_kl": Objective(
        "Reverse KL over the k likeliest tokens and one bucket for the rest.",
        "Σ_{v in top k} p_S(v) log (p_S(v) / p_T(v)) + p_S(rest) log (p_S(rest) / p_T(rest))",
        {"top_k": 16, "top_k_from": "student"},
        need="top_k",
    ),
    "sft": Objective(
        "Baseline: imitate completions that the teacher wrote.",
        "-log p_S(y),  y from the teacher",
        {"sft_prompts": 0},
        source="teacher",
        need="sampled",
        judge=None,
    ),
    "gkd": Objective(
        "Baseline: the JSD on a mixture of the student's and the teacher's completions.",
        "β KL(T || M) + (1 - β) KL(S || M),  a share λ of the completions from the student",
        {"beta": 0.5, "student_share": 0.5},
        source="both",
    ),
    "rl": Objective(
        "Baseline: reward for a right answer, none for a wrong one, and no teacher.",
        "-(p_S(y) / p_sampler(y)) (r - mean of r in the group)",
        {"clip": None, "chain": 1},
        need="sampled",
        judge="verifier",
        policy_gradient=True,
    ),
}
"""Every objective by name."""

OPTIONS = frozenset(name for objective in OBJECTIVES.values() for name in objective.options)
"""The settings that are options of an objective; those of others are None."""
