"""opd doctor."""

import pytest

from opd.cli import main

pytestmark = pytest.mark.engine


def test_doctor_prints_every_finding_and_fails_on_a_bad_pair(models, tmp_path, capsys):
    assert main(["doctor", *models, "--max-tokens", "16"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("pass  vocabulary: ")
    assert "self" in out
    from tiny import make_tokenizer

    make_tokenizer(extra=("<|tool|>",)).save_pretrained(tmp_path / "t")
    assert main(["doctor", *models]) == 1
    assert capsys.readouterr().out.startswith("fail  vocabulary: ")


def test_the_doctor_examines_every_lesson_of_a_settings_file(models, tmp_path, capsys):
    lesson = f'[[lessons]]\nteacher = "{models[1]}"\ntask = "demo"\nshare = 0.5\n'
    (tmp_path / "s.toml").write_text(lesson)
    assert main(["doctor", "--config", str(tmp_path / "s.toml"), *models, "--max-tokens", "16"]) == 0
    out = capsys.readouterr().out
    assert out.count("pass  vocabulary") == 2
    assert "warn  teacher: The teacher says exactly what the student says" in out
    told = ["--teacher", "self", "--teacher-hint", "It is {answer}."]
    assert main(["doctor", *models, "--max-tokens", "16", *told]) == 0
    assert "pass  teacher: The teacher is the student itself" in capsys.readouterr().out
