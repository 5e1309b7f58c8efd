"""Held-out accuracy, with its sample size and interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import hypot, sqrt

import numpy as np
from numpy.typing import NDArray

from opd.engines.sampling import sample
from opd.models.network import LanguageModel
from opd.phases import announce
from opd.tasks import Example, Split, Task, must_verify, verify
from opd.trajectory import Prompt, Trajectory

Z95 = 1.959963984540054


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How a model did on held-out problems, one completion each.

    Attributes:
        right: bool ``[n]``, the verifier's word on each completion.
        trajectories: the completions, in the order of the problems.
    """

    right: NDArray[np.bool_]
    trajectories: Sequence[Trajectory]

    @property
    def n(self) -> int:
        """Number of problems."""
        return len(self.right)

    @property
    def value(self) -> float:
        """Accuracy: the share that is right."""
        return float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval of the accuracy."""
        return wilson(int(self.right.sum()), self.n)

    def __str__(self) -> str:
        """Percentages with the sample size, as they are printed."""
        low, high = self.interval
        return f"{self.value:.1%} [{low:.1%}, {high:.1%}] of {self.n}"


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of ``successes`` out of ``n`` (Wilson 1927)."""
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe(successes: int, n: int, other_successes: int, other_n: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two independent shares, the first minus the second.

    The hybrid score interval, method 10 of Newcombe 1998 (Statistics in Medicine 17:873-890): the distances
    of both shares to their Wilson bounds, added in squares. It holds its level for small n and for shares
    near 0 or 1.
    """
    p, q = successes / n, other_successes / other_n
    (p_low, p_high), (q_low, q_high) = wilson(successes, n), wilson(other_successes, other_n)
    return p - q - hypot(p - p_low, q_high - q), p - q + hypot(p_high - p, q - q_low)


def evaluate(
    model: LanguageModel,
    task: Task,
    *,
    n: int = 512,
    split: Split = "test",
    temperature: float = 1.0,
    max_tokens: int = 192,
    seed: int = 0,
    prompt_of: Callable[[Example], Prompt] | None = None,
) -> Evaluation:
    """Let a model answer held-out problems, one sample each, and count the right ones.

    The random numbers depend on the seed alone, so two models (or two checkpoints) are compared on the same
    draws.

    Args:
        model: who answers.
        task: poses the problems and verifies the answers.
        n: number of problems; fewer if the task has fewer.
        split: which held-out problems.
        temperature: of the sampling; 0 is greedy.
        max_tokens: bound on each answer.
        seed: of the sampling.
        prompt_of: what the model is asked instead of the problem's own prompt.

    Raises:
        ValueError: ``n`` is below 1, or the task has no held-out problems or cannot verify answers.
    """
    must_verify(task)
    if n < 1:
        raise ValueError(f"An evaluation needs at least 1 problem, not {n}.")
    examples = task.heldout(n, split=split)
    if not examples:
        raise ValueError(f"The task {task.name} has no held-out problems in its {split} split.")
    if missing := sum(e.answer is None for e in examples):
        raise ValueError(
            f"{task.name} has no answers to {missing} of {len(examples)} held-out problems, so accuracy "
            "cannot be measured. Set answer_column, or name a task with answers."
        )
    announce(f"Evaluating {model.name}")
    prompts = [prompt_of(e) if prompt_of else e.prompt for e in examples]
    trajectories = sample(model, prompts, seed=seed, temperature=temperature, max_tokens=max_tokens)
    right = [verify(task, e, model, t) for e, t in zip(examples, trajectories, strict=True)]
    return Evaluation(np.array(right), trajectories)
