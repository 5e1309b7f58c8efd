"""The house stands as CONTRIBUTING.md draws it: every module in its room, and no import from one below."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "opd"


@cache
def rooms() -> list[tuple[str, list[str]]]:
    """The rows of the table: a folder of the package, nothing for what lies at its top; and the modules."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!room|-)([^|]+) \| ([^|]+) \|", text, re.MULTILINE)
    found = []
    for room, named in rows:
        folder = re.fullmatch(r"`(\w+)/`", room)
        at, modules = f"{folder[1]}." if folder else "", []
        for name in re.findall(r"`([\w/]+)`", named):
            if name.endswith("/"):
                at = f"{folder[1]}.{name[:-1]}."
            else:
                modules.append(at + name)
        found.append((folder[1] if folder else "", modules))
    return found


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name without ``opd.``; a package by its folder's."""
    paths = {path.relative_to(PACKAGE).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    return {".".join(p.parts).removesuffix(".__init__"): path for p, path in paths.items()}


def room_of(module: str) -> int:
    """The place in the list of the room that a module lies in."""
    for place, (folder, named) in enumerate(rooms()):
        if module in named or (folder and module.split(".")[0] == folder):
            return place
    raise AssertionError(f"CONTRIBUTING.md gives opd.{module} no room")


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or later."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "opd":
            base = node.module.removeprefix("opd").removeprefix(".")
            inner = {f"{base}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= {name if name in known else base for name in inner}
    return found - {""}


def test_every_module_is_named_once_where_it_lies():
    named = [module for folder, names in rooms() for module in names if folder != "ui"]
    assert len(named) == len(set(named))
    there = {
        name
        for name, path in modules().items()
        if path.name not in ("__init__.py", "__main__.py") and not name.startswith("ui.")
    }
    assert set(named) == there


def test_a_module_imports_only_what_stands_above_it():
    below = {
        f"{module} imports {name}"
        for module, path in modules().items()
        if path.parent != PACKAGE or path.name not in ("__init__.py", "__main__.py")
        for name in imported(path)
        if room_of(name) > room_of(module)
    }
    assert not below


def test_the_house_has_few_rooms():
    assert len(rooms()) <= 16


def test_transformers_is_imported_in_one_place():
    """It breaks where two threads import it at once, and only what makes the embedded pair has but one."""
    elsewhere = [
        name
        for name, path in modules().items()
        if re.search(r"^\s*(from|import) transformers\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert {name for name in elsewhere if not name.startswith("demo.")} == {"models.hf"}
