"""Measure OPD Studio against its peers and its bounds, and print one table.

make bench                                   # all sections
make bench BENCH_ARGS="rollouts grading"     # some
make bench BENCH_ARGS=--json                 # one JSON object
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from importlib import import_module

SECTIONS = ("step", "rollouts", "grading", "target", "app", "memory", "growth", "roofline", "asynchronous")


def main() -> None:
    """Run the sections that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "sections",
        nargs="*",
        metavar="section",
        help=f"of {', '.join(SECTIONS)}; default: all but asynchronous",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides (default 2)")
    parser.add_argument(
        "--choose-rates", action="store_true", help="choose both sides' learning rates for the section target"
    )
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    # Before torch is imported, which reads them once. Nothing here needs the network.
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    import torch

    from benchmarks.measuring import as_json, machine, table

    torch.set_num_threads(args.threads)
    if args.choose_rates:
        import_module("benchmarks.target").choose_rates()
        return
    figures = []
    for section in args.sections or SECTIONS[:-1]:  # the last one needs another environment
        started = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):  # standard output is the table's alone
            figures += import_module(f"benchmarks.{section}").measure()
        print(f"{section}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    print(as_json(figures) if args.json else f"{machine()}\n\n{table(figures)}")


if __name__ == "__main__":
    main()
