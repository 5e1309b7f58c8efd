"""The run directory: everything a run leaves behind, written so that a crash at any byte loses nothing whole.

``$OPD_HOME/runs/NAME/`` (default ``./runs``) holds ``config.json``, ``metrics.jsonl`` (one line a step, the
last line of a step counts), ``samples.jsonl`` (graded trajectories), ``events.jsonl``, ``control.json`` (what
users ask of the process that works on it), ``phase.txt`` (what that process does right now),
``checkpoints/step-000050/``, ``log.txt`` of a run in the background, and ``lock``: who holds it lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from opd.alarms import merit
from opd.config import DistillConfig, make_config, read_config
from opd.files import home_dir, try_lock, write_atomically
from opd.reports import StepReport, training_seconds
from opd.runs.checkpoints import (
    PINNED,
    checkpoints_in,
    holds_model,
    remove_unpinned,
    step_of,
    write_checkpoint,
)
from opd.runs.events import as_state, sentences
from opd.runs.journal import TAIL, Journal, as_event, as_row, is_number, parsed, size
from opd.runs.queue import ahead, is_locked, waiting_sentence
from opd.runs.samples import SAMPLES_LIMIT, SampleFile, sample_file

if TYPE_CHECKING:
    from opd.models.network import LanguageModel

State = Literal[
    *("queued", "running", "pausing", "paused", "stopping"),
    *("finished", "stopped", "failed", "interrupted"),
]
Request = Literal["pause", "stop", "keep_best"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LEFTOVER = re.compile(rf"\.{_NAME.pattern}\.([0-9a-f]{{8}}\.partial|deleted)")

LEFT_SECONDS = 600
"""No start and no deletion leaves a folder untouched for so long."""


class RunExistsError(ValueError):
    """There is a run of that name already."""


class RunBusyError(ValueError):
    """Another process is working on the run."""


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands.

    Attributes:
        state: a process holds it while it is "queued" (for a device), "running", "pausing" and "stopping"
            (asked for, not yet done) or "paused"; "interrupted" when that process died.
        step: the last step that was written.
        steps: updates asked for.
        message: a sentence for the user; empty if there is nothing to say.
        alarmed: whether it ended while an alarm stood; the message says which.
        phase: what the process does right now, in a few words; empty where none works.
    """

    state: State
    step: int
    steps: int
    message: str = ""
    alarmed: bool = False
    phase: str = ""

    @property
    def live(self) -> bool:
        """Whether a process is working on it."""
        return self.state in ("queued", "running", "pausing", "paused", "stopping")


@dataclass(frozen=True)
class News:
    """What a run has written since somebody last looked.

    Attributes:
        rows: metrics of steps, in the order they were written. A step that came before replaces its earlier
            row: a resumed run makes the steps after its checkpoint again.
        events: events in the order they happened.
        cursor: what to ask with next time.
        restart: whether all that was known before must be forgotten: the cursor was none of this run.
    """

    rows: list[dict[str, float]]
    events: list[dict[str, Any]]
    cursor: str
    restart: bool


@dataclass(frozen=True)
class Race:
    """A race that a run takes part in, and the budget at which it ends; None = without limit.

    Attributes:
        name: of the race.
        tokens: completion tokens of all its steps together.
        seconds: of training: sampling, teacher and updates; evaluations are not counted.

    Raises:
        ValueError: a budget is no positive number.
    """

    name: str
    tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Refuse a budget that means nothing."""
        for unit in ("tokens", "seconds"):
            budget = getattr(self, unit)
            if budget is not None and not _is_budget(budget):
                raise ValueError(f"The budget in {unit} must be a positive number, not {budget}.")

    def is_over(self, rows: Sequence[Mapping[str, float]]) -> bool:
        """Whether these steps have spent the budget."""
        tokens = sum(row.get("tokens", 0) for row in rows)
        seconds = sum(map(training_seconds, rows))
        return tokens >= (self.tokens or float("inf")) or seconds >= (self.seconds or float("inf"))


def runs_dir() -> Path:
    """Return the folder of all runs."""
    return home_dir() / "runs"


@dataclass(frozen=True)
class Run:
    """One run on disk. Many processes may read it; the one that holds the lock writes."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name, its folder's."""
        return self.path.name

    @property
    def config(self) -> DistillConfig:
        """The config it was started with.

        Raises:
            ValueError: this version cannot read it.
        """
        path = self.path / "config.json"
        return _read_config(path, path.stat().st_ctime_ns)

    @property
    def readable(self) -> bool:
        """Whether this version understands its config."""
        try:
            return self.config is not None
        except (OSError, ValueError):
            return False

    @property
    def born(self) -> int:
        """When it was created, nanoseconds since 1970: no earlier run of its name has the same."""
        return (self.path / "config.json").stat().st_mtime_ns

    def race(self) -> Race | None:
        """Return the race that it takes part in, if any; a budget that means nothing is none.

        Raises:
            ValueError: the file that says so cannot be read.
        """
        path = self.path / "race.json"
        try:
            data = parsed(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
        match data:
            case {"name": str(name), **more}:
                return Race(name, **{u: more[u] for u in ("tokens", "seconds") if _is_budget(more.get(u))})
        raise ValueError(f"{path} cannot be read: it names no race.")

    def set_steps(self, steps: int) -> None:
        """Change how many updates are asked for, holding its lock; when it was created stays as it is.

        Raises:
            ValueError: the config does not allow that number.
        """
        path, born = self.path / "config.json", self.born
        config = make_config(self.config.model_dump() | {"steps": steps})
        write_atomically(path, config.model_dump_json(indent=2))
        os.utime(path, ns=(born, born))

    # What has been reported

    @property
    def _metrics(self) -> Journal:
        return Journal(self.path / "metrics.jsonl", as_row)

    @property
    def _events(self) -> Journal:
        return Journal(self.path / "events.jsonl", as_event)

    @property
    def samples(self) -> SampleFile:
        """The graded trajectories that it kept."""
        return sample_file(self.path / "samples.jsonl")

    def rows(self, since: int = -1) -> list[dict[str, float]]:
        """Return the metrics of every step after ``since``; row 0 is the evaluation before training."""
        latest = {row["step"]: row for row in self._metrics}
        return [latest[step] for step in sorted(latest) if step > since]

    def events(self) -> list[dict[str, Any]]:
        """Return all events, in the order they happened; each has "event" and "time" (seconds since 1970)."""
        return list(self._events)

    def notes(self) -> list[str]:
        """Return sentences for the user: what the doctor did not pass, what steps had to say, alarms."""
        return [sentence for event in self._events for sentence in sentences(event)]

    def read_from(self, cursor: str | None = None) -> News:
        """Return what was written since the reading that gave ``cursor``; from the beginning if None.

        Only new bytes are read. A line that is still being written waits for the next reading, one torn by a
        crash is passed over. Safe with any text as cursor.
        """
        born, journals = self.born, (self._metrics, self._events)
        known = re.fullmatch(rf"{born}-(\d{{1,15}})-(\d{{1,15}})", cursor or "")
        starts = [int(known[1]), int(known[2])] if known else [0, 0]
        restart = not known or any(s > size(j.path) for s, j in zip(starts, journals, strict=True))
        (rows, at_row), (events, at_event) = (
            journal.since(0 if restart else start) for start, journal in zip(starts, journals, strict=True)
        )
        return News(rows, events, f"{born}-{at_row}-{at_event}", restart)

    def append(self, report: StepReport) -> None:
        """Write a step's metrics, trajectories as far as there is room, notes and alarms.

        Raises:
            OSError: the disk is full; complete lines stay readable.
        """
        self._metrics.append(report.row())
        if not self.samples.keep(report, self.config.steps) and not self._happened(about="samples"):
            self.log_event(
                "note",
                step=report.step,
                about="samples",
                message=f"There is room for {SAMPLES_LIMIT / 2**20:.0f} MiB of graded trajectories: from "
                "here on not every step keeps its own.",
            )
        for message in report.notes:
            self.log_event("note", step=report.step, message=message)
        for alarm in report.alarms:
            if not self._happened(kind=alarm.kind, step=alarm.step):  # a resumed run makes steps again
                self.log_event("alarm", **asdict(alarm))

    def _happened(self, **details: Any) -> bool:  # noqa: ANN401
        """Whether there is an event with all of these details."""
        return any(details.items() <= event.items() for event in self._events)

    def log_event(self, event: str, **details: Any) -> None:  # noqa: ANN401
        """Add an event; see :mod:`opd.runs.events`."""
        self._events.append({"event": event, "time": time.time(), **details})

    def status(self) -> RunStatus:
        """Say where the run stands, from its lock and the ends of its files."""
        steps = self.config.steps
        step = (self._metrics.newest() or {"step": 0})["step"]
        last = self._events.newest(as_state) or {"event": None}
        if is_locked(self.path / "lock"):
            state, message = self._live_state(last["event"])
            phase = self._phase() if state in ("running", "pausing", "stopping") else ""
            return RunStatus(state, step, steps, message, phase=phase)
        if last["event"] in ("finished", "stopped", "failed"):
            message, alarmed = str(last.get("message", "")), bool(last.get("alarmed", False))
            return RunStatus(last["event"], step, steps, message, alarmed)
        message = f"The process ended without a word. {self._last_words()}"
        return RunStatus("interrupted", step, steps, message)

    def _last_words(self) -> str:
        """Return the last lines that a run in the background printed; empty if there are none."""
        log = self.path / "log.txt"
        if not log.exists():
            return ""
        with log.open("rb") as file:
            file.seek(max(0, size(log) - TAIL))
            return "\n".join(file.read().decode("utf-8", errors="replace").splitlines()[-5:])

    # Who works on it

    @contextlib.contextmanager
    def hold(self) -> Iterator[int]:
        """Hold the run's lock; yields its file descriptor, which a child process may inherit.

        Raises:
            RunBusyError: another process holds it.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            deadline = time.monotonic() + 1.0  # a reader that asks who holds it does so for an instant
            while not try_lock(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise RunBusyError(f"Another process is working on the run {self.name}.")
                time.sleep(0.02)
            yield descriptor
        finally:
            os.close(descriptor)

    def _live_state(self, last: str | None) -> tuple[State, str]:
        """Return what the process that holds the run does, given its last event, and a sentence on it."""
        asked = self.asked()
        if asked in ("stop", "keep_best"):
            return "stopping", ""
        if last == "queued":
            sentence = waiting_sentence(ahead(self.name))
            return ("queued", sentence) if sentence else ("running", "")
        if last == "paused":
            return ("paused", "") if asked == "pause" else ("running", "")
        return ("pausing", "") if asked == "pause" else ("running", "")

    def write_phase(self, phase: str) -> None:
        """Say what is being done right now; see :mod:`opd.phases`. A full disk is others' to report."""
        with contextlib.suppress(OSError):
            write_atomically(self.path / "phase.txt", phase)

    def _phase(self) -> str:
        try:
            return (self.path / "phase.txt").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def ask(self, request: Request | None) -> None:
        """Ask something of whoever works on the run; it is done after the current step, and is an event.

        Args:
            request: "pause"; "stop", with a checkpoint; "keep_best": stop and drop the checkpoints after the
                best one; None takes back what was asked, so a paused run goes on.
        """
        write_atomically(self.path / "control.json", json.dumps({"request": request}))

    def asked(self) -> Request | None:
        """Return what was asked of whoever works on the run."""
        with contextlib.suppress(OSError):
            match parsed((self.path / "control.json").read_bytes()):
                case {"request": "pause" | "stop" | "keep_best" as request}:
                    return request
        return None

    def take_over(self) -> None:
        """Begin to work on the run, holding its lock: what was asked of an earlier process is forgotten."""
        (self.path / "control.json").unlink(missing_ok=True)
        self.write_phase("Starting")
        self.log_event("loading")

    # Checkpoints

    @property
    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return checkpoints_in(self.path / "checkpoints")

    @property
    def newest_checkpoint(self) -> Path | None:
        """The checkpoint behind which a resumption goes on; None before the first."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def saved_step(self) -> int:
        """The step of the newest checkpoint; 0 before the first."""
        return step_of(self.newest_checkpoint) if self.newest_checkpoint else 0

    @property
    def model_dir(self) -> Path | None:
        """The newest checkpoint that transformers (or PEFT) loads as a model; None where there is none."""
        return next((path for path in reversed(self.checkpoints) if holds_model(path)), None)

    @property
    def best_step(self) -> int | None:
        """The best step among those whose model can be loaded, the first of equals; see :func:`merit`.

        Where no checkpoint holds a model, the best that can be resumed from. None where nothing was measured.
        """
        found = self.checkpoints
        kept = {step_of(path) for path in [*filter(holds_model, found)] or found}
        scored = [row for row in self.rows() if row["step"] in kept and merit(row) is not None]
        return max(scored, key=merit)["step"] if scored else None

    def checkpoint(self, step: int) -> Path:
        """Return the checkpoint of a step.

        Raises:
            ValueError: it was not kept; the message names those that were.
        """
        found = {step_of(path): path for path in self.checkpoints}
        if step not in found:
            known = ", ".join(map(str, found)) or "none"
            raise ValueError(f"The run {self.name} has no checkpoint of step {step}; it has {known}.")
        return found[step]

    def model_of(self, step: int | None = None) -> Path:
        """Return a checkpoint that holds a model: that of a step, else the newest.

        Raises:
            ValueError: there is none.
        """
        folder = self.model_dir if step is None else self.checkpoint(step)
        if folder is None or not holds_model(folder):
            which = "no checkpoint yet" if folder is None else f"only training state at step {step}"
            raise ValueError(f"The run {self.name} has {which}: there is no model to take from it.")
        return folder

    def pin(self, step: int) -> None:
        """Keep a checkpoint for good.

        Raises:
            ValueError: there is none of that step.
        """
        (self.checkpoint(step) / PINNED).touch()

    def save_checkpoint(self, student: LanguageModel, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, and remove old ones: not the best, the newest with a model, or pinned ones.

        Where a library refuses to write the model, the training state is kept without it, and a note says so.

        Args:
            student: what is being trained.
            state: the distillation's ``state_dict``.

        Raises:
            OSError: the disk is full; the earlier checkpoints stay.
        """
        step = state["next_step"] - 1
        refusal = write_checkpoint(self.path / "checkpoints", step, student, state, sharded=self.config.shard)
        if refusal:
            self.log_event(
                "note",
                step=step,
                message=f"No model can be loaded from the checkpoint: {refusal}. What was trained is in its "
                "training-weights.safetensors, and the run can be resumed from it.",
            )
        best, model = self.best_step, self.model_dir
        old = self.checkpoints[: -self.config.keep_checkpoints]
        remove_unpinned(path for path in old if step_of(path) != best and path != model)

    def drop_after_best(self) -> int | None:
        """Remove the checkpoints after the best one, except pinned ones, so that a resumption goes on there.

        Returns:
            The best step; None, and nothing is removed, where no checkpoint was measured.
        """
        best = self.best_step
        if best is not None:
            remove_unpinned(path for path in self.checkpoints if step_of(path) > best)
        return best


def create_run(name: str, config: DistillConfig, race: Race | None = None) -> Run:
    """Make a run's folder with its config; it appears whole or not at all.

    A run that failed before its first row gives its name back, and so does a start that was killed.

    Args:
        name: of the run, and of its folder.
        config: what to do; paths in it are written down as absolute ones.
        race: the race that it takes part in.

    Raises:
        ValueError: the name is no plain file name.
        RunExistsError: a run of that name exists.
        OSError: the folder cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name for a run: use letters, digits, '.', '_' and '-', at most 100."
        )
    run, config = Run(runs_dir() / name), config.anchored()
    remove_leftovers()
    partial = run.path.with_name(f".{name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        write_atomically(partial / "config.json", config.model_dump_json(indent=2))
        if race:
            write_atomically(partial / "race.json", json.dumps(asdict(race)))
        if _came_to_nothing(run):
            shutil.rmtree(run.path)
        partial.rename(run.path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) and os.path.lexists(run.path):
            raise RunExistsError(_taken(run)) from None
        raise OSError(
            f"The folder {run.path} cannot be made: {error.strerror}. Set OPD_HOME to a folder you may write "
            "to."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return run


def remove_leftovers() -> None:
    """Remove what starts and deletions that were killed have left, once nobody can be at work on it."""
    for path in runs_dir().glob(".*"):
        with contextlib.suppress(OSError):  # removed meanwhile, or not ours
            old = _LEFTOVER.fullmatch(path.name) and time.time() - path.stat().st_ctime > LEFT_SECONDS
            if old and not is_locked(path / "lock"):
                shutil.rmtree(path)


def _came_to_nothing(run: Run) -> bool:
    """Whether a run failed before its first row, or was killed before it had a config."""
    if not (run.path / "config.json").exists():
        return run.path.is_dir() and {p.name for p in run.path.iterdir()} <= {"config.json.partial"}
    return run.readable and run.status().state == "failed" and not run.rows()


def _taken(run: Run) -> str:
    if not (run.path / "config.json").exists():
        return f"{run.path} exists already and is no run. Choose another name, or remove it."
    return (
        f"There is a run called {run.name} already. Choose another name, or continue it with "
        f"opd train --resume {run.name}."
    )


def new_name() -> str:
    """Return a name no run has yet: the date and the time."""
    stem = time.strftime("%Y-%m-%d-%H%M%S")
    names = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
    return next(name for name in names if not (runs_dir() / name).exists())


def open_run(name: str) -> Run:
    """Return the run called ``name``.

    Raises:
        ValueError: there is none.
    """
    path = runs_dir() / name
    if not _NAME.fullmatch(name) or not (path / "config.json").exists():
        known = ", ".join(run.name for run in list_runs()[:8]) or "none yet"
        raise ValueError(f"There is no run called {name!r} in {runs_dir()}. Runs: {known}.")
    return Run(path)


def list_runs() -> list[Run]:
    """Return the runs whose config this version understands, the most recently started first."""
    return [run for run in all_runs() if run.readable]


def all_runs() -> list[Run]:
    """Return all runs, the most recently started first; also those that cannot be read."""
    born = {}
    for path in runs_dir().glob("*/config.json"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            if _NAME.fullmatch(path.parent.name):
                born[Run(path.parent)] = path.stat().st_mtime_ns
    return sorted(born, key=born.__getitem__, reverse=True)


@functools.lru_cache(maxsize=256)
def _read_config(path: Path, written: int) -> DistillConfig:
    """Read a config; ``written`` is when the file was last touched: a changed one is read anew."""
    return make_config(read_config(path))


def _is_budget(value: Any) -> bool:  # noqa: ANN401
    return is_number(value) and value > 0
