"""Runs for tests: worked on here, watched, and compared."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pytest

from opd.config import DistillConfig
from opd.reports import StepReport
from opd.runs.run import Run, create_run
from opd.runs.worker import work
from opd.training.distillation import Distillation


def train(
    run: Run,
    on_report: Callable[[StepReport], object] = lambda report: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Run:
    """Work on a run to its end, as its process would."""
    with run.hold():
        run.take_over()
        work(run, on_report, say)
    return run


def begin(run: Run, on_report: Callable[[StepReport], object] = lambda report: None) -> threading.Thread:
    """Work on a run in a thread."""
    thread = threading.Thread(target=train, args=(run, on_report))
    thread.start()
    return thread


def wait_for(condition: Callable[[], bool], run: Run | None = None, seconds: float = 90) -> None:
    """Wait until something holds; if it never does, show how the run stands."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, run and f"{run.status()}\n{(run.path / 'log.txt').read_text()}"
        time.sleep(0.02)


def measure(monkeypatch: pytest.MonkeyPatch, accuracies: Iterable[float]) -> None:
    """Let the steps of the next runs have these held-out accuracies."""
    inner, left = Distillation.__next__, iter(accuracies)

    def step(distillation: Distillation) -> StepReport:
        report = inner(distillation)
        return replace(report, metrics={**report.metrics, "heldout_accuracy": next(left)})

    monkeypatch.setattr(Distillation, "__next__", step)


def measured(run: Run) -> list[dict[str, float]]:
    """A run's metrics without times and memory."""
    return [{k: v for k, v in r.items() if "second" not in k and "memory" not in k} for r in run.rows()]


def evaluated(name: str, accuracies: Sequence[float], config: DistillConfig | None = None) -> Run:
    """A run with a held-out accuracy of each step, the teacher's being 0.9."""
    run = create_run(name, config or DistillConfig())
    for step, accuracy in enumerate(accuracies):
        run.append(StepReport(step, {"heldout_accuracy": accuracy, "teacher_accuracy": 0.9}))
    return run
