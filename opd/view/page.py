"""Reviews as one HTML file: the same component, with everything that it can ask for inside.

The file works from a disk with no network. Its content security policy lets it run this script alone and
request nothing, so that what a model wrote could do no harm even if it became markup, which it does not.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re

from opd.saved_reviews import ReviewSet, heading
from opd.trajectory import Review
from opd.view import asset, script
from opd.view.payload import (
    CHUNK,
    COLUMNS,
    alternatives_payload,
    columns_payload,
    legend,
    set_payload,
    visible,
)


def render_page(reviews: ReviewSet) -> str:
    """Return one HTML document that shows ``reviews``; every figure of the app is in it."""
    data = {
        "legend": legend(),
        "set": set_payload(reviews.id, reviews.groups),
        "columns": [
            [{name: columns_payload(review, name) for name in COLUMNS} for review in group.reviews]
            for group in reviews.groups
        ],
        "alternatives": [[_alternatives(review) for review in group.reviews] for group in reviews.groups],
    }
    code = "\n".join(["{", script(), asset("fragment.js"), asset("page.js"), "}"])
    parts = {
        "policy": f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src '{_hash(code)}'",
        "title": _text(heading(reviews)),
        "note": _text(reviews.note or ""),
        "models": _text("; ".join(dict.fromkeys(f"{r.student}, graded by {r.teacher}" for r in reviews))),
        "style": asset("page.css") + asset("review.css"),
        "component": asset("review.html"),
        # The text of a script element ends at "</script" and is confused by "<!--": neither can occur.
        "reviews": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        "script": code,
    }
    # One pass: what is filled in is never read as a template.
    return re.sub("@([a-z]+)@", lambda found: parts[found[1]], asset("page.html"))


def _alternatives(review: Review) -> list[dict[str, object]]:
    return [alternatives_payload(review, chunk) for chunk in range(-(-len(review.trajectory) // CHUNK))]


def _text(text: str) -> str:
    return html.escape(visible(text))


def _hash(code: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
