"""List runs, compare and export them."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opd.runs.collection import RunSummary
    from opd.runs.run import Run


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What is listed; and the actions on one run, each with its own flags."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--search", default="", metavar="WORDS", help="only runs with all of these words")
    actions = parser.add_subparsers(title="actions", metavar="ACTION")

    def action(name: str, act: Callable[[Run, argparse.Namespace], None]) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=act.__doc__, description=act.__doc__)
        made.set_defaults(run=lambda options: act(_open(options.name), options))
        made.add_argument("name", help="the run")
        return made

    action("delete", _delete).add_argument("--yes", action="store_true", help="without asking")
    action("diff", _diff).add_argument("other", help="the other run")
    action("csv", _csv)
    action("report", _report).add_argument("file", type=Path, metavar="FILE.html", help="the file to write")
    action("note", _note).add_argument("text", help="the note")
    action("pin", _pin)
    zipped, published = action("zip", _zip), action("publish", _publish)
    zipped.add_argument("file", type=Path, help="the file to write")
    published.add_argument("repo", help="where to, owner/name")
    published.add_argument("--public", action="store_true", help="a new repository is for everybody")
    for made in (zipped, published):
        made.add_argument("--step", type=int, help="of which checkpoint (default: the newest)")


def run(options: argparse.Namespace) -> None:
    """List the runs, as JSON or one a line."""
    from opd.runs.collection import summaries

    found = summaries(options.search)
    if options.json:
        print(json.dumps([asdict(summary) for summary in found]))
    else:
        for summary in found:
            print(_line(summary))


def _line(s: RunSummary) -> str:
    from opd.view.payload import visible

    best = "-" if s.best_kl is None else f"KL {s.best_kl:.3f}"
    best = best if s.best_accuracy is None else f"{s.best_accuracy:.1%}"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(s.started))
    mark = "* " if s.baseline else "  "
    state = f"{s.state} ⚠" if s.alarmed else s.state
    line = f"{mark}{s.name}  {state}  step {s.step} of {s.steps}  best {best}  {when}  {s.objective}"
    if s.fault:
        line = f"{mark}{s.name}  {s.state}  {when}  {s.fault}"
    return visible(line + (f"  {s.note}" if s.note else "")).replace("\n", " ")


def _open(name: str) -> Run:
    from opd.runs.run import open_run

    return open_run(name)


def _delete(run: Run, options: argparse.Namespace) -> None:
    """Delete a run."""
    from opd.runs.collection import delete_run

    asked = f"Delete the run {run.name} and its checkpoints for good? [y/N] "
    if options.yes or input(asked) in ("y", "yes"):
        delete_run(run)
        print(f"The run {run.name} is deleted.")


def _diff(run: Run, options: argparse.Namespace) -> None:
    """Print the settings in which two runs differ."""
    from opd.runs.collection import config_diff

    for name, values in config_diff(run, _open(options.other)).items():
        print(f"{name}: {values[0]!r} | {values[1]!r}")


def _csv(run: Run, options: argparse.Namespace) -> None:
    """Print the metrics as CSV."""
    from opd.runs.export import metrics_csv

    print(metrics_csv(run), end="")


def _report(run: Run, options: argparse.Namespace) -> None:
    """Write a page about a run that works offline."""
    from opd.files import write_atomically
    from opd.runs.collection import read_note
    from opd.view.report import render_report

    write_atomically(options.file, render_report(run, read_note(run)))
    print(f"Saved to {options.file}.")


def _note(run: Run, options: argparse.Namespace) -> None:
    """Write a note about a run."""
    from opd.runs.collection import write_note

    write_note(run, options.text)


def _pin(run: Run, options: argparse.Namespace) -> None:
    """Make a run the baseline that others are compared with."""
    from opd.runs.collection import pin_baseline

    pin_baseline(run)


def _zip(run: Run, options: argparse.Namespace) -> None:
    """Write the trained student, adapter or weights, as a zip."""
    from opd.runs.export import export_zip

    print(f"Saved to {export_zip(run, options.file, options.step)}.")


def _publish(run: Run, options: argparse.Namespace) -> None:
    """Upload the trained student to the hub; the token is asked for."""
    from getpass import getpass

    from opd.runs.export import publish

    token = os.environ.get("HF_TOKEN") or getpass("Token of the hub (not stored): ")
    print(publish(run, options.repo, token, step=options.step, private=not options.public))
