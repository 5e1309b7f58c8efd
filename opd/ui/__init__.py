"""The Gradio app: one module a tab. It computes nothing that a caller of the library could not."""

import os

# Read by Gradio when it is imported: the app makes no request to anybody but its own server.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from opd.ui.app import build_app, launch

__all__ = ["build_app", "launch"]
