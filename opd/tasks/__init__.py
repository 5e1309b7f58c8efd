"""Where prompts come from and how an answer is verified: one module a task.

A task hands out :class:`Example` s and says whether a completion is right. Training prompts are a pure
function of (seed, step), so a resumed run sees the prompts it would have seen; held-out prompts are a fixed
list that no training batch contains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Split = Literal["tuning", "test"]


@dataclass(frozen=True)
class Example:
    """One problem: the user's message, the right answer if there is one, and the family it belongs to."""

    prompt: str
    answer: str | None = None
    family: str = ""


class Task(Protocol):
    """A source of prompts and the verifier that goes with it."""

    name: str

    def batch(self, n: int, *, step: int, seed: int) -> list[Example]:
        """Return the ``n`` training examples of one step; the same arguments give the same examples."""
        ...

    def heldout(self, n: int, *, split: Split = "test") -> list[Example]:
        """Return the first ``n`` held-out examples of a split; a larger ``n`` extends the list."""
        ...

    def verify(self, example: Example, completion: str) -> bool:
        """Say whether ``completion`` (text without special tokens) answers ``example`` rightly."""
        ...


def load_task(name: str) -> Task:
    """Return the task called ``name``.

    Raises:
        ValueError: there is no such task; the message lists those there are.
    """
    if name == "demo":
        from opd.tasks.demo import DemoTask

        return DemoTask()
    raise ValueError(f"There is no task called {name!r}. Known tasks: demo.")
