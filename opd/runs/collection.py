"""The runs of this home as a collection: listed, found, compared by their settings, annotated, deleted."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opd.alarms import merit
from opd.files import write_atomically
from opd.runs.run import Run, State, all_runs, open_run, remove_leftovers, runs_dir


@dataclass(frozen=True)
class RunSummary:
    """A run in a list of runs.

    Attributes:
        name: its name.
        state: where it stands; "broken" if its files cannot be read.
        alarmed: whether it ended while an alarm stood.
        step: the last step that was written.
        steps: updates asked for.
        best_accuracy: the highest held-out accuracy of a step, in [0, 1]; None where none was measured.
        best_kl: the held-out KL of the best step, nats a token, where there is no accuracy; None without one.
        teacher_accuracy: the teacher's, beside the newest of the student's; None where it only scores.
        started: when it was created, seconds since 1970.
        objective: what it minimises.
        student: the student's name.
        teacher: the teacher's name.
        race: the race it takes part in, if any.
        note: what the user wrote about it.
        baseline: whether it is the one that others are compared with.
        fault: why its files cannot be read; empty if they can.
    """

    name: str
    state: State | Literal["broken"]
    started: float
    note: str
    baseline: bool
    alarmed: bool = False
    step: int = 0
    steps: int = 0
    best_accuracy: float | None = None
    best_kl: float | None = None
    teacher_accuracy: float | None = None
    objective: str = ""
    student: str = ""
    teacher: str = ""
    race: str | None = None
    fault: str = ""


def summaries(search: str = "") -> list[RunSummary]:
    """Return all runs, the most recently started first.

    Args:
        search: only runs with all of these words in their name, objective, models, race or note.
    """
    pinned = baseline()
    found = [summary for run in all_runs() if (summary := _summary(run, pinned))]
    words = search.lower().split()
    return [s for s in found if all(word in _searchable(s) for word in words)]


def _summary(run: Run, pinned: Run | None) -> RunSummary | None:
    """Sum a run up; None where it was deleted meanwhile."""
    try:
        started = run.born / 1e9
    except FileNotFoundError:
        return None
    common = {"name": run.name, "started": started, "baseline": run == pinned, "note": read_note(run)}
    try:
        status, config, race, rows = run.status(), run.config, run.race(), run.rows()
    except (ValueError, OSError) as error:
        return RunSummary(state="broken", fault=str(error), **common)
    measured = [row for row in rows if "heldout_accuracy" in row]
    best = max((row for row in rows if merit(row) is not None), key=merit, default={})
    return RunSummary(
        state=status.state,
        alarmed=status.alarmed,
        step=status.step,
        steps=status.steps,
        best_accuracy=best.get("heldout_accuracy"),
        best_kl=None if "heldout_accuracy" in best else best.get("heldout_kl"),
        teacher_accuracy=measured[-1].get("teacher_accuracy") if measured else None,
        objective=config.objective,
        student=config.student,
        teacher=config.teacher,
        race=race.name if race else None,
        **common,
    )


def _searchable(s: RunSummary) -> str:
    return " ".join(
        (s.name, s.state, s.objective, s.student, s.teacher, s.race or "", s.note, s.fault)
    ).lower()


# What the user says of a run


def read_note(run: Run) -> str:
    """Return what the user wrote about a run; empty if nothing."""
    try:
        return (run.path / "note.txt").read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return ""


def write_note(run: Run, text: str) -> None:
    """Keep what the user writes about a run."""
    write_atomically(run.path / "note.txt", text)


def baseline() -> Run | None:
    """Return the run that others are compared with; None if none is pinned or it is gone."""
    for file in (_pin_file(), runs_dir() / "baseline.txt"):  # the second is what earlier versions wrote
        if file.is_file():
            try:
                return open_run(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return None
    return None


def pin_baseline(run: Run | None) -> None:
    """Make a run the one that others are compared with; None: no longer any."""
    write_atomically(_pin_file(), run.name if run else "")


def _pin_file() -> Path:
    """Return the file that names the baseline; no run can be called so."""
    return runs_dir() / ".baseline"


def delete_run(run: Run) -> None:
    """Delete a run and all it left behind.

    Raises:
        RunBusyError: a process is working on it.
        OSError: it cannot be removed.
    """
    remove_leftovers()
    with run.hold():
        doomed = run.path.with_name(f".{run.path.name}.deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        run.path.rename(doomed)
    shutil.rmtree(doomed)


def config_diff(first: Run, second: Run) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two runs differ: name -> (of the first, of the second)."""
    ours, theirs = (run.config.model_dump() for run in (first, second))
    return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}
