"""The reviews that are saved on this server, the newest first."""

from __future__ import annotations

import json
import time
from typing import Any

from gradio.components.base import server

from opd.grading.saved_reviews import stored
from opd.ui.component import OwnHTML
from opd.view.payload import visible

MOST_LISTED = 500


class SavedList(OwnHTML):
    """Lists the saved reviews, also those of other pages. Event: ``open`` (``_data["review"]``: its id)."""

    def settle(self) -> str:
        """Return the value for when what was to be opened is open, or refused."""
        return json.dumps(time.time())

    @server
    def reviews(self, nothing: Any = None) -> list[dict[str, Any]]:  # noqa: ANN401
        """Serve the list to the page: ``id``, ``heading`` and ``saved`` (seconds since 1970) of each."""
        return [
            {"id": found.id, "heading": visible(found.heading), "saved": found.saved}
            for found in stored(MOST_LISTED)
        ]
