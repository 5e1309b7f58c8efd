"""How the page's own events are wired, and how what they say is read: anybody can send one."""

from __future__ import annotations

from typing import Any

import gradio as gr

PLUMBING = {"api_visibility": "private", "show_progress": "hidden"}
"""For events that only move the page along: no endpoint of the API, no spinner over the page."""

NOT_THERE = "The page asked for something that is not there. Please load it anew."


def field(event: gr.EventData, name: str) -> Any:  # noqa: ANN401
    """Return what an event says under a name; None where it says nothing, or is no table at all."""
    return event._data.get(name) if isinstance(event._data, dict) else None


def number(event: gr.EventData, name: str) -> int:
    """Return the count that an event says under a name.

    Raises:
        ValueError: it says none.
    """
    match field(event, name):
        case int(count) if count >= 0:
            return count
    raise ValueError(NOT_THERE)
