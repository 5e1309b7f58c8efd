"""Solutions as sequences of choices: one description serves the solver and the oracle.

A problem describes its solution once, as a function that offers a :class:`Writer` what may be written next:
literal wordings, results of sums, and *forks*, where one can go right or wrong. A :class:`Draft` walks that
description by drawing choices and remembers where it went wrong; :func:`first_error` walks it along a given
text and finds the place where the text leaves every correct path.
"""

from __future__ import annotations

import operator
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "×": operator.mul,
    "÷": operator.floordiv,
}

SLIP = 0.025
"""Probability of a wrong number for a solver of sloppiness 1."""

Wrong = tuple[Sequence[str], float]
"""A way to go wrong: its wordings, and its probability for a solver of sloppiness 1."""


class Writer(ABC):
    """What a solution may say. Every wording starts where a token starts: at a space, or at the beginning."""

    @abstractmethod
    def fork(self, right: Sequence[str], *wrong: Wrong) -> int:
        """Write one wording of a decision.

        Returns:
            0 when a right wording was written, ``i`` for one of the ``i``-th way to go wrong (from 1).
        """

    @abstractmethod
    def number(self, value: int, *slips: int) -> int:
        """Write `` value`` (or one of the slips) and return the number that was written."""

    def say(self, *wordings: str) -> None:
        """Write one of several wordings that mean the same."""
        self.fork(wordings)

    def result(self, a: int, op: str, b: int) -> int:
        """Write the result of ``a op b``, whose left side has been written already."""
        value = OPERATIONS[op](a, b)
        near = (value - 1,) if op == "÷" else (value - 10, value - 1, value + 1, value + 10)
        return self.number(value, *(slip for slip in near if slip >= 0 and len(str(slip)) == len(str(value))))

    def sum(self, a: int, op: str, b: int) -> int:
        """Write `` a op b = result`` and return the result that was written."""
        self.say(f" {a} {op} {b} =")
        return self.result(a, op, b)

    def answer(self, value: int | str) -> None:
        """Write the last sentence."""
        self.say(f" The answer is {value}.")


Solve = Callable[[Writer], None]


def _leaves(written: str, expected: str) -> int:
    """Return the offset in ``written`` of the first word, digit or sign that ``expected`` has not there."""
    at = 0
    while at < min(len(written), len(expected)) and written[at] == expected[at]:
        at += 1
    if at < len(expected) and expected[at].isalpha():  # inside a word: the whole word is another one
        while at > 0 and written[at - 1].isalpha():
            at -= 1
    return at


class Draft(Writer):
    """A solution drawn choice by choice.

    Attributes:
        text: what has been written.
        wrong: character offsets in ``text`` at which a wrong choice shows (of a wrong number: its first
            differing digit).
        results: ``(start, end)`` character spans of the numbers that were worked out.
        sums: the left side and result of each sum, for drills.
    """

    def __init__(self, rng: random.Random, sloppiness: float = 0.0) -> None:
        """Start an empty draft; ``sloppiness`` scales the probability of every wrong choice.

        Each mistake halves the sloppiness of what follows: real mistakes rarely come in rows.
        """
        self.rng = rng
        self.sloppiness = sloppiness
        self.text = ""
        self.wrong: list[int] = []
        self.results: list[tuple[int, int]] = []
        self.sums: list[str] = []

    def fork(self, right: Sequence[str], *wrong: Wrong) -> int:  # noqa: D102 (inherited)
        draw = self.rng.random()
        for kind, (wordings, probability) in enumerate(wrong, start=1):
            draw -= probability * self.sloppiness
            if draw < 0:
                self._write(self.rng.choice(wordings), instead_of=right)
                return kind
        self._write(self.rng.choice(right))
        return 0

    def number(self, value: int, *slips: int) -> int:  # noqa: D102 (inherited)
        start = len(self.text)
        slip = bool(slips) and self.rng.random() < SLIP * self.sloppiness
        written = self.rng.choice(slips) if slip else value
        self._write(f" {written}", instead_of=(f" {value}",) if slip else ())
        self.results.append((start, len(self.text)))
        return written

    def result(self, a: int, op: str, b: int) -> int:  # noqa: D102 (inherited)
        self.sums.append(f"{a} {op} {b} = {OPERATIONS[op](a, b)}.")
        return super().result(a, op, b)

    def _write(self, words: str, instead_of: Sequence[str] = ()) -> None:
        if instead_of:
            self.sloppiness /= 2
            self.wrong.append(len(self.text) + max(_leaves(words, expected) for expected in instead_of))
        self.text += words


class _OffPath(Exception):
    """The text continues as no correct solution does."""


class _Reader(Writer):
    """Walks the correct solutions along a text; ``path`` says which wording to take where several fit."""

    def __init__(self, text: str, path: tuple[int, ...]) -> None:
        self.text = text
        self.at = 0
        self.path = path
        self.taken: tuple[int, ...] = ()
        self.untried: list[tuple[int, ...]] = []

    def fork(self, right: Sequence[str], *wrong: Wrong) -> int:
        fits = [wording for wording in right if self.text.startswith(wording, self.at)]
        if not fits:
            self.at += max(_leaves(self.text[self.at : self.at + len(w)], w) for w in right)
            raise _OffPath
        choice = 0
        if len(fits) > 1:
            if len(self.taken) < len(self.path):
                choice = self.path[len(self.taken)]
            else:
                self.untried += [(*self.taken, other) for other in range(1, len(fits))]
            self.taken = (*self.taken, choice)
        self.at += len(fits[choice])
        return 0

    def number(self, value: int, *slips: int) -> int:
        self.fork((f" {value}",))
        return value


def first_error(solve: Solve, text: str) -> int | None:
    """Find where ``text`` leaves every correct solution: the oracle.

    Args:
        solve: the problem's description of its solution.
        text: a completion without special tokens.

    Returns:
        The character offset (0 to ``len(text)``) whose token lies on no correct path, ``len(text)`` when the
        text stops before a solution is complete, None when it is a correct solution from start to end.
    """
    furthest = 0
    untried: list[tuple[int, ...]] = [()]
    while untried:
        reader = _Reader(text, untried.pop())
        try:
            solve(reader)
            if reader.at == len(text):
                return None
        except _OffPath:
            pass
        furthest = max(furthest, reader.at)
        untried += reader.untried
    return furthest
