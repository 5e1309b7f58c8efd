"""What long work is doing right now: whoever works announces its phases, whoever waits for it listens.

Nobody need listen, and then nothing happens. Work that goes on in another thread is not heard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

COUNT_SECONDS = 0.25
"""Of a count no more is heard than once in this time; every phase is."""


@dataclass
class _Ear:
    hear: Callable[[str], None]
    phase: str = ""
    counted_at: float = 0.0


_ear: ContextVar[_Ear | None] = ContextVar("ear", default=None)


@contextmanager
def listening(hear: Callable[[str], None]) -> Iterator[None]:
    """Let ``hear`` know every phase of the work in this block: "Evaluating demo-student: 3 of 8"."""
    token = _ear.set(_Ear(hear))
    try:
        yield
    finally:
        _ear.reset(token)


def announce(phase: str) -> None:
    """Begin a phase: a few words, without a full stop."""
    if ear := _ear.get():
        ear.phase, ear.counted_at = phase, time.monotonic()
        ear.hear(phase)


def count(done: int, total: int) -> None:
    """Say how far the phase under way is."""
    ear, now = _ear.get(), time.monotonic()
    if ear and ear.phase and now >= ear.counted_at + COUNT_SECONDS:
        ear.counted_at = now
        ear.hear(f"{ear.phase}: {done} of {total}")
