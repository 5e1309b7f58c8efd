"""Token texts that would act on a page or a terminal, or break it, were they not shown as text."""

from html.parser import HTMLParser

FLOOD = "e" + "\u0323\u0301" * 20
"""One letter under a tower of combining marks."""

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "</script><svg onload=alert(1)>",
    "<!--",
    "${alert(1)}",
    "{{value}}",
    "{{{value}}}",
    "`${1+1}`",
    "\\u003cb\\u003e",
    "\x1b[2J\x1b[31m",
    "\x1b]8;;http://example.com\x07link",
    "\x00\x07\x7f\x9b",
    "\u202egnp.exe",
    "\u2066\u2069",
    "\ud83d",
    "\u200b",
    "\u2028",
    "\U000e0041",
    FLOOD,
    *["\u0489"] * 12,
    "&lt;b&gt;",
    "\r\n\t",
    "",
    "",
    "👩‍👩‍👧",
    "नमस्ते",
    "ﷺ",
    "constructor",
    "__proto__",
    "x" * 10_000,
    "\n" * 40,
]
"""Markup, template braces, escapes, control codes, bidi overrides, NUL, a lone surrogate, unseen characters,
floods of combining marks in one token and over many, an emoji whose first bytes are tokens of their own,
names of JavaScript, and one token of 10,000 characters."""

MARKUP = "</script><script>alert(1)</script><!--<script>"
"""What would end a script element and begin another."""


class Parsed(HTMLParser):
    """The elements of a page and the text of its title and of its embedded data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        name = attributes.get("id", tag)
        self.texts[name] = self.texts.get(name, "") + data
