"""What it brings that vLLM writes the next step while this one trains; in the environment of ``make vllm``.

One thread a side (``--threads 1``) on two cores, or a device for each.
"""

from __future__ import annotations

from benchmarks.measuring import Cost, Figure, Ratio, Stopwatch
from opd.config import DistillConfig
from opd.training.distillation import distill

PROMPTS, WARM_UP, STEPS, ROUNDS = 64, 2, 9, 3

# So small a rate that the student stays what it is: all rounds sample from the same distribution.
STANDING_STILL = 1e-9


def measure() -> list[Figure]:
    """Let runs with and without it take turns; starting vLLM is not counted."""
    costs: dict[bool, list[Cost]] = {True: [], False: []}
    for k in range(ROUNDS):
        for asynchronous in (True, False) if k % 2 else (False, True):
            costs[asynchronous].append(_steps(asynchronous, seed=k))
    ratio = Ratio.of(costs[False], costs[True])
    return [
        Figure(
            "asynchronous_rollouts",
            ratio.wall,
            detail=f"{ROUNDS} pairs of runs, {STEPS} steps of {PROMPTS} prompts each; "
            f"quartiles {ratio.low:.2f}-{ratio.high:.2f}",
        )
    ]


def _steps(asynchronous: bool, seed: int) -> Cost:
    steps = WARM_UP + STEPS + 1  # the last one has no next one to write
    config = DistillConfig(
        engine="vllm",
        vllm_memory=0.15,
        asynchronous=asynchronous,
        steps=steps,
        warmup_steps=0,
        prompts_per_step=PROMPTS,
        substeps=1,
        learning_rate=STANDING_STILL,
        eval_every=steps,
        eval_prompts=0,
        seed=seed,
    )
    run = distill(config)
    with run.sampler:
        for _ in range(1 + WARM_UP):
            next(run)
        watch = Stopwatch()
        return watch.stop(sum(next(run).metrics["trained_tokens"] for _ in range(STEPS)))
