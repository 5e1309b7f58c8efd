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
from collections.abc import Mapping

from opd.grading.saved_reviews import ReviewSet, heading
from opd.reviews import Review
from opd.view import HERE, asset, script
from opd.view import style as shared_style
from opd.view.payload import (
    CHUNK,
    COLUMNS,
    alternatives_payload,
    columns_payload,
    legend,
    prompt_payload,
    set_payload,
    visible,
)


def render_page(reviews: ReviewSet) -> str:
    """Return one HTML document that shows ``reviews``; every figure of the app is in it."""
    models = "; ".join(dict.fromkeys(f"{r.student}, graded by {r.teacher}" for r in reviews))
    return document(heading(reviews), reviews.note or "", models, reviews)


def document(
    title: str, note: str, models: str, reviews: ReviewSet | None, *, lead: str = "", style: str = ""
) -> str:
    """Return one HTML document.

    Args:
        title: its heading.
        note: a sentence below it.
        models: who wrote and who graded, below that.
        reviews: what the component at its end shows; None for no component.
        lead: markup that comes before the component.
        style: rules for it.
    """
    code = data = ""
    if reviews:
        code = "\n".join(["{", script(HERE / "page.js"), "}"])
        data = json.dumps(_embedded(reviews), separators=(",", ":"))
    parts = {
        "policy": f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src '{_hash(code)}'",
        "title": plain(title),
        "note": plain(note),
        "models": plain(models),
        "style": shared_style() + asset("page.css") + asset("review.css") + style,
        "lead": lead,
        "component": asset("review.html") if reviews else "",
        # The text of a script element ends at "</script" and is confused by "<!--": neither can occur.
        "reviews": data.replace("<", "\\u003c"),
        "script": code,
    }
    return fill(asset("page.html"), parts)


def fill(template: str, parts: Mapping[str, str]) -> str:
    """Put ``parts`` into the places of a template that are called ``@name@``.

    In one pass: what is filled in is never read as a template.
    """
    return re.sub("@([a-z]+)@", lambda found: parts[found[1]], template)


def plain(text: str) -> str:
    """Return text as markup that shows it, everything invisible made visible."""
    return html.escape(visible(text))


def _embedded(reviews: ReviewSet) -> dict[str, object]:
    """Return all that the component can ask for."""
    return {
        "legend": legend(),
        "set": set_payload(reviews.id, reviews.groups),
        "columns": [
            [{name: columns_payload(review, name) for name in COLUMNS} for review in group.reviews]
            for group in reviews.groups
        ],
        "prompts": [[prompt_payload(review) for review in group.reviews] for group in reviews.groups],
        "alternatives": [[_alternatives(review) for review in group.reviews] for group in reviews.groups],
    }


def _alternatives(review: Review) -> list[dict[str, object]]:
    return [alternatives_payload(review, chunk) for chunk in range(-(-len(review.trajectory) // CHUNK))]


def _hash(code: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
