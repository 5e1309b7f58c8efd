"""How a review looks: the token review component for any web page, and its colours in a terminal.

Nothing here knows of Gradio. ``review.html``, the style sheets and the scripts in ``js/`` are the component
as static files; :mod:`opd.view.payload` turns reviews into the data it draws; :mod:`opd.view.terminal`
prints them.
"""

import re
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent

_IMPORT = re.compile(r'^import \{[^}]*\} from "([^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async )?(function|class|const)\b)", re.MULTILINE)


def asset(name: str) -> str:
    """Return the text of one of the component's static files."""
    return (HERE / name).read_text(encoding="utf-8")


def style() -> str:
    """Return what every style sheet here builds upon: the palette, the steps, the elements."""
    return asset("tokens.css") + asset("base.css")


def script(path: Path) -> str:
    """Return a JavaScript module and all that it imports as one plain script.

    Gradio takes one function body, and a page in one file one script, so the modules are joined in one scope:
    each comes once, after those that it imports. ``tests/view/test_scripts.py`` holds that no two share a
    name.
    """
    joined: dict[Path, str] = {}

    def join(path: Path) -> None:
        if path in joined:
            return
        code = path.read_text(encoding="utf-8")
        for name in _IMPORT.findall(code):
            join((path.parent / name).resolve())
        joined[path] = _EXPORT.sub("", _IMPORT.sub("", code))

    join(path.resolve())
    return "\n".join(joined.values())


@cache
def palette() -> dict[str, tuple[str, str]]:
    """Return the palette's colours: by day and by night, as ``#rrggbb``."""
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", asset("tokens.css"))
    return {name: (day, night) for name, day, night in found}
