"""How a review looks: the token review component for any web page, and its colours in a terminal.

Nothing here knows of Gradio. ``review.html``, ``review.css`` and the scripts in ``js/`` are the component as
static files; :mod:`opd.view.payload` turns reviews into the data it draws; :mod:`opd.view.terminal` prints
them.
"""

from importlib.resources import files

SCRIPTS = (
    "words",
    "colour",
    "data",
    "signals",
    "verdicts",
    "units",
    "strips",
    "pane",
    "card",
    "evidence",
    "table",
    "rail",
    "legend",
    "find",
    "quiz",
    "view",
)
"""The component's scripts in ``js/``, in the order in which they are joined."""


def asset(name: str) -> str:
    """Return the text of one of the component's static files."""
    return (files(__name__) / name).read_text(encoding="utf-8")


def script() -> str:
    """Return the component's script: all of ``js/`` in one scope, ending with the class ``ReviewView``."""
    return "\n".join(asset(f"js/{name}.js") for name in SCRIPTS)
