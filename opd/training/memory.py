"""The most memory that a run takes, measured."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from pathlib import Path

import torch

FORGET_PEAK = "5"
"""What proc(5) has a process write to its ``clear_refs`` to set its peak back to what it holds now."""


def forget_peak() -> None:
    """Begin to measure anew: what this process held before is none of the run's.

    Where the system does not allow it (macOS, some containers) the peak stays that of the whole process.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(FORGET_PEAK, encoding="ascii")
    if torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def peak_memory(device: torch.device) -> int:
    """Return the peak bytes since :func:`forget_peak`: of a GPU, or of the process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Not getrusage: there Linux hands a process the peak of the one that started it.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):  # no /proc, or one without this line
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
