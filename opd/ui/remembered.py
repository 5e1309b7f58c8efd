"""A form that outlives a reload of the page: what stands in it lies in the browser, and nowhere else."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from opd.ui.events import PLUMBING


class Remembered:
    """The fields of a form, kept whenever one changes. ``recall`` is the script that puts them back."""

    def __init__(self, fields: Sequence[gr.components.Component]) -> None:
        """Remember these fields from now on, in the current Gradio context."""
        self.fields = list(fields)
        # The form of a version with other fields, or other choices in them, is another one.
        shape = [(str(field.elem_id), getattr(field, "choices", None)) for field in fields]
        key = f"opd-form-{zlib.crc32(json.dumps(shape).encode()):x}"
        remember, self.recall = (
            Path(__file__).with_name(f"{name}.js").read_text(encoding="utf-8").replace("FORM", key)
            for name in ("remember", "recall")
        )
        gr.on([field.change for field in fields], None, self.fields, None, js=remember, **PLUMBING)
