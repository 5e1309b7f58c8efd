"""plotly for components that plot: served by the app itself, so that no page asks anybody else."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import gradio as gr

PLOTLY = Path(find_spec("plotly").origin).with_name("package_data") / "plotly.min.js"


def plotly_head() -> str:
    """Return what a component's ``head`` loads plotly with; Gradio loads it once a page."""
    gr.set_static_paths([PLOTLY])
    return f'<script src="gradio_api/file={PLOTLY}"></script>'
