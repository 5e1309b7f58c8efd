"""Draw the README's figure of healing a pruned model, from three runs of the preset ``heal``.

    for seed in 0 1 2; do opd train --preset heal --seed $seed --name heal-$seed; done
    python -m benchmarks.heal heal-0 heal-1 heal-2

A run takes about a quarter of an hour on two cores. Writes ``benchmarks/heal.json`` (every evaluation, and
greedy answers to held-out prompts before and after the first run) and ``assets/figures/heal.svg``, in which
the embedded pair's five seeds stand beside them. Evaluations use the 40 held-out requests of the test split,
which no training batch contains; the training time counts neither loading nor evaluation.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev

from benchmarks import five_seeds
from benchmarks.drawing import Panel, picture
from opd.engines.sampling import sample
from opd.models.load import load_model
from opd.reports import training_seconds
from opd.runs.run import Run, open_run
from opd.tasks import load_task

DATA, FIGURE = five_seeds.ROOT / "benchmarks/heal.json", five_seeds.ROOT / "assets/figures/heal.svg"

SHOWN = 24
"""Held-out prompts that are answered greedily."""

T975 = 4.3027
"""Of Student's t with two degrees of freedom, those of three seeds."""


def measured(run: Run) -> dict:
    """Return a run's curve of ``[step, KL]``, its prompts, its tokens and its times."""
    rows = run.rows()
    evaluated = [row for row in rows if "heldout_kl" in row]
    return {
        "seed": run.config.seed,
        "prompts": int(evaluated[0]["heldout_prompts"]),
        "curve": [[int(row["step"]), row["heldout_kl"]] for row in evaluated],
        "trained_tokens": int(sum(row.get("tokens", 0) for row in rows)),
        "training_seconds": round(sum(map(training_seconds, rows)), 1),
        "evaluation_seconds": round(sum(row["seconds_evaluate"] for row in evaluated), 1),
    }


def answers(run: Run) -> list[dict[str, str]]:
    """Return greedy answers to held-out prompts: of a run's student before and after, and of its teacher."""
    config = run.config
    prompts = [example.prompt for example in load_task(config.task).heldout(SHOWN)]
    sides = {"before": config.student, "after": str(run.checkpoints[-1]), "teacher": config.teacher}
    said = {}
    for side, name in sides.items():
        model = load_model(name, device=config.device)
        greedy = sample(model, prompts, temperature=0, max_tokens=config.max_tokens)
        said[side] = [model.text(t.completion_ids) for t in greedy]
    return [
        {"prompt": prompt, **{side: texts[i] for side, texts in said.items()}}
        for i, prompt in enumerate(prompts)
    ]


def say(runs: Sequence[dict]) -> None:
    """Print each seed's ends, and by how much the KL fell with its interval over the seeds."""
    for run in runs:
        print(
            f"seed {run['seed']}: {run['curve'][0][1]:.3f} -> {run['curve'][-1][1]:.3f} nats a token, "
            f"n = {run['prompts']} prompts; {run['trained_tokens']} tokens trained in "
            f"{run['training_seconds']:.0f} s, {run['evaluation_seconds']:.0f} s of evaluations"
        )
    fell = [run["curve"][0][1] - run["curve"][-1][1] for run in runs]
    half = T975 * stdev(fell) / sqrt(len(fell))
    print(
        f"fell by {mean(fell):.3f} [{mean(fell) - half:.3f}, {mean(fell) + half:.3f}] over {len(fell)} seeds"
    )


def draw(data: dict, embedded: dict) -> str:
    """Return both pairs' curves as an SVG, the mean over the seeds and their range.

    Args:
        data: what :func:`main` writes.
        embedded: what :mod:`benchmarks.five_seeds` writes.
    """
    width, height = 720, 330
    heal = [run["curve"] for run in data["runs"]]
    five = [[(step, kl) for step, _, kl in run["curve"]] for run in embedded["runs"]]
    shown = [
        (f"embedded pair, {len(five)} seeds", five, (52, 340), 0.12, 0.03),
        (f"SmolLM2 135M, four layers less, {len(heal)} seeds", heal, (412, 700), 2.0, 0.5),
    ]
    parts = ['<text x="4" y="16">reverse KL on held-out prompts, nats a token</text>']
    for title, curves, (left, right), most, tick in shown:
        steps = [step for step, _ in curves[0]]
        panel = Panel(left, right, 52, height - 44, last=steps[-1], most=most)
        values = {i * tick: f"{i * tick:g}" for i in range(round(most / tick) + 1)}
        at_step = [[curve[i][1] for curve in curves] for i in range(len(steps))]
        low, middle, high = (
            list(zip(steps, map(figure, at_step), strict=True)) for figure in (min, mean, max)
        )
        parts += panel.axes(steps, values)
        parts += [panel.band(low, high), *panel.curve(middle)]
        parts.append(f'<text x="{(left + right) / 2}" y="44" text-anchor="middle">{title}</text>')
    about = (
        "Held-out reverse KL against training step: the embedded pair, and a pruned SmolLM2 that is healed"
    )
    return picture(width, height, about, parts)


def main() -> None:
    """Read the runs that are named, write the data and the figure."""
    runs = [open_run(name) for name in sys.argv[1:]]
    if len(runs) != 3:
        sys.exit("Name three runs of the preset heal: python -m benchmarks.heal heal-0 heal-1 heal-2")
    data = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "runs": [measured(run) for run in runs],
        "answers": answers(runs[0]),
    }
    say(data["runs"])
    embedded = json.loads(five_seeds.DATA.read_text(encoding="utf-8"))
    DATA.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    FIGURE.write_text(draw(data, embedded), encoding="utf-8")


if __name__ == "__main__":
    main()
