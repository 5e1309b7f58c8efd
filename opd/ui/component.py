"""Components of our own: a ``gr.HTML`` whose markup, style and script are the files beside its module."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import gradio as gr

from opd.view import script, style


class OwnHTML(gr.HTML):
    """A ``gr.HTML`` that is drawn by its own script.

    Its value is data (a JSON string), never markup: it does not enter the template, which Gradio would
    evaluate. A module ``x.py`` has its parts in ``x.html``, ``x.css`` and ``x.js``.
    """

    def __init__(self, *, looks: Path | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        """Read the files.

        Args:
            looks: where its markup and style lie instead, without their endings.
            kwargs: those of :class:`gradio.HTML`, and further props of the script.
        """
        own = Path(inspect.getfile(type(self)))
        looks = looks or own
        super().__init__(
            html_template=looks.with_suffix(".html").read_text(encoding="utf-8"),
            css_template=style() + looks.with_suffix(".css").read_text(encoding="utf-8"),
            js_on_load=script(own.with_suffix(".js")),
            apply_default_css=False,
            **kwargs,
        )

    def postprocess(self, value: str | None) -> str | None:
        """Pass the value on: it is data, where Gradio would look for markup."""
        return value
