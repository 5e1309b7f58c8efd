"""What viewers of a run get: one reading of the disk serves all who ask within a moment."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

from gradio.components.base import server

from opd.runs.events import entries
from opd.runs.run import Run, RunStatus, open_run
from opd.ui.curves import CurveHTML
from opd.view.chart import bounds

MOMENT = 0.5
"""Seconds for which a reading is good enough for everybody."""

KEPT_READINGS = 64

WORDS = {
    "pausing": "Pausing when the current step is done.",
    "paused": "Paused. The models stay in memory, so resuming is immediate.",
    "stopping": "Stopping when the current step is done, with a checkpoint.",
}
"""What there is to say of a state; the others speak for themselves."""


class RunCurves(CurveHTML):
    """A component that draws the curves of runs, and asks for their news."""

    @server
    def news(self, question: Any) -> dict[str, Any] | None:  # noqa: ANN401
        """Serve ``[name, cursor]`` to the page: see :func:`news_of`."""
        match question:
            case [str(name), str() | None as cursor]:
                return news_of(name, cursor)
        return None


def news_of(name: str, cursor: str | None) -> dict[str, Any]:
    """Return what a run has written since the reading that gave ``cursor``, and where it stands, as JSON.

    ``{"gone": True}`` if there is no such run. ``cursor`` may be any text; see
    :meth:`opd.runs.run.Run.read_from`.
    """
    return _read(name, cursor, int(time.monotonic() / MOMENT))


@lru_cache(maxsize=KEPT_READINGS)
def _read(name: str, cursor: str | None, moment: int) -> dict[str, Any]:
    try:
        run = open_run(name)
        status, news = run.status(), run.read_from(cursor)
    except (ValueError, OSError):
        return {"gone": True}
    return {
        "state": status.state,
        "live": status.live,
        "alarmed": status.alarmed,
        "step": status.step,
        "steps": status.steps,
        "message": _message(run, status),
        "phase": status.phase,
        "resumable": not status.live and status.state != "finished",
        "trained": run.model_dir is not None,
        "rows": news.rows,
        "bounds": bounds(news.rows),
        "happened": [said for event in news.events for said in entries(event)],
        "cursor": news.cursor,
        "restart": news.restart,
    }


def _message(run: Run, status: RunStatus) -> str:
    if status.state in WORDS:
        return WORDS[status.state]
    if status.state in ("failed", "interrupted"):
        saved = f"from the checkpoint of step {run.saved_step}"
        whence = saved if run.newest_checkpoint else "from the beginning: it had no checkpoint"
        return f"{status.message}\nResume goes on {whence}."
    return status.message
