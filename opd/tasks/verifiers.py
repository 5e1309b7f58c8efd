"""Verifiers: does a completion give the right answer?

A strict parser can rank a student above its teacher, so the verifiers look for the answer where models put it
(a box, "the answer is", a last line) before they compare: in what a completion concludes.

Run as a program, this module is the worker behind the two verifiers that may hang: patterns and symbolic
maths cannot be interrupted by a thread, so they get a process of their own, with a deadline.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import os
import re
import subprocess
import sys
import threading
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from importlib.util import find_spec
from typing import TextIO

from opd.reasoning import answer_in
from opd.tasks.conclusion import SENTENCE_END, conclusion, in_braces, statements, wavers

DEADLINES = {"regex": 1.0, "math": 5.0}
"""Seconds that one check may take; afterwards the completion counts as wrong."""

TOLERANCE = Decimal("2e-4")
"""Relative difference between two equal numbers if the right one is no integer: 0.3333 is a third, 12.51 is
not 12.50. Integers are compared exactly."""


@dataclass(frozen=True)
class Verifier:
    """A way to compare completions with right answers.

    Attributes:
        right: ``right(answer, completion, cut)`` says whether the completion gives the answer; ``cut``: the
            length limit cut it off.
        fault: ``fault(answer)`` says why an answer cannot be compared with, None if it can.
    """

    right: Callable[[str, str, bool], bool]
    fault: Callable[[str], str | None]


def make_verifier(name: str) -> Verifier:
    """Return the verifier called ``name``.

    Raises:
        ValueError: there is none of this name, or the package it needs is not installed.
    """
    if name not in VERIFIERS:
        raise ValueError(f"There is no verifier called {name!r}. Known verifiers: {', '.join(VERIFIERS)}.")
    if name == "math" and find_spec("math_verify") is None:
        raise ValueError(
            "The verifier math needs the math-verify package: pip install opd-studio[math]. The verifier "
            "numeric needs nothing."
        )
    return VERIFIERS[name]


def _normalise(text: str) -> str:
    """What of a text matters to ``exact``: not case, spacing, outer markup and the last full stop."""
    text = re.sub(r"\\[()\[\]]", "", unicodedata.normalize("NFKC", text))  # brackets of LaTeX maths
    text = " ".join(text.casefold().split())
    return text.strip("*_`\"'“”‘’$ ").rstrip(".!").strip("*_`\"'“”‘’$ ")


LONG = 80
"""Characters of a right answer beyond which ``exact`` asks for what no completion repeats word for word."""

_BOX = re.compile(r"\\boxed\s*\{")


def long_for_exact(answers: Sequence[str]) -> str:
    """Say that most of some right answers are too long for ``exact``; nothing if they are not."""
    long = sum(len(_boxed(answer)) > LONG for answer in answers)
    if 2 * long <= len(answers):
        return ""
    return (
        f"{long} of {len(answers)} right answers are longer than {LONG} characters, and the verifier exact "
        "wants them word for word: choose numeric, math or choice, or another answer_column."
    )


def _boxed(answer: str) -> str:
    """What a solution has in its last box; all of a text without one."""
    *_, last = (None, *_BOX.finditer(answer))
    return in_braces(answer[last.end() :]) if last else answer


def exact(answer: str, completion: str, cut: bool = False) -> bool:
    """The stated answer is the right one; without a statement, the whole text or its last line is.

    The right answer may be a solution that has it in a box.
    """
    wanted, text = _normalise(_boxed(answer)), conclusion(completion, cut=cut)
    for statement in statements(text):
        if inner := re.fullmatch(r"\s*\\text\s*\{(.*)\}\s*", statement):
            statement = inner[1]
        return wanted in (_normalise(statement), _normalise(SENTENCE_END.split(statement)[0]))
    last = text.strip().splitlines()[-1:]
    return wanted in map(_normalise, [answer_in(completion), *last] if answer_in(completion).strip() else [])


# A sign counts only where it cannot be a minus between two terms; an exponent or index is no number.
_NUMBER = re.compile(
    r"""(?<![\w^.])(?<![\^_]\{)
    (?P<sign>(?<![\w)\]}])-)?(?:[$€£¥](?P<inner>-)?)?
    (?:\\[dt]?frac\s*\{\s*(?P<over>-?[\d,.]+)\s*\}\s*\{\s*(?P<under>[\d,.]+)\s*\}
     |(?:(?P<whole>\d+)\s+)?(?P<numerator>\d+)\s*/\s*(?P<denominator>\d+(?:\.\d+)?)
     |(?:(?<![(\[{])(?<!\d,)(?P<comma>\d{1,3}(?:\.\d{3})+,\d+|0,\d+|\d+,(?:\d{1,2}|\d{4,}))(?!\d|[,.]\d)
        |(?P<plain>[1-9]\d{0,2}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+))
      (?:\s*(?:×|\\times|\\cdot|\*)\s*10\s*\^\s*\{?(?P<power>[-+]?\d{1,4})\}?|[eE](?P<e>[-+]?\d{1,4})(?!\w))?
    )(?P<percent>\s*\\?%)?""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class _Number:
    value: Decimal
    percent: bool


def numbers(text: str) -> list[_Number]:
    """Return the numbers of a text in their order: 1,234.5; -$5; 3/4; 1 1/2; \\frac{3}{4}; 2 × 10^3; 50%.

    A comma parts thousands before three digits and decimals before any other number of them: 3,5 is 3.5.
    """
    text = text.replace("−", "-").replace("–", "-").replace("{,}", ",").replace("\\$", "$").replace("\\!", "")
    found = []
    for match in _NUMBER.finditer(text):
        part = {k: v.replace(",", "") for k, v in match.groupdict().items() if v}
        if "comma" in part:
            part["plain"] = match["comma"].replace(".", "").replace(",", ".")
        try:
            if "plain" in part:
                value = Decimal(part["plain"]).scaleb(int(part.get("power") or part.get("e") or 0))
            else:
                over, under = part.get("over") or part["numerator"], part.get("under") or part["denominator"]
                value = int(part.get("whole", 0)) + Decimal(over) / Decimal(under)
        except (DecimalException, ValueError):
            continue
        negative = ("sign" in part) != ("inner" in part)
        found.append(_Number(-value if negative else value, "percent" in part))
    return found


# What comes before the last "=" of an equation that a sentence opens with; a word ends the equation.
_EQUATION = re.compile(r"(?:(?:[^=a-zA-Z\\]|\\[a-zA-Z]+|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]))*=)*")


def stated_number(completion: str, cut: bool = False) -> _Number | None:
    """Return the number a completion gives as its answer; without a statement, its last number."""
    text = conclusion(completion, cut=cut)
    for statement in statements(text):
        sentence = SENTENCE_END.split(statement)[0]
        # "The answer is 3 + 4 = 7 apples": the first number behind the equation, before any unit's.
        if given := numbers(sentence[_EQUATION.match(sentence).end() :]) or numbers(sentence):
            return given[0]
    given = numbers(text)
    return given[-1] if given else None


def numeric(answer: str, completion: str, cut: bool = False) -> bool:
    """The stated number equals the right one; a percentage may be given as a share, and the reverse."""
    wanted, given = stated_number(answer), stated_number(completion, cut)
    if wanted is None or given is None:
        return False
    if wanted.percent == given.percent:
        return _equal(wanted.value, given.value)
    share = given.value / 100 if given.percent else given.value * 100
    return _equal(wanted.value, given.value) or _equal(wanted.value, share)


def _equal(wanted: Decimal, given: Decimal) -> bool:
    if wanted == wanted.to_integral_value():
        return wanted == given
    return abs(given - wanted) <= TOLERANCE * abs(wanted)


_WRAPPED = r"[(\[{]?\s*(?P<letter>[A-Ja-j])\s*(?:[)\]}]|(?![\w'’]))"
_NAMED = re.compile(
    r"(?:the\s+)?(?:correct\s+)?(?:option|choice|letter|answer)?\s*[(\[*]*" + _WRAPPED, re.IGNORECASE
)
_ALONE = re.compile(r"\W*([A-Ja-j])\W*")
_REASON = r"(?:because|since|as|given|while|whereas|although)\b"
_LEADING = re.compile(rf"\W*([A-J])\s*(?:[).:\]]|,?\s*{_REASON})")
_AFFIRMED = re.compile(
    r"(?<!if\s)(?<!whether\s)(?<!option\s)(?<!choice\s)(?:option\s+|choice\s+)?"
    r"\(?(?<![\w'’])((?-i:[A-J]))\)?\s+is\s+(?:the\s+)?(?:correct|right|best)\b",
    re.IGNORECASE,
)
_MENTIONED = re.compile(r"(?<!not\s)\(([A-J])\)|(?<!not\s)\b(?:option|choice)\s+\W{0,3}([A-J])\b")
_CAPITAL = re.compile(r"(?<!not\s)(?<![\w'’])([B-HJ]|A(?!\s+(?!(?:is|or|and)\b)\w))(?![\w'’])")


def stated_choice(completion: str, cut: bool = False) -> str | None:
    """Return the letter a completion chooses, A to J: "Answer: B", "(B)", "B.", "**B**", "option B"."""
    text = conclusion(completion, cut=cut).strip()
    for statement in statements(text):
        match = _NAMED.match(statement)
        # An "a" before a word is an article, "the answer is a dog", but for what begins a reason.
        article = match and match["letter"] in "aAiI" and re.match(r"\s+[a-z]", statement[match.end() :])
        if match and (not article or re.match(r"\s+" + _REASON, statement[match.end() :])):
            return match["letter"].upper()
    whole = answer_in(completion).strip()
    # A letter that it opens with is stated, and what was cut off is why.
    opening = whole if cut and not wavers(whole) else text
    if match := _ALONE.fullmatch(text) or _LEADING.match(opening):
        return match[1].upper()
    if affirmed := _AFFIRMED.findall(text):
        return affirmed[-1].upper()
    if mentioned := _MENTIONED.findall(text):
        return "".join(mentioned[-1])
    last_line = set(_CAPITAL.findall(text.splitlines()[-1])) if text else set()
    return last_line.pop() if len(last_line) == 1 else None


def choice(answer: str, completion: str, cut: bool = False) -> bool:
    """The chosen letter is the right one."""
    return stated_choice(completion, cut) == stated_choice(answer)


def regex(answer: str, completion: str, cut: bool = False) -> bool:
    """The right answer is a pattern, and it is found in what the completion says after its reasoning.

    In what was cut off too: whether anything may follow is for the pattern to say.
    """
    return _worker("regex").check(answer, answer_in(completion))


def math(answer: str, completion: str, cut: bool = False) -> bool:
    """The stated expression equals the right one, as math-verify (Hugging Face) judges it."""
    return _worker("math").check(answer, conclusion(completion, cut=cut))


def _pattern_fault(answer: str) -> str | None:
    try:
        re.compile(answer)
    except (re.error, RecursionError, OverflowError) as error:
        return f"its answer is not a valid pattern ({error})"
    return None


def _no_number(answer: str) -> str | None:
    return None if stated_number(answer) else f"its answer {answer!r} holds no number"


def _no_letter(answer: str) -> str | None:
    return None if stated_choice(answer) else f"its answer {answer!r} is no letter from A to J"


VERIFIERS = {
    "exact": Verifier(exact, lambda answer: None),
    "numeric": Verifier(numeric, _no_number),
    "choice": Verifier(choice, _no_letter),
    "regex": Verifier(regex, _pattern_fault),
    "math": Verifier(math, lambda answer: None),
}


class Worker:
    """A process that checks one completion at a time and ends itself when a check passes its deadline.

    The watchdog is the process's own, so a check that hangs does not outlive this process either.
    """

    def __init__(self, check: str, deadline: float | None = None) -> None:
        """Prepare for "regex" or "math"; the process starts with the first check."""
        self.kind = check
        self.deadline = deadline or DEADLINES[check]
        self.process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def check(self, answer: str, completion: str) -> bool:
        """Say whether the completion is right; one that takes too long is not, with a warning.

        Raises:
            RuntimeError: the process cannot be started.
        """
        with self._lock:
            process = self._start()
            said = ""
            try:
                process.stdin.write(json.dumps([answer, completion]) + "\n")
                process.stdin.flush()
                said = process.stdout.readline()
            except OSError:  # it died before it was asked
                pass
            finally:  # interrupted here, it would give this reply to the next question
                if not said:
                    self._stop()
            if said:
                return json.loads(said)
        warnings.warn(
            f"A {self.kind} check took more than {self.deadline:g} s or too much memory; the completion "
            f"counts as wrong. The answer was {answer[:80]!r}.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False

    def _start(self) -> subprocess.Popen[str]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "opd.tasks.verifiers", self.kind, str(self.deadline)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for the one who asked
            )
            if not self.process.stdout.readline():
                self._stop()
                raise RuntimeError(f"The process that runs {self.kind} checks cannot be started.")
        return self.process

    def close(self) -> None:
        """End the process; another check starts a new one."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(BrokenPipeError), process:  # closes the pipes and reaps it
                pass


_workers: dict[str, Worker] = {}


def _worker(check: str) -> Worker:
    if check not in _workers:
        _workers[check] = Worker(check)
        atexit.register(_workers[check].close)
    return _workers[check]


def serve(check: str, deadline: float, requests: TextIO, replies: TextIO) -> None:
    """Answer requests ``[answer, completion]``, a line each, until there are no more."""
    if check == "math":
        from math_verify import parse, verify

        def right(answer: str, completion: str) -> bool:
            # Without its own timeouts, which are signals: the watchdog below also stops what never returns.
            gold = parse(
                answer if "\\boxed" in answer or "$" in answer else f"${answer}$", parsing_timeout=None
            )
            return verify(gold, parse(completion, parsing_timeout=None), timeout_seconds=None)

    else:

        def right(answer: str, completion: str) -> bool:
            return re.search(answer, completion) is not None

    print("ready", file=replies, flush=True)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        for line in requests:
            faulthandler.dump_traceback_later(deadline, exit=True, file=nowhere)
            try:
                passed = bool(right(*json.loads(line)))
            except Exception:  # an answer that cannot be read is not the right one
                passed = False
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(passed), file=replies, flush=True)


if __name__ == "__main__":
    # Whatever a library prints must not be taken for a reply.
    replies, sys.stdout = sys.stdout, sys.stderr
    serve(sys.argv[1], float(sys.argv[2]), sys.stdin, replies)
