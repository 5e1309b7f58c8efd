"""What a terminal shows while a command works."""

from __future__ import annotations

import io
import sys
from contextlib import suppress

import pytest

from opd.cli.output import phases_shown
from opd.phases import announce


class Terminal(io.StringIO):
    """Both streams of a command that runs in a terminal."""

    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal in the place of both streams; a fixture could not, pytest would take it away again."""
    both = Terminal()
    monkeypatch.setattr(sys, "stdout", both)
    monkeypatch.setattr(sys, "stderr", both)
    monkeypatch.setenv("COLUMNS", "20")
    return both


def lines(text: str) -> list[str]:
    """What stands on the terminal at the end: what is cleared is gone."""
    return [line.rpartition("\x1b[K")[2].rpartition("\r")[2] for line in text.split("\n")]


def test_what_is_being_done_stands_on_the_last_line_until_something_is_printed(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with phases_shown():
        announce("Loading a")
        assert lines(terminal.getvalue()) == ["Loading a"]
        announce("Grading")
        print("A result")
        assert lines(terminal.getvalue()) == ["A result", ""]
        announce("Evaluating")
        print("A warning", file=sys.stderr)
        announce("Done \x1b[2J with a long name")
        assert lines(terminal.getvalue())[-1] == "Done ␛[2J with a lo", (
            "one line, and nothing acts on the terminal"
        )
    assert lines(terminal.getvalue()) == ["A result", "A warning", ""]
    announce("Nobody listens")
    assert "Nobody" not in terminal.getvalue()


def test_a_line_goes_also_when_the_work_fails(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with suppress(ValueError), phases_shown():
        announce("Loading a")
        raise ValueError
    assert lines(terminal.getvalue()) == [""]


def test_a_pipe_gets_results_alone(capsys):
    with phases_shown():
        announce("Loading a")
        print("A result")
    assert capsys.readouterr() == ("A result\n", "")
