"""What every command prints by: text of files and models cannot act on the terminal."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

from opd.phases import listening

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


class _Line:
    """The last line of a terminal, on standard error: what is being done, until something is printed."""

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal
        self.shown = False

    def show(self, phase: str) -> None:
        words = harmless(phase)[: shutil.get_terminal_size().columns - 1]
        self.terminal.write(f"\r\x1b[K{words}")
        self.terminal.flush()
        self.shown = True

    def clear(self) -> None:
        if self.shown:
            self.terminal.write("\r\x1b[K")
            self.terminal.flush()
            self.shown = False


class _Above:
    """A stream that is written to above the line."""

    def __init__(self, stream: TextIO, line: _Line) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        self._line.clear()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)


@contextmanager
def phases_shown() -> Iterator[None]:
    """Show on a terminal what the work in this block announces; a pipe or a file gets none of it."""
    if not sys.stderr.isatty():
        yield
        return
    line = _Line(sys.stderr)
    try:
        with (
            listening(line.show),
            redirect_stdout(_Above(sys.stdout, line)),
            redirect_stderr(_Above(sys.stderr, line)),
        ):
            yield
    finally:
        line.clear()


def add_show_prompt(parser: argparse.ArgumentParser) -> None:
    """The flag that asks for what the models read."""
    parser.add_argument(
        "--show-prompt",
        action="store_true",
        help="print what student and teacher read before the text, control tokens and ids included",
    )


def print_reviews(reviews: ReviewSet | Sequence[Review], options: argparse.Namespace) -> None:
    """Print graded text, in colour where that is a terminal's and nobody asked for plain text.

    Before it, where that was asked for, what the models read.
    """
    from opd.view.terminal import render

    color = sys.stdout.isatty() and not options.no_color and "NO_COLOR" not in os.environ
    for review in reviews:
        print(render(review, color=color, show_prompt=options.show_prompt))
