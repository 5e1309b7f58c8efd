"""What the Review tab shows: its title and note, its link, its files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from gradio.components.base import server

from opd.grading.saved_reviews import ReviewSet, to_csv
from opd.ui.component import OwnHTML
from opd.view.page import render_page

KINDS: dict[str, tuple[str, Callable[[ReviewSet], str]]] = {
    "json": ("application/json", ReviewSet.to_json),
    "csv": ("text/csv", to_csv),
    "html": ("text/html", render_page),
}
"""What can be downloaded: media type, and who writes it."""


class Shown(OwnHTML):
    """Names the set of reviews below it and hands it out.

    Files are made when somebody asks, and never lie on the server. The value is a JSON string made by
    :meth:`show`; titles become text nodes. Event: ``keep`` (the user wants a link).
    """

    def __init__(self, find: Callable[[str], ReviewSet], **kwargs: Any) -> None:  # noqa: ANN401
        """Make an empty component.

        Args:
            find: returns the set shown under a key; raises ValueError where it is gone.
            kwargs: those of :class:`gradio.HTML`.
        """
        self._find = find
        super().__init__(**kwargs)

    def show(self, key: str, reviews: ReviewSet, *, linked: bool = False) -> str:
        """Return the value for ``reviews``, shown under ``key``; ``linked``: its id stands in the address."""
        ident = reviews.id if linked else None
        return json.dumps({"key": key, "id": ident, "title": reviews.title, "note": reviews.note})

    def unsaid(self, value: str) -> str:
        """Return the value for what was asked in vain: no more is said of it."""
        return json.dumps({**json.loads(value), "asked": time.time()})

    @server
    def file_of(self, question: Any) -> dict[str, str] | None:  # noqa: ANN401
        """Serve ``[key, kind]`` to the page: ``{name, type, text}``; None if there is no such thing."""
        match question:
            case [str(key), str(kind)] if kind in KINDS:
                media, write = KINDS[kind]
                try:
                    reviews = self._find(key)
                    return {"name": f"review-{reviews.id}.{kind}", "type": media, "text": write(reviews)}
                except ValueError:
                    return None
        return None
