"""Models of the Hugging Face Hub: which of them are not here yet, and fetching one with its progress."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SELECTED = {
    "allow_patterns": ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"],
    "ignore_patterns": ["*/*", "consolidated*"],  # other formats of the same weights
}
"""What of a repository is fetched: weights as safetensors, config and tokenizer."""

LOOK_SECONDS = 0.5
"""How often progress is told."""


@dataclass(frozen=True)
class Progress:
    """How far a download is.

    Attributes:
        name: the model's name on the hub.
        done: bytes that are here.
        total: bytes of all its files.
    """

    name: str
    done: int
    total: int

    def __str__(self) -> str:
        """One line."""
        return f"Downloading {self.name}: {self.done / 1e6:,.1f} of {self.total / 1e6:,.1f} MB"


def is_hub_id(name: str) -> bool:
    """Whether a model's name can only be that of a repository on the hub, "owner/name"."""
    local = name.count("/") != 1 or name.startswith((".", "~", os.sep)) or Path(name).exists()
    return not local


def absent(names: Iterable[str]) -> list[str]:
    """Return those of some models' names that are on the hub and not (wholly) here; nobody is asked."""
    return [name for name in dict.fromkeys(names) if is_hub_id(name) and not _is_here(name)]


def _is_here(name: str) -> bool:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, local_files_only=True, **SELECTED)
    except (LocalEntryNotFoundError, HFValidationError):
        return False
    return any(Path(folder).glob("*.safetensors"))


def fetch(name: str) -> Iterator[Progress]:
    """Download a model to where transformers finds it, and tell how far it is.

    Closing the generator ends the download; what has arrived is kept, and the next one goes on from there.

    Raises:
        ValueError: it cannot be downloaded; the message says why.
    """
    from huggingface_hub import constants, snapshot_download

    try:
        files = snapshot_download(name, dry_run=True, **SELECTED)
        sizes = {file.filename: file.file_size or 0 for file in files}
        there = sum(sizes[file.filename] for file in files if file.is_cached)
    except Exception as error:  # of the network, the hub, the disk: each layer has its own
        raise ValueError(_sentence(name, error)) from error
    total = sum(sizes.values())
    if not any(file.endswith(".safetensors") for file in sizes):
        raise ValueError(f"{name} has no weights as safetensors, the only ones that are loaded.")
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    if total - there > free:
        raise ValueError(
            f"{name} needs {(total - there) / 1e9:.1f} GB more; {free / 1e9:.1f} GB are free in {cache}. "
            "Make room, or set HF_HOME to a larger disk."
        )
    meter = _meter()
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(snapshot_download, name, tqdm_class=meter, **SELECTED)
        try:
            while wait([work], LOOK_SECONDS).not_done:
                yield Progress(name, min(there + meter.arrived, total), total)
            work.result()
        except Exception as error:
            raise ValueError(_sentence(name, error)) from error
        finally:
            meter.ended.set()
    yield Progress(name, total, total)


class _EndedError(Exception):
    """Nobody waits for the download any more."""


def _meter() -> Any:  # noqa: ANN401
    """Return what the hub's library takes as a progress bar: it counts bytes and ends when that is asked."""
    from tqdm import tqdm

    class Meter(tqdm):
        arrived = 0
        ended = threading.Event()

        def update(self, n: float | None = 1) -> bool | None:
            if Meter.ended.is_set():
                raise _EndedError
            updated = super().update(n)
            if self.unit == "B":  # others count files, or bytes before they are unpacked
                Meter.arrived = max(Meter.arrived, int(self.n))
            return updated

        def display(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            pass

    return Meter


def _sentence(name: str, error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    cause = error.__cause__ or error
    match cause:
        case GatedRepoError():
            return (
                f"{name} is gated: accept its terms on its page on the hub, then set HF_TOKEN to a token of "
                "your account."
            )
        case RepositoryNotFoundError() | HFValidationError():
            return f"There is no model {name} on the hub, or it is private and HF_TOKEN may not read it."
        case OfflineModeIsEnabled():
            return f"{name} is not on this machine, and HF_HUB_OFFLINE forbids to ask the hub for it."
        case OSError(errno=errno.ENOSPC):
            return f"The disk is full: {name} could not be downloaded. Make room, or set HF_HOME."
    reason = " ".join(str(cause).split())[:200]
    return f"{name} could not be downloaded: {type(cause).__name__}: {reason}. Is there a network?"
