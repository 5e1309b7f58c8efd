"""The command line as a person meets it, whichever command: exit codes, one clear sentence, help."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import opd
from opd.cli import main

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["grade", "--prompt", ""], "The prompt is empty"),
        (["grade", "--prompt", "hi", "-n", "0"], "must be at least 1, not 0"),
        (["grade", "--prompt", "x" * 300], "exceeds the 256 tokens"),
        (["grade", "--prompt", "hi", "--device", "cuda:77"], "cannot be used here"),
        (["train", "--learning-rate", "-1"], "learning_rate: Input should be greater than 0"),
        (["train", "--steps", "0"], "steps: Input should be greater than or equal to 1"),
        (["train", "--name", "a/b"], "is no name for a run"),
        (["train", "--resume", "nobody"], "There is no run called 'nobody'"),
        (["eval", "no/such/model"], "There is no model folder 'no/such/model'"),
        (["eval", "demo-teacher", "-n", "0"], "at least 1 problem, not 0"),
        (["eval", "demo-teacher", "--task", "chess"], "There is no task called 'chess'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(models, capsys, arguments, sentence):
    more = models if arguments[0] == "grade" else []
    assert main([*arguments, *more]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("opd: ")
    assert error.count("\n") == 1


def test_help_needs_neither_torch_nor_gradio():
    code = (
        "import sys\nfrom opd.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'gradio', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("[]")
    for command in ("app", "grade", "train", "eval", "make-pair", "pair-report"):
        assert command in out


def test_the_module_is_the_command_line():
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-m", "opd", "nonsense"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    assert "invalid choice" in done.stderr


def test_what_a_file_says_cannot_act_on_the_terminal(tmp_path, capsys):
    hostile = "\x1b]0;title\x07\u202e"
    (tmp_path / "s.json").write_text(json.dumps({f"steps{hostile}": 1}))
    assert main(["train", "--config", str(tmp_path / "s.json")]) == 2
    (tmp_path / "r.jsonl").write_text(json.dumps({hostile: "x"}))
    assert main(["train", "--task", str(tmp_path / "r.jsonl")]) == 2
    errors = capsys.readouterr().err
    assert "␛]0;title␇⟨U+202E⟩" in errors
    assert not {"\x1b", "\x07", "\u202e"} & set(errors)


@pytest.mark.parametrize(
    "flags",
    [
        ["train", "--config"],
        ["grade", "--chat"],
        ["grade", "--prompt", "x", "--text"],
        ["eval", "demo-student", "--task"],
    ],
)
def test_utf_16_that_does_not_say_so_is_named_with_the_way_out(flags, tmp_path, capsys):
    file = tmp_path / "mine.csv"
    for encoding in ("utf-16-le", "utf-16-be"):
        file.write_bytes("user: Hä?".encode(encoding))
        assert main([*flags, str(file)]) == 2
        assert capsys.readouterr().err == f"opd: {file} is UTF-16 without its mark: save it as UTF-8.\n"


@pytest.mark.parametrize("name", ["s.json", "s.toml", "p.jsonl", "p.csv", "c.json"])
def test_a_number_that_nobody_can_mean_is_refused_in_our_own_words(name, tmp_path, capsys):
    long = "1" * 5000
    text = {
        "s.json": f'{{"steps": {long}}}',
        "s.toml": f"steps = {long}",
        "p.jsonl": f'{{"prompt": {long}}}\n{{"prompt": "One?"}}',
        "p.csv": f'prompt\n"[{{""role"": {long}}}]"',
        "c.json": f"[{long}]",
    }[name]
    (tmp_path / name).write_text(text)
    flags = {"s": ["train", "--config"], "p": ["eval", "nowhere", "--task"], "c": ["grade", "--chat"]}[
        name[0]
    ]
    assert main([*flags, str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert "a number in it is too long" in said or name == "p.jsonl"
    assert "sys." not in said


@pytest.mark.parametrize("command", ["grade", "train", "eval"])
def test_who_is_offered_parquet_is_told_what_to_install(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = "".join(capsys.readouterr().out.split())  # a line may end inside of the name
    before, _, behind = said.partition(".parquet")
    assert "opd-studio[data]" in before[-60:] + behind[:60]


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    written = (Path(opd.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{capsys.readouterr().out.split()[-1]}"' in written
