"""Names and texts of others in the page's own sentences."""

import html
import re
from pathlib import Path

import gradio as gr
import pytest
from hostile import HOSTILE

import opd.ui
from opd.ui.errors import code, inform, plain, spoken_errors, warn
from opd.view.payload import visible


@pytest.mark.parametrize("text", [*HOSTILE, "the token </s> & <pad>", "<img src=https://example.com/x.png>"])
def test_a_message_reads_as_its_text(text, monkeypatch):
    said = []
    for kind in ("Warning", "Info"):
        monkeypatch.setattr(gr, kind, said.append)
    warn(text)
    inform(text)
    with pytest.raises(gr.Error) as refused, spoken_errors():
        raise ValueError(text)
    for markup in (*said, refused.value.message):
        assert "<" not in markup
        assert html.unescape(markup) == visible(text)


def test_all_messages_are_made_in_one_place():
    folder = Path(opd.ui.__file__).parent
    makers = {p.name for p in folder.glob("*.py") if re.search(r"gr\.(Warning|Info|Error)\(", p.read_text())}
    assert makers == {"errors.py"}


@pytest.mark.parametrize(
    "text", ["</s>", "![x](https://example.com/x)", "**a** _b_ `c`", "<pad>", "a ``b` c"]
)
def test_text_in_markdown_reads_as_it_is(text):
    read = pytest.importorskip("markdown_it").MarkdownIt()
    assert read.render(plain(text)) == f"<p>{html.escape(text)}</p>\n"
    assert read.render(code(text)) == f"<p><code>{html.escape(text)}</code></p>\n"
