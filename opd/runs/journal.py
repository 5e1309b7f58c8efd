"""Files of JSON lines that only grow: a writer may die at any byte, and every complete line is still read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Accept = Callable[[Any], Record | None]
"""Takes what a line says; returns a record of one kind, None where it is none."""

LARGEST = 10**11
"""A step, or a second since 1970; more is none."""

TAIL = 2**15
"""Bytes read first when the newest record is wanted."""


@dataclass(frozen=True)
class Journal:
    """One such file: one process writes it, many read it.

    Attributes:
        path: where it is, or will be.
        accept: what its records are; lines that are none are passed over. All, unless it is said.
    """

    path: Path
    accept: Accept = lambda record: record

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line, behind a new line where a writer died inside the last one.

        Raises:
            OSError: the disk is full; complete lines stay readable.
        """
        line = json.dumps(record, ensure_ascii=False) + "\n"
        with self.path.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = "\n" + line
            file.write(line.encode("utf-8", errors="replace"))

    def __iter__(self) -> Iterator[Record]:
        """Yield the records in the order they were written; a line torn by a crash is passed over."""
        return iter(self._records(self.path.read_bytes()) if self.path.exists() else ())

    def since(self, start: int) -> tuple[list[Record], int]:
        """Return the records of the complete lines behind an offset, and the offset behind them."""
        if size(self.path) <= start:
            return [], start
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read()
        complete = data.rfind(b"\n") + 1
        return self._records(data[:complete]), start + complete

    def newest(self, accept: Accept | None = None) -> Record | None:
        """Return the last record, or the last that ``accept`` takes; None without one. Reads from the end."""
        accept, whole = accept or self.accept, size(self.path)
        for length in sorted({min(TAIL, whole), whole} - {0}):
            with self.path.open("rb") as file:
                file.seek(whole - length)
                lines = file.read().split(b"\n")
            for line in reversed(lines if length == whole else lines[1:]):
                if (record := accept(parsed(line))) is not None:
                    return record
        return None

    def _records(self, data: bytes) -> list[Record]:
        return [record for line in data.split(b"\n") if (record := self.accept(parsed(line))) is not None]


def size(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def parsed(text: bytes) -> Any:  # noqa: ANN401
    """Return what JSON says; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def is_number(value: Any) -> bool:  # noqa: ANN401
    """Whether it is a number that a float can hold."""
    return isinstance(value, int | float) and abs(value) < (math.inf if isinstance(value, float) else 2**53)


def as_row(record: Any) -> dict[str, float] | None:  # noqa: ANN401
    """Return the metrics of a step, those of them that are numbers."""
    match record:
        case {"step": int(step)} if 0 <= step < LARGEST:
            return {name: value for name, value in record.items() if is_number(value)}
    return None


def as_event(record: Any) -> Record | None:  # noqa: ANN401
    """Return an event: it has a name, and a time in seconds since 1970."""
    match record:
        case {"event": str(), "time": int() | float() as at} if 0 <= at < LARGEST:
            return record
    return None
