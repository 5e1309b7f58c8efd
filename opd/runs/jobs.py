"""What is asked of runs from outside: to be created, to begin in a process of their own, to go on."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

from opd.config import DistillConfig
from opd.runs.queue import draw_tickets
from opd.runs.run import Race, Run, create_run
from opd.runs.worker import devices_of
from opd.training.learner import learning_rate
from opd.training.preflight import preflight


def enter(config: DistillConfig, name: str) -> Run:
    """Create a run, if all that can be known of it beforehand is well; see :mod:`opd.training.preflight`.

    Raises:
        ValueError: the name is taken or no plain file name, or the run could not begin.
        OSError: the run's folder cannot be written.
    """
    preflight(config)
    return create_run(name, config)


def start(config: DistillConfig, name: str) -> Run:
    """Create a run and train it in a process of its own; see :func:`enter`.

    The child inherits the held lock, so there is no moment at which a living run looks dead.
    """
    run = enter(config, name)
    _spawn(run)
    return run


def resume(run: Run, steps: int | None = None) -> None:
    """Go on with a run in a process of its own, from its newest checkpoint.

    Args:
        run: the run.
        steps: prolong it to so many updates; see :func:`prolong`.

    Raises:
        RunBusyError: a process works on it already.
        ValueError: it is finished, or cannot be prolonged to that.
    """
    refuse_finished(run, steps)
    preflight(run.config)
    _spawn(run, steps)


def refuse_finished(run: Run, steps: int | None) -> None:
    """Say no to going on with a run that has nothing left to do.

    Raises:
        ValueError: it is finished, and no further ``steps`` are asked for.
    """
    if steps is None and run.status().state == "finished":
        raise ValueError(
            f"The run {run.name} is finished. To go on with it, ask for more than {run.config.steps} steps."
        )


def prolong(run: Run, steps: int) -> None:
    """Let a run make more updates, holding its lock; an event says what that means.

    From its newest checkpoint on it is what a run of ``steps`` would be with that state. So the learning rate
    follows the schedule of the new total: where it had come down to almost nothing it jumps up again.

    Raises:
        ValueError: it makes that many steps anyway, or the budget of its race is spent.
    """
    before, race, step = run.config, run.race(), run.saved_step
    if steps <= before.steps:
        raise ValueError(f"The run {run.name} makes {before.steps} steps already: ask for more.")
    if race and race.is_over(run.rows()):
        raise ValueError(f"The run {run.name} has spent the budget of its race {race.name}.")
    run.set_steps(steps)
    old, new = learning_rate(before, max(1, step)), learning_rate(run.config, step + 1)
    run.log_event(
        "note",
        step=step,
        message=f"Prolonged from {before.steps} to {steps} steps. The learning rate follows the schedule of "
        f"the new total: {new:.3g} next, after {old:.3g}, and then down to zero once more.",
    )


def enter_race(configs: Mapping[str, DistillConfig], race: Race) -> list[Run]:
    """Create the runs of a race, all or none; each is an ordinary run called RACE-METHOD.

    Args:
        configs: the methods by name, what they are compared on (pair, task, steps) being alike.
        race: its name and its budget.

    Raises:
        ValueError: a name is taken or no plain file name, or a run could not begin.
        OSError: a run's folder cannot be written.
    """
    for method, config in configs.items():
        try:
            preflight(config)
        except ValueError as error:
            raise ValueError(f"{method}: {error}") from error
    runs: list[Run] = []
    try:
        for method, config in configs.items():
            runs.append(create_run(f"{race.name}-{method}", config, race))
    except (ValueError, OSError):
        for run in runs:
            shutil.rmtree(run.path)
        raise
    return runs


def start_race(configs: Mapping[str, DistillConfig], race: Race) -> list[Run]:
    """Start the runs of a race in processes of their own, which take turns; see :func:`enter_race`."""
    runs = enter_race(configs, race)
    for run in runs:
        _spawn(run)
    return runs


def _spawn(run: Run, steps: int | None = None) -> None:
    """Work on a run in a process of its own, which inherits its lock and its place in the lines."""
    with contextlib.ExitStack() as ours:
        descriptor = ours.enter_context(run.hold())
        log = ours.enter_context((run.path / "log.txt").open("ab"))
        if steps is not None:
            prolong(run, steps)
        tickets = draw_tickets(run.name, devices_of(run.config))
        ours.callback(lambda: [os.close(ticket) for ticket in tickets.values()])
        run.take_over()
        subprocess.Popen(
            [
                *(sys.executable, "-m", "opd.runs.worker", str(run.path.resolve()), str(descriptor)),
                *(f"{ticket}={path.resolve()}" for path, ticket in tickets.items()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[descriptor, *tickets.values()],
            start_new_session=True,
            # Idle threads must not spin: the app and the job share the cores.
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        )
