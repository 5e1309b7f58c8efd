"""The one-file HTML: everything is inside, nothing asks for anything, hostile text stays data."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from graded import make_review
from hostile import HOSTILE, MARKUP, Parsed

import opd
from opd.cli import main
from opd.demo.report import first_wrong_token
from opd.grading.saved_reviews import ReviewGroup, ReviewSet, gallery, store
from opd.tasks.demo import known_problems
from opd.trajectory import VERDICTS
from opd.view import HERE, script
from opd.view.page import render_page
from opd.view.payload import CHUNK, COLUMNS, visible


def embedded(page: str) -> dict:
    return json.loads(Parsed(page).texts["reviews"])


def hostile_set() -> ReviewSet:
    pieces = [*HOSTILE, MARKUP]
    made = make_review(pieces, messages=[{"role": "user", "content": MARKUP}])
    return ReviewSet([ReviewGroup(MARKUP, [made])], title=MARKUP, note="@script@ ${1} \\1 \u202e")


def test_hostile_text_makes_no_element():
    page = render_page(hostile_set())
    parsed = Parsed(page)
    harmless = Parsed(render_page(ReviewSet.of([make_review(["a"])])))
    assert [tag for tag, _ in parsed.tags] == [tag for tag, _ in harmless.tags]
    assert parsed.texts["title"].strip() == MARKUP
    assert "⟨U+202E⟩" in page
    tokens = embedded(page)["set"]["groups"][0]["reviews"][0]["text"]
    assert visible(MARKUP) in tokens


def test_everything_the_app_shows_is_inside():
    long = make_review([f" {i}" for i in range(CHUNK + 3)])
    reviews = ReviewSet([ReviewGroup("a", [make_review(["Yes"])]), ReviewGroup("b", [long])])
    data = embedded(render_page(reviews))
    assert [len(group) for group in data["alternatives"]] == [1, 1]
    assert [chunk["tokens"] for chunk in data["alternatives"][1][0]] == [CHUNK, 3]
    assert data["columns"][1][0].keys() == COLUMNS.keys()
    column = data["columns"][1][0]["penalty"]
    np.testing.assert_array_equal(
        np.frombuffer(base64.b64decode(column["data"]), column["dtype"]), long.grades.penalty
    )


def test_the_policy_allows_the_own_script_and_no_request():
    page = render_page(hostile_set())
    parsed = Parsed(page)
    (policy,) = [a["content"] for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    code = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:""", page)


def test_the_component_can_stand_inside_a_script_element():
    code = script(HERE / "page.js")
    assert "</script" not in code.lower()
    assert "<!--" not in code


@pytest.mark.parametrize("ident", list(gallery()))
def test_a_review_of_the_gallery_says_what_it_shows_and_makes_a_page(ident):
    reviews = gallery()[ident]
    assert reviews.title
    assert reviews.note
    assert reviews.id == ident
    assert len(render_page(reviews)) < 3_000_000


def test_the_gallery_is_small_and_has_all_it_promises():
    reviews = list(gallery().values())
    assert len(reviews) >= 17
    assert sum(len(r.to_json()) for r in reviews) < 1_500_000
    assert {True, False} <= {r.correct for r in reviews[0]}
    assert any(len(r.groups) == 2 for r in reviews), "before and after"
    assert any(one.branch for r in reviews for one in r), "a branch"
    assert any(one.evidence for r in reviews for one in r), "a fork value"
    assert any(one.trajectory.behaviour_logprobs is None for r in reviews for one in r), "off-policy"
    assert any("<script>" in one.text for r in reviews for one in r), "hostile text"
    assert any(len(one.trajectory) >= 300 for r in reviews for one in r), "a long one"


def test_the_gallery_tells_true_stories():
    by_title = {r.title: list(r) for r in gallery().values()}
    (praised,) = by_title["A brilliant token"]
    problem = known_problems()[praised.messages[0]["content"]]
    assert praised.correct
    assert first_wrong_token(problem, [*praised.pieces[:-1], ""], True) is None, "every step is right"
    brilliant = praised.grades.verdicts == VERDICTS.index("brilliant")
    assert brilliant.sum() == 1
    assert praised.grades.teacher_rank[brilliant] == 0, "just what the teacher would have written"
    for title in ("One wrong digit", "A wrong answer that costs nothing"):
        (wrong,) = by_title[title]
        problem = known_problems()[wrong.messages[0]["content"]]
        error = first_wrong_token(problem, [*wrong.pieces[:-1], ""], True)
        assert VERDICTS[wrong.grades.verdicts[error]] == "blunder"
        assert wrong.grades.penalty[error + 1 :].max() < 0.3, "what follows costs nothing"


def test_the_gallery_of_real_models_tells_true_stories():
    by_title = {r.title: r for r in gallery().values()}
    (own,) = by_title["A model under itself"]
    assert own.student == own.teacher
    assert not own.grades.penalty.any()
    assert not own.grades.forks.any()
    blamed = {"blunder", "mistake", "inaccuracy"}
    assert not blamed & {VERDICTS[v] for v in own.grades.verdicts}
    before, after = by_title["Healed in 20 steps"].groups
    kl = [np.mean([one.grades.reverse_kl.mean() for one in group.reviews]) for group in (before, after)]
    assert kl[1] < 0.7 * kl[0]
    assert [one.messages for one in before.reviews] == [one.messages for one in after.reviews]
    strange = list(by_title["A teacher with another tokenizer"])
    assert all(one.grades.spans is not None and one.teacher_vocabulary for one in strange)
    assert "🐦" in strange[0].text, "the one that is opened has emoji"
    (letter,) = by_title["A long letter"]
    assert len(letter.trajectory) >= 300
    assert "def " in next(iter(by_title["Code by a healed model"])).text
    for real in (own, letter, *before.reviews, *strange, *by_title["A list without four layers"]):
        assert not {"/", "\\"} & set(real.student + real.teacher), "names, no places on a machine"
        assert "system" in "".join(real.prompt.pieces), "what the template brought is there to see"


def test_grade_opens_a_saved_review_and_writes_page_and_table(tmp_path, capsys):
    files = {kind: tmp_path / f"r.{kind}" for kind in ("json", "csv", "html")}
    ident = next(iter(gallery()))
    arguments = ["grade", "--open", ident, "--save", str(files["json"])]
    assert main([*arguments, "--csv", str(files["csv"]), "--html", str(files["html"])]) == 0
    first = capsys.readouterr().out
    assert opd.load_reviews(files["json"]).id == ident
    assert files["html"].read_text(encoding="utf-8") == render_page(gallery()[ident])
    assert files["csv"].read_text().startswith("group,review,index")
    assert main(["grade", "--open", str(files["json"])]) == 0
    assert capsys.readouterr().out.strip() == first.partition("Saved to")[0].strip()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--open", "0" * 16], "There is no review"),
        (["--open", "x", "--prompt", "a"], None),
        (["--file", "no.txt"], "cannot be read"),
        (["--chat", "no.json"], "No such file"),
        (["--text", "no.txt"], None),
        (["--open", "x", "--system", "s"], "go with --prompt"),
    ],
)
def test_wrong_requests_are_refused(arguments, sentence, capsys):
    if sentence is None:
        with pytest.raises(SystemExit):
            main(["grade", *arguments])
        return
    assert main(["grade", *arguments]) in (1, 2)
    assert sentence in capsys.readouterr().err


def test_saved_reviews_are_listed_before_the_gallery(capsys):
    asked = make_review(["Yes"], messages=[{"role": "user", "content": "Is\n it " + "so " * 99}])
    ident = store(ReviewSet.of([asked]))
    assert main(["reviews"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{ident} Is it so so")
    assert len(lines[0]) < 100
    assert [line.split()[0] for line in lines[1:]] == list(gallery())


def test_hostile_text_prints_no_control_code(tmp_path, capsys):
    path = tmp_path / "r.json"
    opd.save_reviews(path, hostile_set())
    assert main(["grade", "--open", str(path)]) == 0
    printed = capsys.readouterr().out
    assert not {c for c in printed if ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c == "\u202e"} - {"\n", "\t"}


def test_own_text_is_graded_from_files(tmp_path, capsys):
    chat, text = tmp_path / "chat.txt", tmp_path / "text.txt"
    chat.write_text("user: What is 3 + 4?\nassistant: The sum is 7.\nuser: And 8?\nassistant: 15.\n")
    text.write_bytes(b"The answer is 7.\r\n")
    assert main(["grade", "--chat", str(chat), "--save", str(tmp_path / "c.json")]) == 0
    assert len(opd.load_reviews(tmp_path / "c.json")) == 2
    out = tmp_path / "t.json"
    assert main(["grade", "--prompt", "What is 3 + 4?", "--text", str(text), "--save", str(out)]) == 0
    (review,) = opd.load_reviews(out)
    assert review.text == "The answer is 7.<|end|>"
    assert "Off-policy" in capsys.readouterr().out


def test_a_file_of_prompts_is_answered_and_bad_rows_are_told(tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "What is 3 + 4?"}\n{"prompt": 3}\n')
    out = tmp_path / "r.json"
    arguments = ["--file", str(path), "-n", "2", "--max-tokens", "8", "--save", str(out)]
    assert main(["grade", *arguments]) == 0
    assert len(opd.load_reviews(out)) == 2
    assert "row 2" in capsys.readouterr().err
