"""A model's text without its network: prompts become ids, ids become text."""

import pytest
from tiny import make_text


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
