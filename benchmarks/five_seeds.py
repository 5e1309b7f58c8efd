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
    """Return the curves as an SVG that reads on light and dark pages."""
    width, height, left, right, top, bottom = 720, 360, 52, 96, 16, 44
    runs = data["runs"]
    last = runs[0]["curve"][-1][0]

    def x(step: float) -> float:
        return left + step / last * (width - left - right)

    def y(accuracy: float) -> float:
        return height - bottom - accuracy * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Held-out accuracy against training step, five seeds, with the teacher\'s accuracy">',
        "<style>text{font:13px system-ui,sans-serif;fill:#57606a}.g{stroke:#8b949e;stroke-opacity:.25}"
        ".s{fill:none;stroke:#2b6cab;stroke-width:2;stroke-opacity:.8}.d{fill:#2b6cab}"
        ".t{stroke:#c9503a;stroke-width:2;stroke-dasharray:6 4}.n{stroke:#c9503a;stroke-width:1;"
        "stroke-dasharray:2 4}@media(prefers-color-scheme:dark){text{fill:#9da7b3}.s{stroke:#6fa5d2}"
        ".d{fill:#6fa5d2}.t,.n{stroke:#f07a5c}}</style>",
    ]
    for tenth in range(0, 11, 2):
        parts.append(f'<path class="g" d="M{left} {y(tenth / 10):.1f}H{width - right}"/>')
        parts.append(
            f'<text x="{left - 8}" y="{y(tenth / 10) + 4:.1f}" text-anchor="end">{tenth * 10} %</text>'
        )
    for step, _, _ in runs[0]["curve"]:
        parts.append(f'<text x="{x(step):.1f}" y="{height - 22}" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{x(last / 2):.1f}" y="{height - 4}" text-anchor="middle">step</text>')
    teacher = sum(run["teacher"] for run in runs) / len(runs)
    for name, value, label in (("t", teacher, "teacher"), ("n", 0.9 * teacher, "90 % of it")):
        parts.append(f'<path class="{name}" d="M{left} {y(value):.1f}H{width - right}"/>')
        parts.append(f'<text x="{width - right + 6}" y="{y(value) + 4:.1f}">{label}</text>')
    for run in runs:
        points = " ".join(f"{x(step):.1f},{y(accuracy):.1f}" for step, accuracy, _ in run["curve"])
        parts.append(f'<polyline class="s" points="{points}"/>')
        parts += [f'<circle class="d" r="2.5" cx="{x(s):.1f}" cy="{y(a):.1f}"/>' for s, a, _ in run["curve"]]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    measured = measure()
    DATA.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    FIGURE.write_text(draw(measured), encoding="utf-8")
