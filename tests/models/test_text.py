"""A model's text without its network: prompts become ids, ids become text."""

import pytest
from tiny import CHAT_TEMPLATE, make_text, make_tokenizer
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from opd.engines.sampling import requests
from opd.grading.own_text import text_trajectory
from opd.tasks import Example
from opd.training.lessons import Lesson


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ messages[0].content + 1 }}",
            r"template of tiny fails on this: TypeError: .* Mend its chat_template",
        ),
        ("{{ 1 / 0 }}", "template of tiny fails on this: ZeroDivisionError: division by zero. Mend"),
        ("{{ raise_exception('No system!') }}", "template of tiny refuses this: No system!"),
        ("{% if %}", "template of tiny refuses this"),
    ],
)
def test_a_chat_template_that_fails_is_said_in_a_sentence(template, message):
    model = make_text()
    model.tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        model.render("hi")
    with pytest.raises(ValueError, match=message):
        _ = model.end_of_turn


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)


def test_a_template_that_refuses_a_system_role_is_named_with_its_side(pair):
    """As Gemma's does: a prompt of the student, and what the teacher alone is told."""
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    way_out = r"refuses this: System role not supported\. Put what the system prompt says into the question\."
    lesson = Lesson(None, pair, 1, system="Be brief.")
    pair.teacher.tokenizer.chat_template = pair.student.tokenizer.chat_template + NO_SYSTEM
    with pytest.raises(ValueError, match=rf"^The teacher's chat template, of tiny-teacher, {way_out}"):
        lesson.informed(requests(pair, ["hi"], max_tokens=4), [Example("hi")], room=4)
    pair.student.tokenizer.chat_template = pair.teacher.tokenizer.chat_template
    for refused in (
        lambda: requests(pair, [asked], max_tokens=4),
        lambda: text_trajectory(pair, asked, "yes"),
    ):
        with pytest.raises(ValueError, match=rf"^The student's chat template, of tiny-student, {way_out}"):
            refused()


@pytest.mark.parametrize("adds", [True, False], ids=["adds a BOS", "adds none"])
def test_a_bos_is_never_doubled(adds):
    """Llama's templates write it, and its tokenizer puts one before every text."""
    tokenizer = make_tokenizer(("<s>",))
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    if adds:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    model = make_text(tokenizer)
    templated = "{{ bos_token }}" + CHAT_TEMPLATE
    for said in ("hi", "hi <|end|>"):
        for template, known in ((templated, 1), (CHAT_TEMPLATE, 0), (None, int(adds))):
            model.tokenizer.chat_template = template
            ids = model.render(said).tolist()
            assert ids.count(tokenizer.bos_token_id) == known
            assert known == 0 or ids[0] == tokenizer.bos_token_id


def test_a_prompt_is_shown_as_it_was_read():
    model = make_text()
    typed = "é <|end|>!"
    read = model.prompt_text(model.render(typed))
    assert "".join(read.pieces) == f"<|user|>{typed}<|assistant|>"
    assert [read.pieces[i] for i in read.control] == ["<|user|>", "<|assistant|>"]
    assert "".join(read.pieces[i] for i in read.spelled) == "<|end|>"
    assert read.templated
    meant = model.prompted(control_tokens=True)
    read = meant.prompt_text(meant.render(typed))
    assert [read.pieces[i] for i in read.control] == ["<|user|>", "<|end|>", "<|assistant|>"]
    assert read.spelled == []
    model.tokenizer.chat_template = None
    read = model.prompt_text(model.render([{"role": r, "content": r} for r in ("system", "user")]))
    assert "".join(read.pieces) == "system\nuser"
    assert not read.templated


def test_marks_of_reasoning_are_read_whatever_the_tokenizer_thinks_of_them():
    """Some count them among the special tokens: a verifier would take the reasoning for the answer."""
    for special in (False, True):
        tokenizer = make_tokenizer()
        tokenizer.add_tokens([AddedToken(mark, special=special) for mark in ("<think>", "</think>")])
        model = make_text(tokenizer)
        ids = model.encode("<think>8?</think>7")
        assert len(ids) == 5
        assert model.text([*ids, tokenizer.eos_token_id]) == "<think>8?</think>7"


def test_a_message_brings_its_reasoning_to_the_template():
    model = make_text()
    turn = {"role": "assistant", "content": "7", "reasoning_content": "3 + 4 <|end|>"}
    chat = [{"role": "user", "content": "?"}, turn, {"role": "user", "content": "!"}]
    model.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.reasoning_content }}[{{ m.content }}]{% endfor %}"
    )
    assert model.text(model.render(chat)) == "[?]3 + 4 <|end|>[7][!]"
    assert model.text(model.render([{**chat[0], "reasoning_content": None}])) == "[?]"
    model.tokenizer.chat_template = None
    assert model.text(model.render(chat)) == "?\n<think>\n3 + 4 <|end|>\n</think>\n\n7\n!"


@pytest.mark.parametrize(
    "text", ["plain words", "naïve café", "😀 emoji 👩‍👩‍👧", "日本語", "\x00\u202e", "  a\n\n b\t"]
)
def test_pieces_join_to_the_text(text):
    model = make_text()
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = model.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


def test_pieces_of_broken_bytes_lose_nothing():
    model = make_text()
    half = model.tokenizer("é", add_special_tokens=False)["input_ids"][:1]
    assert "".join(model.pieces([*half, *model.tokenizer("ok")["input_ids"]])) == "\ufffdok"


def test_token_text_keeps_the_leading_space():
    model = make_text()
    (space,) = model.tokenizer(" ", add_special_tokens=False)["input_ids"]
    assert model.token_text(space) == " "
