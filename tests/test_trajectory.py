"""Saved reviews: what is written is read back, and a damaged file is refused in a sentence."""

import json
import subprocess
import sys

import numpy as np
import pytest

import opd
from opd.grading import find_forks, verdicts
from opd.trajectory import VERDICTS, TokenScores


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
        assert b.grades.penalty.dtype == np.float32


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


def scores(taken, best, rank, entropy):
    n = len(taken)
    return TokenScores(
        logprobs=np.log(np.array(taken, np.float32)),
        entropy=np.array(entropy, np.float32),
        ranks=np.array(rank, np.int32),
        top_ids=np.zeros((n, 1), np.int32),
        top_logprobs=np.log(np.array(best, np.float32))[:, None],
    )


def test_verdicts_follow_the_drop():
    #                 forced blunder mistake inaccuracy good  best  great brilliant
    p_teacher = [1.00, 0.01, 0.20, 0.40, 0.45, 0.70, 0.70, 0.80]
    p_best = [1.00, 0.90, 0.60, 0.55, 0.50, 0.70, 0.70, 0.80]
    t_rank = [0, 3, 1, 1, 1, 0, 0, 0]
    p_student = [0.99, 0.90, 0.60, 0.50, 0.50, 0.60, 0.45, 0.10]
    s_rank = [0, 0, 0, 0, 0, 0, 1, 2]
    entropy = [0.01, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    teacher = scores(p_teacher, p_best, t_rank, entropy)
    found = verdicts(scores(p_student, p_student, s_rank, entropy), teacher)
    names = ["forced", "blunder", "mistake", "inaccuracy", "good", "best", "great", "brilliant"]
    assert [VERDICTS[v] for v in found] == names


def test_forks_are_peaks_of_the_penalty():
    penalty = np.array([0.2, 1.5, 3.0, 1.2, 0, 0, 0, 0.9, 0, 0, 0, 2.0, 2.0, -5.0], np.float32)
    assert np.flatnonzero(find_forks(penalty)).tolist() == [2, 11]


def test_streamed_reviews_end_as_the_sampled_ones(pair):
    states = list(opd.stream_reviews(pair, "hi", n=3, seed=1, max_tokens=40))
    assert len(states) > 1
    assert all(r.trajectory.finish_reason is None for r in states[0])
    final = opd.sample(pair, ["hi"], n=3, seed=1, max_tokens=40)
    grades = opd.grade(pair, final)
    for r, t, g in zip(states[-1], final, grades, strict=True):
        assert np.array_equal(r.trajectory.completion_ids, t.completion_ids)
        np.testing.assert_allclose(r.grades.penalty, g.penalty, atol=1e-4)
