"""Time until the student has 90 % of its teacher's accuracy, against TRL's.

Both sides train on the same prompts, as many a step, with the same optimizer and schedule, each at the best
of four learning rates, which were chosen once on the tuning split (``--choose-rates``; ``rates.json``).
The clock counts steps alone, no loading and no evaluation. The same evaluation looks at both students every
few steps; the target is reached at the first one whose mean with the one before is at or above it. Who does
not reach it is charged the whole run.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from statistics import median

from benchmarks.measuring import Cost, Figure, Stopwatch, machine
from benchmarks.peers import trl
from opd.config import DistillConfig
from opd.distillation import distill
from opd.evaluation import evaluate
from opd.models import LanguageModel, load_pair
from opd.tasks import Split, Task, load_task

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
    """

    seconds: float = 0.0
    cpu: float = 0.0
    tokens: int = 0
    accuracies: list[float] = field(default_factory=list)
    reached: int | None = None


@dataclass
class Race:
    """Two students on their way to the target, in turn; each stops when it is there."""

    task: Task
    split: Split
    seed: int
    target: float

    def run(self, our_rate: float, their_rate: float) -> tuple[Progress, Progress]:
        """Train both sides and return how they did, ours first."""
        ours, theirs = Progress(), Progress()
        settings = {"steps": STEPS, "prompts_per_step": PROMPTS, "substeps": 1, "seed": self.seed}
        our_config, their_config = (
            DistillConfig(**settings, learning_rate=rate, eval_prompts=0) for rate in (our_rate, their_rate)
        )
        run, pair = distill(our_config, load_pair()), load_pair()
        next(run)

        def our_step() -> None:
            watch = Stopwatch()
            metrics = next(run).metrics
            cost = watch.stop(metrics["trained_tokens"])
            self._count(ours, run.next_step - 1, cost, run.student)

        def after(their_step: trl.PeerStep) -> bool:
            self._count(theirs, their_step.number, their_step.cost, pair.student)
            if ours.reached is None:
                our_step()
            return theirs.reached is None

        batches = [self.task.batch(PROMPTS, step=k, seed=self.seed) for k in range(1, STEPS + 1)]
        trl.train(pair, their_config, [[e.prompt for e in batch] for batch in batches], after)
        while ours.reached is None and run.next_step <= STEPS:
            our_step()
        return ours, theirs

    def _count(self, side: Progress, step: int, cost: Cost, student: LanguageModel) -> None:
        """Add a step to a side's account; every few steps look how far its student has come."""
        side.seconds += cost.wall
        side.cpu += cost.cpu
        side.tokens += cost.tokens
        if step % EVALUATE_EVERY:
            return
        training = student.model.training
        student.model.eval()
        side.accuracies.append(evaluate(student, self.task, n=PROBLEMS, split=self.split).value)
        student.model.train(training)
        if sum(side.accuracies[-2:]) / 2 >= self.target:
            side.reached = step


def measure() -> list[Figure]:
    """Race on the test split, at the rates chosen before; without a record of them, choose first."""
    if not CHOSEN.exists():
        choose_rates()
    rates = json.loads(CHOSEN.read_text(encoding="utf-8"))["chosen"]
    task = load_task("demo")
    target = _target(task, "test")
    races = [Race(task, "test", seed, target).run(rates["ours"], rates["trl"]) for seed in SEEDS]
    seconds, cpu = (
        [median(getattr(sides[i], clock) for sides in races) for i in (0, 1)] for clock in ("seconds", "cpu")
    )
    steps = [", ".join(str(sides[i].reached or "never") for sides in races) for i in (0, 1)]
    return [
        Figure(
            "time_to_target_vs_trl",
            seconds[1] / seconds[0],
            at_least=2.5,
            detail=f"to {target:.3f} of {PROBLEMS} held-out problems, {SHARE:.0%} of the teacher's accuracy; "
            f"median of {len(SEEDS)} seeds: {seconds[0]:.1f} s against {seconds[1]:.1f} s, in CPU time "
            f"{cpu[1] / cpu[0]:.2f}; steps {steps[0]} against {steps[1]}; rates {rates['ours']:g} and "
            f"{rates['trl']:g}",
        )
    ]


def choose_rates() -> None:
    """Race once at each rate on the tuning split and keep the rate that was fastest for each side."""
    task = load_task("demo")
    target = _target(task, "tuning")
    outcomes: dict[str, dict[str, dict]] = {"ours": {}, "trl": {}}
    for rate in RATES:
        for side, progress in zip(outcomes, Race(task, "tuning", 0, target).run(rate, rate), strict=True):
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
