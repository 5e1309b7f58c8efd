"""Who may use which device: one job at a time, first come first served.

Every job draws a numbered ticket for each device it wants, ``$OPD_HOME/devices/cuda:0/000007-NAME``, and
keeps it locked (flock) while it lives. The oldest locked ticket owns the device, the others queue behind it;
a ticket that nobody holds belongs to a job that died and counts for nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from opd.files import home_dir, try_lock

_TICKET = re.compile(r"\d{6,}-.+")


def devices_dir() -> Path:
    """Return the folder of all tickets."""
    return home_dir() / "devices"


def holders() -> dict[str, str]:
    """Return which run holds which device: device -> name of the run; devices that are free are absent."""
    return {device: names[0] for device, names in _lines().items() if names}


def queue(device: str) -> list[str]:
    """Return the runs that want a device: who holds it first, then those who wait, in order."""
    return [_owner(ticket) for ticket in _tickets(device) if is_locked(ticket)]


def ahead(run: str) -> dict[str, list[str]]:
    """Return who comes before a run, by device, the holder first; empty if it waits for none."""
    lines = _lines().items()
    return {d: names[: names.index(run)] for d, names in lines if run in names and names[0] != run}


def waiting_sentence(before: dict[str, list[str]]) -> str:
    """Say what a run waits for, from :func:`ahead`; empty if it waits for nothing."""
    return " ".join(
        f"Waiting for {device}, which the run {names[0]} holds"
        + (f"; {', '.join(names[1:])} before this one." if names[1:] else ".")
        for device, names in before.items()
    )


def _lines() -> dict[str, list[str]]:
    return {folder.name: queue(folder.name) for folder in sorted(devices_dir().glob("*/"))}


def draw_tickets(run: str, devices: Sequence[str]) -> dict[Path, int]:
    """Draw a ticket for each device and return the descriptors that keep them locked.

    All are drawn at one door, so two runs that want two devices stand in the same order before both. A child
    process that inherits the descriptors keeps the places.

    Raises:
        OSError: the folder of tickets cannot be written.
    """
    drawn: dict[Path, int] = {}
    try:
        with _door():
            for device in devices:
                ticket = _draw(device, run)
                drawn[ticket] = os.open(ticket, os.O_RDWR | os.O_CREAT, 0o644)
                fcntl.flock(drawn[ticket], fcntl.LOCK_EX)
    except OSError:
        _throw_away(drawn)
        raise
    return drawn


@contextlib.contextmanager
def stand_in_line(
    run: str, devices: Sequence[str], tickets: Mapping[Path, int] | None = None
) -> Iterator[None]:
    """Hold tickets for some devices until the end of the block; new ones, unless some are drawn already.

    It does not wait: poll :func:`ahead`.

    Raises:
        OSError: the folder of tickets cannot be written.
    """
    held = draw_tickets(run, devices) if tickets is None else tickets
    try:
        yield
    finally:
        _throw_away(held)


def _throw_away(tickets: Mapping[Path, int]) -> None:
    for ticket, descriptor in tickets.items():
        ticket.unlink(missing_ok=True)
        os.close(descriptor)


def _draw(device: str, run: str) -> Path:
    """Return the path of a new ticket, behind all others; those of jobs that died are thrown away."""
    for ticket in _tickets(device):
        if not is_locked(ticket):
            ticket.unlink(missing_ok=True)
    last = max((int(ticket.name.partition("-")[0]) for ticket in _tickets(device)), default=0)
    folder = devices_dir() / device
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{last + 1:06d}-{run}"


@contextlib.contextmanager
def _door() -> Iterator[None]:
    """Let one process at a time draw tickets."""
    devices_dir().mkdir(parents=True, exist_ok=True)
    with (devices_dir() / "door.lock").open("w") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        yield


def _tickets(device: str) -> list[Path]:
    return sorted(p for p in (devices_dir() / device).glob("*-*") if _TICKET.fullmatch(p.name))


def _owner(ticket: Path) -> str:
    return ticket.name.partition("-")[2]


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock of a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
