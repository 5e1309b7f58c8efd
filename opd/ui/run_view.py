"""A run, watched live: where it stands, what can be asked of it, its alarms and its curves."""

from __future__ import annotations

import json
import time
from typing import Any

from opd.ui.feed import RunCurves
from opd.view.chart import panels


class RunView(RunCurves):
    """Follows one run by its name.

    Pages ask a server function for what they do not know yet; so a reload, a second page and a restart of
    the app all see the same run. A page asks rarely once the run has ended, and
    not while nobody looks at it.

    Events; the ``gr.EventData`` of each holds in ``_data`` the name ``run`` and what is said here:
    ``followed`` (another one than before, or this one is gone: what was beside the last is of it no more),
    ``control`` (``request``: pause, go_on, resume, stop, keep_best, or prolong by ``steps``), ``review`` (its
    trained student), ``settings`` (wanted in the form), ``point`` (``step`` of a curve), ``evidence``
    (``step`` and ``evidence`` of an alarm), ``ended``.
    """

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Make a view of no run yet; ``kwargs`` are those of :class:`gradio.HTML`."""
        super().__init__(panels=panels(), **kwargs)

    def show(self, name: str, said: str | None = None) -> str:
        """Return the value that follows the run called ``name``, and asks for its news at once.

        ``said`` stands beside the buttons then; None leaves what stands there.
        """
        beside = {} if said is None else {"said": said}
        return json.dumps({"run": name, "asked": time.time(), **beside})

    def unsaid(self, value: str) -> str:
        """Return the value for what was asked in vain: beside the buttons no more is said of it."""
        return self.show(json.loads(value)["run"], "")
