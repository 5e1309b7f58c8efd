"""Make the embedded demo pair from nothing."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Where to, and the seed."""
    parser.add_argument("--out", type=Path, default=Path("assets/pair"), help="folder (default assets/pair)")
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> None:
    """Train and write both models."""
    from opd.demo.make_pair import make_pair

    make_pair(options.out, seed=options.seed)
