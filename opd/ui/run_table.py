"""All runs in a table that is searched, and in which runs are chosen."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from gradio.components.base import server

from opd.runs.collection import summaries
from opd.ui.component import OwnHTML
from opd.view.payload import visible

MOMENT = 2.0
"""Seconds for which a reading of all runs is good enough for everybody."""


class RunTable(OwnHTML):
    """Lists the runs of this home.

    Events: ``choose`` (``_data["runs"]``: the names that are chosen, in the order of choosing;
    ``_data["choice"]``: how many choices this makes on the page), ``open`` (``_data["run"]``: watch it).
    """

    def show(self, chosen: Sequence[str], choice: int | None = None) -> str:
        """Return the value that chooses some runs, and reads the list anew.

        ``choice`` is the one that this answers: the page has its own of a later one.
        """
        _list.cache_clear()
        return json.dumps({"chosen": list(chosen), "choice": choice, "asked": time.time()})

    @server
    def runs(self, search: Any) -> list[dict[str, Any]] | None:  # noqa: ANN401
        """Serve a search text: see :func:`opd.runs.collection.summaries`."""
        match search:
            case str():
                return _list(search[:200], int(time.monotonic() / MOMENT))
        return None


@lru_cache(maxsize=16)
def _list(search: str, moment: int) -> list[dict[str, Any]]:
    return [
        {key: visible(value) if isinstance(value, str) else value for key, value in asdict(summary).items()}
        for summary in summaries(search)
    ]
