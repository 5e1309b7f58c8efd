"""``samples.jsonl`` read by step: an index of offsets is kept in memory and grows with the file.

A line is ``{"step": 12, "kind": "rollout", "index": 0, ...}``; the beginning is all that the index reads. A
resumed run writes steps again: the newest line of a (kind, step, index) counts. Processes that read, such as
the app, share one index a file among all their viewers.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opd.traces import FrozenScores, Push
from opd.trajectory import Review

Kind = Literal["rollout", "probe", "frozen"]
_HEAD = re.compile(rb'\{"step": (\d{1,9}), "kind": "(\w+)", "index": (\d{1,9})\b')


@dataclass(frozen=True, eq=False)
class Sample:
    """A rollout that a step kept.

    Attributes:
        step: the step it was sampled in.
        index: its place among those of the step.
        review: the graded trajectory; its grades are those from before the step's update.
        push: what the update was meant to do and did to its tokens; None where that was not measured.
    """

    step: int
    index: int
    review: Review
    push: Push | None


@dataclass(frozen=True, eq=False)
class Frozen:
    """A frozen probe trajectory at one evaluation.

    Attributes:
        step: the evaluation's step.
        index: which of the probes of step 0 it is.
        scores: how it is graded now.
    """

    step: int
    index: int
    scores: FrozenScores


class SampleFile:
    """The records of one ``samples.jsonl`` by kind and step."""

    def __init__(self, path: Path) -> None:
        """Begin without reading anything."""
        self.path = path
        self._lock = threading.Lock()
        self._identity, self._end = 0, 0
        self._places: dict[str, dict[int, dict[int, tuple[int, int]]]] = {}

    def steps(self, kind: Kind) -> list[int]:
        """Return the steps that have records of a kind, in order."""
        with self._lock:
            self._catch_up()
            return sorted(self._places.get(kind, {}))

    def records(self, kind: Kind, step: int) -> list[dict[str, Any]]:
        """Return the records of a kind and step, by index; no other line is parsed."""
        with self._lock:
            self._catch_up()
            places = sorted(self._places.get(kind, {}).get(step, {}).items())
        if not places:
            return []
        out = []
        with self.path.open("rb") as file:
            for _, (start, length) in places:
                file.seek(start)
                with contextlib.suppress(ValueError, RecursionError):  # torn by a crash
                    out.append(json.loads(file.read(length)))
        return out

    def _catch_up(self) -> None:
        """Index the complete lines that have come since the last time."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return
        if stat.st_ino != self._identity or stat.st_size < self._end:  # a new run of the same name
            self._identity, self._end, self._places = stat.st_ino, 0, {}
        if stat.st_size == self._end:
            return
        with self.path.open("rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                head = _HEAD.match(line)
                if head:
                    step, kind, index = int(head[1]), head[2].decode(), int(head[3])
                    place = (self._end, len(line))
                    self._places.setdefault(kind, {}).setdefault(step, {})[index] = place
                self._end += len(line)


@functools.lru_cache(maxsize=64)
def sample_file(path: Path) -> SampleFile:
    """Return the process's one reader of a file."""
    return SampleFile(path)
