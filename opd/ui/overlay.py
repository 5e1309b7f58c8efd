"""Curves of several runs on shared axes, and where their configs differ."""

from __future__ import annotations

import json
from collections.abc import Sequence

from opd.config import written
from opd.runs.collection import baseline, config_diff
from opd.runs.run import Run
from opd.ui.feed import RunCurves
from opd.view.payload import visible


class Overlay(RunCurves):
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
                name: ["–" if value is None else visible(written(value)) for value in values]
                for name, values in config_diff(*shown).items()
            }
        return json.dumps({"runs": names, "baseline": pinned.name if pinned else None, "diff": diff})
