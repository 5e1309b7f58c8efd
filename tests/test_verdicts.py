"""Verdicts and forks: what the grades of a token amount to."""

from types import SimpleNamespace

import numpy as np
import pytest

from opd.trajectory import VERDICTS, TokenScores
from opd.verdicts import (
    FORK_DEFINITIONS,
    FORK_FLOORS,
    drop,
    find_forks,
    fork_score,
    peaks,
    verdicts,
)


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


def graded(penalty, entropy=None, lost=None):
    """Grades of which only what forks look at is filled in."""
    n = len(penalty)
    entropy = [0.0] * n if entropy is None else entropy
    lost = np.zeros(n) if lost is None else np.asarray(lost)
    best = np.maximum(lost + 0.1, 0.5)
    return SimpleNamespace(
        penalty=np.array(penalty, np.float32),
        student=scores([0.5] * n, [0.5] * n, [0] * n, entropy),
        teacher=scores(best - lost, best, [0] * n, [0.5] * n),
    )


def marked(forks):
    return [np.flatnonzero(f).tolist() for f in forks]


def test_forks_by_penalty_are_peaks_of_at_least_a_nat():
    penalty = [0.2, 1.5, 3.0, 1.2, 0, 0, 0, 0.9, 0, 0, 0, 2.0, 2.0, -5.0]
    assert marked(find_forks([graded(penalty)], "penalty")) == [[2, 11]]


def test_peaks_equal_their_definition():
    rng = np.random.default_rng(0)
    for n in range(9):
        score = rng.integers(0, 4, n).astype(np.float32)  # many ties
        wanted = [
            all(score[j] < score[i] for j in range(max(0, i - 3), i))
            and all(score[j] <= score[i] for j in range(i + 1, min(n, i + 4)))
            for i in range(n)
        ]
        assert peaks(score, 3).tolist() == wanted


def test_the_entropy_quantile_is_taken_over_all_trajectories_together():
    first, second = np.arange(10) / 10, 1 + np.arange(10) / 10
    alone = find_forks([graded([0] * 10, first)], "entropy")
    together = find_forks([graded([0] * 10, first), graded([0] * 10, second)], "entropy")
    assert marked(alone) == [[8, 9]]
    assert marked(together) == [[], [6, 7, 8, 9]]


def test_forks_by_entropy_have_a_floor():
    assert marked(find_forks([graded([0] * 5, [0.09, 0.01, 0.02, 0.03, 0.04])], "entropy")) == [[]]


def test_forks_by_entropy_and_drop_need_both():
    entropy = [2.0, 0.0, 2.0, 0, 0, 0, 0, 1.0]
    lost = [0.0, 0.9, 0.5, 0, 0, 0, 0, FORK_FLOORS["entropy_drop"] * 0.9]
    grades = graded([0] * 8, entropy, lost)
    np.testing.assert_allclose(drop(grades.teacher), lost, atol=1e-6)
    np.testing.assert_allclose(
        fork_score(grades, "entropy_drop"), np.array(entropy) * np.array(lost), atol=1e-6
    )
    assert marked(find_forks([grades], "entropy_drop")) == [[2]]


def test_every_definition_takes_what_has_no_tokens_and_an_unknown_one_is_refused():
    for name in FORK_DEFINITIONS:
        assert find_forks([], name) == []
        assert marked(find_forks([graded([])], name)) == [[]]
    with pytest.raises(ValueError, match="Known: entropy, penalty, entropy_drop"):
        find_forks([graded([1.0])], "entropy_x")
