"""One step of on-policy distillation against TRL's: rollout, teacher, update; and the update alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from benchmarks.measuring import Cost, Figure, Ratio, Stopwatch, quantile
from benchmarks.peers import trl
from opd.config import DistillConfig
from opd.engines.sampling import sample
from opd.models.pair import load_pair
from opd.protocols import Sampler, SampleRequest
from opd.tasks import load_task
from opd.training.distillation import distill
from opd.trajectory import Prompt, Trajectory

PROMPTS = 64
WARM_UP, ROUNDS = 2, 24

# So small a rate that the student stays what it is: all rounds sample from the same distribution.
STANDING_STILL = 1e-9


class Replay(Sampler):
    """A sampler that hands out what was sampled before, step by step."""

    def __init__(self, steps: Sequence[Sequence[Trajectory]]) -> None:
        """Take the trajectories of each step."""
        self.steps = iter(steps)

    def sample(
        self, requests: Sequence[SampleRequest], *, temperature: float = 1.0, snapshot_every: int = 0
    ) -> Iterator[Trajectory]:
        """Hand out the next step's; the requests are those that they answer."""
        yield from next(self.steps)


def measure() -> list[Figure]:
    """Measure whole steps, then updates on identical ids."""
    steps = WARM_UP + ROUNDS
    config = DistillConfig(
        steps=steps,
        warmup_steps=0,
        prompts_per_step=PROMPTS,
        substeps=1,
        learning_rate=STANDING_STILL,
        eval_prompts=0,
    )
    task = load_task("demo")
    prompts = [[e.prompt for e in task.batch(PROMPTS, step=k, seed=config.seed)] for k in range(1, steps + 1)]
    return [*_whole_steps(config, prompts), _updates(config, prompts)]


def _whole_steps(config: DistillConfig, prompts: Sequence[Sequence[Prompt]]) -> list[Figure]:
    """Let TRL, us with a compiled student, and us without make steps in turn."""
    theirs: list[Cost] = []
    sides = [
        _Side("step", config.model_copy(update={"compile": True}), at_least=2.5),
        _Side("step_plain", config),
    ]

    def our_steps(their_step: trl.PeerStep, _: trl.Weights) -> bool:
        theirs.append(their_step.cost)
        for side in sides[:: 1 if len(theirs) % 2 else -1]:
            side.step()
        return True

    trl.train_demo(config, prompts, our_steps)
    return [figure for side in sides for figure in side.figures(theirs[WARM_UP:])]


class _Side:
    """A run of ours that makes a step whenever TRL has made one."""

    def __init__(self, name: str, config: DistillConfig, at_least: float | None = None) -> None:
        self.name, self.at_least, self.run = name, at_least, distill(config, load_pair())
        self.costs: list[Cost] = []
        self.phases: list[list[float]] = []
        next(self.run)

    def step(self) -> None:
        watch = Stopwatch()
        metrics = next(self.run).metrics
        self.costs.append(watch.stop(metrics["trained_tokens"]))
        self.phases.append([metrics[f"seconds_{phase}"] for phase in ("sample", "teacher", "update")])

    def figures(self, theirs: Sequence[Cost]) -> list[Figure]:
        first, ours = self.costs[0].wall, self.costs[WARM_UP:]
        ratio, usual = Ratio.of(theirs, ours), median(c.wall for c in ours)
        sample_s, teacher_s, update_s = (median(p) for p in zip(*self.phases[WARM_UP:], strict=True))
        trained = [sum(c.tokens for c in side) / ROUNDS for side in (ours, theirs)]
        return [
            Figure(
                f"{self.name}_vs_trl",
                ratio.wall,
                at_least=self.at_least,
                detail=f"per trained token; {ratio}; {usual:.3f} s (rollout {sample_s:.3f}, "
                f"teacher {teacher_s:.3f}, update {update_s:.3f}) against "
                f"{median(c.wall for c in theirs):.3f} s; {trained[0]:.0f} and {trained[1]:.0f} tokens",
            ),
            Figure(
                f"{self.name}_warm_up",
                first - usual,
                "s",
                detail="surplus of the first step, not counted above",
            ),
        ]


def _updates(config: DistillConfig, prompts: Sequence[Sequence[Prompt]]) -> Figure:
    """Let TRL and us update on the same ids in turn."""
    student = load_pair().student
    steps = [sample(student, asked, seed=k, max_tokens=config.max_tokens) for k, asked in enumerate(prompts)]
    ours, theirs = [], []
    run = distill(config, load_pair())
    run.sampler = Replay(steps)
    next(run)

    def our_update(their_step: trl.PeerStep, _: trl.Weights) -> bool:
        metrics = next(run).metrics
        ours.append(metrics["seconds_teacher"] + metrics["seconds_update"])
        theirs.append(their_step.update.wall)
        return True

    replayed = [[t.completion_ids.tolist() for t in trajectories] for trajectories in steps]
    trl.train_demo(config, prompts, our_update, replay=replayed)
    ours, theirs = ours[WARM_UP:], theirs[WARM_UP:]
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return Figure(
        "update_vs_trl",
        median(ratios),
        detail="teacher, forward, backward, optimizer on identical ids; "
        f"quartiles {quantile(ratios, 0.25):.2f}-{quantile(ratios, 0.75):.2f}; "
        f"{median(ours):.3f} s against {median(theirs):.3f} s",
    )
