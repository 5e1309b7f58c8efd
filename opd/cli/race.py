"""Train the same pair with several methods, one after another."""

from __future__ import annotations

import argparse

from opd.cli.flags import add_settings, given_settings, saved_settings
from opd.cli.foreground import led, work
from opd.presets import RACERS, race_configs


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Who takes part, under which budget, and the settings that all share."""
    parser.add_argument("name", help="name of the race; its runs are called NAME-PRESET")
    parser.add_argument(
        "--methods", nargs="+", metavar="PRESET", default=RACERS, help=f"presets (default {' '.join(RACERS)})"
    )
    parser.add_argument("--budget-tokens", type=int, help="each method ends after so many completion tokens")
    parser.add_argument("--budget-seconds", type=float, help="each method ends after so long a training")
    add_settings(parser)


@led
def run(options: argparse.Namespace) -> None:
    """Train them in order; a stop of one stops the race."""
    from opd.runs.jobs import enter_race
    from opd.runs.run import Race

    configs = race_configs(options.methods, saved_settings(options), given_settings(options))
    for racer in enter_race(configs, Race(options.name, options.budget_tokens, options.budget_seconds)):
        work(racer)
        if racer.status().state == "stopped":
            break
