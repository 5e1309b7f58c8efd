"""The models that all pages share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from opd.models import load
from opd.ui.pairs import PairNames, kept_model, loaded_pair, warm_up


@pytest.fixture
def loads(monkeypatch):
    """The names of the models that are loaded, in order; none is kept from before."""
    names, load_model = [], load.load_model

    def counted(name: str, **options: object) -> object:
        names.append(name)
        return load_model(name, **options)

    monkeypatch.setattr(load, "load_model", counted)
    kept_model.cache_clear()
    return names


def test_the_pair_that_everybody_begins_with_is_loaded_once_before_and_for_all(loads):
    with ThreadPoolExecutor(3) as pool:
        for work in (pool.submit(warm_up), pool.submit(loaded_pair, PairNames()), pool.submit(warm_up)):
            work.result()
    pair = loaded_pair(PairNames())
    assert sorted(loads) == ["demo-student", "demo-teacher"]
    assert pair.student.name == "demo-student"


def test_a_pair_that_cannot_be_loaded_is_nothing_to_warm_up(monkeypatch):
    def refuse(name: str, **_: object) -> None:
        raise ValueError(f"{name} is gone.")

    monkeypatch.setattr(load, "load_model", refuse)
    kept_model.cache_clear()
    warm_up()
    with pytest.raises(ValueError, match="is gone"):
        loaded_pair(PairNames("another-student"))
