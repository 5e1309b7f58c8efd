"""The run directory: everything a run leaves behind, written so that a crash at any byte loses nothing whole.

``$OPD_HOME/runs/NAME/`` (default ``./runs``) holds ``config.json``, ``metrics.jsonl`` (one line a step, the
last line of a step counts), ``samples.jsonl`` (graded trajectories), ``events.jsonl``, ``control.json``,
``checkpoints/step-000050/``, ``log.txt`` of a run in the background, and ``lock``: who holds it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opd.config import DistillConfig
from opd.trajectory import StepReport, write_atomically

SAMPLES_LIMIT = 64 * 2**20
"""Bytes of ``samples.jsonl``; later samples are not kept."""

State = Literal["running", "stopping", "finished", "stopped", "failed", "interrupted"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RunExistsError(ValueError):
    """There is a run of that name already."""


class RunBusyError(ValueError):
    """Another process is working on the run."""


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands.

    Attributes:
        state: "running" and "stopping" while a process holds it; "interrupted" when that process died.
        step: updates made so far.
        steps: updates asked for.
        message: a sentence for the user; empty if there is nothing to say.
    """

    state: State
    step: int
    steps: int
    message: str = ""

    @property
    def live(self) -> bool:
        """Whether a process is working on it."""
        return self.state in ("running", "stopping")


def runs_dir() -> Path:
    """Return the folder of all runs."""
    return Path(os.environ.get("OPD_HOME", ".")) / "runs"


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
        """The config it was started with."""
        return DistillConfig.model_validate_json((self.path / "config.json").read_text(encoding="utf-8"))

    # What has been reported

    def rows(self, since: int = -1) -> list[dict[str, float]]:
        """Return the metrics of every step after ``since``; row 0 is the evaluation before training."""
        latest = {row["step"]: row for row in _read_lines(self.path / "metrics.jsonl")}
        return [latest[step] for step in sorted(latest) if step > since]

    def append(self, report: StepReport) -> None:
        """Write a step's metrics, graded trajectories, notes and alarms.

        Raises:
            OSError: the disk is full; complete lines stay readable.
        """
        _append_line(self.path / "metrics.jsonl", report.row())
        samples = self.path / "samples.jsonl"
        for kind, reviews in (("probe", report.probes), ("rollout", report.samples)):
            for review in reviews:
                if samples.exists() and samples.stat().st_size > SAMPLES_LIMIT:
                    break
                _append_line(samples, {"step": report.step, "kind": kind, "review": review.to_dict()})
        for event, messages in (("note", report.notes), ("alarm", report.alarms)):
            for message in messages:
                self.log_event(event, step=report.step, message=message)

    def log_event(self, event: str, **details: Any) -> None:  # noqa: ANN401
        """Add a line to ``events.jsonl``: started, resumed, stopped, finished, failed, note, alarm."""
        _append_line(self.path / "events.jsonl", {"event": event, "time": time.time(), **details})

    def status(self) -> RunStatus:
        """Say where the run stands, from its files and its lock alone."""
        config, rows = self.config, self.rows()
        step = int(rows[-1]["step"]) if rows else 0
        if self._held():
            state = "stopping" if self.stop_requested() else "running"
            return RunStatus(state, step, config.steps)
        events = list(_read_lines(self.path / "events.jsonl"))
        last = next((e for e in reversed(events) if e["event"] not in ("note", "alarm")), None)
        if last and last["event"] in ("finished", "stopped", "failed"):
            return RunStatus(last["event"], step, config.steps, last.get("message", ""))
        return RunStatus(
            "interrupted", step, config.steps, f"The process ended without a word. {self._tail()}"
        )

    def notes(self) -> list[str]:
        """Return sentences for the user: what the doctor did not pass, what steps had to say, alarms."""
        out = []
        for event in _read_lines(self.path / "events.jsonl"):
            if event["event"] == "examined":
                out += [f["message"] for f in event["findings"] if f["level"] != "pass"]
            elif event["event"] in ("note", "alarm"):
                sign = "⚠ " if event["event"] == "alarm" else ""
                out.append(f"{sign}Step {event['step']}: {event['message']}")
        return out

    def _tail(self, lines: int = 5) -> str:
        log = self.path / "log.txt"
        if not log.exists():
            return ""
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

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
            while not _try_lock(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise RunBusyError(f"Another process is working on the run {self.name}.")
                time.sleep(0.02)
            yield descriptor
        finally:
            os.close(descriptor)

    def _held(self) -> bool:
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def request_stop(self) -> None:
        """Ask whoever works on the run to stop after the current step."""
        write_atomically(self.path / "control.json", json.dumps({"stop": True}))

    def stop_requested(self) -> bool:
        """Whether somebody asked for a stop."""
        try:
            return bool(json.loads((self.path / "control.json").read_text(encoding="utf-8")).get("stop"))
        except FileNotFoundError:
            return False

    def clear_control(self) -> None:
        """Forget what was asked of an earlier process."""
        (self.path / "control.json").unlink(missing_ok=True)

    # Checkpoints

    @property
    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*"))

    @property
    def best_step(self) -> int | None:
        """The step with the highest held-out accuracy among those that can be loaded; the first of equals."""
        kept = {_step_of(path) for path in self.checkpoints}
        scored = [row for row in self.rows() if "heldout_accuracy" in row and row["step"] in kept]
        return max(scored, key=lambda row: row["heldout_accuracy"])["step"] if scored else None

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

    def _remove_old_checkpoints(self) -> None:
        best = self.best_step
        for path in self.checkpoints[: -self.config.keep_checkpoints]:
            if _step_of(path) != best and not (path / "pinned").exists():
                shutil.rmtree(path)

    @property
    def model_dir(self) -> Path | None:
        """The newest checkpoint: a folder that transformers (or PEFT) loads; None before the first."""
        return self.checkpoints[-1] if self.checkpoints else None

    def save_checkpoint(self, student: Any, state: Mapping[str, Any]) -> Path:  # noqa: ANN401
        """Write the student and the training state, whole or not at all; remove old checkpoints.

        Args:
            student: the :class:`opd.models.LanguageModel` that is being trained.
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
            student.model.save_pretrained(partial)
            student.tokenizer.save_pretrained(partial)
            for group in ("weights", "optimizer"):
                tensors = {name: t.detach().cpu().contiguous() for name, t in state[group].items()}
                save_file(tensors, partial / f"training-{group}.safetensors")
            scalars = {k: v for k, v in state.items() if k not in ("weights", "optimizer")}
            write_atomically(partial / "training.json", json.dumps(scalars))
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError):
                raise
            raise OSError(f"The checkpoint of step {step} could not be written: {error}") from error
        self._remove_old_checkpoints()
        return final

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the training state of the newest checkpoint, or None if there is none."""
        from safetensors.torch import load_file

        if self.model_dir is None:
            return None
        state = json.loads((self.model_dir / "training.json").read_text(encoding="utf-8"))
        for group in ("weights", "optimizer"):
            state[group] = load_file(self.model_dir / f"training-{group}.safetensors")
        return state


def create_run(name: str, config: DistillConfig) -> Run:
    """Make a run's folder and write its config.

    Raises:
        ValueError: the name is no plain file name.
        RunExistsError: a run of that name exists.
        OSError: the folder cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name for a run: use letters, digits, '.', '_' and '-', at most 100."
        )
    path = runs_dir() / name
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise RunExistsError(
            f"There is a run called {name} already. Choose another name, or continue it with "
            f"opd train --resume {name}."
        ) from None
    write_atomically(path / "config.json", config.model_dump_json(indent=2))
    return Run(path)


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
    configs = runs_dir().glob("*/config.json")
    runs = [Run(c.parent) for c in sorted(configs, key=lambda c: c.stat().st_mtime, reverse=True)]
    return [run for run in runs if _is_readable(run)]


def _is_readable(run: Run) -> bool:
    try:
        return run.config is not None
    except ValueError:
        return False


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _append_line(path: Path, data: Mapping[str, Any]) -> None:
    line = json.dumps(data, ensure_ascii=False) + "\n"
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a writer died inside its line: start a new one
                line = "\n" + line
        file.write(line.encode("utf-8", errors="replace"))


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of a JSONL file; a line torn by a crash is passed over."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
