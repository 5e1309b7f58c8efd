"""Verdicts and forks: what the grades of a token amount to."""

from types import SimpleNamespace

import numpy as np
import pytest

from opd.trajectory import VERDICTS, TokenScores
from opd.verdicts import (
    BLUNDER,
    FORK_DEFINITIONS,
    FORK_FLOORS,
    blame,
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


def judged(*tokens):
    """Verdicts of tokens: (p_student, p_teacher, p_teacher of its first choice)."""
    p_student, p_teacher, p_best = zip(*tokens, strict=True)
    entropy = [0.5] * len(tokens)
    student = scores(p_student, p_student, [0] * len(tokens), entropy)
    teacher = scores(p_teacher, p_best, [int(p < best) for _, p, best in tokens], entropy)
    return [VERDICTS[v] for v in verdicts(student, teacher)], blame(student, teacher)


def test_verdicts_follow_the_blame():
    #                 forced blunder mistake inaccuracy good  best  great brilliant
    p_teacher = [1.00, 0.01, 0.10, 0.20, 0.45, 0.70, 0.70, 0.80]
    p_best = [1.00, 0.90, 0.60, 0.55, 0.50, 0.70, 0.70, 0.80]
    t_rank = [0, 3, 1, 1, 1, 0, 0, 0]
    p_student = [0.99, 0.90, 0.60, 0.80, 0.50, 0.60, 0.45, 0.10]
    s_rank = [0, 0, 0, 0, 0, 0, 1, 2]
    entropy = [0.01, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    teacher = scores(p_teacher, p_best, t_rank, entropy)
    found = verdicts(scores(p_student, p_student, s_rank, entropy), teacher)
    names = ["forced", "blunder", "mistake", "inaccuracy", "good", "best", "great", "brilliant"]
    assert [VERDICTS[v] for v in found] == names


def test_blame_is_the_drop_times_the_chance_that_the_draft_is_rejected():
    _, blamed = judged((0.5, 0.1, 0.9), (0.2, 0.2, 0.8), (0.1, 0.3, 0.6), (0.5, 0.0001, 0.9999))
    np.testing.assert_allclose(blamed, [0.8 * 0.8, 0, 0, 0.9998 * 0.9998], atol=1e-6)


def test_luck_is_not_blamed():
    """What the student does not prefer more than the teacher does is no fault, however far from the best."""
    names, _ = judged((0.01, 0.01, 0.9), (0.3, 0.3, 0.7), (0.02, 0.05, 0.9))
    assert names == ["good"] * 3


def test_what_neither_model_finds_likely_is_a_slip_where_the_teacher_knew_better():
    names, _ = judged(
        (0.0009, 0.0001, 0.9), (0.0009, 0.0009, 0.9), (0.002, 0.0001, 0.9), (0.0009, 0.0009, 0.2)
    )
    assert names == ["slip", "slip", "blunder", "good"]


@pytest.mark.parametrize("seed", range(3))
def test_a_model_under_itself_commits_nothing_at_any_entropy(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(400, 50)) * rng.uniform(0, 6, (400, 1))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    taken = np.array([rng.choice(50, p=row) for row in p])
    own = p[np.arange(400), taken]
    same = scores(own, p.max(1), (p > own[:, None]).sum(1), -(p * np.log(p)).sum(1))
    found = {VERDICTS[v] for v in verdicts(same, same)}
    assert not found & {"inaccuracy", "mistake", "blunder"}
    assert (drop(same) > BLUNDER).any(), "the drop alone would blame"
    under_itself = SimpleNamespace(penalty=np.zeros(400, np.float32), student=same, teacher=same)
    for definition in ("penalty", "entropy_drop"):
        assert marked(find_forks([under_itself], definition)) == [[]]


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
    penalty = [0.2, 1.5, 3.0, 1.2, 0, 0, 0, 0.9, 0, 0, 0, 0, 0, 0, 2.0, 2.0, 0, -1.0]
    assert marked(find_forks([graded(penalty)], "penalty")) == [[2, 14]]


def test_a_fork_by_penalty_stands_out_of_its_text():
    """Where everything is punished nothing forks but what is punished three times as much as the rest."""
    assert marked(find_forks([graded([2.0] * 20)], "penalty")) == [[]]
    assert marked(find_forks([graded([2.0] * 10 + [5.9] + [-2.0] * 10)], "penalty")) == [[]]
    assert marked(find_forks([graded([2.0] * 10 + [6.1] + [-2.0] * 10)], "penalty")) == [[10]]
    # Of spans, what could not be graded is no measure; and a text of one token has no others.
    assert marked(find_forks([graded([np.nan] * 20 + [0.5, 1.6])], "penalty")) == [[21]]
    assert marked(find_forks([graded([1.0])], "penalty")) == [[0]]


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
    grades = graded([1] * 8, entropy, lost)
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
