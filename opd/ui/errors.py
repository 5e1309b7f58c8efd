"""The library's sentences, spoken by the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr


@contextmanager
def spoken_errors() -> Iterator[None]:
    """Show what the library refuses as a message on the page; the app and its inputs stay as they are."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from None
