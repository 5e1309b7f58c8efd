"""Modules of JavaScript are joined in one scope: what they import is there, and no name is of two things."""

import re
from collections import Counter
from pathlib import Path

import pytest

import opd
from opd.view import HERE, script

UI = Path(opd.__file__).with_name("ui")
ENTRIES = [HERE / "page.js", *(page.with_suffix(".js") for page in UI.glob("*.html")), UI / "token_review.js"]
DECLARED = re.compile(r"^(?:async )?(?:function|class|const|let) (\w+)", re.MULTILINE)
UNPACKED = re.compile(r"^(?:const|let) [{\[]([^=]*)[}\]] =", re.MULTILINE)


def names(code: str) -> Counter[str]:
    """The names at the top of a script."""
    unpacked = [name for names in UNPACKED.findall(code) for name in re.findall(r"\w+(?!\w*:)", names)]
    return Counter([*DECLARED.findall(code), *unpacked])


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.stem)
def test_joined_modules_share_no_name(entry):
    twice = [name for name, count in names(script(entry)).items() if count > 1]
    assert not twice


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.stem)
def test_what_a_module_imports_comes_before_it_and_no_import_is_left(entry):
    code = script(entry)
    assert not re.search(r"^(import|export)\b", code, re.MULTILINE)
    assert code.endswith(re.sub(r"^(import .*|export )", "", entry.read_text(), flags=re.MULTILINE)[-200:])


def test_a_name_that_two_modules_share_is_found():
    assert names("const a = 1;\nfunction b() {}\nclass a {}\n")["a"] == 2
    assert names("const { a, b } = c;\nlet b = 1;\n")["b"] == 2
