"""Work on a run: in this process, or in one of its own that outlives the page that started it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from opd.alarms import alarms_at, standing
from opd.config import DistillConfig
from opd.grading.grading import LOWER_BOUND
from opd.models.hub import absent, fetch
from opd.models.load import resolve_device
from opd.models.parallel import cause, gathered, gpus, tell, told, world
from opd.phases import announce, listening
from opd.runs.queue import Place, draw_tickets, stand_in_line, waiting_sentence
from opd.runs.run import Race, Run, create_run, merit, sentences
from opd.tasks import Task
from opd.training.distillation import Distillation, distill, learning_rate
from opd.training.doctor import Finding, examine
from opd.training.lessons import settings_of
from opd.training.losses import alternatives
from opd.training.preflight import must_have_tracker, preflight
from opd.trajectory import StepReport

Found = TypeVar("Found")

POLL_SECONDS = 0.2
"""How often a run that waits (for a device, or paused) looks whether it may go on."""


def work(
    run: Run,
    on_report: Callable[[StepReport], None] = lambda report: None,
    say: Callable[[str], None] = lambda sentence: None,
    tickets: Mapping[Path, int] | None = None,
) -> None:
    """Train the run to its end, or until a stop is asked for, from its newest checkpoint if it has one.

    It stands in line for its devices first, one job a device. The caller holds the run's lock. Every step is
    on disk before ``on_report`` hears of it.

    Args:
        run: the run.
        on_report: hears of every step.
        say: hears every sentence for the user: what the run waits for, what its task holds, what the doctor
            warns of, notes and alarms.
        tickets: those that it stands in line with, if they are drawn already.

    Raises:
        ValueError: a model or the task cannot be used.
        RuntimeError: a step went wrong (out of memory, loss not finite).
        OSError: the disk is full.
    """
    try:
        with stand_in_line(run.name, devices_of(run.config), tickets) as place:
            if _wait_for_turn(run, place, say):
                with listening(run.tell_phase), tracker(run) as track:
                    _train(run, lambda report: (track(report), on_report(report)), say)
    except Exception as error:
        reason = cause(error)
        run.log_event("failed", message=str(reason) or type(reason).__name__)
        if reason is error:
            raise
        raise reason from error


def follow() -> None:
    """Take part in the runs of the first process, as any other one: do all that it says, and write nothing.

    Raises:
        FailedElsewhere: another process failed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C asks the first process to stop the run
    distillation: Distillation | None = None
    while (order := told()) is not None:
        if isinstance(order, Run):
            distillation = _load(order)
        else:
            order(distillation)


def _all(order: Callable[[Distillation], Found], distillation: Distillation) -> Found:
    """Let every process of the run do something with its part of the distillation."""
    tell(order)
    return order(distillation)


def devices_of(config: DistillConfig) -> list[str]:
    """Return the devices that a run needs for itself, such as "cpu" or "cuda:0".

    Raises:
        ValueError: one of them is not there.
    """
    found = [resolve_device(name) for name in (config.device, config.teacher_device or config.device)]
    if world() > 1 and found[0].index is not None:
        raise ValueError(
            f"torchrun started {world()} processes, and each wants a GPU of its own for the student: set the "
            f"device to auto instead of {config.device}."
        )
    cuda = {f"cuda:{index}" for d in found if d.type == "cuda" for index in gpus(d)}
    return sorted({d.type for d in found if d.type != "cuda"} | cuda)


def _wait_for_turn(run: Run, place: Place, say: Callable[[str], None]) -> bool:
    """Wait until the devices are the run's; False: a stop was asked for first."""
    if ahead := place.ahead():
        run.log_event("queued", message=waiting_sentence(ahead))
        say(waiting_sentence(ahead))
    while place.ahead():
        if run.asked() in ("stop", "keep_best"):
            run.log_event("stopped", message="Taken out of the queue before it began.")
            return False
        time.sleep(POLL_SECONDS)
    return True


def _fetch_models(run: Run) -> bool:
    """Download models that are not here, with a line of progress; False: a stop was asked for meanwhile.

    Raises:
        ValueError: one cannot be downloaded.
    """
    config = run.config
    teachers = [] if config.teacher_url else [config.teacher]
    for name in absent([config.student, *teachers, *(lesson.teacher for lesson in config.lessons)]):
        with contextlib.closing(fetch(name)) as download:
            for progress in download:
                print(f"\r{progress}", end="", file=sys.stderr, flush=True)
                announce(str(progress))
                if run.asked() in ("stop", "keep_best"):
                    run.log_event("stopped", message=f"Stopped while {name} was being downloaded.")
                    return False
        print(file=sys.stderr)
    return True


def _train(run: Run, on_report: Callable[[StepReport], Any], say: Callable[[str], None]) -> None:
    if not _fetch_models(run):
        return
    tell(run)
    distillation = _load(run)
    run.try_saving(distillation.student)
    resumed = distillation.next_step > 0
    run.log_event("resumed" if resumed else "started", step=distillation.next_step)
    cursor = run.read_from().cursor

    def say_news() -> None:
        nonlocal cursor
        news = run.read_from(cursor)
        cursor = news.cursor
        for event in news.events:
            for sentence in sentences(event):
                say(sentence)

    if resumed:
        _compare_tasks(run, distillation)
    else:
        for lesson in distillation.lessons:
            say(lesson.task.summary())
        _examine(run, distillation)
    if resumed and run.config.engine == "vllm":
        run.log_event(
            "note",
            message="Resumed with vLLM: the prompts are those of an uninterrupted run, the sampled tokens "
            "need not be.",
        )
    say_news()
    rows = [row for row in run.rows() if row["step"] < distillation.next_step]
    saved_at = distillation.next_step - 1 if resumed else None

    def save(*, last: bool = False) -> None:
        nonlocal saved_at
        step = distillation.next_step - 1
        if saved_at == step:
            return
        try:
            run.save_checkpoint(distillation.student, _all(Distillation.state_dict, distillation))
        except OSError as error:
            if last:
                raise
            reason = str(error).rstrip(".")
            run.log_event(
                "note", step=step, message=f"No checkpoint was written: {reason}. Training goes on."
            )
        else:
            saved_at = step

    race = run.race()
    asked = message = None
    while distillation.next_step <= run.config.steps:
        report = _all(next, distillation)
        rows.append(report.row())
        report = replace(report, alarms=alarms_at(rows, rewarded=run.config.rewarded))
        run.append(report)
        on_report(report)
        if report.step and (report.step % run.config.save_every == 0 or _is_best(rows)):
            save()
        say_news()
        asked = run.asked()
        if asked == "pause" and report.step < run.config.steps:
            save()
            asked = _pause(run, report.step)
        if asked in ("stop", "keep_best"):
            break
        if race and race.is_over(rows):
            message = "It has spent the budget of its race."
            break
    step = distillation.next_step - 1
    said = [message] if message else []
    best = run.drop_after_best() if asked == "keep_best" else None
    if best is None:
        save(last=True)
    else:
        said.append(f"Kept the best checkpoint, that of step {best}.")
    say_news()
    kept = [row for row in rows if row["step"] <= (step if best is None else best)]
    alarms = standing(kept, rewarded=run.config.rewarded)
    if alarms:
        what = "an alarm" if len(alarms) == 1 else f"{len(alarms)} alarms"
        said.append(f"It ends with {what}: {', '.join(alarms)}.")
    ended = "finished" if step == run.config.steps or not asked else "stopped"
    run.log_event(ended, step=step, message=" ".join(said), alarmed=bool(alarms))


def _load(run: Run) -> Distillation:
    """Load a run's models, as its newest checkpoint says if it has one."""
    distillation = distill(run.config)
    state = run.load_checkpoint()
    try:
        return distillation if state is None else distillation.load_state_dict(state)
    except LookupError as error:
        raise ValueError(
            f"The checkpoint {run.newest_checkpoint} is damaged: it lacks {error}. Delete it, and the run "
            "goes on from the one before it."
        ) from error


def _pause(run: Run, step: int) -> str | None:
    """Wait, with the models in memory, until something else than a pause is asked for; return it."""
    run.log_event("paused", step=step)
    while (asked := run.asked()) == "pause":
        time.sleep(POLL_SECONDS)
    if asked is None:
        run.log_event("resumed", step=step + 1)
    return asked


def _examine(run: Run, distillation: Distillation) -> None:
    """Let the doctor look at every lesson before the first step, and keep what it finds.

    Raises:
        ValueError: a finding says that the run would go wrong, and the config does not ignore it.
    """
    for lesson, findings in zip(distillation.lessons, _all(_findings, distillation), strict=True):
        _log_task(run, lesson.task)
        vocabulary = lesson.pair.vocabulary
        if lesson.pair.scorer is not None and (kept := alternatives(run.config, vocabulary)) < vocabulary:
            run.log_event("note", message=LOWER_BOUND.format(kept))
        run.log_event("examined", findings=[asdict(finding) for finding in findings])
        failed = " ".join(f.message for f in findings if f.level == "fail")
        if failed and not run.config.ignore_doctor:
            raise ValueError(f"The doctor advises against this run. {failed} (ignore_doctor trains anyway.)")


def _log_task(run: Run, task: Task) -> None:
    run.log_event("task", message=task.summary(), sizes=task.sizes(), fingerprint=task.fingerprint())


def _compare_tasks(run: Run, distillation: Distillation) -> None:
    """Say which tasks hold other prompts than when the run last looked."""
    tasks = [lesson.task for lesson in distillation.lessons]
    looked = [event.get("fingerprint") for event in run.events() if event["event"] == "task"][-len(tasks) :]
    changed = [t for t, before in zip(tasks, looked, strict=False) if before not in (None, t.fingerprint())]
    for task in changed:
        run.log_event(
            "note",
            message=f"{task.name} has changed since the run last read it. From here on its prompts are those "
            "of now, the held-out ones too, so figures of before and after do not compare.",
        )
    for task in tasks if changed else ():
        _log_task(run, task)


def _findings(distillation: Distillation) -> list[list[Finding]]:
    """Return what the doctor finds in each lesson."""
    of, sampler = distillation.config, distillation.sampler
    with gathered(distillation.student), distillation.precision():
        return [
            examine(x.pair, config=settings_of(i, of), task=x.task, sampler=sampler)
            for i, x in enumerate(distillation.lessons)
        ]


@contextlib.contextmanager
def tracker(run: Run) -> Iterator[Callable[[StepReport], None]]:
    """Yield what sends a report to the tracker that the config names; trackio speaks wandb's language.

    Raises:
        ValueError: the tracker is not installed.
    """
    name = run.config.report_to
    if name == "none":
        yield lambda report: None
        return
    must_have_tracker(name)
    module = import_module(name)
    module.init(project="opd-studio", name=run.name, config=run.config.model_dump())
    try:
        yield lambda report: module.log(dict(report.metrics), step=report.step)
    finally:
        module.finish()  # the last rows travel now


def _is_best(rows: list[dict[str, float]]) -> bool:
    """Whether the last row is better than all before it."""
    now = merit(rows[-1])
    return now is not None and all(now > earlier for row in rows[:-1] if (earlier := merit(row)) is not None)


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
    _spawn(run, devices_of(config))
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
    _spawn(run, devices_of(run.config), steps)


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
        _spawn(run, devices_of(run.config))
    return runs


def _spawn(run: Run, devices: Sequence[str], steps: int | None = None) -> None:
    """Work on a run in a process of its own, which inherits its lock and its place in the lines."""
    with contextlib.ExitStack() as ours:
        descriptor = ours.enter_context(run.hold())
        log = ours.enter_context((run.path / "log.txt").open("ab"))
        if steps is not None:
            prolong(run, steps)
        tickets = draw_tickets(run.name, devices)
        ours.callback(lambda: [os.close(ticket) for ticket in tickets.values()])
        run.take_over()
        subprocess.Popen(
            [
                *(sys.executable, "-m", "opd.runs.jobs", str(run.path.resolve()), str(descriptor)),
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


def main() -> int:
    """Entry point of the child process: ``python -m opd.runs.jobs RUN_DIR LOCK DESCRIPTOR=TICKET ...``.

    LOCK is a descriptor too.
    """
    path, lock, *drawn = sys.argv[1:]
    tickets = {Path(ticket): int(number) for number, _, ticket in (word.partition("=") for word in drawn)}
    for descriptor in (int(lock), *tickets.values()):
        os.set_inheritable(descriptor, False)  # held until this process ends, and by no child of it
    try:
        work(Run(Path(path)), tickets=tickets)
    except (ValueError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
