"""``samples.jsonl``: the graded trajectories of a run, read by step.

An index of offsets is kept in memory and grows with the file. A line is ``{"step": 12, "kind": "rollout",
"index": 0, ...}``; the beginning is all that the index reads. A resumed run writes steps again: the newest
line of a (kind, step, index) counts. Processes that read, such as the app, share one index a file among all
their viewers.
"""

from __future__ import annotations

import functools
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opd.reports import FrozenScores, Push, StepReport
from opd.reviews import Review
from opd.runs.journal import Journal, parsed, size

SAMPLES_LIMIT = 64 * 2**20
"""Bytes of ``samples.jsonl``; later samples are not kept."""

ROLLOUTS_FROM, ROLLOUTS_TO = 1 / 8, 1 / 2
"""Share of the limit that rollouts may fill: at the first step and, growing evenly, at the last. A long run
so keeps rollouts of steps from all its length, and the probes of every evaluation find room."""

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


class SampleFile:
    """The records of one ``samples.jsonl`` by kind and step."""

    def __init__(self, path: Path) -> None:
        """Begin without reading anything."""
        self.path = path
        self._lock = threading.Lock()
        self._identity, self._end = 0, 0
        self._places: dict[str, dict[int, dict[int, tuple[int, int]]]] = {}

    def keep(self, report: StepReport, steps: int) -> bool:
        """Write the graded trajectories of a step of so many; say whether there was room for all of them.

        Those of one kind are all written or, where they have no room any more, none.
        """
        pushes = report.pushes or [None] * len(report.samples)
        for_rollouts = ROLLOUTS_FROM + (ROLLOUTS_TO - ROLLOUTS_FROM) * report.step / steps
        groups: dict[Kind, list[dict[str, Any]]] = {
            "probe": [{"review": review.to_dict()} for review in report.probes],
            "frozen": [scores.to_dict() for scores in report.frozen],
            "rollout": [
                {"review": review.to_dict(), "push": push and push.to_dict()}
                for review, push in zip(report.samples, pushes, strict=True)
            ],
        }
        room_for_all, journal = True, Journal(self.path)
        for kind, records in groups.items():
            if records and size(self.path) > SAMPLES_LIMIT * (for_rollouts if kind == "rollout" else 1):
                room_for_all, records = False, []
            for index, record in enumerate(records):
                journal.append({"step": report.step, "kind": kind, "index": index, **record})
        return room_for_all

    def steps(self, kind: Kind = "rollout") -> list[int]:
        """Return the steps that have records of a kind, in order."""
        with self._lock:
            self._catch_up()
            return sorted(self._places.get(kind, {}))

    def rollouts(self, step: int) -> list[Sample]:
        """Return the rollouts that a step kept.

        Raises:
            ValueError: one is damaged.
        """
        return [
            Sample(
                step,
                record["index"],
                Review.from_dict(record.get("review")),
                Push.from_dict(push) if (push := record.get("push")) else None,
            )
            for record in self._records("rollout", step)
        ]

    def probes(self, step: int) -> list[Review]:
        """Return the student's graded answers to the probe prompts at an evaluation, always in one order.

        Raises:
            ValueError: one is damaged.
        """
        return [Review.from_dict(record.get("review")) for record in self._records("probe", step)]

    def frozen(self, step: int) -> dict[int, FrozenScores]:
        """Return how each of ``probes(0)``, by its index, was graded at an evaluation.

        Raises:
            ValueError: one is damaged.
        """
        return {r["index"]: FrozenScores.from_dict(r) for r in self._records("frozen", step)}

    def probes_by_change(self) -> list[Review]:
        """Return the probes as the untrained student answered them, the one that changed most first.

        What counts is how far the mean reverse KL (nats a token) of that answer moved from the first
        evaluation to the last. Empty where nothing was evaluated.
        """
        evaluations = self.steps("frozen")
        if not evaluations:
            return []
        first, last = self.frozen(evaluations[0]), self.frozen(evaluations[-1])
        moved = {
            i: abs(float((last[i].reverse_kl - before.reverse_kl).mean()))
            for i, before in first.items()
            if i in last and len(before.reverse_kl)
        }
        probes = self.probes(0)
        return [probes[i] for i in sorted(moved, key=moved.get, reverse=True) if i < len(probes)]

    def _records(self, kind: Kind, step: int) -> list[dict[str, Any]]:
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
                if (record := parsed(file.read(length))) is not None:  # else torn by a crash
                    out.append(record)
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
