import re
from dataclasses import replace

import numpy as np
import pytest
from graded import make_review
from hostile import HOSTILE

from opd.reviews import BranchPoint, PromptText
from opd.view.terminal import percent, render

ESCAPE = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture
def review():
    return make_review(["The", " answer", " is", " 7", "."], penalty=[0, 5.0, 0.3, -0.3, 0], correct=False)


def test_without_colour_there_is_no_escape(review):
    text = render(review, color=False)
    assert "\x1b" not in text
    assert "The answer??◆ is 7." in text
    assert "✗ wrong" in text


def test_colour_changes_nothing_but_the_colours(review):
    assert ESCAPE.sub("", render(review, color=True)) == render(review, color=False).replace(
        "??◆ is", "?? is"
    )


def test_a_fork_is_underlined_and_the_penalty_painted(review):
    answer = re.search(r"((?:\x1b\[[\d;]*m)+)answer", render(review, color=True))[1]
    assert "48;2;" in answer
    assert "\x1b[4m" in answer


def test_the_table_holds_the_worst_token_first(review):
    rows = render(review, color=False).split("teacher's choice\n")[1].splitlines()
    assert len(rows) == 2
    assert "·answer" in rows[0]
    assert "+5.00" in rows[0]
    assert "·yes" in rows[0]


def test_an_agreement_has_its_number_of_tokens_and_says_when_it_is_a_bound(review):
    assert "agreement 81% of 5 tokens" in render(review, color=False)
    bounded = replace(review, grades=replace(review.grades, bound="Of a server."))
    assert "agreement at most 81% of 5 tokens" in render(bounded, color=False)


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0, "0%"),
        (1e-5, "<0.1%"),
        (0.034, "3.4%"),
        (0.5, "50%"),
        (0.996, "99.6%"),
        (0.9996, ">99.9%"),
        (1, "100%"),
    ],
)
def test_a_share_is_none_or_all_only_where_it_is_that(share, said):
    assert percent(share) == said


def test_a_branch_counts_what_the_student_wrote_after_the_forced_text(review):
    text = render(replace(review, branch=BranchPoint(0, 1, "student")), color=False)
    assert "The answer is 7." in text, "what was forced has no sign"
    assert "agreement 88% of 3 tokens" in text
    assert "blunder ?? 0" in text
    assert "forks 0" in text
    assert "Counted is what the student wrote from token 3 on: 3 tokens." in text
    line = render(replace(review, branch=BranchPoint(0, 1, "teacher", forced=0)), color=False)
    assert "From token 2 on the teacher wrote" in line
    for word in ("agreement", "blunder", "forks", "penalty"):
        assert word not in line


def test_colour_follows_the_terminal_background(review, monkeypatch):
    pictures = []
    for background in ("0;15", "15;0"):
        monkeypatch.setenv("COLORFGBG", background)
        pictures.append(render(review, color=True))
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize("color", [False, True])
def test_hostile_text_cannot_act_on_the_terminal(color):
    review = make_review(
        HOSTILE, penalty=[1.5] * len(HOSTILE), messages=[{"role": "\x1b[2J", "content": "\x07"}]
    )
    text = ESCAPE.sub("", render(review, color=color)) if color else render(review, color=color)
    assert not set(text) & {*map(chr, range(32)), "\x7f", "\x9b", "\u202e"} - {"\n", "\t"}
    text.encode("utf-8")
    assert "x" * 300 not in text  # a token of 10,000 characters is cut, and that is said
    assert "+9800 characters" in text
    assert "cannot be written as text and show \ufffd: 1." in text


def test_what_was_read_is_printed_with_its_control_tokens_marked(review):
    said = PromptText(["<|user|>", "S\x1b[2J", " <|", "end|>"], [0], [2, 3], templated=True)
    told = replace(
        review,
        trajectory=replace(review.trajectory, prompt_ids=np.arange(4), teacher_prompt_ids=np.arange(2)),
    )
    plain = PromptText(["Say", " it"], [], [], templated=False)
    text = render(replace(told, prompt=said, teacher_prompt=plain), color=False, show_prompt=True)
    assert "The student read 4 tokens:\n⟪<|user|>⟫S␛[2J‹ <|end|>›\n" in text
    assert (
        "The teacher read 2 tokens:\nSay it\n(No chat template: the messages are read as plain text.)" in text
    )
    assert "ids 0 1 2 3\n" in text
    assert "The student read" not in render(told, color=False)
    assert "was not recorded" in render(told, color=False, show_prompt=True)
    same = render(
        replace(review, prompt=replace(said, pieces=said.pieces[:3], spelled=[])),
        color=True,
        show_prompt=True,
    )
    assert "The teacher read the same." in same
    assert "\x1b[1m<|user|>\x1b[0m" in same
