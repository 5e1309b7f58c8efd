"""What many trajectories say together, on reviews made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from graded import CHOICES, make_review

from opd.grading.summary import (
    QUADRANTS,
    report_card,
    sparkline,
    swaps,
    token_map,
    tokens_in_context,
    worst_tokens,
)
from opd.reviews import BranchPoint, Review
from opd.verdicts import blame

IDS: dict[str, int] = {}
"""The vocabulary of these tests: a text is the same token in all of them."""


def review_of(pieces: Sequence[str], penalty: Sequence[float], **more: object) -> Review:
    """A review over the one vocabulary; the teacher's other choice is " yes" everywhere."""
    review = make_review(pieces, penalty=penalty, **more)
    renamed = np.array([IDS.setdefault(text, len(IDS)) for text in [*pieces, *CHOICES]])
    grades = review.grades
    scores = {
        name: replace(getattr(grades, name), top_ids=renamed[getattr(grades, name).top_ids].astype(np.int32))
        for name in ("student", "teacher")
    }
    return replace(
        review,
        trajectory=replace(review.trajectory, completion_ids=renamed[: len(pieces)]),
        grades=replace(grades, **scores),
        vocabulary={number: text for text, number in IDS.items()},
    )


@pytest.fixture
def two() -> list[Review]:
    return [
        review_of([" So", " we", " add", " 2", "."], [3.0, 0.0, 1.0, -0.2, 0.0]),
        review_of(["Well", " So", " no", "."], [0.1, 2.0, 0.3, 0.0], correct=False),
    ]


def branch_of(review: Review, at: int, by: str, forced: int = 1) -> Review:
    return replace(review, branch=BranchPoint(parent=0, at=at, by=by, forced=forced))


def test_worst_tokens_are_ranked_over_all_trajectories_and_stand_in_their_text(two):
    worst = worst_tokens(two, 3)
    assert [(t.review, t.index, t.token, round(t.penalty, 4)) for t in worst] == [
        (0, 0, " So", 3.0),
        (1, 1, " So", 2.0),
        (0, 2, " add", 1.0),
    ]
    assert (worst[1].left, worst[1].right) == ("Well", " no.")
    assert worst[0].left == ""
    assert worst[0].preferred == " yes"
    taken = 0.6 * np.exp(-3.0)
    assert worst[0].preferred_probability == pytest.approx(0.8 * (1 - taken), rel=1e-5)
    lost = 0.8 * (1 - taken) - taken
    assert worst[0].blame == pytest.approx(lost * (1 - np.exp(-3.0)), rel=1e-5)
    assert worst[0].verdict == "blunder"
    assert len(worst_tokens(two, 100)) == 5, "a penalty of 0 or less is none"


def test_a_context_is_ten_tokens_on_either_side():
    pieces = [f" {i}" for i in range(40)]
    (token,) = tokens_in_context([review_of(pieces, [0.0] * 40)], [(0, 20)])
    assert token.left == "".join(pieces[10:20])
    assert token.right == "".join(pieces[21:31])


def test_worst_tokens_of_some_verdicts_only(two):
    names = {t.verdict for t in worst_tokens(two, 100)}
    assert {"blunder", "mistake"} <= names
    assert {t.verdict for t in worst_tokens(two, 100, verdicts=["mistake"])} == {"mistake"}


def test_swaps_count_pairs_and_their_share_of_the_positive_penalty(two):
    first, second = swaps(two)
    total = 3.0 + 1.0 + 0.1 + 2.0 + 0.3
    assert (first.token, first.preferred, first.count) == (" So", " yes", 2)
    assert first.penalty == pytest.approx(5.0)
    assert first.share == pytest.approx(5.0 / total)
    blamed = [blame(two[i].grades.student, two[i].grades.teacher)[i] for i in (0, 1)]
    assert first.mean_blame == pytest.approx(np.mean(blamed))
    assert first.places == ((0, 0), (1, 1)), "the largest blame first"
    assert (second.token, second.count) == (" add", 1)


def test_a_swap_needs_the_least_blame_and_another_first_choice(two):
    assert [s.token for s in swaps(two, least_blame=0.6)] == [" So"]
    assert swaps(two, least_blame=0.99) == []
    # Whatever the threshold: a token that the teacher likes best is not swapped.
    assert all(" we" != s.token != "." for s in swaps(two, least_blame=0.0))
    assert swaps(two, verdicts=["inaccuracy"])[0].share == pytest.approx(1.0 / 6.4), "of the whole penalty"


def test_swaps_do_not_mix_up_vocabularies(two):
    """The same ids mean other texts in a review of another pair."""
    other = replace(two[0], vocabulary={n: t.upper() for n, t in two[0].vocabulary.items()})
    assert {(s.token, s.preferred): s.count for s in swaps([two[0], other])} == {
        (" So", " yes"): 1,
        (" SO", " YES"): 1,
        (" add", " yes"): 1,
        (" ADD", " YES"): 1,
    }


def test_a_branch_counts_only_what_the_student_chose_there(two):
    """Up to the forced token it repeats its parent; a teacher's line is nobody's mistake."""
    by_student, by_teacher = (branch_of(two[0], 1, by) for by in ("student", "teacher"))
    typed = branch_of(two[0], 1, "student", forced=3)
    assert np.arange(5)[by_student.own_tokens].tolist() == [2, 3, 4]
    assert np.arange(5)[typed.own_tokens].tolist() == [4]
    assert np.arange(5)[by_teacher.own_tokens].tolist() == []
    alone = worst_tokens(two[:1], 100)
    with_branches = worst_tokens([two[0], by_student, by_teacher], 100)
    assert [(t.review, t.index) for t in with_branches] == [(0, 0), (0, 2), (1, 2)]
    assert len(alone) == 2
    assert {s.token: s.count for s in swaps([two[0], by_student, by_teacher])} == {" So": 1, " add": 2}
    assert len(token_map([two[0], by_student, by_teacher])) == 5 + 3


def test_a_report_card_leaves_out_what_a_branch_repeats_and_what_was_forced():
    """Blunders at 0 (repeated), 2 and 3 (typed) and 5: only the last is the student's."""
    review = review_of(list("abcdefgh"), [3.0, 0, 3.0, 3.0, 0, 4.0, 0, 0])
    main, branch = report_card(review), report_card(branch_of(review, 2, "student", forced=2))
    assert (main.tokens, main.counts["blunder"], main.forks) == (8, 4, 1)
    assert (branch.tokens, branch.counts["blunder"]) == (4, 1)
    assert branch.forks == 1
    assert branch.agreement == pytest.approx((3 + 0.4 + 0.6 * np.exp(-4.0)) / 4)
    assert branch.mean_penalty == pytest.approx(1)
    assert branch.total_reverse_kl == pytest.approx(2)
    line = report_card(branch_of(review, 2, "teacher", forced=0))
    assert (line.tokens, line.forks, sum(line.counts.values())) == (0, 0, 0)
    assert line.agreement is line.mean_penalty is line.mean_reverse_kl is None


def test_the_map_places_every_token_in_its_quadrant():
    review = review_of(["a", "b", "c", "d", "e"], [0.0] * 5)
    student = replace(review.grades.student, entropy=np.float32([0.1, 0.1, 1.0, 1.0, 0.3]))
    kl = np.float32([0.01, 2.0, 0.01, 2.0, 0.1])
    review = replace(review, grades=replace(review.grades, student=student, reverse_kl=kl))
    found = token_map([two_tokens := review_of(["x", "y"], [0.0, 3.0]), review])
    assert found.review.tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert found.index.tolist() == [0, 1, 0, 1, 2, 3, 4]
    named = [QUADRANTS[q] for q in found.quadrants[2:]]
    assert named == ["forced", "confident but wrong", "free choice", "fork", "fork"]
    np.testing.assert_array_equal(found.reverse_kl[:2], two_tokens.grades.reverse_kl)
    blunders = token_map([two_tokens, review], verdicts=["blunder"])
    assert (blunders.review.tolist(), blunders.index.tolist()) == ([0], [1])


def test_nothing_is_found_where_nothing_is(two):
    empty = review_of([], [])
    for reviews in ([], [empty], [branch_of(two[0], 0, "teacher")]):
        assert worst_tokens(reviews, 10) == []
        assert swaps(reviews) == []
        assert len(token_map(reviews)) == 0
    assert report_card(empty).agreement is None


def test_a_sparkline_keeps_the_peaks():
    values = np.zeros(1000, dtype=np.float32)
    values[[17, 500]] = [4.0, -6.0]
    short = sparkline(values, 48)
    assert len(short) == 48
    assert sorted(short[short != 0].tolist()) == [-6.0, 4.0]
    np.testing.assert_array_equal(sparkline(values[:20], 48), values[:20])
    assert len(sparkline(values[:0], 48)) == 0
