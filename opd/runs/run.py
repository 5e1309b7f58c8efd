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
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from opd.alarms import is_collapsed
from opd.config import DistillConfig, make_config, read_config
from opd.files import home_dir
from opd.runs.queue import is_locked, place_of, try_lock, waiting_sentence
from opd.runs.samples import Frozen, Kind, Sample, SampleFile, sample_file
from opd.traces import FrozenScores, Push
from opd.trajectory import Review, StepReport, write_atomically

SAMPLES_LIMIT = 64 * 2**20
"""Bytes of ``samples.jsonl``; later samples are not kept."""

ROLLOUTS_FROM, ROLLOUTS_TO = 1 / 8, 1 / 2
"""Share of the limit that rollouts may fill: at the first step and, growing evenly, at the last. A long run
so keeps rollouts of steps from all its length, and the probes of every evaluation find room."""

State = Literal[
    *("queued", "running", "pausing", "paused", "stopping"),
    *("finished", "stopped", "failed", "interrupted"),
]
Request = Literal["pause", "stop", "keep_best"]

_STATES = ("loading", "queued", "started", "resumed", "paused", "finished", "stopped", "failed")
MARKS = {"paused": "Paused.", "resumed": "Resumed.", "stopped": "Stopped.", "finished": "Finished."}
"""Events that the list of what happened names, beside those that have sentences of their own."""

_LARGEST = 10**11  # a step, a second since 1970: more is none
_TAIL = 2**15  # bytes read first when the newest line is wanted
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CHECKPOINT = re.compile(r"step-\d{1,15}")
_LEFTOVER = re.compile(rf"\.{_NAME.pattern}\.([0-9a-f]{{8}}\.partial|deleted)")
_LEFT_SECONDS = 600  # no start and no deletion leaves a folder untouched for so long


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
        phases = ("seconds_sample", "seconds_teacher", "seconds_update")
        seconds = sum(row.get(phase, 0.0) for row in rows for phase in phases)
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
        """When it was created, nanoseconds since 1970: tells it from an earlier run of the same name."""
        return (self.path / "config.json").stat().st_mtime_ns

    def race(self) -> Race | None:
        """Return the race that it takes part in, if any; a budget that means nothing is none.

        Raises:
            ValueError: the file that says so cannot be read.
        """
        path = self.path / "race.json"
        try:
            data = _parsed(path.read_bytes())
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

    def rows(self, since: int = -1) -> list[dict[str, float]]:
        """Return the metrics of every step after ``since``; row 0 is the evaluation before training."""
        latest = {row["step"]: row for row in _read_lines(self.path / "metrics.jsonl", _as_row)}
        return [latest[step] for step in sorted(latest) if step > since]

    def read_from(self, cursor: str | None = None) -> News:
        """Return what was written since the reading that gave ``cursor``; from the beginning if None.

        Only new bytes are read. A line that is still being written waits for the next reading, one torn by a
        crash is passed over. Safe with any text as cursor.
        """
        born, kinds = self.born, {"metrics": _as_row, "events": _as_event}
        ends = [_size(self.path / f"{name}.jsonl") for name in kinds]
        known = re.fullmatch(rf"{born}-(\d{{1,15}})-(\d{{1,15}})", cursor or "")
        starts = [int(known[1]), int(known[2])] if known else [0, 0]
        restart = not known or any(start > end for start, end in zip(starts, ends, strict=True))
        if restart:
            starts = [0, 0]
        (rows, at_row), (events, at_event) = (
            _read_since(self.path / f"{name}.jsonl", start, kind)
            for (name, kind), start in zip(kinds.items(), starts, strict=True)
        )
        return News(rows, events, f"{born}-{at_row}-{at_event}", restart)

    def append(self, report: StepReport) -> None:
        """Write a step's metrics, trajectories as far as there is room, notes and alarms.

        Raises:
            OSError: the disk is full; complete lines stay readable.
        """
        _append_line(self.path / "metrics.jsonl", report.row())
        pushes = report.pushes or [None] * len(report.samples)
        records: dict[Kind, list[dict[str, Any]]] = {
            "probe": [{"review": review.to_dict()} for review in report.probes],
            "frozen": [scores.to_dict() for scores in report.frozen],
            "rollout": [
                {"review": review.to_dict(), "push": push and push.to_dict()}
                for review, push in zip(report.samples, pushes, strict=True)
            ],
        }
        for kind, group in records.items():
            self._keep(report.step, kind, group)
        for message in report.notes:
            self.log_event("note", step=report.step, message=message)
        for alarm in report.alarms:
            onset = {"kind": alarm.kind, "step": alarm.step}
            if not any(onset.items() <= e.items() for e in self.events()):  # a resumed run makes steps again
                self.log_event("alarm", **asdict(alarm))

    def _keep(self, step: int, kind: Kind, records: list[dict[str, Any]]) -> None:
        """Write a step's records of one kind, all of them or, where they have no room any more, none."""
        if not records:
            return
        path, room = self.path / "samples.jsonl", SAMPLES_LIMIT
        if kind == "rollout":
            room *= ROLLOUTS_FROM + (ROLLOUTS_TO - ROLLOUTS_FROM) * step / self.config.steps
        if _size(path) <= room:
            for index, record in enumerate(records):
                _append_line(path, {"step": step, "kind": kind, "index": index, **record})
        elif not any(event.get("about") == "samples" for event in self.events()):
            self.log_event(
                "note",
                step=step,
                about="samples",
                message=f"There is room for {SAMPLES_LIMIT / 2**20:.0f} MiB of graded trajectories: from "
                "here on not every step keeps its own.",
            )

    def log_event(self, event: str, **details: Any) -> None:  # noqa: ANN401
        """Add a line to ``events.jsonl``.

        One of: loading, queued, started, resumed, paused, stopped, finished, failed (where the run stands);
        task, examined, note, alarm (what there is to say).
        """
        _append_line(self.path / "events.jsonl", {"event": event, "time": time.time(), **details})

    def events(self) -> list[dict[str, Any]]:
        """Return all events, in the order they happened; each has "event" and "time" (seconds since 1970)."""
        return list(_read_lines(self.path / "events.jsonl", _as_event))

    def status(self) -> RunStatus:
        """Say where the run stands, from its lock and the ends of its files."""
        steps = self.config.steps
        row = _newest(self.path / "metrics.jsonl", _as_row)
        step = row["step"] if row else 0
        last = _newest(self.path / "events.jsonl", _as_state) or {"event": None}
        if is_locked(self.path / "lock"):
            state, message = self._live_state(last["event"])
            phase = self._phase() if state in ("running", "pausing", "stopping") else ""
            return RunStatus(state, step, steps, message, phase=phase)
        if last["event"] in ("finished", "stopped", "failed"):
            message, alarmed = str(last.get("message", "")), bool(last.get("alarmed", False))
            return RunStatus(last["event"], step, steps, message, alarmed)
        return RunStatus("interrupted", step, steps, f"The process ended without a word. {self.log_tail()}")

    # The trajectories that were kept

    def saved_steps(self, kind: Kind = "rollout") -> list[int]:
        """Return the steps of which trajectories of a kind were kept, in order."""
        return self._samples.steps(kind)

    def samples(self, step: int) -> list[Sample]:
        """Return the rollouts that a step kept; see :meth:`saved_steps`.

        Raises:
            ValueError: one is damaged.
        """
        return [
            Sample(
                step,
                record["index"],
                Review.from_dict(record.get("review")),
                Push.from_dict(push) if (push := record.get("push")) else None,
            )
            for record in self._samples.records("rollout", step)
        ]

    def probes(self, step: int) -> list[Review]:
        """Return the student's graded answers to the probe prompts at an evaluation, always in one order.

        Raises:
            ValueError: one is damaged.
        """
        return [Review.from_dict(record.get("review")) for record in self._samples.records("probe", step)]

    def frozen(self, since: int = -1) -> list[Frozen]:
        """Return how the probes of step 0 were graded at every evaluation after ``since``, by step and index.

        Their text is ``probes(0)``.

        Raises:
            ValueError: one is damaged.
        """
        steps = (step for step in self.saved_steps("frozen") if step > since)
        return [frozen for step in steps for frozen in self.frozen_at(step)]

    def frozen_at(self, step: int) -> list[Frozen]:
        """Return how the probes of step 0 were graded at one evaluation, by index."""
        return [
            Frozen(step, record["index"], FrozenScores.from_dict(record))
            for record in self._samples.records("frozen", step)
        ]

    def probes_by_change(self) -> list[Review]:
        """Return the probes as the untrained student answered them, the one that changed most first.

        What counts is how far the mean reverse KL (nats a token) of that answer moved from the first
        evaluation to the last. Empty where nothing was evaluated.
        """
        evaluations = self.saved_steps("frozen")
        if not evaluations:
            return []
        first, last = (
            {frozen.index: frozen.scores.reverse_kl for frozen in self.frozen_at(step)}
            for step in (evaluations[0], evaluations[-1])
        )
        moved = {i: abs(float((last[i] - kl).mean())) for i, kl in first.items() if i in last and len(kl)}
        probes = self.probes(0)
        return [probes[i] for i in sorted(moved, key=moved.get, reverse=True) if i < len(probes)]

    @property
    def _samples(self) -> SampleFile:
        return sample_file(self.path / "samples.jsonl")

    def notes(self) -> list[str]:
        """Return sentences for the user: what the doctor did not pass, what steps had to say, alarms."""
        return [sentence for event in self.events() for sentence in sentences(event)]

    def log_tail(self, lines: int = 5) -> str:
        """Return the last lines that a run in the background printed; empty if there are none."""
        log = self.path / "log.txt"
        if not log.exists():
            return ""
        with log.open("rb") as file:
            file.seek(max(0, _size(log) - _TAIL))
            return "\n".join(file.read().decode("utf-8", errors="replace").splitlines()[-lines:])

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
            sentence = waiting_sentence(place_of(self.name).ahead())
            return ("queued", sentence) if sentence else ("running", "")
        if last == "paused":
            return ("paused", "") if asked == "pause" else ("running", "")
        return ("pausing", "") if asked == "pause" else ("running", "")

    def tell_phase(self, phase: str) -> None:
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
            match _parsed((self.path / "control.json").read_bytes()):
                case {"request": "pause" | "stop" | "keep_best" as request}:
                    return request
        return None

    def take_over(self) -> None:
        """Begin to work on the run, holding its lock: what was asked of an earlier process is forgotten."""
        (self.path / "control.json").unlink(missing_ok=True)
        self.tell_phase("Starting")
        self.log_event("loading")

    # Checkpoints

    @property
    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        folders = (p for p in (self.path / "checkpoints").glob("step-*") if _CHECKPOINT.fullmatch(p.name))
        return sorted(folders, key=_step_of)

    @property
    def best_step(self) -> int | None:
        """The step with the highest held-out accuracy among those that can be loaded; the first of equals.

        Where prompts have no answers, the lowest held-out KL decides; see :func:`merit`. None where nothing
        was measured.
        """
        kept = {_step_of(path) for path in self.checkpoints}
        scored = [row for row in self.rows() if row["step"] in kept and merit(row) is not None]
        return max(scored, key=merit)["step"] if scored else None

    def checkpoint(self, step: int) -> Path:
        """Return the checkpoint of a step.

        Raises:
            ValueError: it was not kept; the message names those that were.
        """
        found = {_step_of(path): path for path in self.checkpoints}
        if step not in found:
            known = ", ".join(map(str, found)) or "none"
            raise ValueError(f"The run {self.name} has no checkpoint of step {step}; it has {known}.")
        return found[step]

    def pin(self, step: int) -> None:
        """Keep a checkpoint for good.

        Raises:
            ValueError: there is none of that step.
        """
        (self.checkpoint(step) / "pinned").touch()

    def drop_after_best(self) -> int | None:
        """Remove the checkpoints after the best one, except pinned ones, so that a resumption goes on there.

        Returns:
            The best step; None, and nothing is removed, where no checkpoint was measured.
        """
        best = self.best_step
        for path in self.checkpoints:
            if best is not None and _step_of(path) > best and not (path / "pinned").exists():
                shutil.rmtree(path)
        return best

    def _remove_old_checkpoints(self) -> None:
        best, model = self.best_step, self.model_dir
        for path in self.checkpoints[: -self.config.keep_checkpoints]:
            if _step_of(path) != best and path != model and not (path / "pinned").exists():
                shutil.rmtree(path)

    @property
    def newest_checkpoint(self) -> Path | None:
        """The checkpoint behind which a resumption goes on; None before the first."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def model_dir(self) -> Path | None:
        """The newest checkpoint that transformers (or PEFT) loads as a model; None where there is none."""
        return next((path for path in reversed(self.checkpoints) if holds_model(path)), None)

    def try_saving(self, student: Any) -> None:  # noqa: ANN401
        """Write all of a checkpoint but its tensors, and remove it: can what will be trained be saved?

        Raises:
            OSError: it cannot; the message says why and the way out.
        """
        from opd.training.doctor import size_in_words

        trial = self.path / "checkpoints" / ".trial"
        try:
            trial.mkdir(parents=True, exist_ok=True)
            student.try_saving(trial)
            free = shutil.disk_usage(trial).free
        except Exception as error:  # each library has its own way to refuse
            reason = " ".join(str(error).split()).rstrip(".")
            raise OSError(
                f"What is trained could not be saved in {trial.parent}: {reason}. Mend that first, or set "
                "OPD_HOME to another folder."
            ) from error
        finally:
            shutil.rmtree(trial, ignore_errors=True)
        trained = (p for p in student.model.parameters() if p.requires_grad)
        needed = 3 * sum(p.numel() * p.element_size() for p in trained)  # weights and AdamW's two moments
        if needed > free:
            raise OSError(
                f"A checkpoint takes {size_in_words(needed)}, and {size_in_words(free)} are free in "
                f"{trial.parent}. Make room, or set OPD_HOME to another disk."
            )

    def save_checkpoint(self, student: Any, state: Mapping[str, Any]) -> Path:  # noqa: ANN401
        """Write the student and the training state, whole or not at all; remove old checkpoints.

        Weights that the student's own files hold are in the training state by their names alone. Where a
        library refuses to write the model, the training state is kept without it, and a note says so.

        Args:
            student: the :class:`opd.models.language_model.LanguageModel` that is being trained.
            state: the distillation's ``state_dict``.

        Raises:
            OSError: the disk is full; the earlier checkpoints stay.
        """
        from safetensors.torch import save_file

        step = state["next_step"] - 1
        final = self.path / "checkpoints" / f"step-{step:06d}"
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            self._save_model(student, partial, step, state["weights"] if self.config.shard else None)
            held = _held_by_model(partial, state["weights"])
            rest = {name: weight for name, weight in state["weights"].items() if name not in held}
            for group, tensors in (("weights", rest), ("optimizer", state["optimizer"])):
                tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
                save_file(tensors, partial / f"training-{group}.safetensors")
            scalars = {k: v for k, v in state.items() if k not in ("weights", "optimizer")}
            write_atomically(partial / "training.json", json.dumps({**scalars, "held_by_model": held}))
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError):
                raise
            raise OSError(f"The checkpoint of step {step} could not be written: {error}") from error
        self._remove_old_checkpoints()
        return final

    def _save_model(self, student: Any, folder: Path, step: int, weights: Mapping[str, Any] | None) -> None:  # noqa: ANN401
        try:
            student.save(folder, weights)  # what is sharded is whole in the state alone
        except OSError:
            raise
        except Exception as error:  # a library's refusal must not cost what was trained
            shutil.rmtree(folder)
            folder.mkdir()
            reason = " ".join(str(error).split()).rstrip(".")
            self.log_event(
                "note",
                step=step,
                message=f"No model can be loaded from the checkpoint: {reason}. What was trained is in its "
                "training-weights.safetensors, and the run can be resumed from it.",
            )

    @property
    def saved_step(self) -> int:
        """The step of the newest checkpoint; 0 before the first."""
        return _step_of(self.newest_checkpoint) if self.newest_checkpoint else 0

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the training state of the newest checkpoint, or None if there is none.

        Raises:
            ValueError: it is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = self.newest_checkpoint
        if folder is None:
            return None
        try:
            state = dict(json.loads((folder / "training.json").read_text(encoding="utf-8")))
            for group in ("weights", "optimizer"):
                state[group] = load_file(folder / f"training-{group}.safetensors")
            with _model_tensors(folder) as read:
                held = state.pop("held_by_model", {})
                state["weights"] |= {name: read[there]() for name, there in held.items()}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"The checkpoint {folder} is damaged ({error}). Delete it, and the run goes on from the one "
                "before it."
            ) from error
        return state


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
            old = _LEFTOVER.fullmatch(path.name) and time.time() - path.stat().st_ctime > _LEFT_SECONDS
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


@contextlib.contextmanager
def _model_tensors(folder: Path) -> Iterator[dict[str, Callable[[], Any]]]:
    """Yield what reads each tensor of the model that a checkpoint holds, by the tensor's name there."""
    from safetensors import safe_open

    paths = (p for p in sorted(folder.glob("*.safetensors")) if not p.name.startswith("training-"))
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
        yield {name: functools.partial(file.get_tensor, name) for file in files for name in file.keys()}  # noqa: SIM118


def _held_by_model(folder: Path, weights: Mapping[str, Any]) -> dict[str, str]:
    """Return which trained weights the model of a checkpoint holds, bit for bit, by their names there.

    They need not be kept a second time. What its library saves in another shape or type is not among them.
    """
    import torch

    found = {}
    with _model_tensors(folder) as read:
        for name, weight in weights.items():
            there = name if name in read else name.replace(".default.", ".")  # PEFT drops the adapter's name
            if there in read:
                saved = read[there]()
                if saved.dtype == weight.dtype and torch.equal(saved, weight.cpu()):
                    found[name] = there
    return found


def holds_model(checkpoint: Path) -> bool:
    """Whether a checkpoint holds the weights of a model or adapter beside the training state."""
    return any(not path.name.startswith("training-") for path in checkpoint.glob("*.safetensors"))


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


@functools.lru_cache(maxsize=256)
def _read_config(path: Path, written: int) -> DistillConfig:
    """Read a config; ``written`` is when the file was last touched: a changed one is read anew."""
    return make_config(read_config(path))


def merit(row: Mapping[str, float]) -> tuple[bool, float] | None:
    """Return how good a step is, to be compared with another one's; None if it was not measured.

    That is its held-out accuracy, else minus its held-out KL; but a student that has collapsed may be near to
    its teacher, and is never better than one that has not.
    """
    if "heldout_accuracy" in row:
        return True, row["heldout_accuracy"]
    return (not is_collapsed(row), -row["heldout_kl"]) if "heldout_kl" in row else None


def sentences(event: Mapping[str, Any]) -> list[str]:
    """Return what an event says to the user: the doctor's warnings, a note, an alarm; mostly nothing."""
    match event:
        case {"event": "examined", "findings": [*findings]}:
            return [said for finding in findings for said in _warning(finding)]
        case {"event": "note" | "alarm" as kind, "message": str(message)}:
            at = f"Step {event['step']}: " if "step" in event else ""
            return [f"{'⚠ ' if kind == 'alarm' else ''}{at}{message}"]
    return []


def _warning(finding: Any) -> list[str]:  # noqa: ANN401
    match finding:
        case {"level": "warn" | "fail", "message": str(message)}:
            return [message]
    return []


def told(event: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the list of what happened says of an event: {kind: note | alarm | mark, text}.

    An alarm's step, metric and evidence come with it.
    """
    match event:
        case {"event": "alarm", "step": int(step), "message": str(message), "metric": _, "evidence": _}:
            alarm = {key: event[key] for key in ("step", "metric", "evidence")}
            return [{"kind": "alarm", "text": f"Step {step}: {message}", **alarm}]
        case {"event": "task", "message": str(message)}:  # what trains, and what is held out
            return [{"kind": "mark", "text": message}]
    if event["event"] in MARKS:
        at = f"Step {event['step']}: " if "step" in event else ""
        return [{"kind": "mark", "text": f"{at}{MARKS[event['event']]} {event.get('message', '')}".strip()}]
    return [{"kind": "note", "text": sentence} for sentence in sentences(event)]


def _append_line(path: Path, data: Mapping[str, Any]) -> None:
    line = json.dumps(data, ensure_ascii=False) + "\n"
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a writer died inside its line: start a new one
                line = "\n" + line
        file.write(line.encode("utf-8", errors="replace"))


Kept = Callable[[Any], dict[str, Any] | None]
"""Takes what a line says; returns a record of one kind, None where it is none."""


def _read_lines(path: Path, kept: Kept) -> Iterator[dict[str, Any]]:
    """Yield the records of the complete lines of a JSONL file; one torn by a crash is passed over."""
    if path.exists():
        yield from _records(path.read_bytes(), kept)


def _records(data: bytes, kept: Kept) -> Iterator[dict[str, Any]]:
    return (record for line in data.split(b"\n") if (record := kept(_parsed(line))) is not None)


def _read_since(path: Path, start: int, kept: Kept) -> tuple[list[dict[str, Any]], int]:
    """Return the records of the complete lines behind an offset, and the offset behind them."""
    if _size(path) <= start:
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    complete = data.rfind(b"\n") + 1
    return list(_records(data[:complete], kept)), start + complete


def _newest(path: Path, kept: Kept) -> dict[str, Any] | None:
    """Return the last record that is kept, reading from the end; None if there is none."""
    size = _size(path)
    for length in sorted({min(_TAIL, size), size} - {0}):
        with path.open("rb") as file:
            file.seek(max(0, size - length))
            lines = file.read().split(b"\n")
        for line in reversed(lines if length == size else lines[1:]):
            if (record := kept(_parsed(line))) is not None:
                return record
    return None


def _parsed(text: bytes) -> Any:  # noqa: ANN401
    """Return what JSON says; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _as_row(record: Any) -> dict[str, float] | None:  # noqa: ANN401
    """Return the metrics of a step, those of them that are numbers."""
    match record:
        case {"step": int(step)} if 0 <= step < _LARGEST:
            return {name: value for name, value in record.items() if _is_number(value)}
    return None


def _as_event(record: Any) -> dict[str, Any] | None:  # noqa: ANN401
    match record:
        case {"event": str(), "time": int() | float() as at} if 0 <= at < _LARGEST:
            return record
    return None


def _as_state(record: Any) -> dict[str, Any] | None:  # noqa: ANN401
    """Return an event that says where the run stands."""
    event = _as_event(record)
    return event if event and event["event"] in _STATES else None


def _is_number(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, int | float) and abs(value) < (math.inf if isinstance(value, float) else 2**53)


def _is_budget(value: Any) -> bool:  # noqa: ANN401
    return _is_number(value) and value > 0


def _size(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
