"""How to measure: sides alternate in one run, medians of paired ratios, memory in fresh processes.

Needs torch alone, so that it runs wherever the models do.
"""

from __future__ import annotations

import ctypes
import json
import math
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Self

import torch


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        name: its key in the JSON object.
        value: the figure itself; ratios say how many times less the first-named side takes.
        unit: "x" for a ratio, else the unit.
        at_least: the target, if it is a lower bound.
        at_most: the target, if it is an upper bound.
        detail: what else one must know to judge it.
    """

    name: str
    value: float
    unit: str = "x"
    at_least: float | None = None
    at_most: float | None = None
    detail: str = ""

    @property
    def target(self) -> str:
        """The target in words; empty where there is none."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    @property
    def met(self) -> bool:
        """Whether the target is met, as it is without one."""
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)


@dataclass(frozen=True)
class Cost:
    """What a piece of work took.

    Attributes:
        wall: seconds on the clock.
        cpu: seconds of all the process's threads; other programs on the machine disturb it less.
        tokens: how many tokens came of it.
    """

    wall: float
    cpu: float
    tokens: int = 1


class Stopwatch:
    """Measures from its making; on a GPU it waits until the queued work is done."""

    def __init__(self) -> None:
        """Start."""
        self.wall, self.cpu = _now()

    def stop(self, tokens: int = 1) -> Cost:
        """Return the cost so far."""
        wall, cpu = _now()
        return Cost(wall - self.wall, cpu - self.cpu, tokens)


def _now() -> tuple[float, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def alternate(
    sides: Mapping[str, Callable[[int], int | Cost]], rounds: int, warm_up: int = 1
) -> dict[str, list[Cost]]:
    """Let the sides do their work in turn, the order reversed every other round.

    Args:
        sides: each does its work of round k (from 0; the warm-up rounds are numbered too) and returns the
            number of tokens; or what it cost, where another process did it.
        rounds: how many are kept.
        warm_up: how many are thrown away first.
    """
    kept: dict[str, list[Cost]] = {name: [] for name in sides}
    for k in range(warm_up + rounds):
        for name in list(sides)[:: 1 if k % 2 else -1]:
            watch = Stopwatch()
            done = sides[name](k)
            if k >= warm_up:
                kept[name].append(done if isinstance(done, Cost) else watch.stop(done))
    return kept


@dataclass(frozen=True)
class Ratio:
    """How many times more one side takes per token than the other.

    Attributes:
        wall: the median of the rounds' ratios, on the clock.
        low: their first quartile.
        high: their third.
        cpu: the median in CPU time.
    """

    wall: float
    low: float
    high: float
    cpu: float

    @classmethod
    def of(cls, more: Sequence[Cost], less: Sequence[Cost]) -> Self:
        """Compare the costs of the same rounds."""
        wall = [(a.wall / a.tokens) / (b.wall / b.tokens) for a, b in zip(more, less, strict=True)]
        cpu = [(a.cpu / a.tokens) / (b.cpu / b.tokens) for a, b in zip(more, less, strict=True)]
        return cls(median(wall), quantile(wall, 0.25), quantile(wall, 0.75), median(cpu))

    def __str__(self) -> str:
        """The spread and the CPU time beside it."""
        return f"quartiles {self.low:.2f}-{self.high:.2f}, in CPU time {self.cpu:.2f}"


def quantile(values: Sequence[float], q: float) -> float:
    """Return a quantile, interpolated between neighbours."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def fitted_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of log(cost) over log(size) by least squares: cost grows like size to this power."""
    x, y = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


@contextmanager
def partner(work: Callable[..., None], *args: Any) -> Iterator[Connection]:  # noqa: ANN401
    """Run ``work(connection, *args)`` in a process of its own; yield the other end of the connection.

    So a peer runs as it would without us: with its own layers, and a C library that was told nothing. Who
    waits for the other computes nothing meanwhile.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_quietly, args=(work, theirs, *args), daemon=True)
    process.start()
    theirs.close()  # so that its end is noticed here
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def _quietly(work: Callable[..., None], *args: Any) -> None:  # noqa: ANN401
    """Work without a word on standard output, which is the table's."""
    with redirect_stdout(sys.stderr):
        work(*args)


def in_fresh_process(work: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401
    """Run ``work(*args)`` in a process that has done nothing but import torch, and return what it returns.

    Memory that an allocator kept from earlier work cannot hide there what this work needs.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers"])
    with context.Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return pool.apply(work, args)


@dataclass
class Peak:
    """Filled when its block ends.

    Attributes:
        extra: the most bytes that were in use at a time, above those in use at the start.
    """

    extra: int = 0


@contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[Peak]:
    """Measure the peak of a block: of the allocator on a GPU, of the resident set on a CPU (Linux, glibc)."""
    peak = Peak()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.extra = torch.cuda.max_memory_allocated(device) - before
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back: this block has to take it anew
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
        before = _status("VmRSS")
        yield peak
        peak.extra = _status("VmHWM") - before


def _status(field: str) -> int:
    """Return a field of this process's status, in bytes."""
    return 1024 * int(re.search(rf"^{field}:\s*(\d+)", Path("/proc/self/status").read_text(), re.M)[1])


def machine() -> str:
    """Name the machine, the threads and the versions."""
    device = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            device = line.partition(":")[2].strip()
            break
    if torch.cuda.is_available():
        device += f", {torch.cuda.get_device_name()}"
    packages = [f"{name} {_version(name)}" for name in ("torch", "transformers", "trl") if _version(name)]
    return (
        f"{device}, {os.cpu_count()} cores; {torch.get_num_threads()} threads on both sides, "
        f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'default')}; {', '.join(packages)}"
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as text."""
    rows = [("figure", "value", "target", "", "")]
    for f in figures:
        mark = ("met" if f.met else "NOT met") if f.target else ""
        rows.append((f.name, f"{f.value:.3g} {f.unit}", f.target, mark, f.detail))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    )


def as_json(figures: Sequence[Figure]) -> str:
    """Return one JSON object: the machine, every figure by its name, and what belongs to it."""
    details = {
        f.name: {"unit": f.unit, "target": f.target, "met": f.met, "detail": f.detail} for f in figures
    }
    return json.dumps(
        {"machine": machine(), **{f.name: f.value for f in figures}, "details": details}, indent=1
    )
