"""Curves and barcodes as SVG, for a page that stands alone.

plotly, which draws the live ones, would add 4.8 MB of script to every file, and a picture made by a plotting
library knows one set of colours. These few lines take the page's own, by day and by night, and need no
script. What is drawn comes from ``panels.json``, which the live curves read too: a list of ``{name, title,
words, unit, range, more, traces}`` with traces ``{key, label, colour, look}`` (the metric, its name, a
CSS variable of ``tokens.css``, and how it looks; several "part" traces are stacked).
"""

from __future__ import annotations

import html
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd.view import asset
from opd.view.payload import COLOUR_STEPS

WINDOW = 10
"""Steps that a smoothed curve averages."""

SIZE = 1000
"""Units of a drawing's width and height; the page stretches it to what room there is."""

BINS = 256
"""Columns of a barcode at most; of the positions that share one the highest KL is shown."""

BOUND = "lower bound (teacher's top {:g} and tail)"
"""What is said of a KL to a teacher that gives but its likeliest tokens."""

Points = list[tuple[int, float]]
"""Step and value."""


@lru_cache(maxsize=1)
def panels() -> list[dict[str, Any]]:
    """Return the panels of a run's curves."""
    return json.loads(asset("panels.json"))


def bounds(rows: Iterable[Mapping[str, float]]) -> dict[str, str]:
    """Return what those metrics are that are but bounds; see :func:`opd.training.step_metrics.mean_kl`."""
    return {
        name.removesuffix("_top_k"): BOUND.format(value)
        for row in rows
        for name, value in row.items()
        if name.endswith("_top_k")
    }


def chart(panel: Mapping[str, Any], rows: Sequence[Mapping[str, float]], steps: int) -> str:
    """Return a panel of a run's curves as a ``figure``; empty where none of it was measured.

    Args:
        panel: one of :func:`panels`.
        rows: the metrics of the run's steps, in order.
        steps: where the axis ends.
    """
    drawn = [(trace, points) for trace in panel["traces"] if (points := _points(trace, rows))]
    if not drawn:
        return ""
    unit = panel.get("unit", ",.4g")
    stacked = panel["traces"][0]["look"] == "part"
    if stacked:
        _stack([points for _, points in drawn])
    values = [value for _, points in drawn for _, value in points]
    low, high = panel.get("range") or (min(0.0, *values), max(values))
    x = _Axis(-0.5, steps + 0.5)
    y = _Axis(low, high if high > low else low + 1)
    shapes = [f'<path class="grid" d="M0 {_flip(y, tick)}h{SIZE}"/>' for tick in y.ticks()]
    floor: Points = []
    # Bars reach from the bottom to the top of their part: the lower ones are drawn over the higher.
    for trace, points in drawn[::-1] if stacked else drawn:
        shapes += _shapes(trace, points, floor, x, y, unit)
        floor = points if trace["look"] == "floor" else []
    keys = [t for t, _ in drawn if t.get("label") and t["look"] != "raw"]
    key = "".join(
        f' <span class="key" style="--key: var(--{t["colour"]})">{t["label"]}</span>'
        for t in (keys if len(keys) > 1 else [])
    )
    known, names = bounds(rows), defaultdict(list)
    for trace in keys:
        if trace["key"] in known:
            names[known[trace["key"]]].append(trace["label"])
    said = "; ".join(f"{', '.join(own)}: {bound}" for bound, own in names.items())
    key += f'<span class="bound">{html.escape(said)}</span>' if said else ""
    last_step, last = drawn[-1][1][-1]
    words = f"{panel['title']}: {last:{unit}} at step {last_step}"
    return (
        f"<figure><figcaption><b>{panel['title']}</b> {html.escape(panel['words'])}{key}</figcaption>"
        + _framed(
            "".join(shapes),
            [(_flip(y, tick), f"{tick:{unit}}") for tick in y.ticks()],
            [(x.at(tick), f"{tick:g}") for tick in x.ticks() if tick == int(tick)],
            words,
        )
        + "</figure>"
    )


def barcode(lines: Sequence[tuple[int, NDArray[np.floating]]], caption: str, words: str) -> str:
    """Return the KL at each position of a text, a line an evaluation, as a ``figure``.

    Args:
        lines: step and values (nats, ``[T]``) of each evaluation.
        caption: what the text answers.
        words: what is read out to those who see no pictures.
    """
    columns, height = max(len(values) for _, values in lines), SIZE / len(lines)
    cells: dict[int, list[str]] = {}
    for number, (_, values) in enumerate(lines):
        levels = np.searchsorted(COLOUR_STEPS, values, side="right")
        edges = [0, *(np.flatnonzero(np.diff(levels)) + 1).tolist(), len(levels)]
        for start, end in pairwise(edges):
            if end > start:
                width = SIZE * (end - start) / columns
                place = f"M{SIZE * start / columns:.4g} {height * number:.4g}"
                path = f"{place}h{width:.4g}v{height:.4g}h-{width:.4g}z"
                cells.setdefault(int(levels[start]), []).append(path)
    shapes = [
        f'<path class="cell" style="--colour: var(--dislike-{level})" d="{"".join(d)}"/>'
        for level, d in sorted(cells.items())
    ]
    every = -(-len(lines) // 8)
    labels = [((i + 0.5) * height, f"{step}") for i, (step, _) in enumerate(lines) if i % every == 0]
    return (
        f'<figure><figcaption class="prompt">{html.escape(caption)}</figcaption>'
        + _framed("".join(shapes), labels, [], words)
        + "</figure>"
    )


class _Axis:
    """Values from ``low`` to ``high`` on the units of the drawing."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def at(self, value: float) -> float:
        return round(SIZE * (value - self.low) / (self.high - self.low), 1)

    def ticks(self) -> list[float]:
        """Three to seven round values."""
        rough = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        numbers = range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)
        return [number * step for number in numbers]


def _flip(axis: _Axis, value: float) -> float:
    """Return where a value stands, counted from the top."""
    return round(SIZE - axis.at(value), 1)


def _points(trace: Mapping[str, Any], rows: Sequence[Mapping[str, float]]) -> Points:
    there = [(int(row["step"]), row[trace["key"]]) for row in rows if trace["key"] in row]
    there = [(step, value) for step, value in there if math.isfinite(value)]
    if trace["look"] != "mean":
        return there
    values = [value for _, value in there]
    means = (float(np.mean(values[max(0, i + 1 - WINDOW) : i + 1])) for i in range(len(values)))
    return [(step, mean) for (step, _), mean in zip(there, means, strict=True)]


def _stack(parts: Sequence[Points]) -> None:
    """Add to each part what lies below it at its step."""
    height: dict[int, float] = {}
    for points in parts:
        for i, (step, value) in enumerate(points):
            height[step] = height.get(step, 0.0) + value
            points[i] = step, height[step]


def _shapes(
    trace: Mapping[str, Any], points: Points, floor: Points, x: _Axis, y: _Axis, unit: str
) -> list[str]:
    look, style = trace["look"], f'style="--colour: var(--{trace["colour"]})"'
    places = [(x.at(step), _flip(y, value)) for step, value in points]
    if look == "floor":
        return []
    if look == "band":
        below = [(x.at(step), _flip(y, value)) for step, value in reversed(floor)]
        return [f'<path class="band" {style} d="{_line([*places, *below])}z"/>']
    if look == "part":
        width = 0.85 * (x.at(1) - x.at(0))
        bars = "".join(f"M{a - width / 2:.1f} {SIZE}h{width:.1f}V{b}h-{width:.1f}z" for a, b in places)
        return [f'<path class="bar" {style} d="{bars}"/>']
    shapes = [f'<path class="{look}" {style} d="{_line(places)}"/>'] if len(places) > 1 else []
    if look == "measured" or (len(places) == 1 and look != "raw"):
        shapes += [
            f'<path class="dot" {style} d="M{a} {b}h0"><title>step {step}: {value:{unit}}</title></path>'
            for (a, b), (step, value) in zip(places, points, strict=True)
        ]
    return shapes


def _line(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a} {b}" for a, b in places)


def _framed(
    shapes: str, left: Sequence[tuple[float, str]], below: Sequence[tuple[float, str]], words: str
) -> str:
    """Put labels beside a drawing. They are text of the page, so that the stretching leaves them alone."""
    return (
        f'<div class="chart"><div class="left" aria-hidden="true">{_labels("top", left)}</div>'
        f'<svg role="img" aria-label="{html.escape(words)}" viewBox="0 0 {SIZE} {SIZE}" '
        f'preserveAspectRatio="none">{shapes}</svg>'
        f'<div class="below" aria-hidden="true">{_labels("left", below)}</div></div>'
    )


def _labels(side: str, labels: Sequence[tuple[float, str]]) -> str:
    return "".join(f'<span style="{side}: {100 * at / SIZE:.1f}%">{label}</span>' for at, label in labels)
