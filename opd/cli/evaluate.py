"""Score a model on held-out problems."""

from __future__ import annotations

import argparse
import json
import sys

from opd.cli.flags import add_some_settings, given_settings, refuse_what_is_not_offered
from opd.cli.output import say
from opd.config import MODELS, grouped_settings


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The model, the task with its options, and how the answers are sampled."""
    parser.add_argument("model", help=f"{MODELS}, demo-student or demo-teacher")
    add_some_settings(parser, grouped_settings()["Task"])
    parser.add_argument("-n", type=int, default=512, help="problems (default 512)")
    parser.add_argument(
        "--split",
        choices=("test", "tuning", "all"),
        default="test",
        help="which held-out problems, or all of a file (default test)",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default 1)")
    parser.add_argument("--max-tokens", type=int, default=192, help="longest answer (default 192)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    add_some_settings(parser, ("template_options", "control_tokens"))
    parser.add_argument("--json", action="store_true", help="print JSON")
    refuse_what_is_not_offered(parser)


def run(options: argparse.Namespace) -> None:
    """Print the accuracy with its sample size and interval."""
    from opd.grading.evaluation import evaluate
    from opd.models.load import load_model
    from opd.tasks import TaskOptions, load_task

    of_task = {name: v for name, v in given_settings(options).items() if name in grouped_settings()["Task"]}
    task = load_task(of_task.pop("task", "demo"), TaskOptions(**of_task))
    if sizes := task.sizes():
        say(task.summary(), sys.stderr)
        say(_rows(options.split, sizes, options.n), sys.stderr)
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    accuracy = evaluate(
        model.prompted(options.template_options, control_tokens=bool(options.control_tokens)),
        task,
        n=options.n,
        split=options.split,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
    if options.json:
        low, high = accuracy.interval
        print(json.dumps({"accuracy": accuracy.value, "n": accuracy.n, "low": low, "high": high}))
    else:
        say(f"{options.model} on {task.name}: {accuracy}")


def _rows(split: str, sizes: dict[str, int], n: int) -> str:
    """Say which rows of a file are asked."""
    every = sum(sizes.values())
    if split == "all":
        first = "all" if n >= every else f"the first {n}"
        return (
            f"Asked are {first} of its {every} prompts, in the order of the file, with those that train "
            f"where it is the task of a run."
        )
    return (
        f"Asked are up to {n} of the {sizes[split]} prompts, of {every}, that a hash of their text puts in "
        f"the {split} split; --split all asks all."
    )
