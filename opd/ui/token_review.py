"""The token review component as a Gradio component."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.base import server

from opd.trajectory import Review
from opd.view import asset
from opd.view.payload import alternatives_payload, legend, review_payload

KEPT_SETS = 64
"""Sets of reviews whose alternatives stay at hand; an older one still shows, without its alternatives."""


@dataclass(frozen=True)
class ReviewGroup:
    """The trajectories of one student under one heading."""

    label: str
    reviews: Sequence[Review]


class TokenReview(gr.HTML):
    """Shows groups of graded trajectories.

    The value is a JSON string made by :meth:`show`. It never enters the template, which Gradio would
    evaluate; the component's script reads it and makes text nodes.
    """

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Make an empty component; ``kwargs`` are those of :class:`gradio.HTML`."""
        self._sets: OrderedDict[str, Sequence[ReviewGroup]] = OrderedDict()
        self._lock = threading.Lock()
        super().__init__(
            html_template=asset("review.html"),
            css_template=asset("review.css"),
            js_on_load=asset("review.js")
            + "\n"
            + Path(__file__).with_suffix(".js").read_text(encoding="utf-8"),
            apply_default_css=False,
            legend=legend(),
            **kwargs,
        )

    def show(self, key: str, groups: Sequence[ReviewGroup]) -> str:
        """Return the value that shows ``groups``; the same ``key`` continues what is shown already."""
        with self._lock:
            self._sets[key] = groups
            self._sets.move_to_end(key)
            while len(self._sets) > KEPT_SETS:
                self._sets.popitem(last=False)
        shown = [{"label": g.label, "reviews": [review_payload(r) for r in g.reviews]} for g in groups]
        return json.dumps({"key": key, "groups": shown}, ensure_ascii=False, separators=(",", ":"))

    def postprocess(self, value: str | None) -> str | None:
        """Pass the value on: it is data, where Gradio would look for markup."""
        return value

    @server
    def alternatives_at(self, address: Any) -> dict[str, Any] | None:  # noqa: ANN401
        """Serve ``[key, group, sample, chunk]`` to the page; None if there is no such thing."""
        match address:
            case [str(key), int(group), int(sample), int(chunk)] if min(group, sample, chunk) >= 0:
                try:
                    return alternatives_payload(self._sets[key][group].reviews[sample], chunk)
                except (KeyError, IndexError):
                    return None
        return None
