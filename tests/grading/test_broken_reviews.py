"""A saved review that holds anything anywhere is shown or refused in a sentence, and hides no other one."""

import copy
import json
from dataclasses import replace

import pytest
from graded import by_spans, make_review

from opd.cli import main
from opd.grading.saved_reviews import (
    ReviewGroup,
    ReviewSet,
    gallery,
    heading,
    load_reviews,
    save_reviews,
    store,
    store_dir,
    stored,
    to_csv,
)
from opd.reviews import BranchPoint, PromptText
from opd.view.payload import alternatives_payload, prompt_payload, set_payload
from opd.view.terminal import render

REVIEW = make_review(list("abcd"), penalty=[0, 1, -0.2, 3])
DEEP = b"[" * 600 + b"]" * 600


def shown(reviews):
    """All that the faces make of a set."""
    json.dumps(set_payload("key", reviews.groups), default=str, allow_nan=False)
    for review in reviews:
        alternatives_payload(review, 0)
        json.dumps(prompt_payload(review))
        render(review, color=True, show_prompt=True)
    return reviews.id, heading(reviews), to_csv(reviews), reviews.to_json()


def everything():
    """A set in which every field has a value, as JSON."""
    options = [{"token": 1, "text": "x", "by": "student", "n": 4, "right": 2, "kl": 0.1}]
    value = {"options": options, "verdict": "decides", "points": 1.0, "low": 0.0, "high": 2.0, "more": None}
    points = [{"index": 1, "n": 3, "right": 1, "low": 0.0, "high": 0.5}]
    evidence = {
        "forkValue": {"1": value | {"sentence": "s"}},
        "noReturn": {"at": 1, "points": points, "sentence": "s"},
    }
    read = PromptText(["a", "b", "c"], [0], [1], templated=True)
    main_line = replace(REVIEW, evidence=evidence, correct=True, seed=3, prompt=read, teacher_prompt=read)
    branch = replace(REVIEW, branch=BranchPoint(0, 1, "student"))
    groups = [ReviewGroup("a", [main_line, branch]), ReviewGroup("b", [by_spans(REVIEW, [0, 1, 1, 3])])]
    return json.loads(ReviewSet(groups, title="t", note="n").to_json())


def places(data, path=()):
    yield path
    if isinstance(data, dict):
        for key in data:
            yield from places(data[key], (*path, key))
    elif isinstance(data, list) and data:
        yield from places(data[0], (*path, 0))


LONG = "LONG"  # stands for a number of more digits than Python reads
WILD = [
    float("inf"),
    float("nan"),
    1e30,
    10**400,
    10**19,
    -1,
    None,
    "x",
    [],
    {},
    True,
    json.loads(DEEP),
    LONG,
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("wild", WILD, ids=[str(value)[:8] for value in WILD])
def test_a_file_that_holds_anything_anywhere_is_shown_or_refused_in_a_sentence(wild):
    whole = everything()
    shown(ReviewSet.from_json(json.dumps(whole)))
    further = [("reviews", 0, "evidence", "x"), ("reviews", 0, "evidence", "forkValue", "1", "x"), ("x",)]
    for *path, last in [place for place in places(whole) if place] + further:
        data = copy.deepcopy(whole)
        inner = data
        for key in path:
            inner = inner[key]
        inner[last] = wild
        try:
            opened = ReviewSet.from_json(json.dumps(data).replace(f'"{LONG}"', "1" * 5000))
        except ValueError:
            continue
        shown(opened)


def test_a_broken_review_hides_no_other_one(tmp_path, monkeypatch, capsys):
    good = store(ReviewSet.of([REVIEW]))
    data = json.loads((store_dir() / f"{good}.json").read_text())
    data["reviews"][0]["messages"] = []
    (store_dir() / "00000000000000ff.json").write_text(json.dumps(data))
    (store_dir() / "00000000000000fe.json").write_bytes(b"\x1b[31m")
    (store_dir() / "00000000000000fd.json").write_text('{"version": ' + "1" * 5000 + "}")
    assert {s.id: s.heading for s in stored()}[good] == "Which one?"
    assert main(["reviews"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{good} Which one?" in lines
    (broken,) = (line for line in lines if line.startswith("00000000000000ff"))
    assert "messages" in broken
    monkeypatch.setattr("opd.grading.saved_reviews.assets_dir", lambda: tmp_path)
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "a.json").write_text("{")
    save_reviews(tmp_path / "gallery" / "b.json", [REVIEW])
    gallery.cache_clear()
    assert list(gallery()) == [load_reviews(tmp_path / "gallery" / "b.json").id]
    gallery.cache_clear()
