"""The synthetic problems behind the embedded pair: eight families, a verifier, the oracle of the first error.

Prompts are split by a hash of their text, so that a held-out problem can never be drawn in training.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import count, islice
from typing import Literal

from opd.tasks import Example, Split, Task
from opd.tasks.conclusion import conclusion
from opd.tasks.demo.families import FAMILIES, Problem
from opd.tasks.demo.writing import Draft, first_error
from opd.trajectory import Prompt

__all__ = ["FAMILIES", "DemoTask", "Draft", "Problem", "first_error", "problems", "split_of"]

_ANSWER = re.compile(
    r"answer\b[^\w-]{0,4}(?:is\b)?[^\w-]{0,4}(-?\d+(?::\d\d)?(?![.,:]?\d)|none\b|no\b|zero\b)", re.IGNORECASE
)


def split_of(prompt: str) -> Literal["train", "tuning", "test"]:
    """Return the split of a prompt: three quarters train, and of the rest a third for tuning."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]) % 12
    return "tuning" if bucket == 0 else "test" if bucket < 3 else "train"


def problems(seed: int | str, split: Literal["train", "tuning", "test"]) -> Iterator[Problem]:
    """Yield problems of one split for ever, the families in turn; the same seed gives the same problems."""
    rng = random.Random(f"demo/{seed}")
    families = list(FAMILIES.values())
    for turn in count(rng.randrange(len(families))):
        problem = families[turn % len(families)](rng)
        while split_of(problem.prompt) != split:
            problem = families[turn % len(families)](rng)
        yield problem


KNOWN_PROBLEMS = 400


@cache
def known_problems() -> dict[str, Problem]:
    """Return the first held-out problems by prompt."""
    return {problem.prompt: problem for problem in DemoTask().heldout(KNOWN_PROBLEMS)}


def known_problem(prompt: Prompt) -> Problem | None:
    """Return the known problem that a prompt poses: its answer can be verified.

    With a system prompt, or further along in a chat, it is another one.
    """
    if not isinstance(prompt, str):
        prompt = prompt[0]["content"] if len(prompt) == 1 else ""
    return known_problems().get(prompt.strip())


class DemoTask(Task):
    """The embedded pair's own task; its examples are :class:`Problem` s, which the oracle understands."""

    name = "demo"
    families = tuple(FAMILIES)

    def batch(self, n: int, *, step: int, seed: int) -> list[Example]:
        """Return the ``n`` training examples of one step; the same arguments give the same examples."""
        return list(islice(problems(f"{seed}/{step}", "train"), n))

    def heldout(self, n: int, *, split: Split = "test") -> list[Example]:
        """Return the first ``n`` held-out examples of a split, all different; more extend the list.

        Raises:
            ValueError: all are asked for, and there is no end of them.
        """
        if split == "all":
            raise ValueError("The task demo makes problems without end: choose its test or tuning split.")
        found: dict[str, Example] = {}
        for problem in problems("heldout", split):
            if len(found) == n:
                break
            found.setdefault(problem.prompt, problem)
        return list(found.values())

    def summary(self) -> str:
        """Name the families."""
        return f"demo: problems made as needed, of {len(self.families)} families: {', '.join(self.families)}."

    def verify(self, example: Example, completion: str, *, cut: bool = False) -> bool:
        """Say whether the last "the answer is ..." of a completion names the right answer."""
        stated = _ANSWER.findall(conclusion(completion, cut=cut))
        if not stated:
            return False
        last = stated[-1].lower()
        return ("0" if last in ("none", "no", "zero") else last) == example.answer
