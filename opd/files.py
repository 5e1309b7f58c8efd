"""Where things lie: what the app keeps, and what is shipped with it; and how what a user wrote is read."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def home_dir() -> Path:
    """Return the folder of runs and stored reviews: ``$OPD_HOME``, else the working directory."""
    return Path(os.environ.get("OPD_HOME", "."))


def models_dir() -> Path:
    """Return the folder of models that were fetched from the package index, or made from other files."""
    return home_dir().resolve() / "models"


def assets_dir() -> Path:
    """Return the folder of shipped assets: inside the wheel, or beside the package in a checkout."""
    inside = Path(__file__).parent / "assets"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "assets"


def size_in_words(size: int) -> str:
    """Return bytes as people write them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def read_text(path: Path, *, strict: bool = False) -> str:
    """Read a text that a user wrote; see :func:`decode`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is of another encoding.
    """
    return decode(path.read_bytes(), path, strict=strict)


def decode(data: bytes, path: Path, *, strict: bool = False) -> str:
    """Return a text, line breaks as they are, without the mark that may begin it.

    It is UTF-8, or UTF-16 that begins with its mark, as Windows writes it. Bytes that are no UTF-8 become
    lone surrogates, so that they can be refused where they stand; ``strict`` refuses the file.

    Raises:
        ValueError: it is of another encoding; ``path`` names it.
    """
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not wide and b"\0" in data[:2]:
        raise ValueError(f"{path} is UTF-16 without its mark: save it as UTF-8.")
    try:
        if wide:
            return data.decode("utf-16")
        return data.decode("utf-8-sig", errors="strict" if strict else "surrogateescape")
    except UnicodeDecodeError as error:
        kind = "damaged UTF-16" if wide else "not UTF-8"
        raise ValueError(f"{path} is {kind}: save it as UTF-8.") from error


def parse(text: str | bytes, loads: Callable[[Any], Any] = json.loads) -> Any:  # noqa: ANN401
    """Return what JSON, or what else ``loads`` reads, says.

    Raises:
        ValueError: it is none; the message is the reason.
    """
    try:
        return loads(text)
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        if type(error) is not ValueError:  # a decoder's, which says where
            raise
        raise ValueError("a number in it is too long") from error


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` through a temporary file beside it and a rename.

    Raises:
        OSError: the file cannot be written; the old content, if any, stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def try_lock(descriptor: int, kind: int) -> bool:
    """Take a lock (``fcntl.LOCK_EX`` or ``LOCK_SH``) if nobody is in the way, and say whether."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep others, in this process or another, from the same block for the same path: they wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_folder(path: Path, fill: Callable[[Path], object]) -> Path:
    """Return a folder; where it is not there yet, ``fill`` has filled it.

    It appears whole, by rename, or not at all. Of those who want it at once one fills it and the others wait.

    Raises:
        OSError: it cannot be written.
    """
    with locked(path):
        if path.exists():
            return path
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            fill(partial)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return path
