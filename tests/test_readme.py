"""What the README shows of the loop is the loop."""

import inspect
import re
import textwrap
from pathlib import Path

from opd.training.distillation import Distillation
from opd.training.update import gradient

README = Path(__file__).parents[1] / "README.md"


def shown(file: str) -> str:
    """The code that follows the name of a file."""
    text = README.read_text(encoding="utf-8")
    return re.search(rf"\(`{file}`\)[,:]\n\n```python\n(.*?)```", text, re.DOTALL)[1]


def test_the_step_in_the_readme_is_the_one_that_runs():
    _, _, body = inspect.getsource(Distillation.step).split('"""')
    assert shown("opd/training/distillation.py") == textwrap.dedent(body).lstrip("\n")


def test_the_micro_batch_in_the_readme_is_the_one_that_runs():
    block, lines = shown("opd/training/update.py"), inspect.getsource(gradient).splitlines(keepends=True)
    size = len(block.splitlines())
    assert block in (textwrap.dedent("".join(lines[i : i + size])) for i in range(len(lines)))
