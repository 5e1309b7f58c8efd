"""Text that nobody sampled: its ids, its grades, the sentences that refuse it."""

import json

import numpy as np
import pytest
from tiny import make_model

import opd
from opd.grading.own_text import chat_trajectories, read_chat, read_prompts, text_trajectory
from opd.models.pair import Pair
from opd.tasks import Example

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Yes, naïve 😀."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": " No.\n"},
]


@pytest.fixture
def embedded():
    return opd.load_pair()


def template_ids(model, chat):
    return model.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)


def test_a_sampled_answer_pasted_back_has_the_ids_and_grades_it_was_sampled_with(embedded):
    prompt = "What is 7 + 3 × (9 - 4)?"
    for sampled in opd.sample(embedded, [prompt], n=4):
        pasted = text_trajectory(embedded, prompt, embedded.student.text(sampled.completion_ids))
        np.testing.assert_array_equal(pasted.prompt_ids, sampled.prompt_ids)
        np.testing.assert_array_equal(pasted.completion_ids, sampled.completion_ids)
        here, there = opd.grade(embedded, [pasted, sampled])
        np.testing.assert_array_equal(here.penalty, there.penalty)
        assert "off-policy" in here.bias.lower()
        assert there.bias is None


def test_every_assistant_turn_has_the_ids_of_the_template(embedded):
    turns = chat_trajectories(embedded, CHAT)
    assert [len(before) for before, _ in turns] == [2, 4]
    whole = template_ids(embedded.student, CHAT)
    for before, trajectory in turns:
        ids = [*trajectory.prompt_ids, *trajectory.completion_ids]
        assert ids == whole[: len(ids)]
        assert ids == template_ids(embedded.student, CHAT[: len(before) + 1])
        assert trajectory.completion_ids[-1] == embedded.student.end_of_turn


def test_a_chat_is_graded_turn_by_turn(pair):
    reviews = opd.review_chat(pair, CHAT)
    assert [review.messages for review in reviews] == [CHAT[:2], CHAT[:4]]
    assert [review.text for review in reviews] == [m["content"] + "<|end|>" for m in CHAT[2::2]]
    alone = opd.review_text(pair, CHAT[:4], CHAT[4]["content"])
    np.testing.assert_allclose(reviews[1].grades.penalty, alone.grades.penalty, atol=1e-5)


def test_a_turn_s_reasoning_is_graded_before_its_answer(pair):
    chat = [
        {"role": "user", "content": "3 + 4?"},
        {"role": "assistant", "content": "7", "reasoning_content": "Hm."},
    ]
    (review,) = opd.review_chat(pair, chat)
    assert review.text == "<think>\nHm.\n</think>\n\n7<|end|>"
    assert "".join(review.pieces[review.reasoning]) == "<think>\nHm.\n</think>"
    assert read_chat(json.dumps(chat)) == chat
    pair.student.tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    (review,) = opd.review_chat(pair, chat)
    assert review.text == "Hm.\n</think>\n\n7<|end|>"
    assert "".join(review.pieces[review.reasoning]) == "Hm.\n</think>"
    cut = opd.review_text(pair, "3 + 4?", "Hm.", complete=False)
    assert cut.text[cut.reasoning] == "Hm."


def test_the_student_of_its_own_text_is_beyond_reproach():
    model = make_model(0)
    review = opd.review_text(Pair(model, model), "Who?", "Nobody: 42.")
    assert not review.grades.penalty.any()
    assert not review.grades.reverse_kl.any()
    assert review.trajectory.behaviour_logprobs is None


def test_only_a_whole_answer_is_graded_on_its_end(pair):
    whole = opd.review_text(pair, "Who?", "I")
    part = opd.review_text(pair, "Who?", "I", complete=False)
    assert (whole.text, part.text) == ("I<|end|>", "I")
    assert opd.review_text(pair, "Who?", "I<|end|>", complete=False).text == "I<|end|>"
    for pasted in ("I<|end|>\n", "I<|end|> \r\n"):
        assert opd.review_text(pair, "Who?", pasted, complete=False).text == "I<|end|>"
    assert len(whole.grades) == len(part.grades) + 1


def test_a_control_token_inside_a_pasted_text_is_text(pair):
    review = opd.review_text(pair, "Who?", "I<|end|><|user|>You")
    assert review.text == "I<|end|><|user|>You<|end|>"
    ids = review.trajectory.completion_ids
    assert [i for i, token in enumerate(ids) if token in pair.student.special_ids] == [len(ids) - 1]


def test_the_answer_to_a_known_problem_is_verified(embedded):
    task = opd.load_task("demo")
    example = task.heldout(1)[0]
    for answer, right in ((example.answer, True), ("123456", False)):
        text = f"The answer is {answer}."
        review = opd.review_text(embedded, example.prompt, text, task=task, example=example)
        assert review.correct is right


@pytest.mark.parametrize(
    ("prompt", "text", "sentence"),
    [
        ("Who?", "  \n", "text is empty"),
        ("  ", "I", "prompt is empty"),
        ("Who?", "I\ud83d", "cannot be encoded, at place 2"),
        ("Who?", "I" * 300, "302 tokens long|301 tokens long"),
        ("Who?" * 300, "I", "prompt is 1201 tokens long|prompt is 1202"),
    ],
)
def test_text_that_cannot_be_graded_is_refused(pair, prompt, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        opd.review_text(pair, prompt, text)


def test_a_message_the_template_refuses_is_refused_in_a_sentence(embedded):
    chat = [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]
    with pytest.raises(ValueError, match="Unknown role: tool"):
        opd.review_chat(embedded, chat)


def test_a_chat_is_read_from_json_or_from_lines():
    assert read_chat(json.dumps(CHAT)) == CHAT
    assert read_chat(json.dumps({"messages": CHAT, "id": 3})) == CHAT
    names = {"user": "human", "assistant": "gpt"}
    parts = [{"from": names.get(m["role"], m["role"]), "value": [m["content"]]} for m in CHAT]
    assert read_chat(json.dumps({"conversations": parts})) == CHAT
    lines = "User: One?\nOr none?\n\nAssistant: Yes.\nuser: 2: two?\nassistant:\nNo: never.\n"
    assert read_chat(lines) == [
        {"role": "user", "content": "One?\nOr none?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "2: two?"},
        {"role": "assistant", "content": "No: never."},
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Hello.", "begin with a role"),
        ("", "begin with a role"),
        ("[1, 2]", "list of messages"),
        ("[" * 100_000, "not valid JSON"),
        ('{"messages": 3}', "list of messages"),
        ('[{"role": "user", "content": 3}]', "Message 1 .* not text"),
        ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]', "Message 2 .* empty"),
        ('[{"role": "user", "content": "\\ud800"}]', "Message 1 .* UTF-8"),
        ('[{"role": "pope", "content": "a"}]', "role 'pope'"),
        ('[{"role": "user", "content": [{"type": "image_url"}]}]', "Message 1 .* part of type image_url"),
    ],
)
def test_what_is_no_chat_is_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_chat(text)


@pytest.mark.parametrize(
    ("chat", "sentence"), [("user: Hi", "no turn of the assistant"), ("assistant: Hi", "begins with")]
)
def test_a_chat_with_nothing_to_grade_is_refused(pair, chat, sentence):
    with pytest.raises(ValueError, match=sentence):
        opd.review_chat(pair, read_chat(chat))


def test_prompts_of_a_file_are_answered_and_given_texts_graded(pair, tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": "One?"}, {"prompt": "Two?", "completion": "2"}, {"prompt": ""}, {"prompt": "Three?"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    asked = read_prompts(path)
    assert asked.prompts == ["One?", "Two?", "Three?"]
    assert [row.line for row in asked.malformed] == [3]
    *_, reviews = opd.review_prompts(pair, asked.prompts, asked.completions, n=2, seed=4, max_tokens=6)
    assert [r.messages[0]["content"] for r in reviews] == ["One?", "One?", "Two?", "Three?", "Three?"]
    assert [r.grades.bias is None for r in reviews] == [True, True, False, True, True]
    expected = opd.sample(pair, asked.prompts, n=2, seed=4, max_tokens=6)
    for review, sampled in zip(reviews[3:], expected[4:], strict=True):
        np.testing.assert_array_equal(review.trajectory.completion_ids, sampled.completion_ids)


@pytest.mark.parametrize(
    ("row", "prompt", "text"),
    [
        ({"messages": CHAT}, CHAT[:-1], CHAT[-1]["content"]),
        ({"messages": CHAT[:-1]}, CHAT[:-1], None),
        ({"instruction": "Add.", "input": "1 and 1", "output": "2"}, "Add.\n\n1 and 1", "2"),
        ({"question": "One?", "answer": "1", "response": "It is 1."}, "One?", "It is 1."),
        ({"question": "One?", "choices": ["x", "y"], "answer": "A"}, "One?\n\nA. x\nB. y", None),
    ],
)
def test_rows_of_a_file_are_read_as_a_task_reads_them(tmp_path, row, prompt, text):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row))
    assert read_prompts(path).prompts == [prompt]
    assert read_prompts(path).completions == [text]


def test_many_prompts_come_in_parts_that_do_not_change_the_samples(pair, monkeypatch):
    monkeypatch.setattr("opd.grading.reviewing.SAMPLED_TOGETHER", 2)
    prompts = ["a", "b", "c"]
    examples = [Example("a", "x"), None, None]
    states = list(opd.review_prompts(pair, prompts, max_tokens=5, task=Same(), examples=examples))
    assert [len(state) for state in states] == [2, 3]
    for review, sampled in zip(states[-1], opd.sample(pair, prompts, max_tokens=5), strict=True):
        np.testing.assert_array_equal(review.trajectory.completion_ids, sampled.completion_ids)
    assert [review.correct for review in states[-1]] == [False, None, None]


class Same:
    def verify(self, example, completion, *, cut=False):
        return completion == example.answer


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.parquet"])
def test_every_kind_of_file_gives_its_prompts(tmp_path, name):
    path = tmp_path / name
    if name == "p.parquet":
        pandas = pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
        pandas.DataFrame({"prompt": ["One?", "Two?"]}).to_parquet(path)
    else:
        path.write_text({"p.txt": "One?\r\n\n  Two?\n", "p.csv": "id,prompt\n1,One?\n2,Two?\n"}[name])
    assert read_prompts(path).prompts == ["One?", "Two?"]


TEXTS = ("txt", "csv", "jsonl")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.txt", b"\n\n", "no prompt that can be used"),
        ("p.txt", b"\xff\xfd", "not valid UTF-8"),
        *(
            (f"p.{kind}", "prompt\nOne?".encode("utf-16-le"), r"p\.\w+ is UTF-16 without its mark: save it")
            for kind in TEXTS
        ),
        ("p.csv", b"title\nOne?\n", "no column 'prompt'; it has title"),
        ("p.pdf", b"%PDF", r"not a .*\.parquet file"),
        ("p.parquet", b"PAR1", "cannot be read"),
    ],
)
def test_files_without_prompts_are_refused(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_prompts(tmp_path / name)
