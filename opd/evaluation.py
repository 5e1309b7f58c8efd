"""Held-out accuracy, with its sample size and interval."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from opd.models import LanguageModel
from opd.sampling import sample
from opd.tasks import Split, Task

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers."""

    correct: int
    n: int

    @property
    def value(self) -> float:
        """The share itself."""
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval (Wilson 1927)."""
        return wilson(self.correct, self.n)

    def __str__(self) -> str:
        """Percentages with the sample size, as they are printed."""
        low, high = self.interval
        return f"{self.value:.1%} [{low:.1%}, {high:.1%}] of {self.n}"


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of ``successes`` out of ``n``."""
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluate(
    model: LanguageModel,
    task: Task,
    *,
    n: int = 512,
    split: Split = "test",
    temperature: float = 1.0,
    max_tokens: int = 192,
    seed: int = 0,
) -> Accuracy:
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

    Raises:
        ValueError: ``n`` is below 1, or the task has no held-out problems.
    """
    if n < 1:
        raise ValueError(f"An evaluation needs at least 1 problem, not {n}.")
    examples = task.heldout(n, split=split)
    if not examples:
        raise ValueError(f"The task {task.name} has no held-out problems in its {split} split.")
    trajectories = sample(
        model, [e.prompt for e in examples], seed=seed, temperature=temperature, max_tokens=max_tokens
    )
    right = sum(
        task.verify(example, model.text(t.completion_ids))
        for example, t in zip(examples, trajectories, strict=True)
    )
    return Accuracy(right, len(examples))
