"""What stays at hand of what visitors look at, and for whom."""

import zipfile
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from graded import make_review
from gradio.context import LocalContext

from opd.config import DistillConfig
from opd.grading.saved_reviews import ReviewSet
from opd.runs.run import create_run
from opd.ui.app import DAY, HOUR, build_app
from opd.ui.kept_sets import MOST_SETS, KeptSets, forget_ended
from opd.ui.runs_tab import RunsTab


@pytest.fixture
def visit():
    """Let what follows be the event of a page of that name."""
    yield lambda name: LocalContext.request.set(SimpleNamespace(session_hash=name))
    LocalContext.request.set(None)


def a_set(*, tokens: int = 3) -> ReviewSet:
    return ReviewSet.of([make_review([" a"] * tokens)])


def test_a_component_that_gradio_builds_anew_still_knows_what_it_shows():
    # As in Blocks.postprocess_data, whenever an event updates a component or skips it.
    for block in build_app().blocks.values():
        if isinstance(block, gr.HTML):
            again = type(block)(**block.constructor_args | {"render": False})
            for name in vars(again).keys() - vars(gr.HTML(render=False)).keys():
                assert getattr(again, name) is getattr(block, name), f"{block.elem_id} holds {name} itself"


def test_no_visitor_takes_anything_from_another(visit):
    sets, mine = KeptSets(), a_set()
    visit("me")
    sets.keep("mine", mine)
    for other in range(3):
        visit(f"other-{other}")
        for number in range(80):
            sets.keep(f"{other}-{number}", a_set())
    assert sets.find("mine") is mine
    visit(None)  # as the component's own questions come
    assert sets.find("mine") is mine
    assert sets.find("2-79")


def test_of_one_visitor_the_latest_few_stay(visit):
    sets = KeptSets()
    visit("me")
    for number in range(80):
        sets.keep(f"{number}", a_set())
    assert sets.find("79")
    assert sets.find(f"{80 - MOST_SETS}")
    with pytest.raises(ValueError, match="no longer at hand"):
        sets.find(f"{79 - MOST_SETS}")


def test_what_is_on_the_page_stays_however_large_it_is(visit, monkeypatch):
    monkeypatch.setattr("opd.ui.kept_sets.MOST_BYTES", 100_000)
    sets = KeptSets()
    visit("me")
    sets.keep("before", a_set(tokens=1000))
    sets.keep("now", a_set(tokens=1000))
    assert sets.find("now")
    assert sets.size("me") > 100_000
    with pytest.raises(ValueError, match="no longer at hand"):
        sets.find("before")
    sets.keep("now", a_set())  # a set that grows counts once
    sets.keep("small", a_set())
    assert sets.find("now")


def test_weights_are_zipped_once_for_all_who_ask(tmp_path, monkeypatch):
    run = create_run("mine", DistillConfig())
    weights = run.path / "checkpoints" / "step-000001" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    with gr.Blocks(analytics_enabled=False):
        tab = RunsTab()
    tab.zip.GRADIO_CACHE = str(tmp_path / "cache")

    def zipped() -> Path:
        path = Path(tab.zipped(["mine"])["value"])
        assert zipfile.ZipFile(path).namelist() == ["mine/model.safetensors"]
        return path

    first = zipped()
    assert zipped() == first
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [first]
    weights.parent.rename(weights.parent.with_name("step-000002"))
    assert zipped() != first, "other weights"


class Sessions(SimpleNamespace):
    """As much of Gradio's sessions as counts here: who is there, who has gone, and since when."""

    def __init__(self, **gone: timedelta | None):
        super().__init__(
            session_data={name: SimpleNamespace(is_closed=ago is not None) for name, ago in gone.items()},
            time_last_used={name: datetime.now() - (ago or timedelta()) for name, ago in gone.items()},
        )


def test_what_a_closed_page_was_shown_is_let_go_an_hour_later(visit):
    sets = KeptSets()
    sessions = Sessions(here=None, away=timedelta(minutes=50), gone=timedelta(minutes=70))
    for name in (*sessions.session_data, "never heard of"):
        visit(name)
        sets.keep(name, a_set())
    forget_ended(sessions, [sets])
    assert sets.find("here")
    assert sets.find("away"), "its connection may only be lost"
    assert sets.size("gone") == sets.size("never heard of") == 0
    assert sessions.session_data.keys() == sessions.time_last_used.keys() == {"here", "away"}


def test_closed_pages_take_no_more_than_so_much_and_the_oldest_goes_first(visit, monkeypatch):
    monkeypatch.setattr("opd.ui.kept_sets.CLOSED_BYTES", 2_000_000)
    sets = KeptSets()
    sessions = Sessions(here=None, **{f"away-{n}": timedelta(minutes=n) for n in range(20)})
    for name in sessions.session_data:
        visit(name)
        sets.keep(name, a_set(tokens=1000))
    forget_ended(sessions, [sets])
    left = len(sessions.session_data)
    assert 1 < left < 6
    assert list(sessions.session_data) == ["here", *(f"away-{n}" for n in range(left - 1))]


def test_a_page_that_closes_has_closed_pages_looked_through_and_files_go_after_a_day():
    app = build_app()
    assert app.delete_cache == (HOUR, DAY)
    app.state_holder = Sessions(here=None, gone=timedelta(hours=2))
    for closes in app.fns.values():
        if any(event == "unload" for _, event in closes.targets):
            closes.fn()
    assert app.state_holder.session_data.keys() == {"here"}
