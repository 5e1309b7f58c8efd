"""The Review tab without a browser: what a new page gets, and what it costs."""

from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
from graded import make_review

from opd.grading.saved_reviews import ReviewSet, gallery, save_reviews, store
from opd.ui.branches import Place, pair_of
from opd.ui.review_tab import PairNames, ReviewTab, students_to_grade
from opd.ui.shown import Shown


@pytest.fixture
def tab(monkeypatch):
    """A tab whose page fails as soon as it loads a model."""

    def load(*names: object, **options: object):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("opd.ui.review_tab.loaded_pair", load)
    for room in ("load", "pair"):
        monkeypatch.setattr(f"opd.models.{room}.load_model", load)
    with gr.Blocks(analytics_enabled=False):
        return ReviewTab()


def welcome(tab, **query):
    return tab.welcome(SimpleNamespace(query_params=query))


def test_a_new_page_opens_the_gallery_without_a_model(tab):
    _, shown, *_ = welcome(tab)
    assert next(iter(gallery().values())).title in shown
    assert '"id": null' in shown, "the address of a plain page stays plain"


def test_links_open_without_a_model(tab):
    mine = store(ReviewSet.of([make_review(["Mine"])]))
    for ident in (*gallery(), mine):
        value, shown, *_ = welcome(tab, review=ident)
        assert f'"id": "{ident}"' in shown
        assert ident in tab.shown.file_of([ident, "json"])["name"]
        assert value


def test_what_is_opened_has_no_branches_of_what_was_shown_before(tab):
    updates = dict(zip(tab.on_open, welcome(tab, review=next(iter(gallery()))), strict=True))
    assert updates[tab.branches.grown] == {}


def test_the_prompt_of_what_is_opened_stands_above_it(tab, tmp_path):
    def opened(*conversations):
        path = tmp_path / "some.json"
        save_reviews(path, [make_review(["x"], messages=messages) for messages in conversations])
        *_, prompt, system, _ = tab.open_file(str(path))
        return prompt, system

    def said(*texts, roles=("user", "assistant", "user")):
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]

    assert opened(said("Why?"), said("Why?")) == ("Why?", "")
    assert opened(said("Be brief.", "Why?", roles=("system", "user"))) == ("Why?", "Be brief.")
    assert opened(said("Why?"), said("How?")) == ("", ""), "there is not one prompt"
    assert opened(said("Why?", "Because.", "How?")) == ("", ""), "a chat is more than its last question"
    mine = store(ReviewSet.of([make_review(["x"], messages=said("Mine?"))]))
    assert welcome(tab, review=mine)[-3] == "Mine?"


@pytest.mark.parametrize("question", [None, "x", [], ["gone", "json"], [1, "json"], ["gone", "exe"]])
def test_asking_for_a_file_that_is_not_there_gives_nothing(question):
    def find(key: str) -> ReviewSet:
        raise ValueError(key)

    assert Shown(find).file_of(question) is None


def test_an_empty_setting_is_called_what_the_page_calls_it(tab):
    labels = [field.label for field in tab.settings]
    for empty, label in enumerate(labels):
        settings = [None if i == empty else 1 for i in range(len(labels))]
        with pytest.raises(gr.Error, match=f"fill in “{label}” under"):
            next(tab.sample(PairNames(), None, "before", "Hi", "", *settings))


def test_a_student_without_a_rival_is_not_called_one_before_training(monkeypatch):
    monkeypatch.setattr("opd.ui.review_tab.open_run", lambda name: SimpleNamespace(model_dir="/trained"))
    assert students_to_grade(PairNames(), None, "before") == {"": "demo-student"}
    both = {"before training": "demo-student", "after first": "/trained"}
    assert students_to_grade(PairNames(), "first", "both") == both


def test_a_branch_uses_the_pair_that_made_its_review_or_says_which_it_wants(monkeypatch):
    loaded = []
    monkeypatch.setattr("opd.ui.branches.loaded_pair", loaded.append)
    foreign = make_review(["a"])  # of a-student and a-teacher
    embedded = replace(foreign, student="demo-student", teacher="demo-teacher")
    for session in (PairNames(), PairNames("a-student", "a-teacher")):
        pair_of(embedded, session, None)  # it is always at hand
    pair_of(foreign, PairNames("a-student", "a-teacher"), None)
    assert [names[:2] for names in loaded] == [("demo-student", "demo-teacher")] * 2 + [
        ("a-student", "a-teacher")
    ]
    assert {names.differing for names in loaded} == {"refused"}
    pair_of(replace(embedded, grades=replace(embedded.grades, masked="in part")), PairNames(), None)
    assert loaded.pop().differing == "shared", "as the review was made"
    with pytest.raises(ValueError, match=r"made with a-student and a-teacher;.*Load its pair under Models"):
        pair_of(foreign, PairNames(), None)
    assert len(loaded) == 3, "a file must not make the app load what it names"


def test_run_starts_nothing_on_a_review_that_is_no_longer_shown(tab, monkeypatch):
    monkeypatch.setattr("opd.ui.branches.loaded_pair", lambda *names: pytest.fail("a model was loaded"))
    tab.sets.keep("before", ReviewSet.of([make_review(["a"])]))
    shown = tab.shown.show("now", ReviewSet.of([make_review(["b"])]))
    for kind in ("fork_value", "no_return"):
        asked = kind, Place("before", 0, 0)
        with pytest.raises(gr.Error, match="no longer shown: choose a token anew"):
            next(tab.branches.measure(asked, shown, PairNames(), None, 9, {}))


@pytest.mark.parametrize("forced", [{"token": 3}, {"text": "x"}, {}], ids=["token", "text", "teacher's line"])
def test_no_branch_leaves_a_review_that_is_gone(tab, monkeypatch, forced):
    monkeypatch.setattr("opd.ui.branches.loaded_pair", lambda *names: pytest.fail("a model was loaded"))
    event = gr.EventData(None, {"key": "gone", "group": 0, "sample": 0, "index": 0, **forced})
    with pytest.raises(gr.Error, match="no longer at hand"):
        next(tab.branches.branch(PairNames(), None, 9, {}, event))


def test_what_becomes_of_other_vocabularies_goes_with_the_pair(tab, monkeypatch):
    asked = []
    monkeypatch.setattr("opd.ui.review_tab.loaded_pair", asked.append)
    names, line, *_ = tab.load(" a ", "b", "spans", "", "", False)
    assert asked == [names] == [PairNames("a", "b", "spans")]
    assert "by spans of text" in line
    assert "over the tokens that both share" in tab.load("a", "b", "shared", "", "", False)[1]
    assert tab.load("a", "b", "refused", "", "", False)[1].endswith("grades.")


def test_what_templates_are_told_goes_with_the_pair(tab, monkeypatch):
    asked = []
    monkeypatch.setattr("opd.ui.review_tab.loaded_pair", asked.append)
    names, line, *_ = tab.load("a", "b", "refused", '{"enable_thinking":false}', " ", True)
    assert asked == [names] == [PairNames("a", "b", "refused", '{"enable_thinking": false}', "", True)]
    assert 'templates are told `{"enable_thinking": false}`; control tokens in prompts are meant.' in line
    for wrong in ("{", "[1]", '{"tokenize": true}'):
        with pytest.raises(gr.Error, match="are a JSON object such as"):
            tab.load("a", "b", "refused", "", wrong, False)
    assert len(asked) == 1
