"""What the process does that works on a run: wait for devices, load, examine, train, save, write it down."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from opd.alarms import alarms_at, merit, standing
from opd.config import DistillConfig
from opd.grading.grading import LOWER_BOUND
from opd.models.load import resolve_device
from opd.models.parallel import cause, gpus, next_order, send_order, world
from opd.models.sources import absent, source_of
from opd.phases import announce, listening
from opd.reports import StepReport
from opd.runs.checkpoints import read_checkpoint, try_saving
from opd.runs.events import sentences
from opd.runs.queue import ahead, stand_in_line, waiting_sentence
from opd.runs.run import Request, Run
from opd.tasks import Task
from opd.training.distillation import Distillation, distill
from opd.training.doctor import Finding, examine
from opd.training.lessons import settings_of
from opd.training.losses import alternatives
from opd.training.preflight import must_have_tracker

Found = TypeVar("Found")
Say = Callable[[str], None]
OnReport = Callable[[StepReport], object]

POLL_SECONDS = 0.2
"""How often a run that waits (for a device, or paused) looks whether it may go on."""

RESUMED_WITH_VLLM = (
    "Resumed with vLLM: the prompts are those of an uninterrupted run, the sampled tokens need not be."
)


def work(
    run: Run,
    on_report: OnReport = lambda report: None,
    say: Say = lambda sentence: None,
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
        with stand_in_line(run.name, devices_of(run.config), tickets):
            if _wait_for_turn(run, say):
                with listening(run.write_phase), tracker(run) as track:
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
    while (order := next_order()) is not None:
        if isinstance(order, Run):
            distillation = _load(order)
        else:
            order(distillation)


def _all(order: Callable[[Distillation], Found], distillation: Distillation) -> Found:
    """Let every process of the run do something with its part of the distillation."""
    send_order(order)
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


# Before the first step


def _wait_for_turn(run: Run, say: Say) -> bool:
    """Wait until the devices are the run's; False: a stop was asked for first."""
    if sentence := waiting_sentence(ahead(run.name)):
        run.log_event("queued", message=sentence)
        say(sentence)
    while ahead(run.name):
        if _is_stop(run.asked()):
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
        source = source_of(name)
        run.log_event("note", message=f"Fetching {name} ({source.request(name)}).")
        with contextlib.closing(source.fetch(name)) as download:
            for progress in download:
                print(f"\r{progress}", end="", file=sys.stderr, flush=True)
                announce(str(progress))
                if _is_stop(run.asked()):
                    run.log_event("stopped", message=f"Stopped while {name} was being downloaded.")
                    return False
        print(file=sys.stderr)
    return True


def _load(run: Run) -> Distillation:
    """Load a run's models, as its newest checkpoint says if it has one."""
    distillation, checkpoint = distill(run.config), run.newest_checkpoint
    if checkpoint is None:
        return distillation
    try:
        return distillation.load_state_dict(read_checkpoint(checkpoint))
    except LookupError as error:
        raise ValueError(
            f"The checkpoint {checkpoint} is damaged: it lacks {error}. Delete it, and the run goes on from "
            "the one before it."
        ) from error


def _examine(run: Run, distillation: Distillation) -> None:
    """Let the doctor look at every lesson before the first step, and keep what it finds.

    Raises:
        ValueError: a finding says that the run would go wrong, and the config does not ignore it.
    """
    for lesson, findings in zip(distillation.lessons, _all(_findings, distillation), strict=True):
        _log_task(run, lesson.task)
        vocabulary = lesson.pair.vocabulary
        if (kept := lesson.pair.scorer.gives(alternatives(run.config, vocabulary))) < vocabulary:
            run.log_event("note", message=LOWER_BOUND.format(kept))
        run.log_event("examined", findings=[asdict(finding) for finding in findings])
        failed = " ".join(f.message for f in findings if f.level == "fail")
        if failed and not run.config.ignore_doctor:
            raise ValueError(f"The doctor advises against this run. {failed} (ignore_doctor trains anyway.)")


def _findings(distillation: Distillation) -> list[list[Finding]]:
    """Return what the doctor finds in each lesson."""
    of, sampler = distillation.config, distillation.sampler
    with distillation.learner.asking():
        return [
            examine(x.pair, config=settings_of(i, of), task=x.task, sampler=sampler)
            for i, x in enumerate(distillation.lessons)
        ]


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


def _log_task(run: Run, task: Task) -> None:
    run.log_event("task", message=task.summary(), sizes=task.sizes(), fingerprint=task.fingerprint())


# The steps


def _train(run: Run, on_report: OnReport, say: Say) -> None:
    if not _fetch_models(run):
        return
    send_order(run)
    trainer = _Trainer(run, _load(run), say)
    trainer.begin()
    trainer.end(*trainer.train(on_report))


class _Trainer:
    """Trains a run, and keeps what must be known from one step to the next."""

    def __init__(self, run: Run, distillation: Distillation, say: Say) -> None:
        """Take a run whose models are loaded."""
        self.run, self.distillation, self.say = run, distillation, say
        self.resumed = distillation.next_step > 0
        self.rows = [row for row in run.rows() if row["step"] < distillation.next_step]
        self.saved_at = self.step if self.resumed else None
        self.cursor = run.read_from().cursor

    @property
    def step(self) -> int:
        """The last step that was made."""
        return self.distillation.next_step - 1

    def begin(self) -> None:
        """Try whether it can be saved, and examine it; one that goes on is compared with what it was.

        Raises:
            OSError: it cannot be saved.
            ValueError: the doctor forbids it.
        """
        run, distillation = self.run, self.distillation
        try_saving(run.path / "checkpoints", distillation.student)
        run.log_event("resumed" if self.resumed else "started", step=distillation.next_step)
        if not self.resumed:
            for lesson in distillation.lessons:
                self.say(lesson.task.summary())
            _examine(run, distillation)
        else:
            _compare_tasks(run, distillation)
            if run.config.engine == "vllm":
                run.log_event("note", message=RESUMED_WITH_VLLM)
        self._say_news()

    def train(self, on_report: OnReport) -> tuple[Request | None, str]:
        """Make steps; return what was asked and, where a race has spent its budget, a sentence on that."""
        run, race, asked = self.run, self.run.race(), None
        while self.distillation.next_step <= run.config.steps:
            report = _all(next, self.distillation)
            self.rows.append(report.row())
            report = replace(report, alarms=alarms_at(self.rows, rewarded=run.config.rewarded))
            run.append(report)
            on_report(report)
            if report.step and (report.step % run.config.save_every == 0 or _is_best(self.rows)):
                self._save()
            self._say_news()
            asked = run.asked()
            if asked == "pause" and report.step < run.config.steps:
                self._save()
                asked = _pause(run, report.step)
            if _is_stop(asked):
                break
            if race and race.is_over(self.rows):
                return asked, "It has spent the budget of its race."
        return asked, ""

    def end(self, asked: Request | None, reason: str) -> None:
        """Save it for the last time, or go back to its best checkpoint, and write down how it ended."""
        run, step = self.run, self.step
        said = [reason] if reason else []
        best = run.drop_after_best() if asked == "keep_best" else None
        if best is None:
            self._save(last=True)
        else:
            said.append(f"Kept the best checkpoint, that of step {best}.")
        self._say_news()
        kept = [row for row in self.rows if row["step"] <= (step if best is None else best)]
        alarms = standing(kept, rewarded=run.config.rewarded)
        if alarms:
            what = "an alarm" if len(alarms) == 1 else f"{len(alarms)} alarms"
            said.append(f"It ends with {what}: {', '.join(alarms)}.")
        ended = "finished" if step == run.config.steps or not asked else "stopped"
        run.log_event(ended, step=step, message=" ".join(said), alarmed=bool(alarms))

    def _save(self, *, last: bool = False) -> None:
        """Write a checkpoint, unless this step has one; training goes on without all of them but the last."""
        if self.saved_at == self.step:
            return
        try:
            state = _all(Distillation.state_dict, self.distillation)
            self.run.save_checkpoint(self.distillation.student, state)
        except OSError as error:
            if last:
                raise
            message = f"No checkpoint was written: {str(error).rstrip('.')}. Training goes on."
            self.run.log_event("note", step=self.step, message=message)
        else:
            self.saved_at = self.step

    def _say_news(self) -> None:
        news = self.run.read_from(self.cursor)
        self.cursor = news.cursor
        for sentence in (s for event in news.events for s in sentences(event)):
            self.say(sentence)


def _is_stop(asked: Request | None) -> bool:
    return asked in ("stop", "keep_best")


def _is_best(rows: list[dict[str, float]]) -> bool:
    """Whether the last row is better than all before it."""
    now = merit(rows[-1])
    return now is not None and all(now > earlier for row in rows[:-1] if (earlier := merit(row)) is not None)


def _pause(run: Run, step: int) -> Request | None:
    """Wait, with the models in memory, until something else than a pause is asked for; return it."""
    run.log_event("paused", step=step)
    while (asked := run.asked()) == "pause":
        time.sleep(POLL_SECONDS)
    if asked is None:
        run.log_event("resumed", step=step + 1)
    return asked


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


def main() -> int:
    """Entry point of a process of its own: ``python -m opd.runs.worker RUN_DIR LOCK DESCRIPTOR=TICKET ...``.

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
