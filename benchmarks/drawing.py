"""Curves as SVG that reads on light and dark pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#57606a}.g{stroke:#8b949e;stroke-opacity:.25}"
    ".s{fill:none;stroke:#2b6cab;stroke-width:2;stroke-opacity:.8}.d{fill:#2b6cab}.b{fill:#2b6cab;"
    "fill-opacity:.18}.t{stroke:#c9503a;stroke-width:2;stroke-dasharray:6 4}.n{stroke:#c9503a;"
    "stroke-width:1;stroke-dasharray:2 4}@media(prefers-color-scheme:dark){text{fill:#9da7b3}"
    ".s{stroke:#6fa5d2}.d,.b{fill:#6fa5d2}.t,.n{stroke:#f07a5c}}"
)
"""Classes: grid, curve, its dots, band, and two kinds of lines to compare with."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """Axes inside a picture: where they lie, in pixels, and where they end; both begin at 0."""

    left: float
    right: float
    top: float
    bottom: float
    last: float
    most: float

    def x(self, step: float) -> float:
        """Where a step is."""
        return self.left + step / self.last * (self.right - self.left)

    def y(self, value: float) -> float:
        """Where a value is."""
        return self.bottom - value / self.most * (self.bottom - self.top)

    def axes(self, steps: Iterable[float], values: Mapping[float, str]) -> list[str]:
        """A line of the grid at each value, with its words; numbers of steps."""
        parts = []
        for value, words in values.items():
            parts.append(f'<path class="g" d="M{self.left} {self.y(value):.1f}H{self.right}"/>')
            parts.append(
                f'<text x="{self.left - 8}" y="{self.y(value) + 4:.1f}" text-anchor="end">{words}</text>'
            )
        for step in steps:
            parts.append(
                f'<text x="{self.x(step):.1f}" y="{self.bottom + 22}" text-anchor="middle">{step}</text>'
            )
        middle = self.x(self.last / 2)
        return [*parts, f'<text x="{middle:.1f}" y="{self.bottom + 40}" text-anchor="middle">step</text>']

    def level(self, value: float, words: str, kind: str) -> list[str]:
        """A line across at one value, named behind its end."""
        y = self.y(value)
        return [
            f'<path class="{kind}" d="M{self.left} {y:.1f}H{self.right}"/>',
            f'<text x="{self.right + 6}" y="{y + 4:.1f}">{words}</text>',
        ]

    def curve(self, points: Points) -> list[str]:
        """A curve with a dot at every point."""
        dots = [f'<circle class="d" r="2.5" cx="{self.x(s):.1f}" cy="{self.y(v):.1f}"/>' for s, v in points]
        return [f'<polyline class="s" points="{self._path(points)}"/>', *dots]

    def band(self, low: Points, high: Points) -> str:
        """What lies between two curves."""
        return f'<polygon class="b" points="{self._path([*low, *reversed(high)])}"/>'

    def _path(self, points: Points) -> str:
        return " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in points)


def picture(width: int, height: int, about: str, parts: Iterable[str]) -> str:
    """Return a whole SVG; ``about`` says what is to be seen, and is no text of anybody else's."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{about}">'
    )
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"
