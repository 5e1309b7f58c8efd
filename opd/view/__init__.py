"""How a review looks: the token review component for any web page, and its colours in a terminal.

Nothing here knows of Gradio. ``review.html``, ``review.css`` and ``review.js`` are the component as static
files; :mod:`opd.view.payload` turns reviews into the data it draws; :mod:`opd.view.terminal` prints them.
"""

from importlib.resources import files


def asset(name: str) -> str:
    """Return the text of one of the component's static files."""
    return (files(__name__) / name).read_text(encoding="utf-8")
