"""Models of the Hugging Face Hub: which of them are here, and fetching one with its progress.

What the hub refuses, of models and data sets, is said here.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from opd.models.downloads import LOOK_SECONDS, Progress, must_have_room, run_to_end

WEIGHTS, TEXTS = "*.safetensors", ("*.json", "*.jinja", "*.model", "*.txt")
"""What of a repository is fetched: weights as safetensors; config and tokenizer."""


def has(name: str) -> bool:
    """Whether a model's name can only be that of a repository on the hub, "owner/name"."""
    of_a_file = name.startswith((".", "~", os.sep)) or name.endswith(".gguf") or Path(name).exists()
    return name.count("/") == 1 and not of_a_file


def is_here(name: str) -> bool:
    """Whether a model of the hub is wholly on this machine; nobody is asked."""
    return _here(name) is not None


def request(name: str) -> str:
    """Say from whom a model that is not here comes."""
    return "from the hub"


def check_reachable(name: str, *, weights: bool = True) -> None:
    """Refuse a model of the hub that is not here where the hub may not be asked for it; nobody is asked.

    Raises:
        ValueError: it is out of reach, or no repository can have this name.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        if constants.HF_HUB_OFFLINE and _here(name, weights=weights) is None:
            raise OfflineModeIsEnabled
    except (HFValidationError, OfflineModeIsEnabled) as error:
        raise ValueError(_sentence(name, error)) from None


def folder(name: str, *, weights: bool = True) -> str:
    """Return the folder of a model of the hub, after what is not here has been downloaded.

    How far the download is stands on standard error. Where the hub cannot be asked, what is here will do.

    Args:
        name: its name on the hub.
        weights: without them, config and tokenizer are all that is wanted.

    Raises:
        ValueError: it is not wholly here and cannot be downloaded; the message says why.
    """
    from huggingface_hub import constants

    here = _here(name, weights=weights)
    if here is not None and constants.HF_HUB_OFFLINE:
        return here
    try:
        run_to_end(fetch(name, weights=weights))
    except ValueError as error:
        if here is None:
            raise
        print(f"{error} The copy on this machine is used.", file=sys.stderr)
        return here
    return str(_snapshot(name, weights))


def _here(name: str, *, weights: bool = True) -> str | None:
    """Return the folder of a model that is wholly on this machine, None where it is not."""
    path = _snapshot(name, weights)
    return str(path) if path and (_has_weights(path) if weights else _has_config(path)) else None


def _snapshot(name: str, weights: bool) -> Path | None:
    """Return the folder where something of a model lies, None where nothing of it is on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True, **_selected(weights)))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _has_config(path: Path) -> bool:
    return any((path / file).exists() for file in ("config.json", "adapter_config.json"))


def _has_weights(path: Path) -> bool:
    """Whether a folder holds every file of its weights; what is in one file needs no index."""
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists() or not index.exists():
        return any(path.glob(WEIGHTS))
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError):  # a broken one: it may come whole
        return False
    return all((path / shard).exists() for shard in shards)


def _selected(weights: bool) -> dict[str, list[str]]:
    """Return the patterns of what is fetched, with the weights or without."""
    return {
        "allow_patterns": [*TEXTS, *[WEIGHTS] * weights],
        "ignore_patterns": ["*/*", "consolidated*"],  # other formats of the same weights
    }


def no_safetensors(name: str, files: Iterable[str]) -> str:
    """Say that a model has no weights that are loaded, by what there is instead."""
    kinds = {Path(file).suffix for file in files}
    if ".gguf" in kinds:
        instead = (
            "It holds GGUF files: download one, and name the file; or name the model they were made from."
        )
    elif kinds & {".bin", ".pt", ".pth", ".ckpt"}:
        instead = "It holds pickled files, which could run code: save it anew with save_pretrained."
    else:
        instead = "Name the repository or folder that holds them."
    return f"{name} has no weights as safetensors, the only ones that are loaded. {instead}"


def fetch(name: str, *, weights: bool = True) -> Iterator[Progress]:
    """Download a model to where transformers finds it, and say how far it is.

    Closing the generator ends the download; what has arrived is kept, and the next one goes on from there.

    Args:
        name: its name on the hub.
        weights: without them, config and tokenizer are all that is downloaded.

    Raises:
        ValueError: it cannot be downloaded; the message says why.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    selected = _selected(weights)
    try:
        files = snapshot_download(name, dry_run=True, **selected)
        sizes = {file.filename: file.file_size or 0 for file in files}
        there = sum(sizes[file.filename] for file in files if file.is_cached)
        unusable = weights and not any(file.endswith(".safetensors") for file in sizes)
        instead = HfApi().list_repo_files(name) if unusable else []
    except Exception as error:  # of the network, the hub, the disk: each layer has its own
        raise ValueError(_sentence(name, error)) from error
    total = sum(sizes.values())
    if unusable:
        raise ValueError(no_safetensors(name, instead))
    here = _snapshot(name, weights)
    places = [Path(file.local_path) for file in files]
    if here and all(place.is_relative_to(here) and place.exists() for place in places):
        yield Progress(name, total, total)
        return
    cache = Path(constants.HF_HUB_CACHE)
    must_have_room(name, total - there, cache, "HF_HOME")
    meter = _meter()
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(snapshot_download, name, tqdm_class=meter, **selected)
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


def data_set_problem(name: str, error: Exception) -> str:
    """Say why a data set of the hub cannot be read: what the hub says to us of it, else ``error``'s words."""
    from huggingface_hub import HfApi

    if isinstance(error, OSError):  # the datasets package names no cause: whoever may not read is asked
        try:
            HfApi().auth_check(name, repo_type="dataset")
        except Exception as refused:
            return _sentence(name, refused, "data set", "a file of prompts")
    return f"The data set {name} cannot be loaded: {' '.join(str(error).split())}"


def _sentence(name: str, error: Exception, what: str = "model", instead: str = "the model's folder") -> str:
    """Say why a repository of the hub cannot be downloaded, and the way out.

    Args:
        name: its name on the hub.
        error: what a library raised.
        what: a "model" or a "data set".
        instead: what can be named in its place.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    of_the_hub = (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled)
    cause = error if isinstance(error, of_the_hub) else error.__cause__ or error
    match cause:
        case GatedRepoError() if get_token():
            return (
                f"{name} is gated, and the account of your token has no access to it: accept its terms on "
                "its page on the hub, or set HF_TOKEN to a token of an account that has."
            )
        case GatedRepoError():
            return (
                f"{name} is gated: accept its terms on its page on the hub, then set HF_TOKEN to a token of "
                "your account."
            )
        case RepositoryNotFoundError() | HFValidationError():
            private = "HF_TOKEN may not read it" if get_token() else "HF_TOKEN is not set"
            return f"There is no {what} {name} on the hub, or it is private and {private}."
        case HfHubHTTPError() if cause.response.status_code == 401:
            return f"The hub does not accept your token: {name} could not be downloaded. Set HF_TOKEN anew."
        case OfflineModeIsEnabled():
            return (
                f"{name} is not (wholly) on this machine, and HF_HUB_OFFLINE forbids to ask the hub for it. "
                f"Unset it, or give {instead}."
            )
        case OSError(errno=errno.ENOSPC):
            return f"The disk is full: {name} could not be downloaded. Make room, or set HF_HOME."
    reason = " ".join(str(cause).split())[:200].rstrip(".")
    return f"{name} could not be downloaded: {type(cause).__name__}: {reason}. Is there a network?"
