"""What tests of several commands share."""

import shutil

import pytest

from opd.cli import main


@pytest.fixture
def models(folders, tmp_path):
    """The flags of a pair, of copies that a test may change: the folders s and t."""
    student, teacher = (shutil.copytree(folders[name], tmp_path / name[0]) for name in ("student", "teacher"))
    return ["--student", str(student), "--teacher", str(teacher)]


@pytest.fixture
def train(models):
    """Train quickly, with further flags, and return the exit code."""
    quick = ["--steps", "2", "--warmup-steps", "1", "--prompts-per-step", "4", "--max-tokens", "12"]

    def run(*more, pair=models):
        return main(["train", *pair, *quick, "--eval-prompts", "4", *more])

    return run
