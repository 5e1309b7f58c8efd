"""The runs of this home as a collection: list, compare, annotate, delete, export, publish."""

from __future__ import annotations

import csv
import io
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opd.phases import announce
from opd.runs.run import Run, State, all_runs, holds_model, merit, open_run, remove_leftovers, runs_dir
from opd.trajectory import Review, write_atomically


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


# What leaves the house


def metrics_csv(run: Run) -> str:
    """Return a run's metrics as CSV, a row a step; what a step did not measure is empty."""
    rows = run.rows()
    columns = dict.fromkeys(name for row in rows for name in row)
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def model_files(run: Run, step: int | None = None) -> dict[str, Path]:
    """Return the files of a trained student by name: weights or adapter, tokenizer; no training state.

    Args:
        run: the run.
        step: of which checkpoint; None = the newest.

    Raises:
        ValueError: there is no such checkpoint.
    """
    folder = run.model_dir if step is None else run.checkpoint(step)
    if folder is None or not holds_model(folder):
        which = "no checkpoint yet" if folder is None else f"only training state at step {step}"
        raise ValueError(f"The run {run.name} has {which}: there is no model to take from it.")
    files = (path for path in sorted(folder.iterdir()) if path.is_file())
    return {p.name: p for p in files if not p.name.startswith("training") and p.name != "pinned"}


def export_zip(run: Run, target: Path, step: int | None = None) -> Path:
    """Write a trained student (adapter or weights) as a zip that unpacks to a folder transformers loads.

    Args:
        run: the run.
        target: the file to write; it appears whole or not at all.
        step: of which checkpoint; None = the newest.

    Raises:
        ValueError: there is no such checkpoint.
        OSError: the file cannot be written.
    """
    announce(f"Writing {target.name}")
    files = model_files(run, step)
    partial = target.with_name(target.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w") as archive:  # weights do not compress
            for name, path in files.items():
                archive.write(path, f"{run.name}/{name}")
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return target


def publish(run: Run, repo_id: str, token: str, *, step: int | None = None, private: bool = True) -> str:
    """Upload a trained student and the config that made it to the Hugging Face Hub.

    Args:
        run: the run.
        repo_id: where to, "owner/name"; made if it is not there.
        token: of an account that may write there; neither stored nor logged.
        step: of which checkpoint; None = the newest.
        private: whether a new repository can be seen by its owner alone.

    Returns:
        The address of the model's page.

    Raises:
        ValueError: there is no such checkpoint, or the hub refuses; the message names no token.
    """
    announce(f"Uploading the student of {run.name}")
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    files = model_files(run, step) | {"opd-config.json": run.path / "config.json"}
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        return str(
            api.create_commit(repo_id, operations, commit_message=f"Student of the run {run.name}").repo_url
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).replace(token, "…") if token else str(error)
        raise ValueError(f"The hub did not take the run {run.name}: {reason}") from None


# Two checkpoints side by side


def compare_checkpoints(
    first: tuple[Run, int], second: tuple[Run, int], *, n: int = 8, seed: int = 0, temperature: float = 1.0
) -> Iterator[tuple[Review, Review]]:
    """Let two checkpoints answer the same held-out prompts with the same random numbers, and grade both.

    Both checkpoints are pinned, so that training does not remove what is being looked at. The prompts and the
    teacher are those of the first run.

    Args:
        first: a run and a step of it.
        second: another step, or that of another run.
        n: how many prompts.
        seed: of the sampling.
        temperature: of sampling and grading.

    Yields:
        For each prompt the review of the first and of the second.

    Raises:
        ValueError: a checkpoint was not kept, or a model or the task cannot be used.
    """
    from opd.engines.sampling import sample
    from opd.grading.grading import grade
    from opd.grading.reviewing import review
    from opd.models.load import load_model
    from opd.models.pair import Pair
    from opd.tasks import TaskOptions, load_task, verify
    from opd.training.lessons import Lesson

    config = first[0].config
    folders = []
    for run, step in (first, second):
        folders.append(run.checkpoint(step))
        run.pin(step)
    task = load_task(config.task, TaskOptions.of(config))
    examples = task.heldout(n, split=config.eval_split)
    teacher = load_model(
        config.student if config.teacher == "self" else config.teacher,
        device=config.teacher_device or config.device,
        dtype=config.teacher_dtype or config.dtype,
    )
    students = [load_model(str(folder), device=config.device, dtype=config.dtype) for folder in folders]
    for number, example in enumerate(examples, start=1):
        announce(f"Answering prompt {number} of {len(examples)}")
        reviews = []
        for student, (run, step) in zip(students, (first, second), strict=True):
            student.name = f"{run.name}, step {step}"
            pair = Pair(student, teacher)
            (trajectory,) = sample(
                pair, [example.prompt], seed=seed, temperature=temperature, max_tokens=config.max_tokens
            )
            lesson = Lesson(task, pair, 1, config.teacher_system, config.teacher_hint)
            (trajectory,) = lesson.informed([trajectory], [example], room=config.max_tokens)
            (grades,) = grade(pair, [trajectory])
            correct = verify(task, example, student, trajectory)
            reviews.append(review(pair, example.prompt, trajectory, grades, seed=seed, correct=correct))
        yield reviews[0], reviews[1]
