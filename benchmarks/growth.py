"""How cost grows with completion length, batch and vocabulary: time, memory and the power they grow with.

A small random model does the work, each size in a process of its own. Rows differ in length, as they do in a
run. The exponents are fitted to the three largest sizes, where fixed costs hide least. Beside each stands
what the algorithm says, which a measured one may exceed by ``SLACK``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.gradient import make_gradient
from benchmarks.measuring import Figure, Stopwatch, fitted_exponent, in_fresh_process, peak_memory
from benchmarks.random_models import SMALL, VOCABULARY, random_model
from opd.engines.transformers import TransformersSampler
from opd.grading.grading import grade
from opd.models.pair import Pair
from opd.protocols import SampleRequest
from opd.trajectory import Trajectory

PROMPT = 16
SLACK = 0.15
MIB = 2**20


class Size(NamedTuple):
    """Completion tokens, rows, vocabulary entries."""

    length: int
    batch: int
    vocabulary: int


AXES = {
    "length": [Size(n, 4, 1024) for n in (64, 512, 2048, 8192)],
    "batch": [Size(256, n, 1024) for n in (4, 16, 64, 256)],
    "vocabulary": [Size(64, 16, n) for n in (1024, 8192, 32_768, VOCABULARY)],
}

# (time, memory) along each axis.
ALGORITHM = {
    "rollout": {
        "length": (2, 1, "a step a token, each reads the cache so far; the cache grows by a row a token"),
        "batch": (1, 1, "each row the same"),
        "vocabulary": (1, 1, "a step's distributions"),
    },
    "grade": {
        "length": (2, 1, "attention of every token to those before, never held as a matrix"),
        "batch": (1, 1, "each row the same"),
        "vocabulary": (1, 1, "the head; memory up to a chunk"),
    },
    "update": {
        "length": (2, 1, "as grading, with the activations of every token"),
        "batch": (1, 1, "each row the same"),
        "vocabulary": (1, 1, "the head; memory up to a chunk, beside the weights' gradient"),
    },
}


def measure() -> list[Figure]:
    """Measure each kind of work along each axis."""
    figures = []
    for kind, work in (("rollout", rollout), ("grade", graded), ("update", update)):
        for axis, sizes in AXES.items():
            costs = [in_fresh_process(cost_of, work, size) for size in sizes]
            x = [getattr(size, axis) for size in sizes]
            *bounds, why = ALGORITHM[kind][axis]
            shown = (
                [f"{n:,}: {seconds:.2f} s" for n, (seconds, _) in zip(x, costs, strict=True)],
                [f"{n:,}: {extra / MIB:.0f} MiB" for n, (_, extra) in zip(x, costs, strict=True)],
            )
            for i, what in enumerate(("time", "memory")):
                figures.append(
                    Figure(
                        f"{kind}_{what}_by_{axis}",
                        fitted_exponent(x[-3:], [cost[i] for cost in costs[-3:]]),
                        "power",
                        at_most=bounds[i] + SLACK,
                        detail=f"the algorithm says {bounds[i]} ({why}); {', '.join(shown[i])}",
                    )
                )
    return figures


def cost_of(work: Callable[[Pair, Size], object], size: Size) -> tuple[float, int]:
    """Do ``work`` at a size; return seconds and peak bytes above the models and a first, short go."""
    torch.manual_seed(0)
    student, teacher = (random_model(name, SMALL, vocabulary=size.vocabulary) for name in ("s", "t"))
    student.model.requires_grad_(True)
    pair = Pair(student, teacher)
    work(pair, Size(4, 2, size.vocabulary))
    with peak_memory() as peak:
        watch = Stopwatch()
        work(pair, size)
        seconds = watch.stop().wall
    return seconds, max(peak.extra, 1)


def rollout(pair: Pair, size: Size) -> None:
    """Sample completions of known lengths."""
    rng = np.random.default_rng(0)
    asked = [SampleRequest(_ids(rng, PROMPT, size), rng.random(n)) for n in _lengths(size)]
    list(TransformersSampler(pair.student, in_flight=size.batch).sample(asked))


def graded(pair: Pair, size: Size) -> None:
    """Grade completions, every signal."""
    grade(pair, _trajectories(size), temperature=1.0)


def update(pair: Pair, size: Size) -> None:
    """Make a step's gradient."""
    make_gradient(pair, _trajectories(size))


def _trajectories(size: Size) -> list[Trajectory]:
    rng = np.random.default_rng(0)
    out = []
    for n in _lengths(size):
        prompt = _ids(rng, PROMPT, size)
        out.append(
            Trajectory(
                prompt_ids=prompt,
                completion_ids=_ids(rng, n, size),
                behaviour_logprobs=None,
                finish_reason="length",
                teacher_prompt_ids=prompt,
            )
        )
    return out


def _lengths(size: Size) -> list[int]:
    """From three quarters of the length to all of it."""
    return np.linspace(size.length * 3 // 4, size.length, size.batch).astype(int).tolist()


def _ids(rng: np.random.Generator, n: int, size: Size) -> np.ndarray:
    return rng.integers(size.vocabulary, size=n)
