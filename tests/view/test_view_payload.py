import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from graded import make_review
from hostile import HOSTILE

from opd.grading.saved_reviews import ReviewGroup
from opd.grading.summary import report_card
from opd.trajectory import VERDICTS
from opd.verdicts import FORK_DEFINITIONS, blame, drop, find_forks
from opd.view.payload import (
    CHUNK,
    COLUMNS,
    MOST_MARKS,
    alternatives_payload,
    columns_payload,
    legend,
    set_payload,
    shown_pieces,
    visible,
)

BITTER = [0.0, 5.0, 0.2, -0.3]


def column(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def payload_of(*reviews) -> list[dict]:
    return set_payload("key", [ReviewGroup("", reviews)])["groups"][0]["reviews"]


def test_first_paint_holds_text_penalty_drop_and_flags():
    review = make_review(["The", " answer", " is", " 7"], penalty=BITTER)
    [payload] = payload_of(review)
    assert payload["text"] == "The answer is 7"
    np.testing.assert_array_equal(column(payload["lengths"], "<u1"), [3, 7, 3, 2])
    np.testing.assert_allclose(column(payload["penalty"], "<f2"), BITTER, rtol=1e-3)
    steps = column(payload["drop"], "<u1")
    np.testing.assert_allclose(steps / 255, drop(review.grades.teacher), atol=1 / 510)
    steps = column(payload["agreement"], "<u1")
    np.testing.assert_allclose(steps / 255, review.grades.agreement, atol=1 / 510)
    flags = column(payload["flags"], "<u1")
    np.testing.assert_array_equal(flags & 15, review.grades.verdicts)
    np.testing.assert_array_equal(flags >> 4 & 1, [0, 0, 0, 1])  # it ended by itself


def test_first_paint_needs_under_12_bytes_a_token():
    prose = (
        "We need the number of ordered pairs (a, b) of positive integers. Since 1013 is prime, so is it.\n"
    )
    pieces = re.findall(r" ?\w+|\W", prose) * 1200
    review = make_review(pieces[:32_000], penalty=np.sin(np.arange(32_000)) ** 2)
    payload = set_payload("key", [ReviewGroup("", [review])])
    wire = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(wire) / len(review.pieces) < 12


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_on_demand_are_exact(name):
    review = make_review(["The", " answer", " is", " 7"], penalty=BITTER)
    payload = columns_payload(review, name)
    expected = {
        "penalty": review.grades.penalty,
        "reverse_kl": review.grades.reverse_kl,
        "forward_kl": None,
        "jsd": None,
        "student_entropy": review.grades.student.entropy,
        "teacher_entropy": review.grades.teacher.entropy,
        "student_rank": review.grades.student.ranks + 1,
        "teacher_rank": review.grades.teacher.ranks + 1,
        "student_share": np.exp(review.grades.student.logprobs),
        "teacher_share": np.exp(review.grades.teacher.logprobs),
        "drop": drop(review.grades.teacher),
        "blame": blame(review.grades.student, review.grades.teacher),
        "agreement": review.grades.agreement,
    }[name]
    if expected is None:
        assert payload is None
        assert name in payload_of(review)[0]["absent"]
    else:
        np.testing.assert_array_equal(column(payload["data"], payload["dtype"]), expected)
        assert name not in payload_of(review)[0]["absent"]


def test_flags_mark_the_forks_of_every_definition_over_the_whole_set():
    reviews = [
        make_review(["a"] * 10, penalty=[0, 4, 0, 0, 0, 0, 0, 2, 0, 0], student_gives=gives)
        for gives in (0.5, 0.95)
    ]
    flags = [column(payload["flags"], "<u1") for payload in payload_of(*reviews)]
    for bit, name in enumerate(FORK_DEFINITIONS, start=5):
        marks = find_forks([review.grades for review in reviews], name)
        for shown, expected in zip(flags, marks, strict=True):
            np.testing.assert_array_equal((shown >> bit & 1).astype(bool), expected)
    # Alone, the confident text would have its share of uncertain tokens; beside the other it has none.
    entropy = 5 + list(FORK_DEFINITIONS).index("entropy")
    assert not (flags[1] >> entropy & 1).any()


def test_lengths_are_those_of_javascript():
    pieces = ["a", "👩‍👩‍👧", "x" * 300, "é"]
    [payload] = payload_of(make_review(pieces))
    units = [len(piece.encode("utf-16-le")) // 2 for piece in pieces]
    lengths = column(payload["lengths"], "<u1").tolist()
    assert [payload["long"].get(str(i), n) for i, n in enumerate(lengths)] == units


def test_what_is_no_text_is_counted():
    [payload] = payload_of(make_review(["ok", "\ud83d", "\ufffd"]))
    assert payload["replaced"] == 2


def test_evidence_is_made_visible():
    review = replace(make_review(["a"]), evidence={"forkValue": {"0": {"sentence": "\x1b[2J"}}})
    assert payload_of(review)[0]["evidence"]["forkValue"]["0"]["sentence"] == "␛[2J"


def test_alternatives_come_in_chunks():
    review = make_review([f" {i}" for i in range(CHUNK + 3)])
    first, last, beyond = (alternatives_payload(review, chunk) for chunk in range(3))
    assert (first["tokens"], last["tokens"], beyond["tokens"]) == (CHUNK, 3, 0)
    np.testing.assert_array_equal(
        column(last["student_ids"], "<i4").reshape(3, -1), review.grades.student.top_ids[CHUNK:]
    )
    assert last["vocabulary"][str(CHUNK)] == f" {CHUNK}"


def test_hostile_text_survives_json_and_shows_no_control():
    review = make_review(HOSTILE, messages=[{"role": "user", "content": "\x1b[31m\ud800"}])
    data = [payload_of(review)[0], alternatives_payload(review, 0)]
    payload = json.loads(json.dumps(data, ensure_ascii=False).encode())
    shown = payload[0]["text"] + payload[0]["messages"][0]["content"]
    assert not set(shown) & {*map(chr, range(32)), "\x7f", "\x9b", "\u202e", "\u200b"} - {"\n", "\t"}
    assert column(payload[0]["lengths"], "<u1").all(), "every token can be pointed at"


def test_marks_never_pile_up():
    assert visible("e" + "\u0301" * 40) == "e" + "\u0301" * MOST_MARKS + f"⟨+{40 - MOST_MARKS} marks⟩"
    shown = "".join(shown_pieces(["e", *["\u0301"] * 40]))
    assert not re.search(f"[\u0301]{{{MOST_MARKS + 1}}}", shown)
    assert visible("नमस्ते") == "नमस्ते"


@pytest.mark.parametrize(
    ("hidden", "shown"),
    [
        ("a\nb", "a↵\nb"),
        ("\t", "⇥\t"),
        ("\x00\x1b", "␀␛"),
        ("\x7f", "␡"),
        ("\u202e", "⟨U+202E⟩"),
        ("\udc80", "\ufffd"),
        ("👩‍👩‍👧 नमस्ते", "👩‍👩‍👧 नमस्ते"),
    ],
)
def test_unseen_characters_become_visible(hidden: str, shown: str):
    assert visible(hidden) == shown


def test_legend_names_every_verdict_in_the_order_of_the_grades():
    assert [verdict["name"] for verdict in legend()["verdicts"]] == list(VERDICTS)
    json.dumps(legend())


def test_a_report_counts_verdicts_and_takes_means():
    review = make_review(["a", " b", " c", " d"], penalty=BITTER)
    forced = np.array([VERDICTS.index("forced"), *review.grades.verdicts[1:]], dtype=np.uint8)
    report = report_card(replace(review, grades=replace(review.grades, verdicts=forced)))
    assert report.counts["forced"] == 1
    assert report.counts["blunder"] == 1
    assert report.agreement == pytest.approx(review.grades.agreement.mean())
    assert report.mean_penalty == pytest.approx(np.mean(BITTER))
    assert report.total_penalty == pytest.approx(np.sum(BITTER))
    assert report.total_reverse_kl == pytest.approx(np.abs(BITTER).sum() / 2)
    assert report.mean_student_entropy == pytest.approx(review.grades.student.entropy.mean())


def test_overlap_is_the_shared_part_of_the_likeliest_tokens():
    review = make_review(["a", " b"])
    teacher = review.grades.teacher
    others = teacher.top_ids.copy()
    others[0, :2] += 100  # two of the four are others
    changed = replace(review.grades, teacher=replace(teacher, top_ids=others))
    assert report_card(review).overlap == 1
    assert report_card(replace(review, grades=changed)).overlap == pytest.approx(0.75)


def test_report_of_nothing_has_no_figures():
    report = report_card(make_review([]))
    assert report.agreement is None
    assert report.mean_penalty is None
