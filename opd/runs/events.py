"""What the events of a run say: where it stands, and what its user should know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opd.runs.journal import Record, as_event

STATES = ("loading", "queued", "started", "resumed", "paused", "finished", "stopped", "failed")
"""Events that say where a run stands. The others say something of it: task, examined, note, alarm."""

MARKS = {"paused": "Paused.", "resumed": "Resumed.", "stopped": "Stopped.", "finished": "Finished."}
"""Those of them that the page's list of what happened names."""


def as_state(record: Any) -> Record | None:  # noqa: ANN401
    """Return an event that says where the run stands."""
    event = as_event(record)
    return event if event and event["event"] in STATES else None


def sentences(event: Mapping[str, Any]) -> list[str]:
    """Return what an event says to the user: the doctor's warnings, a note, an alarm; mostly nothing."""
    match event:
        case {"event": "examined", "findings": [*findings]}:
            return [message for finding in findings for message in _warning(finding)]
        case {"event": "note" | "alarm" as kind, "message": str(message)}:
            return [f"{'⚠ ' if kind == 'alarm' else ''}{_at(event)}{message}"]
    return []


def _warning(finding: Any) -> list[str]:  # noqa: ANN401
    match finding:
        case {"level": "warn" | "fail", "message": str(message)}:
            return [message]
    return []


def entries(event: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the list of what happened has of an event: {kind: note | alarm | mark, text}.

    An alarm's step, metric and evidence come with it.
    """
    match event:
        case {"event": "alarm", "step": int(step), "message": str(message), "metric": _, "evidence": _}:
            alarm = {key: event[key] for key in ("step", "metric", "evidence")}
            return [{"kind": "alarm", "text": f"Step {step}: {message}", **alarm}]
        case {"event": "task", "message": str(message)}:  # what trains, and what is held out
            return [{"kind": "mark", "text": message}]
        case {"event": str(name)} if name in MARKS:
            return [{"kind": "mark", "text": f"{_at(event)}{MARKS[name]} {event.get('message', '')}".strip()}]
    return [{"kind": "note", "text": sentence} for sentence in sentences(event)]


def _at(event: Mapping[str, Any]) -> str:
    return f"Step {event['step']}: " if "step" in event else ""
