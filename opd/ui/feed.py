"""What viewers of a run are told: one reading of the disk serves all who ask within a moment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from opd.runs import Run, RunStatus, open_run, sentences

MOMENT = 0.5
"""Seconds for which a reading is good enough for everybody."""

KEPT_READINGS = 64

WORDS = {
    "pausing": "Pausing when the current step is done.",
    "paused": "Paused. The models stay in memory, so resuming is immediate.",
    "stopping": "Stopping when the current step is done, with a checkpoint.",
}
"""What there is to say of a state; the others speak for themselves."""

MARKS = {"paused": "Paused.", "resumed": "Resumed.", "stopped": "Stopped.", "finished": "Finished."}
"""Events that the list of what happened names, beside those that have sentences of their own."""


def news_of(name: str, cursor: str | None) -> dict[str, Any]:
    """Return what a run has written since the reading that gave ``cursor``, and where it stands, as JSON.

    ``{"gone": True}`` if there is no such run. ``cursor`` may be any text; see
    :meth:`opd.runs.Run.read_from`.
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
        "step": status.step,
        "steps": status.steps,
        "message": _message(run, status, started=bool(status.step or news.rows)),
        "resumable": not status.live and status.state != "finished",
        "trained": run.model_dir is not None,
        "rows": news.rows,
        "happened": [told for event in news.events for told in _told(event)],
        "cursor": news.cursor,
        "restart": news.restart,
    }


def _message(run: Run, status: RunStatus, *, started: bool) -> str:
    if status.state in WORDS:
        return WORDS[status.state]
    if status.state == "running" and not started:  # the loaders' progress bars go back to the line's start
        return run.log_tail(1).rpartition("\r")[2].strip()
    if status.state in ("failed", "interrupted"):
        saved = run.checkpoints
        step = int(saved[-1].name.removeprefix("step-")) if saved else 0
        whence = (
            f"from the checkpoint of step {step}" if saved else "from the beginning: it had no checkpoint"
        )
        return f"{status.message}\nResume goes on {whence}."
    return status.message


def _told(event: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the page tells of an event: {kind: note | alarm | mark, text}; an alarm's details too."""
    if event["event"] == "alarm":
        alarm = {key: event[key] for key in ("step", "metric", "evidence")}
        return [{"kind": "alarm", "text": f"Step {event['step']}: {event['message']}", **alarm}]
    if event["event"] in MARKS:
        at = f"Step {event['step']}: " if "step" in event else ""
        return [{"kind": "mark", "text": f"{at}{MARKS[event['event']]} {event.get('message', '')}".strip()}]
    return [{"kind": "note", "text": sentence} for sentence in sentences(event)]
