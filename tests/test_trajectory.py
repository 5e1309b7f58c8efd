"""Saved reviews: what is written is read back, and a damaged file is refused in a sentence."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import opd
from opd.reviews import BranchPoint, Review


@pytest.fixture
def reviews(pair):
    prompts = ["What is 3 + 4?", "naïve 😀?"]
    trajectories = opd.sample(pair, prompts, n=2, max_tokens=12)
    return [
        opd.review(pair, prompts[t.prompt_index], t, g, seed=0)
        for t, g in zip(trajectories, opd.grade(pair, trajectories), strict=True)
    ]


def test_a_saved_review_is_read_back(reviews, tmp_path):
    opd.save_reviews(tmp_path / "r.json", reviews)
    again = opd.load_reviews(tmp_path / "r.json")
    assert len(again) == len(reviews)
    for a, b in zip(reviews, again, strict=True):
        assert (a.text, a.messages, a.student, a.correct, dict(a.vocabulary)) == (
            b.text, b.messages, b.student, b.correct, dict(b.vocabulary),
        )  # fmt: skip
        assert np.array_equal(a.trajectory.completion_ids, b.trajectory.completion_ids)
        assert np.array_equal(a.grades.verdicts, b.grades.verdicts)
        np.testing.assert_allclose(a.grades.penalty, b.grades.penalty, rtol=1e-5)
        np.testing.assert_allclose(a.grades.teacher.top_logprobs, b.grades.teacher.top_logprobs, rtol=1e-5)
        np.testing.assert_allclose(a.grades.forward_kl, b.grades.forward_kl, rtol=1e-5)
        np.testing.assert_allclose(a.grades.jsd, b.grades.jsd, rtol=1e-5)
        assert b.grades.penalty.dtype == b.grades.jsd.dtype == np.float32


OPTION = {"token": 5, "text": " 5", "by": "teacher", "n": 32, "right": 30, "kl": 0.1}
EVIDENCE = {
    "forkValue": {
        "3": {
            "options": [OPTION | {"by": "student", "right": None, "kl": None}, OPTION],
            "verdict": "undecided",
            "points": 4.0,
            "low": -8.0,
            "high": 15,
            "more": 60,
            "sentence": "Nobody knows.",
        }
    },
    "noReturn": {
        "at": 7,
        "points": [{"index": 0, "n": 32, "right": 20, "low": 0.4, "high": 0.8}],
        "sentence": "Here.",
    },
}


def test_branches_and_evidence_are_read_back(reviews, tmp_path):
    points = [
        BranchPoint(0, 3, "teacher", forced=0),
        BranchPoint(0, 3, "student"),
        BranchPoint(1, 3, "student", 2),
    ]
    branches = [replace(reviews[1], branch=point) for point in points]
    opd.save_reviews(tmp_path / "r.json", [replace(reviews[0], evidence=EVIDENCE), *branches])
    main, *read = opd.load_reviews(tmp_path / "r.json")
    assert (main.branch, main.evidence) == (None, EVIDENCE)
    assert [(r.branch, r.evidence) for r in read] == [(point, None) for point in points]


@pytest.mark.parametrize(("by", "usual"), [("student", 1), ("teacher", 0)])
def test_a_branch_from_before_forced_tokens_were_counted_keeps_its_id(reviews, by, usual):
    """Its file does not say how many were: it was the usual number, and nothing is added."""
    data = replace(reviews[1], branch=BranchPoint(0, 3, by, forced=usual)).to_dict()
    assert data["branch"] == {"parent": 0, "at": 3, "by": by}, "older programs read no more than that"
    assert data.pop("forced") is None
    again = Review.from_dict(data)
    assert again.branch.forced == usual
    assert again.to_dict()["forced"] is None


@pytest.mark.parametrize("forced", [-1, 1.0, 10**6])
def test_a_file_that_forces_more_than_there_is_is_refused(reviews, forced):
    data = replace(reviews[1], branch=BranchPoint(0, 3, "student")).to_dict()
    with pytest.raises(ValueError, match="branch is malformed"):
        Review.from_dict(data | {"forced": forced})


def test_a_file_from_before_branches_and_divergences_opens(reviews, tmp_path):
    path = tmp_path / "r.json"
    opd.save_reviews(path, reviews[:1])
    data = json.loads(path.read_text())
    for name in ("branch", "evidence"):
        del data["reviews"][0][name]
    for name in ("forward_kl", "jsd"):
        del data["reviews"][0]["grades"][name]
    path.write_text(json.dumps(data))
    (old,) = opd.load_reviews(path)
    assert (old.branch, old.evidence, old.grades.forward_kl, old.grades.jsd) == (None,) * 4
    assert np.array_equal(old.grades.verdicts, reviews[0].grades.verdicts)


def damage_evidence(*path, value):
    """Return the evidence with the entry at ``path`` replaced."""
    out = json.loads(json.dumps(EVIDENCE))
    inner = out
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return {"evidence": out}


@pytest.mark.engine
def test_a_review_opens_without_torch(reviews, tmp_path):
    opd.save_reviews(tmp_path / "r.json", reviews)
    code = (
        "import sys; import opd; "
        f"print(len(opd.load_reviews({str(tmp_path / 'r.json')!r})), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["4", "False"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: {"hello": 1}, "not a review file"),
        (lambda d: [1, 2], "not a review file"),
        (lambda d: d | {"version": 99}, "version 99"),
        (lambda d: d["reviews"][0].pop("pieces") and d, "no field 'pieces'"),
        (lambda d: d["reviews"][0]["pieces"].pop() and d, "'pieces'"),
        (lambda d: d["reviews"][0]["grades"]["penalty"].pop() and d, "'penalty'"),
        (lambda d: d["reviews"][0]["grades"]["penalty"].append("x") or d, "could not convert|penalty"),
        (lambda d: d["reviews"][0].update(messages=3) or d, "malformed"),
        (lambda d: d["reviews"][0]["grades"]["jsd"].pop() and d, "'jsd'"),
        (lambda d: d["reviews"][0]["trajectory"].pop("temperature") and d, "no field 'temperature'"),
        (
            lambda d: d["reviews"][1].update(branch={"parent": 1, "at": 0, "by": "student"}) or d,
            "come before",
        ),
        (lambda d: d["reviews"][1].update(branch={"parent": 0, "at": 99, "by": "student"}) or d, "branch"),
        (lambda d: d["reviews"][1].update(branch={"parent": 0, "at": 0, "by": "me"}) or d, "branch"),
        (lambda d: d["reviews"][1].update(branch={"parent": 0}) or d, "malformed"),
        (lambda d: d["reviews"][0].update(evidence=[]) or d, "malformed at evidence"),
        (
            lambda d: d["reviews"][0].update(damage_evidence("noReturn", "points", 0, "low", value="0")) or d,
            r"noReturn.points\[0\].low",
        ),
        (
            lambda d: d["reviews"][0].update(damage_evidence("forkValue", "3", "options", value=1)) or d,
            "forkValue.3.options",
        ),
        (
            lambda d: d["reviews"][0].update(damage_evidence("forkValue", "3", "more", value=True)) or d,
            "forkValue.3.more",
        ),
    ],
)
def test_a_damaged_review_is_refused(reviews, tmp_path, damage, message):
    path = tmp_path / "r.json"
    opd.save_reviews(path, reviews)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        opd.load_reviews(path)


def test_a_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a review file"):
        opd.load_reviews(tmp_path / "r.json")


def test_a_failed_save_leaves_the_old_file(reviews, tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    opd.save_reviews(path, reviews[:1])
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.write_text", _disk_full)
    with pytest.raises(OSError, match="No space left"):
        opd.save_reviews(path, reviews)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def _disk_full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_streamed_reviews_end_as_the_sampled_ones(pair):
    states = list(opd.stream_reviews(pair, "hi", n=3, seed=1, max_tokens=40))
    assert len(states) > 1
    assert all(r.trajectory.finish_reason is None for r in states[0])
    final = opd.sample(pair, ["hi"], n=3, seed=1, max_tokens=40)
    grades = opd.grade(pair, final)
    for r, t, g in zip(states[-1], final, grades, strict=True):
        assert np.array_equal(r.trajectory.completion_ids, t.completion_ids)
        np.testing.assert_allclose(r.grades.penalty, g.penalty, atol=1e-4)
