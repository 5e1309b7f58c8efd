"""The command line: one module a command, its flags beside what it does.

A command's docstring is its help. What is heavy is imported by the function that needs it: help is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from opd.cli import app, branch, doctor, evaluate, grade, make_pair, pair_report, race, reviews, runs, train
from opd.cli.output import FAILURE, USAGE_ERROR, phases_shown, say

COMMANDS = {
    "app": app,
    "grade": grade,
    "branch": branch,
    "reviews": reviews,
    "train": train,
    "race": race,
    "runs": runs,
    "doctor": doctor,
    "eval": evaluate,
    "make-pair": make_pair,
    "pair-report": pair_report,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for a wrong request, 1 for anything else."""
    options = make_parser().parse_args(arguments)
    try:
        with phases_shown():
            return options.run(options) or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        say(f"opd: {error}", sys.stderr)
        return USAGE_ERROR if isinstance(error, ValueError) else FAILURE


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the options it returns have ``run``, which takes them."""
    parser = argparse.ArgumentParser(
        prog="opd",
        description="On-policy distillation you can look at: a teacher grades every token a student writes.",
    )
    parser.add_argument("--version", action="version", version=f"OPD Studio {version('opd-studio')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.__doc__, description=module.__doc__)
        command.set_defaults(run=module.run)
        module.add_flags(command)
    return parser
