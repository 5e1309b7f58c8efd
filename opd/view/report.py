"""A run as one HTML file: what ran, what came of it, its curves, its probes, and the answers they got.

Like the page of reviews it works from a disk with no network, and shows the tokens with the same component.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from opd.alarms import merit
from opd.config import DistillConfig
from opd.grading.saved_reviews import ReviewGroup, ReviewSet
from opd.grading.summary import sparkline
from opd.presets import as_command, differences
from opd.reports import training_seconds
from opd.runs.events import entries
from opd.runs.run import Run
from opd.view import asset
from opd.view.chart import BINS, barcode, bounds, chart, panels
from opd.view.page import document, fill, plain
from opd.view.payload import COLOUR_STEPS, visible


def render_report(run: Run, note: str = "") -> str:
    """Return one HTML document about a run; ``note``: what the user says of it."""
    rows, status, config = run.rows(), run.status(), run.config
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.born / 1e9))
    where = f"{status.state}, step {status.step} of {status.steps}, started {started}"
    models = f"{config.student} learns from {config.teacher} on the task {config.task}; {where}"
    drawn = {more: [p for p in panels() if bool(p.get("more")) == more] for more in (False, True)}
    answers = _answers(run)
    parts = {
        **_outcome(rows, config),
        "alarms": _alarms(run),
        "curves": "".join(chart(panel, rows, status.step) for panel in drawn[False]),
        "more": "".join(chart(panel, rows, status.step) for panel in drawn[True]),
        "probes": _probes(run),
        **_settings(config),
        "happened": _happened(run),
        "answers": "<h2>Answers to the probes</h2>" if answers else "",
    }
    lead = fill(asset("report.html"), parts)
    return document(run.name, note, models, answers, lead=lead, style=asset("report.css"))


# What came of it


def _outcome(rows: Sequence[Mapping[str, float]], config: DistillConfig) -> dict[str, str]:
    """Return the table of what was measured at the first, the best and the last evaluation."""
    measured = [row for row in rows if merit(row) is not None]
    if not measured:
        return {"moments": "", "measured": "", "reading": "Nothing was measured on held-out prompts."}
    best = max(measured, key=merit)
    moments = [("first", measured[0]), ("best", best), ("last", measured[-1])]
    lines = {"held-out accuracy": _accuracy, "held-out KL": _kl}
    table = ""
    for name, said in lines.items():
        cells = [said(row) for _, row in moments]
        if any(cells):
            table += f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    return {
        "moments": "".join(f"<th>{name}, step {row['step']}</th>" for name, row in moments),
        "measured": table,
        "reading": plain(_reading(rows, measured, config)),
    }


def _accuracy(row: Mapping[str, float]) -> str:
    if "heldout_accuracy" not in row:
        return ""
    low, high = row.get("heldout_accuracy_low"), row.get("heldout_accuracy_high")
    within = "" if low is None or high is None else f" <small>{low:.1%} to {high:.1%}</small>"
    return f"{row['heldout_accuracy']:.1%}{within}"


def _kl(row: Mapping[str, float]) -> str:
    if "heldout_kl" not in row:
        return ""
    least = "≥ " if "heldout_kl" in bounds([row]) else ""
    return f"{least}{row['heldout_kl']:.3f} <small>nats a token</small>"


def _reading(
    rows: Sequence[Mapping[str, float]], measured: Sequence[Mapping[str, float]], config: DistillConfig
) -> str:
    """Say what the table's figures are, and what they cost."""
    last, said = measured[-1], []
    if "teacher_accuracy" in last:
        said.append(f"The teacher reaches {last['teacher_accuracy']:.1%}.")
    if "heldout_n" in last:
        said.append(
            f"Over {last['heldout_n']} problems of the {config.eval_split} split at temperature "
            f"{config.temperature:g}; the small figures are 95 % intervals (Wilson)."
        )
    if len(measured) > 2:
        said.append(
            f"The best of {len(measured)} evaluations is chosen on the same prompts, so it flatters a little."
        )
    minutes = sum(map(training_seconds, rows)) / 60
    tokens = sum(row.get("tokens", 0) for row in rows)
    said.append(
        f"Training took {minutes:.1f} minutes for {tokens:,.0f} completion tokens, evaluations apart."
    )
    return " ".join(said)


def _alarms(run: Run) -> str:
    alarms = [said for event in run.events() for said in entries(event) if said["kind"] == "alarm"]
    lines = "".join(f"<li>⚠ {plain(alarm['text'])}</li>" for alarm in alarms)
    return f'<ul class="alarms" aria-label="Alarms">{lines}</ul>' if alarms else ""


def _happened(run: Run) -> str:
    return "".join(
        f"<li><time>{time.strftime('%Y-%m-%d %H:%M', time.localtime(event['time']))}</time> "
        f"{plain(said['text'])}</li>"
        for event in run.events()
        for said in entries(event)
    )


def _settings(config: DistillConfig) -> dict[str, str]:
    usual, changed = DistillConfig().model_dump(), differences(config)
    lines = [(name, value, usual[name]) for name, value in changed.items()] or [("none", "", "")]
    cells = ("".join(f"<td>{plain(str(text))}</td>" for text in line) for line in lines)
    return {
        "command": plain("opd train --config FILE" if config.lessons else as_command(config)),
        "differences": "".join(f"<tr>{row}</tr>" for row in cells),
        "settings": plain(config.model_dump_json(indent=2)),
    }


# The probes


def _probes(run: Run) -> str:
    """Return a barcode of each probe that the untrained student answered."""
    texts = run.samples.probes(0)
    lines = defaultdict(list)
    for step in run.samples.steps("frozen"):
        for index, scores in run.samples.frozen(step).items():
            lines[index].append((step, sparkline(scores.reverse_kl, BINS)))
    figures = "".join(
        barcode(
            lines[i],
            f"{i + 1}. {visible(' '.join(text.messages[-1]['content'].split()))}",
            f"KL at each position of the answer to probe {i + 1}, a row an evaluation",
        )
        for i, text in enumerate(texts)
        if lines[i] and len(text.trajectory)
    )
    if not figures:
        return ""
    names = [f"< {COLOUR_STEPS[0]}", *(f"≥ {at:g}" for at in COLOUR_STEPS)]
    scale = "".join(
        f'<span><i style="--step: var(--dislike-{level})"></i>{plain(name)}</span>'
        for level, name in enumerate(names)
    )
    return (
        "<h2>What became of the untrained student's texts</h2>"
        '<p class="quiet">Its answers to the probes, graded anew by every later student: across, the '
        "positions of the text; downwards, the evaluations by step. The colour is the KL to the teacher.</p>"
        f'<div class="curves barcodes">{figures}</div><p class="quiet scale">KL, nats: {scale}</p>'
    )


def _answers(run: Run) -> ReviewSet | None:
    """Return the probes' answers at the first and at the last evaluation, side by side."""
    steps = run.samples.steps("probe")
    ends = dict.fromkeys([*steps[:1], *steps[-1:]])
    groups = [ReviewGroup(f"step {step}", run.samples.probes(step)) for step in ends]
    return ReviewSet(groups) if groups else None
