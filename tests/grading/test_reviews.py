"""Saved reviews: the content hash, the store of links, titles and groups, the table, damaged files."""

import copy
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from graded import make_review
from hostile import HOSTILE

import opd
from opd.grading.saved_reviews import (
    BEGINNING,
    CSV_COLUMNS,
    HEADING,
    ReviewGroup,
    ReviewSet,
    load_reviews,
    open_review,
    save_reviews,
    store,
    store_dir,
    stored,
    stored_reviews,
    to_csv,
)
from opd.reviews import BranchPoint
from opd.tasks import Example
from opd.training.lessons import Lesson
from opd.trajectory import VERDICTS


@pytest.fixture
def graded(pair):
    """Real grades, of floats that need all their digits."""
    *_, reviews = opd.stream_reviews(pair, "naïve 😀?", n=2, max_tokens=9)
    groups = [ReviewGroup("before", reviews[:1]), ReviewGroup("after", reviews[1:])]
    return ReviewSet(groups, title="A title", note="What there is to see.")


def test_groups_title_and_note_come_back(graded, tmp_path):
    save_reviews(tmp_path / "r.json", graded)
    again = load_reviews(tmp_path / "r.json")
    assert (again.title, again.note) == (graded.title, graded.note)
    assert [(g.label, len(g.reviews)) for g in again.groups] == [("before", 1), ("after", 1)]
    assert [r.text for r in again] == [r.text for r in graded]


def test_the_id_is_of_the_content_and_of_nothing_else(graded, tmp_path):
    path = tmp_path / "r.json"
    save_reviews(path, graded)
    assert load_reviews(path).id == graded.id
    data = json.loads(path.read_text())

    def written(data, **layout):
        path.write_text(json.dumps(data, **layout))
        return load_reviews(path).id

    assert written(data, indent=2) == graded.id
    assert written(dict(reversed(data.items())), ensure_ascii=False) == graded.id
    assert written(data | {"made_by": "a later program"}) == graded.id
    assert written(data | {"title": "Another title"}) != graded.id
    data["reviews"][0]["grades"]["penalty"][0] += 0.001
    assert written(data) != graded.id


def test_the_documented_example_opens_and_has_the_documented_id():
    page = (Path(opd.__file__).parents[1] / "docs" / "reviews.md").read_text(encoding="utf-8")
    example = ReviewSet.from_json(re.search(r"```json\n(.*?)```", page, re.DOTALL)[1])
    assert example.id == re.search(r"The example's is `(\w+)`", page)[1]


def test_every_field_and_column_is_documented(graded):
    page = (Path(opd.__file__).parents[1] / "docs" / "reviews.md").read_text(encoding="utf-8")
    review = next(iter(graded)).to_dict()
    names = [*json.loads(graded.to_json()), *review, *review["trajectory"], *review["grades"]]
    names += [*review["grades"]["student"], *CSV_COLUMNS]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_what_was_read_is_kept_for_each_side_that_read_something_of_its_own(pair, tmp_path):
    path, told = tmp_path / "r.json", Lesson(None, pair, 1, hint="It is 7.")
    asked = [
        {"role": "user", "content": "3 + 4?"},
        {"role": "assistant", "content": "8", "reasoning_content": "Hm."},
    ]
    prompt = [*asked, {"role": "user", "content": "No."}]
    (t,) = opd.sample(pair, [prompt], max_tokens=4)
    (informed,) = told.informed([t], [Example(prompt)], room=4)
    reviews = [opd.review(pair, prompt, x, *opd.grade(pair, [x])) for x in (t, informed)]
    save_reviews(path, reviews)
    alike, apart = opened = load_reviews(path)
    assert opened.id == ReviewSet.of(reviews).id
    assert alike.messages == apart.messages == prompt
    assert (alike.read_alike, apart.read_alike) == (True, False)
    assert alike.prompt == apart.prompt == reviews[0].prompt
    assert alike.teacher_prompt is None
    said = "".join(apart.prompt.pieces)
    assert "".join(apart.teacher_prompt.pieces) == said.replace("No.", "No.\nIt is 7.")
    data = json.loads(path.read_text())
    for damage in ({"pieces": ["a"]}, {"control": [10**6]}, {"spelled": [-1]}):
        broken = copy.deepcopy(data)
        broken["reviews"][0]["prompt"] |= damage
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="the student's prompt holds a value that it cannot have"):
            load_reviews(path)


@pytest.mark.parametrize(
    ("pieces", "reasoning"),
    [
        (["<th", "ink>", "Hm", "</", "think>\n", "7"], slice(0, 5)),
        (["So ", "<think>", "Hm"], slice(1, 3)),
        (["Hm", "</think>", "7"], slice(0, 2)),
        (["<think>", "a", "</think>", "b", "<think>", "c", "</think>", "7"], slice(0, 7)),
        (["7", ""], slice(0, 0)),
    ],
)
def test_reasoning_is_found_in_the_tokens(pieces, reasoning):
    assert make_review(pieces).reasoning == reasoning


def test_an_absent_field_and_null_are_the_same(graded, tmp_path):
    path = tmp_path / "r.json"
    save_reviews(path, graded)
    data = json.loads(path.read_text())
    for review in data["reviews"]:
        assert review.pop("correct", "absent") is None
        review["correct"] = None
        assert review.pop("branch") is None
    path.write_text(json.dumps(data))
    assert load_reviews(path).id == graded.id


def test_infinite_grades_are_saved_as_numbers_and_nan_is_refused(tmp_path):
    review = make_review(["a", " b"], penalty=[0.0, 0.5])
    steep = replace(review, grades=replace(review.grades, penalty=np.array([0, np.inf], np.float32)))
    save_reviews(tmp_path / "r.json", [steep])
    (again,) = load_reviews(tmp_path / "r.json")
    assert again.grades.penalty[1] == pytest.approx(np.finfo(np.float32).max, rel=1e-5)
    broken = replace(review, grades=replace(review.grades, penalty=np.array([0, np.nan], np.float32)))
    with pytest.raises(ValueError, match="not a number"):
        save_reviews(tmp_path / "nan.json", [broken])
    assert not (tmp_path / "nan.json").exists()


def test_figures_keep_six_digits(tmp_path):
    rng = np.random.default_rng(0)
    penalty = (rng.standard_normal(20_000) * 10.0 ** rng.uniform(-30, 30, 20_000)).astype(np.float32)
    penalty[:6] = [0, 1e-5, 9.999995e-6, 123456.5, 0.1, -1e5]
    made = make_review([" a"] * len(penalty), penalty=np.zeros(len(penalty)))
    made = replace(made, grades=replace(made.grades, penalty=penalty))
    save_reviews(tmp_path / "r.json", [made])
    written = json.loads((tmp_path / "r.json").read_text())["reviews"][0]["grades"]["penalty"]
    assert written == [float(f"{x:.6g}") for x in penalty.tolist()]
    assert load_reviews(tmp_path / "r.json").id == ReviewSet.of([made]).id


def test_hostile_text_is_saved_and_read_back(tmp_path):
    reviews = ReviewSet.of([make_review(HOSTILE, messages=[{"role": "user", "content": "\ud800"}])])
    save_reviews(tmp_path / "r.json", reviews)
    again = load_reviews(tmp_path / "r.json")
    expected = ["\ufffd" if piece == "\ud83d" else piece for piece in HOSTILE]
    assert next(iter(again)).pieces == expected
    assert again.id == reviews.id


def test_a_stored_set_is_found_by_its_id(graded, opd_home):
    ident = store(graded)
    assert store(graded) == ident
    assert open_review(ident).title == graded.title
    assert stored_reviews() == [ident]
    assert (opd_home / "reviews" / f"{ident}.json").is_file()


def test_what_is_stored_is_listed_from_the_beginnings_of_its_files(graded, monkeypatch):
    asked = [{"role": "system", "content": "x" * 500}, {"role": "user", "content": "Is\nit [so], “quite”?"}]
    plain = ReviewSet.of([make_review(["y"] * 9, messages=asked)])
    long = ReviewSet.of([make_review(["z"], messages=[{"role": "user", "content": "long " * BEGINNING}])])
    whole = ReviewSet.of([make_review(["w"])])
    sets = [graded, plain, long, whole]
    for age, reviews in enumerate(sets):
        path = store_dir() / f"{store(reviews)}.json"
        if reviews is whole:  # with another layout, as by another program
            path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
        os.utime(path, (1e9 - age, 1e9 - age))
    (store_dir() / ("0" * 16 + ".json")).write_text("[" * 100_000)
    monkeypatch.setattr("opd.grading.saved_reviews.load_reviews", None)
    broken, *listed = stored()
    assert [one.heading for one in listed] == ["A title", "Is it [so], “quite”?", long.id, "Which one?"]
    assert [(one.id, one.saved) for one in listed] == [(s.id, 1e9 - age) for age, s in enumerate(sets)]
    assert broken.heading == broken.id
    monkeypatch.setattr("opd.grading.saved_reviews.heading_in", lambda path: opened.append(path) or "")
    opened = []
    assert len(stored(2)) == len(opened) == 2, "no more is read than is listed"


def test_a_long_title_is_clipped_in_the_list():
    store(replace(ReviewSet.of([make_review(["w"])]), title="long " * 100))
    [listed] = stored()
    assert listed.heading.endswith("…")
    assert len(listed.heading) <= HEADING


@pytest.mark.parametrize("ident", ["0" * 16, "../../etc/passwd", "", "x", "0" * 15 + "\n"])
def test_an_unknown_id_is_answered_in_words(ident, opd_home):
    (opd_home / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="There is no review"):
        open_review(ident)


def test_a_link_does_not_follow_a_changed_file(graded):
    ident = store(graded)
    path = store_dir() / f"{ident}.json"
    path.write_text(path.read_text().replace("A title", "Another"))
    with pytest.raises(ValueError, match="changed after it was saved"):
        open_review(ident)


def test_a_full_store_says_so_and_keeps_what_it_has(graded, monkeypatch):
    ident = store(graded)
    monkeypatch.setattr("opd.grading.saved_reviews.STORE_LIMIT", 10)
    with pytest.raises(ValueError, match="store of reviews is full"):
        store(replace(graded, title="Another"))
    assert stored_reviews() == [ident]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: d | {"version": 3}, "version 3; this program reads up to 2"),
        (lambda d: d | {"version": "1"}, "version 1"),
        (lambda d: d | {"reviews": []}, "no review"),
        (lambda d: d | {"reviews": {"0": 1}}, "no review"),
        (lambda d: d | {"reviews": [3]}, "Review 1 is damaged"),
        (lambda d: d | {"title": 3}, '"title" is not text'),
        (lambda d: d | {"groups": [{"label": "a", "reviews": 1}]}, "do not add up"),
        (lambda d: d | {"groups": [{"label": "a", "reviews": -1}, {"label": "b", "reviews": 3}]}, "add up"),
        (lambda d: d | {"groups": 3}, '"groups" are not all like'),
        (lambda d: d | {"groups": ["a"]}, '"groups" are not all like'),
        (lambda d: put(d, "correct", "yes"), "correct"),
        (lambda d: put(d, "seed", [1]), "seed"),
        (lambda d: put(d, "vocabulary", {}), "no text for the token"),
        (lambda d: put(d, "vocabulary", [1]), "malformed"),
        (lambda d: put(d, "trajectory", 7), "malformed"),
        (lambda d: put(d, "grades", "verdicts", [200] * 9), "verdicts"),
        (lambda d: put(d, "grades", "verdicts", [300] * 9), "malformed"),
        (lambda d: put(d, "grades", "penalty", [float("nan")] * 9), "penalty"),
        (lambda d: put(d, "grades", "penalty", [[1.0]] * 9), "penalty"),
        (lambda d: put(d, "grades", "penalty", [[1.0], 2.0] * 4 + [1]), "damaged"),
        (lambda d: put(d, "grades", "bias", ["x"]), "bias"),
        (lambda d: put(d, "grades", "temperature", "hot"), "damaged"),
        (lambda d: put(d, "grades", "teacher", "top_ids", [[]] * 9), "top_ids"),
        (lambda d: put(d, "grades", "teacher", "top_ids", [5] * 9), "top_ids"),
        (lambda d: put(d, "trajectory", "finish_reason", "tired"), "finish_reason"),
        (lambda d: put(d, "trajectory", "completion_ids", [10**30] * 9), "malformed"),
    ],
)
def test_a_file_that_cannot_be_is_refused_in_a_sentence(graded, tmp_path, damage, sentence):
    path = tmp_path / "r.json"
    save_reviews(path, graded)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=sentence) as refusal:
        load_reviews(path)
    assert len(str(refusal.value)) < 400


def put(data, *path, **_):
    """Return the file's data with the entry at a path of its first review replaced."""
    *path, last, value = path
    inner = data["reviews"][0]
    for key in path:
        inner = inner[key]
    inner[last] = value
    return data


@pytest.mark.parametrize("text", ["", "null", "[" * 100_000, '{"format": "opd-review"', "\x00", "3"])
def test_what_is_no_review_is_refused(text):
    with pytest.raises(ValueError, match="not a review file"):
        ReviewSet.from_json(text)


def test_a_too_large_file_is_not_read(graded, tmp_path, monkeypatch):
    save_reviews(tmp_path / "r.json", graded)
    monkeypatch.setattr("opd.grading.saved_reviews.LARGEST_FILE", 100)
    with pytest.raises(ValueError, match="so large a file"):
        load_reviews(tmp_path / "r.json")


def test_the_table_opens_with_one_call_and_holds_every_figure(graded):
    table = pandas.read_csv(io.StringIO(to_csv(graded)))
    assert tuple(table.columns) == CSV_COLUMNS
    assert len(table) == sum(len(r.trajectory) for r in graded)
    for label, (review,) in zip(("before", "after"), (g.reviews for g in graded.groups), strict=True):
        rows = table[table.group == label]
        assert "".join(rows.token.map(json.loads)) == review.text
        np.testing.assert_array_equal(rows.token_id, review.trajectory.completion_ids)
        np.testing.assert_allclose(rows.penalty, review.grades.penalty, rtol=1e-5)
        np.testing.assert_allclose(rows.jsd, review.grades.jsd, rtol=1e-5, atol=1e-12)
        assert list(rows.verdict) == [VERDICTS[v] for v in review.grades.verdicts]
        assert list(rows.teacher_rank) == [r + 1 for r in review.grades.teacher.ranks], (
            "1 is the first choice"
        )
        assert rows.correct.isna().all()


def test_the_table_says_who_chose_each_token():
    main = make_review(list("abcde"))
    points = [BranchPoint(0, 1, "student", forced=2), BranchPoint(0, 3, "teacher", forced=0)]
    pasted = replace(main, trajectory=replace(main.trajectory, behaviour_logprobs=None))
    reviews = [main, *(replace(main, branch=point) for point in points), pasted]
    table = pandas.read_csv(io.StringIO(to_csv(ReviewSet.of(reviews))))
    assert [list(rows.writer) for _, rows in table.groupby("review")] == [
        ["student"] * 5,
        ["parent", "forced", "forced", "student", "student"],
        ["parent"] * 3 + ["teacher"] * 2,
        ["text"] * 5,
    ]


def test_a_heading_stands_plain_in_the_table_and_is_no_formula():
    groups = [ReviewGroup(label, [make_review(["a"])]) for label in ("", "after run", "=1+1", "\t@x")]
    text = to_csv(ReviewSet(groups))
    assert '"""' not in text.splitlines()[2].split(",", 1)[0], "no quotes within quotes"
    headings = pandas.read_csv(io.StringIO(text), keep_default_na=False).group
    assert list(headings) == ["", "after run", "'=1+1", "'\t@x"]


def test_no_token_of_the_table_acts_or_vanishes():
    pieces = [*HOSTILE, "NA", "null", '"', ",", "=1+1", "@SUM(A1)", "-2", "\n"]
    text = to_csv(ReviewSet.of([make_review(pieces)]))
    table = pandas.read_csv(io.StringIO(text))
    assert list(table.token.map(json.loads)) == ["\ufffd" if p == "\ud83d" else p for p in pieces]
    assert table.token.str.startswith('"').all()
    assert table.forward_kl.isna().all(), "an absent signal is empty, not 0"


@pytest.mark.engine
def test_saved_reviews_need_no_torch(graded, opd_home):
    ident = store(graded)
    code = (
        "import sys; from opd.grading.saved_reviews import open_review, to_csv\n"
        "from opd.view.page import render_page\n"
        f"from opd.view.terminal import render; s = open_review({ident!r}); "
        "to_csv(s); render_page(s); print(render(next(iter(s)), color=True)[:0], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_number_that_nobody_can_mean_is_refused_in_our_own_words():
    with pytest.raises(ValueError, match="not a review file: a number in it is too long"):
        ReviewSet.from_json('{"version": ' + "1" * 5000 + "}")


def test_a_file_of_version_1_is_judged_anew_and_keeps_its_id(tmp_path):
    """By D alone every token far from the teacher's best had a fault; its indices meant other names."""
    made = make_review(["a", " b", " c"], penalty=[0.0, 0.0, 5.0], student_gives=0.1)
    data = json.loads(ReviewSet.of([made]).to_json()) | {"version": 1}
    del data["reviews"][0]["grades"]["agreement"]
    data["reviews"][0]["grades"]["verdicts"] = [7, 6, 7]  # blunder, mistake, blunder
    data["reviews"][0]["grades"]["forks"] = [True, True, True]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data))
    old = load_reviews(path)
    (again,) = old
    np.testing.assert_array_equal(again.grades.verdicts, made.grades.verdicts)
    np.testing.assert_array_equal(again.grades.forks, made.grades.forks)
    assert again.grades.agreement is None
    # A link to it is by the content as it was saved, and goes on to open it.
    assert old.id != ReviewSet.of([again]).id
    linked = store_dir() / f"{old.id}.json"
    linked.parent.mkdir(parents=True, exist_ok=True)
    path.rename(linked)
    assert open_review(old.id).id == old.id
