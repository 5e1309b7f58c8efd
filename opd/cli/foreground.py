"""Training in the foreground: a progress bar, Ctrl-C, and the other processes of torchrun."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING

from opd.cli.output import FAILURE, harmless, say

if TYPE_CHECKING:
    from opd.reports import StepReport
    from opd.runs.run import Run


def led(run: Callable[[argparse.Namespace], int | None]) -> Callable[[argparse.Namespace], int]:
    """Under torchrun, let the first process do what a command says and all others take part in its runs."""

    @wraps(run)
    def run_by_first(options: argparse.Namespace) -> int:
        from opd.models.parallel import FailedElsewhere, processes, rank, send_order
        from opd.runs.worker import follow

        first, code = True, None
        try:
            with processes():
                first = rank() == 0
                if first or getattr(options, "dry_run", False):
                    code = run(options)
                    send_order(None)
                else:
                    follow()
        except FailedElsewhere:
            if first:
                raise
            return FAILURE
        return code or 0

    return run_by_first


def work(run: Run, steps: int | None = None) -> None:
    """Train a run here, with a progress bar; Ctrl-C stops it after the current step, with a checkpoint.

    ``steps`` prolongs it first.
    """
    import signal

    from tqdm import tqdm

    from opd.reports import training_seconds
    from opd.runs import worker
    from opd.runs.jobs import prolong

    seconds = 0.0
    with run.hold():
        if steps is not None:
            prolong(run, steps)
            say(run.notes()[-1])
        with tqdm(total=run.config.steps, unit="step", dynamic_ncols=True) as bar:

            def show(report: StepReport) -> None:
                nonlocal seconds
                metrics = report.metrics
                bar.update(report.step - bar.n)
                if "reverse_kl" in metrics:
                    least = "≥ " if "reverse_kl_top_k" in metrics else ""
                    bar.set_postfix_str(f"KL {least}{metrics['reverse_kl']:.3f} nats/token")
                    seconds += training_seconds(metrics)
                if "heldout_accuracy" in metrics:
                    of_teacher = metrics.get("teacher_accuracy")  # one that only scores answers nothing
                    bar.write(
                        f"step {report.step}: held-out accuracy {metrics['heldout_accuracy']:.1%} of "
                        f"{metrics['heldout_n']}"
                        + ("" if of_teacher is None else f", teacher {of_teacher:.1%}")
                    )

            run.take_over()
            before = signal.signal(signal.SIGINT, lambda *_: run.ask("stop"))
            try:
                worker.work(run, show, lambda sentence: bar.write(harmless(sentence)))
            finally:
                signal.signal(signal.SIGINT, before)
    status = run.status()
    say(f"Run {run.name} {status.state} at step {status.step} of {status.steps}. {status.message}".strip())
    print(f"Training took {seconds:.1f} s, loading and evaluation not counted.")
    if run.model_dir:
        say(f"The student is in {run.model_dir}.")
