"""A teacher with another tokenizer: spans that part the text, grades that add up to the text's log-prob."""

import json
import random
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
from graded import by_spans, make_review
from tiny import CHAT_TEMPLATE, make_model
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import opd
from opd.config import DistillConfig
from opd.grading.branching import branch, teacher_choices
from opd.grading.cross_grading import grade_spans, read_as_teacher
from opd.grading.grading import grade
from opd.grading.saved_reviews import ReviewGroup, ReviewSet, to_csv
from opd.grading.summary import report_card, swaps, token_map, worst_tokens
from opd.models.pair import Pair, VocabularyMismatch
from opd.reviews import Review
from opd.spans import align
from opd.training.lessons import load_lessons
from opd.trajectory import Trajectory
from opd.verdicts import FORK_DEFINITIONS, find_forks
from opd.view.payload import alternatives_payload, set_payload
from opd.view.terminal import render

PROMPT = "Which way?"
ALPHABETS = (
    "abc XYZ  \t\n\r\n.,12-'",
    "éàüñßøÅ œ",
    "漢字かなカナ한글",
    "😀🤷🏽‍♀️👩‍👩‍👧‍👦🇩🇪",
    "e\u0301a\u0308\u200b\u00a0\u202eא ب",
    "<|end|>�&<",
)
END, TURN = "<|fin|>", "<|turn|>"


def random_texts(n, longest=60):
    rng = random.Random(7)
    for _ in range(n):
        letters = "".join(rng.sample(ALPHABETS, rng.randint(1, 3)))
        yield "".join(rng.choice(letters) for _ in range(rng.randint(1, longest)))


def finished(tokenizer):
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token="<|none|>")
    fast.add_special_tokens({"additional_special_tokens": [TURN]})
    fast.chat_template = CHAT_TEMPLATE.replace("<|{{ m.role }}|>", TURN).replace("<|assistant|>", TURN)
    return fast


def merging_tokenizer(normalizer=None):
    """Byte-level BPE with merges, learnt from texts like those it will read."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*random_texts(300), "the way to go is the other way"] * 2, trainer)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return finished(tokenizer)


def fallback_tokenizer():
    """Characters, with a sign for the space; what it has no token for falls back to tokens of one byte."""
    known = ["▁", *"abcdefghijklmnopqrstuvwxyz.,12éün漢", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(known))}
    vocabulary |= {"th": len(vocabulary), "▁the": len(vocabulary) + 1, "▁t": len(vocabulary) + 2}
    merges = [("t", "h"), ("▁", "t")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return finished(tokenizer)


@pytest.fixture(scope="module")
def student():
    return make_model(0, name="student")


@pytest.fixture(scope="module")
def teacher():
    return make_model(1, name="teacher", rows=460, tokenizer=merging_tokenizer())


@pytest.fixture(scope="module")
def fallback():
    return make_model(2, name="fallback", rows=400, tokenizer=fallback_tokenizer())


@pytest.fixture(scope="module")
def pair(student, teacher):
    return Pair(student, teacher, cross_tokenizer=True)


def trajectory(pair, text, *, end=False):
    ids = pair.student.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids = np.array([*ids, *[pair.student.end_of_turn] * end])
    return Trajectory(
        pair.student.render(PROMPT), ids, None, "stop" if end else "length", pair.teacher.render(PROMPT)
    )


def graded(pair, *texts, end=False):
    return grade_spans(pair, [trajectory(pair, text, end=end) for text in texts], 1.0, 20)


def begins(tokens):
    return set(accumulate((len(token) for token in tokens), initial=0))


def check_partition(spans, student, teacher):
    """Every token of either side in one span, in order, and every span with the same bytes, uncuttable."""
    assert [i for span in spans for i in span.student] == list(range(len(student)))
    assert [i for span in spans for i in span.teacher] == list(range(len(teacher)))
    for span in spans:
        ours, theirs = [student[i] for i in span.student], [teacher[i] for i in span.teacher]
        assert span.same
        assert b"".join(ours) == b"".join(theirs) != b""
        assert begins(ours) & begins(theirs) == {0, len(b"".join(ours))}


# The alignment


def test_random_cuts_of_random_bytes_are_parted_at_every_common_byte():
    rng = random.Random(0)
    for _ in range(500):
        text = rng.randbytes(rng.randint(1, 30))
        cuts = [sorted(rng.choices(range(1, len(text) + 1), k=rng.randint(0, 12))) for _ in "st"]
        sides = [[text[a:b] for a, b in pairwise([0, *c, len(text)]) if a < b] for c in cuts]
        spans = align(*sides)
        check_partition(spans, *sides)
        assert len(spans) == len(begins(sides[0]) & begins(sides[1])) - 1


def test_tokens_without_bytes_go_with_the_one_behind_and_at_the_end_with_the_one_before():
    spans = align([b"", b"ab", b"", b"c", b""], [b"ab", b"", b"", b"c"])
    assert [(list(s.student), list(s.teacher)) for s in spans] == [([0, 1], [0]), ([2, 3, 4], [1, 2, 3])]
    assert all(span.same for span in spans)
    assert align([], []) == []


def test_texts_that_differ_are_matched_around_the_difference():
    spans = align([b"go ", b"to ", b"A", b" and", b" B"], [b"go", b" to", b" a", b" and ", b"B"])
    same = [b"".join([b"go ", b"to ", b"A", b" and", b" B"][i] for i in s.student) for s in spans if s.same]
    assert same == [b" and B"]
    spans = align([b"one", b"two"], [b"one", b"---", b"two"])
    assert [(list(s.student), list(s.teacher), s.same) for s in spans] == [
        ([0], [0], True),
        ([1], [1, 2], False),
    ]
    assert [(list(s.student), list(s.teacher), s.same) for s in align([b"a"], [])] == [([0], [], False)]


def test_whatever_differs_every_token_has_its_place_and_what_is_called_the_same_is():
    rng = random.Random(1)
    for _ in range(300):
        text = bytes(rng.choice(b"ab c") for _ in range(rng.randint(0, 80)))
        other = bytearray(text)
        for _ in range(rng.randint(0, 4)):
            at = rng.randint(0, len(other))
            other[at : at + rng.randint(0, 3)] = b"XY"[: rng.randint(0, 2)]
        sides = [
            [part[i : i + size] for i in range(0, len(part), size)]
            for part, size in ((text, 2), (bytes(other), 3))
        ]
        spans = align(*sides)
        assert [i for span in spans for i in span.student] == list(range(len(sides[0])))
        assert [i for span in spans for i in span.teacher] == list(range(len(sides[1])))
        for span in spans:
            ours, theirs = (
                b"".join(side[i] for i in run)
                for side, run in zip(sides, (span.student, span.teacher), strict=True)
            )
            assert span.same == (ours == theirs != b"")


def test_a_difference_in_a_long_text_that_repeats_itself_stays_local():
    sides = [b"a"] * 20000 + [b"X", b"Y"] + [b"a"] * 20000, [b"a"] * 20000 + [b"Z"] + [b"a"] * 20000
    assert sum(len(span.student) for span in align(*sides) if not span.same) == 2


@pytest.mark.parametrize("name", ["student", "teacher", "fallback"])
def test_the_bytes_of_tokens_are_those_of_the_text(name, request):
    model = request.getfixturevalue(name)
    for text in random_texts(150):
        ids = model.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        tokens, legible = model.token_bytes(ids)
        assert b"".join(tokens) == text.encode()
        assert len(tokens) == len(ids)
        # Where spaces are spelled "▁", U+FFFD itself cannot always be told from half a character.
        assert legible.all() or (name == "fallback" and "\ufffd" in text)
        if name == "student":
            assert tokens == [bytes([byte]) for byte in text.encode()]


@pytest.mark.parametrize("names", [("student", "teacher"), ("teacher", "fallback"), ("fallback", "student")])
def test_every_byte_of_a_random_text_is_in_one_span_of_two_tokenizers(names, request):
    pair = Pair(*(request.getfixturevalue(name) for name in names), cross_tokenizer=True)
    several = 0
    for text in random_texts(150):
        if "\ufffd" in text and names[0] == "fallback":
            continue  # there it may be half a character
        t = trajectory(pair, text)
        ids, spans = read_as_teacher(pair, t.completion_ids)
        sides = [
            model.token_bytes(i)[0] for model, i in ((pair.student, t.completion_ids), (pair.teacher, ids))
        ]
        assert b"".join(sides[1]) == text.encode()
        check_partition(spans, *sides)
        several += sum(len(span.student) != len(span.teacher) for span in spans)
    assert several > 100, "the tokenizers are really different"


# Grades


def test_a_model_against_itself_gives_0(student, teacher):
    for model in (student, teacher):
        for grades in graded(Pair(model, model), *random_texts(10), end=True):
            assert (grades.penalty == 0).all()
            assert (grades.spans == np.arange(len(grades))).all()


def test_with_one_tokenizer_the_penalties_are_the_ordinary_ones(student):
    same = Pair(student, make_model(5), cross_tokenizer=True)
    assert not same.cross_tokenizer, "there is nothing to cross"
    trajectories = [trajectory(same, text, end=True) for text in random_texts(12)]
    ordinary = grade(same, trajectories)
    for ours, theirs in zip(grade_spans(same, trajectories, 1.0, 20), ordinary, strict=True):
        assert (ours.spans == np.arange(len(ours))).all()
        np.testing.assert_allclose(ours.penalty, theirs.penalty, atol=1e-5)
        np.testing.assert_allclose(ours.teacher.logprobs, theirs.teacher.logprobs, atol=1e-5)
        np.testing.assert_array_equal(ours.teacher.top_ids, theirs.teacher.top_ids)
        np.testing.assert_array_equal(ours.student.ranks, theirs.student.ranks)


def sequence_logprob(model, prompt, ids, temperature):
    with torch.no_grad():
        logits = model.model(torch.tensor([[*prompt, *ids]])).logits[0, :, : model.vocabulary].double()
    logprobs = torch.log_softmax(logits / temperature, -1)
    return sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(ids))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_spans_add_up_to_the_log_prob_of_the_text_by_brute_force(student, teacher, fallback, temperature):
    for pair in (Pair(student, teacher, cross_tokenizer=True), Pair(fallback, student, cross_tokenizer=True)):
        trajectories = [trajectory(pair, text, end=True) for text in random_texts(8, longest=25)]
        for t, grades in zip(trajectories, grade(pair, trajectories, temperature=temperature), strict=True):
            ids = pair.teacher.tokenizer(
                "".join(pair.student.pieces(t.completion_ids[:-1])),
                add_special_tokens=False,
                split_special_tokens=True,
            )["input_ids"]
            theirs = sequence_logprob(
                pair.teacher,
                pair.teacher.render(PROMPT),
                [*ids, pair.teacher.end_of_turn],
                temperature,
            )
            ours = sequence_logprob(pair.student, t.prompt_ids, t.completion_ids, temperature)
            assert grades.penalty.sum(dtype=np.float64) == pytest.approx(ours - theirs, abs=2e-3)
            for first in np.unique(grades.spans):
                assert len(np.unique(grades.penalty[grades.spans == first])) == 1, "an equal share each"


def test_a_span_of_one_token_carries_the_teachers_log_prob_and_its_first_choice(pair):
    (grades,) = graded(pair, "a漢a")
    assert grades.graded.all()
    assert np.isfinite(grades.teacher.logprobs[[0, -1]]).all()
    first = grades.teacher.top_logprobs[grades.spans == np.arange(len(grades)), 0]
    assert np.isfinite(first).all()
    assert (grades.teacher.top_ids[grades.spans != np.arange(len(grades))] == -1).all()
    assert grades.reverse_kl is grades.verdicts is grades.forward_kl is grades.jsd is None
    assert grades.teacher.entropy is grades.teacher.ranks is None


def test_the_end_of_turn_stands_against_the_teachers_own(pair):
    t = trajectory(pair, "go", end=True)
    ids, spans = read_as_teacher(pair, t.completion_ids)
    assert ids[-1] == pair.teacher.tokenizer.convert_tokens_to_ids(END)
    assert (list(spans[-1].student), list(spans[-1].teacher)) == ([2], [len(ids) - 1])
    assert grade(pair, [t])[0].graded.all()


# What cannot be graded


def test_half_characters_and_special_tokens_are_not_graded_and_the_rest_is(pair):
    tokenizer = pair.student.tokenizer
    smile = tokenizer("😀", add_special_tokens=False)["input_ids"]
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    text = [*tokenizer("ab ", add_special_tokens=False)["input_ids"]]
    for broken in ([smile[0]], smile[:3], [smile[-1]], [user], [user, user]):
        ids = np.array([*text, *broken, *text])
        t = replace(trajectory(pair, "x"), completion_ids=ids)
        (grades,) = grade(pair, [t])
        assert not grades.graded[3 : 3 + len(broken)].any()
        assert np.isnan(grades.penalty[3 : 3 + len(broken)]).all(), "absent, not 0"
        assert grades.graded[:3].all()
        assert grades.graded[-2:].all()
        assert np.isfinite(grades.penalty[grades.graded]).all()
        read, _ = read_as_teacher(pair, ids)
        assert pair.teacher.tokenizer.decode(read).count(TURN) == 0


def test_a_completion_that_is_no_text_at_all_is_not_graded(pair):
    user = pair.student.tokenizer.convert_tokens_to_ids("<|user|>")
    alone = replace(trajectory(pair, "x"), completion_ids=np.array([user, user]))
    nothing, something = grade(pair, [alone, trajectory(pair, "x")])
    assert np.isnan(nothing.penalty).all()
    assert something.graded.all()
    assert report_card(review(pair, alone, nothing)).mean_penalty is None


def test_text_that_the_teacher_normalises_away_is_not_graded(student):
    composing = make_model(3, name="nfc", rows=460, tokenizer=merging_tokenizer(normalizers.NFC()))
    shouting = make_model(3, name="low", rows=460, tokenizer=merging_tokenizer(normalizers.Lowercase()))
    stripping = normalizers.Replace(Regex(r" +"), " ")
    squeezing = make_model(3, name="one", rows=460, tokenizer=merging_tokenizer(stripping))
    for model, text, lost in (
        (composing, "say cafe\u0301 again", "e\u0301"),
        (shouting, "say Cafe again", "C"),
        (squeezing, "say   cafe again", "   "),
    ):
        pair = Pair(student, model, cross_tokenizer=True)
        t = trajectory(pair, text)
        (grades,) = graded(pair, text)
        at = text.encode().index(lost.encode())
        hatched = np.flatnonzero(~grades.graded)
        assert len(hatched)
        assert at - 12 <= hatched.min() <= at + len(lost.encode())
        assert hatched.max() <= at + len(lost.encode()) + 12
        assert grades.graded[:2].all()
        assert grades.graded[-2:].all()
        assert np.isnan(grades.penalty).tolist() == (~grades.graded).tolist()
        assert t.completion_ids.shape == grades.penalty.shape


def test_a_special_token_that_the_text_spells_out_is_text(pair):
    ids, spans = read_as_teacher(pair, trajectory(pair, f"say {END} and {TURN}").completion_ids)
    assert not set(ids.tolist()) & pair.teacher.special_ids
    assert sum(len(span.student) for span in spans) == len(f"say {END} and {TURN}")


# The pair, and what is refused


def test_such_a_pair_is_refused_unless_asked_for_and_never_trained(student, teacher, pair):
    with pytest.raises(VocabularyMismatch, match="opd grade --cross-tokenizer"):
        Pair(student, teacher)
    with pytest.raises(VocabularyMismatch, match="though not trained"):
        load_lessons(DistillConfig(), pair)


def test_the_teacher_reads_its_own_rendering_of_the_prompt(pair, student):
    (sampled,) = opd.sample(pair, [PROMPT], max_tokens=4)
    pasted = opd.review_text(pair, PROMPT, "go").trajectory
    for t in (sampled, pasted):
        np.testing.assert_array_equal(t.teacher_prompt_ids, pair.teacher.render(PROMPT))
        np.testing.assert_array_equal(t.prompt_ids, student.render(PROMPT))


def test_a_text_too_long_for_the_teacher_is_refused(student):
    short = make_model(1, name="short", rows=460, tokenizer=merging_tokenizer(), max_position_embeddings=32)
    with pytest.raises(ValueError, match="the 32 tokens short can read"):
        graded(Pair(student, short, cross_tokenizer=True), "漢字かな" * 12)


def test_branches_are_refused(pair, student):
    made = opd.review_text(pair, PROMPT, "a b")
    with pytest.raises(ValueError, match="Branches need a teacher with the student's tokenizer"):
        next(branch(pair, made, 1, "c"))
    with pytest.raises(ValueError, match="Branches need"):
        teacher_choices(made, 1)
    ordinary = opd.review_text(Pair(student, student), PROMPT, "a b")
    with pytest.raises(ValueError, match="Branches need"):
        next(branch(pair, ordinary, 1, "c"))


# Faces


def review(pair, t, grades):
    from opd.grading.reviewing import review as put_text_to

    return put_text_to(pair, PROMPT, t, grades)


@pytest.fixture(scope="module")
def shown(pair):
    """A review with one token that is not graded and spans of several tokens."""
    user = pair.student.tokenizer.convert_tokens_to_ids("<|user|>")
    ids = np.array([*trajectory(pair, "the 漢字 way").completion_ids, user, *pair.student.encode("ok")])
    t = replace(trajectory(pair, "x"), completion_ids=ids)
    return review(pair, t, grade(pair, [t])[0])


def test_a_review_goes_through_its_file_unchanged(shown):
    text = ReviewSet.of([shown]).to_json()
    assert "NaN" not in text
    (again,) = ReviewSet.from_json(text)
    assert ReviewSet.of([again]).to_json() == text
    np.testing.assert_array_equal(again.grades.spans, shown.grades.spans)
    np.testing.assert_allclose(again.grades.penalty, shown.grades.penalty, rtol=1e-5)
    assert again.grades.verdicts is again.grades.reverse_kl is again.grades.teacher.ranks is None
    assert again.teacher_vocabulary == shown.teacher_vocabulary


def damaged(data, name, value):
    data["grades"][name] = value
    return data


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("spans", lambda g: [0, 0, 1, *g["spans"][3:]]),
        ("spans", lambda g: [5, *g["spans"][1:]]),
        ("spans", lambda g: None),
        ("penalty", lambda g: [None, *g["penalty"][1:]]),
        ("penalty", lambda g: [0.0 if p is None else p for p in g["penalty"]]),
        ("teacher", lambda g: g["teacher"] | {"logprobs": [None] * len(g["spans"])}),
        ("teacher", lambda g: g["teacher"] | {"top_logprobs": [[None] * 20] * len(g["spans"])}),
        ("verdicts", lambda g: [0] * len(g["spans"])),
        ("reverse_kl", lambda g: [0.0] * len(g["spans"])),
    ],
)
def test_a_file_whose_spans_make_no_sense_is_refused(shown, name, change):
    data = json.loads(json.dumps(shown.to_dict()))
    data["grades"][name] = change(data["grades"])
    with pytest.raises(ValueError, match="malformed"):
        Review.from_dict(data)


def test_what_an_ordinary_review_must_have_stays_required():
    for name in ("verdicts", "reverse_kl", "penalty"):
        data = make_review(["a", "b"]).to_dict()
        data["grades"][name] = None
        with pytest.raises(ValueError, match="malformed"):
            Review.from_dict(data)


def test_totals_add_up_over_spans(shown):
    card, grades = report_card(shown), shown.grades
    assert card.graded == len(grades) - 1
    assert card.total_penalty == pytest.approx(grades.penalty[grades.graded].sum())
    assert card.mean_penalty == pytest.approx(card.total_penalty / card.graded)
    assert card.agreement is card.counts is card.mean_reverse_kl is card.overlap is None
    assert card.mean_teacher_entropy is card.total_reverse_kl is None


def test_over_many_reviews_penalties_count_and_what_is_absent_does_not(shown):
    review = by_spans(
        make_review(["a", "b", "c", "d", "e"], penalty=[3.0, 1.0, 2.0, 0.0, 9.0]), [0, 1, 1, 3, -1]
    )
    worst = worst_tokens([review])
    assert [(token.index, token.penalty) for token in worst] == [(0, 3), (1, 1.5), (2, 1.5)]
    assert [token.preferred for token in worst] == [" yes", " yes", ""]
    assert worst[0].blame is worst[0].verdict is worst[2].preferred_probability is None
    assert worst_tokens([review], verdicts=["blunder"]) == []
    assert swaps([review]) == []
    assert len(token_map([review])) == 0


def test_forks_are_those_that_can_be_found():
    review = by_spans(
        make_review([*"abcdefghij"], penalty=[0, 3, 3, 9, 0, 0, 0, 0, 0, 0]),
        [0, 1, 1, -1, 4, 5, 6, 7, 8, 9],
    )
    found = {name: find_forks([review.grades], name)[0] for name in FORK_DEFINITIONS}
    assert np.flatnonzero(found["penalty"]).tolist() == [1]
    assert found["entropy"].any()
    assert not found["entropy_drop"].any()


def test_the_terminal_marks_what_is_not_graded_and_says_how_the_rest_was(shown):
    plain = render(shown, color=False)
    assert "⟦<|user|>⟧" in plain
    assert "Graded by aligned spans of text, because the teacher has another tokenizer" in plain
    assert "could not be graded (struck through, or in ⟦ ⟧): 1." in plain
    assert "blunder" not in plain
    assert "nan" not in plain
    assert "\x1b[2m\x1b[9m<|user|>" in render(shown, color=True)


def test_the_table_leaves_absent_cells_empty(shown):
    rows = [line.split(",") for line in to_csv(ReviewSet.of([shown])).splitlines()]
    head, cells = rows[0], rows[1 + int(np.flatnonzero(~shown.grades.graded)[0])]
    assert "nan" not in to_csv(ReviewSet.of([shown]))
    for name in ("penalty", "span"):
        assert cells[len(cells) - len(head) + head.index(name)] == ""


def test_the_page_is_told_spans_and_the_teachers_own_texts(shown):
    payload = set_payload("key", [ReviewGroup("", [shown])])["groups"][0]["reviews"][0]
    assert payload["drop"] is None
    assert {"reverse_kl", "drop", "blame", "agreement", "teacher_rank", "teacher_entropy"} <= set(
        payload["absent"]
    )
    chunk = alternatives_payload(shown, 0)
    listed = {i for i in shown.grades.teacher.top_ids.ravel().tolist() if i >= 0}
    assert chunk["teacher_vocabulary"].keys() == {str(i) for i in listed}
    json.dumps(chunk, allow_nan=False)
    json.dumps(payload, allow_nan=False)
