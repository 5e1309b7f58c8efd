"""plotly for components that plot: served by the app itself, so that no page asks anybody else."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr

from opd.ui.component import OwnHTML

PLOTLY = Path(find_spec("plotly").origin).with_name("package_data") / "plotly.min.js"


def plotly_address() -> str:
    """Return where a component's script gets plotly: what ``loadPlotly`` of plotly.js takes."""
    gr.set_static_paths([PLOTLY])
    return f"gradio_api/file={PLOTLY}"


class CurveHTML(OwnHTML):
    """A component that draws curves: its script is given the address of plotly."""

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Add plotly's address; ``kwargs`` are those of :class:`OwnHTML`."""
        super().__init__(plotly=plotly_address(), **kwargs)
