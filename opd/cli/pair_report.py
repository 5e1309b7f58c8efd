"""Measure the embedded pair: accuracy, first errors, fixes."""

from __future__ import annotations

import argparse
import json

from opd.cli.flags import add_pair, load_pair


def add_flags(parser: argparse.ArgumentParser) -> None:
    """On how many problems of which split, and the pair."""
    parser.add_argument("-n", type=int, default=1000, help="held-out problems (default 1000)")
    parser.add_argument("--split", choices=("test", "tuning"), default="test")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_pair(parser)


def run(options: argparse.Namespace) -> None:
    """Print the report's tables."""
    from opd.demo.report import forks_table, pair_report, report_table

    report = pair_report(load_pair(options), n=options.n, split=options.split)
    print(json.dumps(report) if options.json else f"{report_table(report)}\n\n{forks_table(report)}")
