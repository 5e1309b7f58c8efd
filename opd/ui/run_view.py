"""A run, watched live: where it stands, and its curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
import plotly
from gradio.components.base import server

from opd.runs import open_run

PLOTLY = Path(plotly.__file__).with_name("package_data") / "plotly.min.js"


class RunView(gr.HTML):
    """Follows one run by its name.

    Pages ask a server function for the rows they do not have yet and extend their curves in place; so a
    reload, a second page and a restart of the app all see the same run, and a zoom is kept. A page asks no
    more once the run has ended, nor while nobody looks at it. Event: ``ended``.
    """

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Make a view of no run yet; ``kwargs`` are those of :class:`gradio.HTML`."""
        gr.set_static_paths([PLOTLY])
        here = Path(__file__)
        super().__init__(
            html_template=here.with_suffix(".html").read_text(encoding="utf-8"),
            css_template=here.with_suffix(".css").read_text(encoding="utf-8"),
            js_on_load=here.with_suffix(".js").read_text(encoding="utf-8"),
            head=f'<script src="gradio_api/file={PLOTLY}"></script>',
            apply_default_css=False,
            **kwargs,
        )

    def show(self, name: str) -> str:
        """Return the value that follows the run called ``name``."""
        return json.dumps({"run": name})

    @server
    def news(self, question: Any) -> dict[str, Any] | None:  # noqa: ANN401
        """Serve ``[name, step]`` to the page: the run's status and its rows after that step, or None."""
        match question:
            case [str(name), int(since)]:
                try:
                    run = open_run(name)
                    status, rows = run.status(), run.rows(since)
                except (ValueError, OSError):
                    return None
                return {
                    "state": status.state,
                    "step": status.step,
                    "steps": status.steps,
                    "message": status.message,
                    "notes": run.notes(),
                    "rows": rows,
                }
        return None
