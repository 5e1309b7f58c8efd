"""Work on a run: in this process, or in one of its own that outlives the page that started it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from opd.config import DistillConfig
from opd.distillation import Distillation, distill
from opd.doctor import examine
from opd.runs import Run, create_run
from opd.trajectory import StepReport


def work(run: Run, on_report: Callable[[StepReport], None] = lambda report: None) -> None:
    """Train the run to its end, or until a stop is asked for, from its newest checkpoint if it has one.

    The caller holds the run's lock. Every step is on disk before ``on_report`` hears of it.

    Raises:
        ValueError: a model or the task cannot be used.
        RuntimeError: a step went wrong (out of memory, loss not finite).
        OSError: the disk is full.
    """
    try:
        distillation = distill(run.config)
        state = run.load_checkpoint()
        if state is not None:
            distillation.load_state_dict(state)
        run.log_event("started" if state is None else "resumed", step=distillation.next_step)
        if state is None:
            _examine(run, distillation)
        saved_at = None if state is None else distillation.next_step - 1
        track = tracker(run)
        ended = "finished"
        for report in distillation:
            run.append(report)
            track(report)
            on_report(report)
            if report.step and (report.step % run.config.save_every == 0 or _is_best(run, report)):
                run.save_checkpoint(distillation.student, distillation.state_dict())
                saved_at = report.step
            if run.stop_requested() and report.step < run.config.steps:
                ended = "stopped"
                break
        if saved_at != distillation.next_step - 1:
            run.save_checkpoint(distillation.student, distillation.state_dict())
        run.log_event(ended, step=distillation.next_step - 1)
    except Exception as error:
        run.log_event("failed", message=f"{error}")
        raise


def _examine(run: Run, distillation: Distillation) -> None:
    """Let the doctor look at every lesson before the first step, and keep what it finds.

    Raises:
        ValueError: a finding says that the run would go wrong, and the config does not ignore it.
    """
    for lesson in distillation.lessons:
        run.log_event("task", message=lesson.task.summary())
        with distillation.precision():
            findings = examine(lesson.pair, config=run.config, task=lesson.task, sampler=distillation.sampler)
        run.log_event("examined", findings=[asdict(finding) for finding in findings])
        failed = " ".join(f.message for f in findings if f.level == "fail")
        if failed and not run.config.ignore_doctor:
            raise ValueError(f"The doctor advises against this run. {failed} (ignore_doctor trains anyway.)")


def tracker(run: Run) -> Callable[[StepReport], None]:
    """Return what sends a report to the tracker that the config names; trackio speaks wandb's language.

    Raises:
        ValueError: the tracker is not installed.
    """
    name = run.config.report_to
    if name == "none":
        return lambda report: None
    try:
        module = import_module(name)
    except ImportError as error:
        raise ValueError(f"report_to {name} needs the package {name}: pip install {name}.") from error
    module.init(project="opd-studio", name=run.name, config=run.config.model_dump())
    return lambda report: module.log(dict(report.metrics), step=report.step)


def _is_best(run: Run, report: StepReport) -> bool:
    """Whether this step's held-out accuracy is higher than at any step before."""
    key = "heldout_accuracy"
    earlier = [row[key] for row in run.rows() if key in row and row["step"] < report.step]
    return key in report.metrics and report.metrics[key] > max(earlier, default=-1.0)


def start(config: DistillConfig, name: str) -> Run:
    """Create a run and train it in a process of its own.

    The child inherits the held lock, so there is no moment at which a living run looks dead.

    Raises:
        ValueError: the name is taken or no plain file name.
        OSError: the run's folder cannot be written.
    """
    run = create_run(name, config)
    with run.hold() as descriptor, (run.path / "log.txt").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "opd.jobs", str(run.path.resolve()), str(descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[descriptor],
            start_new_session=True,
            # Idle threads must not spin: the app and the job share the cores.
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        )
    return run


def main() -> int:
    """Entry point of the child process: ``python -m opd.jobs RUN_DIR LOCK_DESCRIPTOR``."""
    path, descriptor = sys.argv[1:]
    os.set_inheritable(int(descriptor), False)  # held until this process ends, and by no child of it
    try:
        work(Run(Path(path)))
    except (ValueError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
