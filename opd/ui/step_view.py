"""The heading over a step's trajectories, and what the update did to their tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from opd.reports import moved_as_meant
from opd.runs.run import Run
from opd.runs.samples import Kind, Sample
from opd.ui.curves import CurveHTML
from opd.view.payload import shown_pieces

TITLES = {"rollout": "Rollouts of step", "probe": "Answers to the probes at step"}
CONTEXT = 6
"""Tokens before a point's own that its label shows."""


class StepView(CurveHTML):
    """Names the trajectories below it, leads to those of other steps, and plots intended against actual.

    Events; the ``gr.EventData`` of each holds in ``_data`` what is said here: ``step`` (``run``, ``kind``,
    ``step``: show that one), ``sample`` (``run``, ``step``, ``sample``: go to that rollout).
    """

    def show_step(self, run: Run, kind: Kind, step: int, samples: Sequence[Sample] = ()) -> str:
        """Return the value for a step of a run; ``samples``: its rollouts, where those are shown."""
        pushed = [sample for sample in samples if sample.push]
        words = ""
        if pushed:
            share, count = moved_as_meant([sample.push for sample in pushed])
            words = f"{share:.0%} of the {count} tokens that were pushed moved the way they were meant to."
        return json.dumps(
            {
                "run": run.name,
                "kind": kind,
                "step": step,
                "steps": run.samples.steps(kind),
                "title": f"{TITLES[kind]} {step}",
                "words": words,
                "points": [_points(sample) for sample in pushed],
            }
        )

    def show_title(self, title: str, words: str = "") -> str:
        """Return the value for trajectories that belong to no step."""
        return json.dumps({"title": title, "words": words, "steps": [], "points": []})


def _points(sample: Sample) -> dict[str, Any]:
    pieces = shown_pieces(sample.review.pieces)
    labels = [
        f"{''.join(pieces[max(0, i - CONTEXT) : i])}[{piece}]".replace("\n", "")
        for i, piece in enumerate(pieces)
    ]
    return {"sample": sample.index, "labels": labels, **sample.push.to_dict()}
