"""Components of our own: a ``gr.HTML`` whose markup, style and script are the files beside its module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from opd.view import asset

HERE = Path(__file__).parent


class OwnHTML(gr.HTML):
    """A ``gr.HTML`` that is drawn by its own script.

    Its value is data (a JSON string), never markup: it does not enter the template, which Gradio would
    evaluate. A module ``x.py`` has its parts in ``x.html``, ``x.css`` and ``x.js``.
    """

    def __init__(self, module: str, shared: Sequence[str] = (), **kwargs: Any) -> None:  # noqa: ANN401
        """Read the files.

        Args:
            module: ``__file__`` of the component's module.
            shared: names of scripts that come before its own.
            kwargs: those of :class:`gradio.HTML`, and further props of the script.
        """
        own = Path(module)
        scripts = [*(HERE / name for name in shared), own.with_suffix(".js")]
        styles = [asset("cockpit.css"), own.with_suffix(".css").read_text(encoding="utf-8")]
        super().__init__(
            html_template=own.with_suffix(".html").read_text(encoding="utf-8"),
            css_template="\n".join(styles),
            js_on_load="\n".join(path.read_text(encoding="utf-8") for path in scripts),
            apply_default_css=False,
            **kwargs,
        )

    def postprocess(self, value: str | None) -> str | None:
        """Pass the value on: it is data, where Gradio would look for markup."""
        return value
