"""Distil the teacher into the student."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from opd.cli.flags import add_settings, config_of, given_settings
from opd.cli.foreground import led, work
from opd.cli.output import FAILURE, say
from opd.presets import PAIRS, PRESETS, as_command

if TYPE_CHECKING:
    from opd.config import DistillConfig
    from opd.training.preview import Preview


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which run, begun from which settings, or only tried."""
    parser.add_argument("--name", help="name of the run (default: a new one)")
    parser.add_argument(
        "--resume", metavar="NAME", help="continue a run; its own settings apply, but more --steps prolong it"
    )
    starts = ", ".join(PRESETS | PAIRS)
    parser.add_argument("--preset", metavar="NAME", help=f"over these settings, one of {starts}")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="ask the doctor, sample and grade the first step's batch, and say what it would train",
    )
    add_settings(parser)


@led
def run(options: argparse.Namespace) -> int | None:
    """Train a new run, go on with one, or make a dry run."""
    from opd.runs.jobs import enter, refuse_finished
    from opd.runs.run import new_name, open_run

    if options.resume:
        given = given_settings(options)
        steps = given.pop("steps", None)
        if given or options.config or options.name or options.preset or options.dry_run:
            raise ValueError("--resume continues a run with its own settings; it takes none but --steps.")
        resumed = open_run(options.resume)
        refuse_finished(resumed, steps)
        return work(resumed, steps)
    config = config_of(options, options.preset)
    if options.dry_run:
        return _dry_run(config)
    return work(enter(config, options.name or new_name()))


def _dry_run(config: DistillConfig) -> int:
    """Print what the doctor does not pass and, unless that forbids the run, what its first step would do."""
    from opd.models.parallel import rank
    from opd.training.preview import dry_run

    findings, preview = dry_run(config)
    if rank() == 0:
        if not config.lessons:  # they have no flags
            say(as_command(config))
        for finding in findings:
            if finding.level != "pass":
                say(finding)
        if preview:
            _print_preview(preview)
    return 0 if preview else FAILURE


def _print_preview(preview: Preview) -> None:
    from opd.view.payload import one_line

    for sentence in preview.sentences():
        say(sentence)
    for title, tokens in (("Punished", preview.punished), ("Rewarded", preview.rewarded)):
        print(f"\n{title} most: advantage, the [token] in its context, the teacher's first choice")
        for t in tokens:
            context = f"{one_line(t.before)}[{one_line(t.text)}]{one_line(t.after)}"
            print(f"{t.advantage:+8.2f}  {context}  → {one_line(t.teacher_choice)}")
