"""A run's probes through time: the KL barcode, and what became of each token of the untrained student."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from gradio.components.base import server

from opd.grading.summary import sparkline
from opd.reports import FrozenScores
from opd.runs.run import Run, open_run
from opd.ui.component import OwnHTML
from opd.view.chart import BINS
from opd.view.payload import COLOUR_STEPS, shown_pieces, visible

KEPT_SCORES = 32


class TimeMachine(OwnHTML):
    """Shows how a run's frozen probes fare from step to step.

    Event: ``look`` (``_data``: ``run``, ``step``, ``probe``: show what the student answers then).
    """

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Make an empty view; ``kwargs`` are those of :class:`gradio.HTML`."""
        super().__init__(heat=COLOUR_STEPS, **kwargs)

    def show(self, name: str) -> str:
        """Return the value that follows the run called ``name``."""
        return json.dumps({"run": name})

    @server
    def prompts(self, question: Any) -> list[str] | None:  # noqa: ANN401
        """Serve a run's name: its probes' prompts, empty before the first evaluation; None if no run."""
        match question:
            case str(name) if run := _run(name):
                return [visible(review.messages[-1]["content"]) for review in run.samples.probes(0)]
        return None

    @server
    def barcode(self, question: Any) -> dict[str, Any] | None:  # noqa: ANN401
        """Serve ``[name, probe, since]``: the evaluations after that step; None if there is no such run.

        ``steps`` and, for each, in ``kl`` the highest KL (nats) of each column's tokens; ``tokens`` of the
        probe; whether the run is ``live``.
        """
        match question:
            case [str(name), int(probe), int(since)] if run := _run(name):
                steps = [step for step in run.samples.steps("frozen") if step > since]
                kl = {s: _scores(run, s)[probe].reverse_kl for s in steps if probe in _scores(run, s)}
                return {
                    "steps": list(kl),
                    "kl": [_rounded(sparkline(column, BINS)) for column in kl.values()],
                    "tokens": max(map(len, kl.values()), default=0),
                    "live": run.status().live,
                }
        return None

    @server
    def text(self, question: Any) -> list[str] | None:  # noqa: ANN401
        """Serve ``[name, probe]``: the tokens that the untrained student wrote."""
        match question:
            case [str(name), int(probe)] if (run := _run(name)) and probe >= 0:
                asked = run.samples.probes(0)[probe : probe + 1]
                return [piece for review in asked for piece in shown_pieces(review.pieces)]
        return None

    @server
    def kl_at(self, question: Any) -> list[float] | None:  # noqa: ANN401
        """Serve ``[name, probe, step]``: the KL (nats) at each of those tokens, at that step."""
        match question:
            case [str(name), int(probe), int(step)] if (run := _run(name)) and probe in _scores(run, step):
                return _rounded(_scores(run, step)[probe].reverse_kl)
        return None


def _run(name: str) -> Run | None:
    try:
        return open_run(name)
    except ValueError:
        return None


def _scores(run: Run, step: int) -> Mapping[int, FrozenScores]:
    return _read_scores(run, run.born, step)


@lru_cache(maxsize=KEPT_SCORES)
def _read_scores(run: Run, born: int, step: int) -> Mapping[int, FrozenScores]:
    """Read an evaluation's scores; they do not change once written. ``born`` parts runs of one name."""
    return run.samples.frozen(step)


def _rounded(column: np.ndarray) -> list[float]:
    return [round(x, 3) for x in column.tolist()]
