"""Time until the student has 90 % of its teacher's accuracy, against TRL's.

All sides train on the same prompts, as many a step, with the same optimizer and schedule, each at the best
of four learning rates, which were chosen once on the tuning split (``--choose-rates``; ``rates.json``).
The clock counts steps alone, no loading, no compiling and no evaluation. The same evaluation looks at all
students every few steps; the target is reached at the first one whose mean with the one before is at or above
it. Who does not reach it is charged the whole run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from statistics import median

import torch

from benchmarks.measuring import Cost, Figure, Stopwatch, machine
from benchmarks.peers import trl
from opd.config import DistillConfig
from opd.grading.evaluation import evaluate
from opd.models.load import load_model
from opd.models.network import LanguageModel
from opd.models.pair import load_pair
from opd.tasks import Split, Task, load_task
from opd.training.distillation import Distillation, distill

PROMPTS, STEPS, EVALUATE_EVERY, PROBLEMS = 64, 100, 5, 256
SHARE = 0.9
SEEDS = (1, 2, 3)
RATES = (1e-3, 2e-3, 3e-3, 5e-3)
CHOSEN = Path(__file__).with_name("rates.json")


@dataclass
class Progress:
    """How far a side has come.

    Attributes:
        seconds: of training so far.
        cpu: the same in CPU time.
        tokens: trained on so far.
        accuracies: at every evaluation.
        reached: the step that reached the target; None so far.
        warm_up: seconds that compiling took before the first step.
    """

    seconds: float = 0.0
    cpu: float = 0.0
    tokens: int = 0
    accuracies: list[float] = field(default_factory=list)
    reached: int | None = None
    warm_up: float = 0.0


@dataclass
class Race:
    """Students on their way to the target, in turn; each stops when it is there."""

    task: Task
    split: Split
    seed: int
    target: float

    def run(self, our_rate: float, their_rate: float, *, compiled: bool) -> tuple[Progress, ...]:
        """Train all sides and return how they did: ours, TRL, and with ``compiled`` ours sampling so."""
        settings = {"steps": STEPS, "prompts_per_step": PROMPTS, "substeps": 1, "seed": self.seed}
        our_config, their_config = (
            DistillConfig(**settings, learning_rate=rate, eval_prompts=0) for rate in (our_rate, their_rate)
        )
        ours, theirs, their_student = [self._start(our_config)], Progress(), load_model("demo-student")
        if compiled:
            ours.append(self._start(our_config.model_copy(update={"compile": True})))

        def our_steps() -> None:
            for run, side in ours:
                if side.reached is None and run.next_step <= STEPS:
                    watch = Stopwatch()
                    metrics = next(run).metrics
                    cost = watch.stop(metrics["trained_tokens"])
                    self._count(side, run.next_step - 1, cost, run.student)

        def after(their_step: trl.PeerStep, weights: trl.Weights) -> bool:
            their_student.model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
            self._count(theirs, their_step.number, their_step.cost, their_student)
            our_steps()
            return theirs.reached is None

        batches = [self.task.batch(PROMPTS, step=k, seed=self.seed) for k in range(1, STEPS + 1)]
        trl.train_demo(their_config, [[e.prompt for e in batch] for batch in batches], after)
        for _ in range(theirs.reached or STEPS, STEPS):
            our_steps()
        return ours[0][1], theirs, *(side for _, side in ours[1:])

    def _start(self, config: DistillConfig) -> tuple[Distillation, Progress]:
        """Load a run of ours; what it compiles is compiled before the clock starts."""
        run, side = distill(config, load_pair()), Progress()
        next(run)
        if config.compile:
            side.warm_up = run.preview_step()[1] - run.preview_step()[1]
        return run, side

    def _count(self, side: Progress, step: int, cost: Cost, student: LanguageModel) -> None:
        """Add a step to a side's account; every few steps look how far its student has come."""
        side.seconds += cost.wall
        side.cpu += cost.cpu
        side.tokens += cost.tokens
        if step % EVALUATE_EVERY:
            return
        side.accuracies.append(evaluate(student, self.task, n=PROBLEMS, split=self.split).value)
        if sum(side.accuracies[-2:]) / 2 >= self.target:
            side.reached = step


def measure() -> list[Figure]:
    """Race on the test split, at the rates chosen before; without a record of them, choose first."""
    if not CHOSEN.exists():
        choose_rates()
    rates = json.loads(CHOSEN.read_text(encoding="utf-8"))["chosen"]
    task = load_task("demo")
    target = _target(task, "test")
    races = [
        Race(task, "test", seed, target).run(rates["ours"], rates["trl"], compiled=True) for seed in SEEDS
    ]
    plain, theirs, compiled = zip(*races, strict=True)
    warm_up = max(side.warm_up for side in compiled)  # later races find it compiled
    them, us = (median(side.seconds for side in sides) for sides in (theirs, compiled))
    return [
        _figure(
            "time_to_target_vs_trl",
            compiled,
            theirs,
            f"; {warm_up:.0f} s of warm-up not counted, with it {them / (us + warm_up):.2f}; "
            f"to {target:.3f} of {PROBLEMS} held-out problems, {SHARE:.0%} of the teacher's accuracy; "
            f"rates {rates['ours']:g} and {rates['trl']:g}",
            at_least=2.5,
        ),
        _figure("time_to_target_plain_vs_trl", plain, theirs),
    ]


def _figure(
    name: str,
    ours: Sequence[Progress],
    theirs: Sequence[Progress],
    detail: str = "",
    at_least: float | None = None,
) -> Figure:
    seconds, cpu = (
        [median(getattr(side, clock) for side in sides) for sides in (ours, theirs)]
        for clock in ("seconds", "cpu")
    )
    steps = [", ".join(str(side.reached or "never") for side in sides) for sides in (ours, theirs)]
    return Figure(
        name,
        seconds[1] / seconds[0],
        at_least=at_least,
        detail=f"median of {len(SEEDS)} seeds: {seconds[0]:.1f} s against {seconds[1]:.1f} s, in CPU time "
        f"{cpu[1] / cpu[0]:.2f}; steps {steps[0]} against {steps[1]}{detail}",
    )


def choose_rates() -> None:
    """Race once at each rate on the tuning split and keep the rate that was fastest for each side.

    Ours is the same with and without ``compile``: what differs is the time of a step.
    """
    task = load_task("demo")
    target = _target(task, "tuning")
    outcomes: dict[str, dict[str, dict]] = {"ours": {}, "trl": {}}
    for rate in RATES:
        race = Race(task, "tuning", 0, target).run(rate, rate, compiled=False)
        for side, progress in zip(outcomes, race, strict=True):
            outcomes[side][f"{rate:g}"] = asdict(progress)
            print(f"{side} at {rate:g}: step {progress.reached}, {progress.seconds:.1f} s", flush=True)
    record = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "target": target,
        "chosen": {side: float(_best(outcome)) for side, outcome in outcomes.items()},
        "outcomes": outcomes,
    }
    CHOSEN.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _best(outcome: dict[str, dict]) -> str:
    """The rate that took the fewest steps; of equals, and of those that never arrive, the most accurate."""
    return min(
        outcome,
        key=lambda rate: (outcome[rate]["reached"] or math.inf, -sum(outcome[rate]["accuracies"][-2:])),
    )


def _target(task: Task, split: Split) -> float:
    return SHARE * evaluate(load_pair().teacher, task, n=PROBLEMS, split=split).value
