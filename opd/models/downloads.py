"""What downloads have in common, wherever they come from: how far one is, and whether there is room."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from opd.phases import announce

LOOK_SECONDS = 0.5
"""How often progress is said."""


@dataclass(frozen=True)
class Progress:
    """How far a download is.

    Attributes:
        name: the model's name.
        done: bytes that are here.
        total: bytes of all its files.
    """

    name: str
    done: int
    total: int

    def __str__(self) -> str:
        """One line."""
        return f"Downloading {self.name}: {self.done / 1e6:,.1f} of {self.total / 1e6:,.1f} MB"


def must_have_room(name: str, size: int, folder: Path, setting: str) -> None:
    """Refuse what does not fit on the disk of a folder, which need not exist yet.

    Args:
        name: what is to be written.
        size: its bytes.
        folder: where it goes.
        setting: the environment variable that moves it to another disk.

    Raises:
        ValueError: it does not fit.
    """
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if size > free:
        raise ValueError(
            f"{name} needs {size / 1e9:.1f} GB more; {free / 1e9:.1f} GB are free in {folder}. Make room, or "
            f"set {setting} to a larger disk."
        )


def run_to_end(download: Iterator[Progress]) -> None:
    """Let a download run to its end; how far it is stands on standard error, unless nothing was missing."""
    shown = False
    try:
        for progress in download:
            if shown := shown or progress.done < progress.total:
                print(f"\r{progress}", end="", file=sys.stderr, flush=True)
                announce(str(progress))
    finally:
        if shown:
            print(file=sys.stderr)
