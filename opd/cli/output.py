"""What every command prints by: text of files and models cannot act on the terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from opd.grading.saved_reviews import ReviewSet
    from opd.reviews import Review

USAGE_ERROR, FAILURE = 2, 1


def say(text: Any, file: TextIO | None = None) -> None:  # noqa: ANN401
    """Print text for people, with its control codes made visible."""
    print(harmless(text), file=file)


def harmless(text: Any) -> str:  # noqa: ANN401
    """Return text with control codes made visible; line breaks stay."""
    from opd.view.payload import visible

    return "\n".join(map(visible, str(text).split("\n")))


def print_reviews(reviews: ReviewSet | Sequence[Review], options: argparse.Namespace) -> None:
    """Print graded text, in colour where that is a terminal's and nobody asked for plain text."""
    from opd.view.terminal import render

    color = sys.stdout.isatty() and not options.no_color and "NO_COLOR" not in os.environ
    for review in reviews:
        print(render(review, color=color))
