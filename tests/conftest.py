"""What every test gets: no hub, quiet threads, a folder of runs of its own."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from tiny import make_model

from opd.models import Pair


@pytest.fixture
def pair() -> Pair:
    return Pair(make_model(0, name="tiny-student"), make_model(1, name="tiny-teacher", hidden_size=48))


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, str]:
    """Tiny random models that lie on disk, to be read only: their folders by name."""
    out = {}
    for seed, name in enumerate(("student", "teacher", "other")):
        model, folder = make_model(seed), tmp_path_factory.mktemp(name)
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        out[name] = str(folder)
    return out


@pytest.fixture(autouse=True)
def opd_home(tmp_path, monkeypatch):
    """Every test has its own folder of runs."""
    monkeypatch.setenv("OPD_HOME", str(tmp_path))
    return tmp_path
