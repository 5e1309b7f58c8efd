"""List the ids of saved reviews, the newest first, and of the gallery."""

from __future__ import annotations

import argparse

from opd.cli.output import say


def add_flags(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(options: argparse.Namespace) -> None:
    """Print one line a set."""
    from opd.grading.saved_reviews import gallery, heading, open_review, stored_reviews

    for ident in (*stored_reviews(), *gallery()):
        try:
            say(f"{ident} {heading(open_review(ident))}")
        except (ValueError, OSError) as error:
            say(f"{ident} cannot be opened: {error}")
