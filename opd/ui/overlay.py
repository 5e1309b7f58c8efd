"""Curves of several runs on shared axes, and where their configs differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gradio.components.base import server

from opd.runs.collection import baseline, config_diff
from opd.runs.run import Run
from opd.ui.curves import CurveHTML
from opd.ui.feed import news_of
from opd.view.payload import visible


class Overlay(CurveHTML):
    """Lays the curves of runs over each other; runs that still train go on. The baseline is dashed."""

    def show(self, runs: Sequence[Run]) -> str:
        """Return the value for some runs; the baseline joins them. Of two, the config diff is shown.

        Runs that cannot be read have no curves.
        """
        pinned = baseline()
        shown = [*runs, *([pinned] if pinned and runs and pinned not in runs else [])]
        shown = [run for run in shown if run.readable]
        names = [run.name for run in shown]
        diff = {}
        if len(shown) == 2:
            diff = {
                name: [visible(str(value)) for value in values]
                for name, values in config_diff(*shown).items()
            }
        return json.dumps({"runs": names, "baseline": pinned.name if pinned else None, "diff": diff})

    @server
    def news(self, question: Any) -> dict[str, Any] | None:  # noqa: ANN401
        """Serve ``[name, cursor]`` to the page: see :func:`opd.ui.feed.news_of`."""
        match question:
            case [str(name), str() | None as cursor]:
                return news_of(name, cursor)
        return None
