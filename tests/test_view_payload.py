import base64
import json
from dataclasses import replace

import numpy as np
import pytest
from graded import HOSTILE, make_review

from opd.summary import report_card
from opd.trajectory import VERDICTS
from opd.view.payload import CHUNK, alternatives_payload, legend, review_payload, visible

BITTER = [0.0, 5.0, 0.2, -0.3]


def column(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_columns_are_the_grades():
    review = make_review(["The", " answer", " is", " 7"], penalty=BITTER)
    payload = review_payload(review)
    np.testing.assert_array_equal(column(payload["penalty"], "<f4"), review.grades.penalty)
    np.testing.assert_array_equal(column(payload["teacher_rank"], "<i4"), review.grades.teacher_rank)
    np.testing.assert_array_equal(column(payload["forks"], "<u1"), [0, 1, 0, 0])
    assert payload["tokens"] == ["The", " answer", " is", " 7"]


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
    data = [review_payload(review), alternatives_payload(review, 0)]
    payload = json.loads(json.dumps(data, ensure_ascii=False).encode())
    shown = "".join(payload[0]["tokens"]) + payload[0]["messages"][0]["content"]
    assert not set(shown) & {*map(chr, range(32)), "\x7f", "\x9b", "\u202e", "\u200b"} - {"\n", "\t"}
    assert all(payload[0]["tokens"]), "every token can be pointed at"


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


def test_report_leaves_forced_tokens_out_of_the_agreement():
    review = make_review(["a", " b", " c", " d"], penalty=BITTER)
    forced = np.array([VERDICTS.index("forced"), *review.grades.verdicts[1:]], dtype=np.uint8)
    report = report_card(replace(review, grades=replace(review.grades, verdicts=forced)))
    assert report.counts["forced"] == 1
    assert report.counts["blunder"] == 1
    assert report.agreement == pytest.approx(2 / 3)
    assert report.mean_penalty == pytest.approx(np.mean(BITTER))


def test_report_of_nothing_has_no_figures():
    report = report_card(make_review([]))
    assert report.agreement is None
    assert report.mean_penalty is None
