"""The library's sentences, spoken by the page; the names and texts in them are data here too."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from opd.view.payload import one_line, visible


@contextmanager
def spoken_errors() -> Iterator[None]:
    """Show what the library refuses as a message on the page; the app and its inputs stay as they are."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(_markup(error), print_exception=False) from None


def warn(text: object) -> None:
    """Show a warning on the page."""
    gr.Warning(_markup(text))


def inform(text: object) -> None:
    """Show a message on the page."""
    gr.Info(_markup(text))


def plain(text: str) -> str:
    """Return Markdown that reads as ``text``."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", visible(text))


def code(text: str) -> str:
    """Return Markdown that reads as ``text`` in the type of code."""
    shown = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if "`" in shown else f"`{shown}`"


def _markup(text: object) -> str:
    """Return the markup, as which Gradio takes its messages, that reads as ``text``."""
    return html.escape(visible(str(text)), quote=False)
