"""Distil the embedded pair with the default settings on five seeds, and draw the README's figure.

    python -m benchmarks.five_seeds            # about a quarter of an hour on two cores

Two runs at a time, one thread each. Writes ``benchmarks/five_seeds.json`` (every evaluation) and
``assets/figures/five_seeds.svg``. Evaluations use held-out problems of the test split, which no training
batch contains; the training time counts neither loading nor evaluation.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
from pathlib import Path

from benchmarks.drawing import Panel, picture

SEEDS = range(5)
ROOT = Path(__file__).parent.parent
DATA, FIGURE = ROOT / "benchmarks/five_seeds.json", ROOT / "assets/figures/five_seeds.svg"


def run(seed: int) -> dict:
    """Run one seed; returns its curve of ``[step, accuracy, KL]``, the teacher's accuracy and the time."""
    import torch

    import opd

    torch.set_num_threads(1)
    curve, seconds = [], 0.0
    for report in opd.distill(opd.DistillConfig(seed=seed)):
        m = report.metrics
        seconds += sum(m.get(f"seconds_{phase}", 0.0) for phase in ("sample", "teacher", "update"))
        if "heldout_accuracy" in m:
            curve.append([report.step, m["heldout_accuracy"], m["heldout_kl"]])
            teacher, n = m["teacher_accuracy"], m["heldout_n"]
            print(f"seed {seed}, step {report.step}: {m['heldout_accuracy']:.3f}", flush=True)
    return {"seed": seed, "teacher": teacher, "n": n, "curve": curve, "training_seconds": round(seconds, 1)}


def measure() -> dict:
    """Run the seeds and say how each ended."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        runs = pool.map(run, SEEDS, chunksize=1)
    for r in runs:
        accuracies = [accuracy for _, accuracy, _ in r["curve"]]
        last_three = sum(accuracies[-3:]) / 3
        print(
            f"seed {r['seed']}: {accuracies[0]:.3f} -> {accuracies[-1]:.3f}, teacher {r['teacher']:.3f}, "
            f"n = {r['n']}; of the teacher's: last {accuracies[-1] / r['teacher']:.3f}, "
            f"last three {last_three / r['teacher']:.3f}; {r['training_seconds']:.0f} s of training"
        )
    return {"machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread a run", "runs": runs}


def draw(data: dict) -> str:
    """Return the curves as an SVG."""
    width, height = 720, 360
    runs = data["runs"]
    steps = [step for step, _, _ in runs[0]["curve"]]
    panel = Panel(52, width - 96, 16, height - 44, last=steps[-1], most=1)
    teacher = sum(run["teacher"] for run in runs) / len(runs)
    parts = [
        *panel.axes(steps, {tenth / 10: f"{tenth * 10} %" for tenth in range(0, 11, 2)}),
        *panel.level(teacher, "teacher", "t"),
        *panel.level(0.9 * teacher, "90 % of it", "n"),
    ]
    for run in runs:
        parts += panel.curve([(step, accuracy) for step, accuracy, _ in run["curve"]])
    about = "Held-out accuracy against training step, five seeds, with the teacher's accuracy"
    return picture(width, height, about, parts)


if __name__ == "__main__":
    measured = measure()
    DATA.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    FIGURE.write_text(draw(measured), encoding="utf-8")
