"""The component on a plain page, with no server: all it can ask for is there, and it logs what it tells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from opd.grading.saved_reviews import ReviewGroup
from opd.view import HERE, asset, script, style
from opd.view.payload import (
    CHUNK,
    COLUMNS,
    alternatives_payload,
    columns_payload,
    legend,
    prompt_payload,
    set_payload,
)

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Review</title>
<style>
  :root { color-scheme: light dark; }
  body { margin: 0; padding: 20px; background: light-dark(#faf7f1, #141210); }
  h1 { color: light-dark(#1f1b16, #ece6dc); }
</style>
<style>STYLE</style>
<main><h1>Review</h1>COMPONENT</main>
<script>SCRIPT</script>
<script>
  const told = [];
  const tell = (name) => (data) => told.push([name, data]);
  const stored = JSON.parse(DATA);
  const lookUp = (all, place) => place.reduce((part, name) => part?.[name], all) ?? null;
  const view = new ReviewView(document.querySelector(".opd-review"), {
    legend: stored.legend,
    source: {
      columns: async (key, ...place) => lookUp(stored.columns, place),
      alternatives: async (key, ...place) => lookUp(stored.alternatives, place),
      prompt: async (key, ...place) => lookUp(stored.prompts, place),
    },
    actions: Object.fromEntries(stored.actions.map((name) => [name, tell(name)])),
    onState: tell("state"),
  });
</script>
</html>
"""


def write_page(path: Path, groups: Sequence[ReviewGroup], *, actions: Sequence[str] = ()) -> str:
    """Write the page to ``path`` and return its address; ``view.show(stored.set)`` then shows ``groups``."""
    data = {
        "legend": legend(),
        "actions": list(actions),
        "set": set_payload("key", groups),
        "columns": [[{n: columns_payload(r, n) for n in COLUMNS} for r in g.reviews] for g in groups],
        "prompts": [[prompt_payload(r) for r in g.reviews] for g in groups],
        "alternatives": [
            [[alternatives_payload(r, c) for c in range(-(-len(r.grades) // CHUNK))] for r in g.reviews]
            for g in groups
        ],
    }
    page = PAGE.replace("STYLE", style() + asset("review.css")).replace("COMPONENT", asset("review.html"))
    page = page.replace("SCRIPT", script(HERE / "js" / "view.js")).replace(
        "DATA", json.dumps(json.dumps(data)).replace("<", "\\u003c")
    )
    path.write_text(page, encoding="utf-8")
    return path.as_uri()
