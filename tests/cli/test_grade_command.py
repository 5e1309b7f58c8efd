"""opd grade: what it prints, saves and refuses."""

import json
import subprocess
import sys

import pytest

import opd
from opd.cli import main

pytestmark = pytest.mark.engine


def test_grade_prints_every_token_and_saves_the_review(models, tmp_path, capsys):
    out = tmp_path / "review.json"
    assert (
        main(["grade", "--prompt", "hi", "-n", "2", "--max-tokens", "12", "--save", str(out), *models]) == 0
    )
    printed = capsys.readouterr().out
    reviews = opd.load_reviews(out)
    assert len(reviews) == 2
    assert "\x1b[" not in printed, "colour only on a terminal"
    assert "penalty" in printed


def test_templates_are_told_what_the_flags_say(models, tmp_path, capsys):
    out = tmp_path / "review.json"
    asked = ["grade", "--prompt", "hi", "--max-tokens", "4", *models]
    for folder in ("s", "t"):
        (tmp_path / folder / "chat_template.jinja").write_text("{{ messages[0].content }}{{ name }}")
    told = ["--template-options", '{"name": "A"}', "--teacher-template-options", '{"name": "B"}']
    assert main([*asked, *told, "--save", str(out)]) == 0
    (review,) = opd.load_reviews(out)
    assert review.trajectory.prompt_ids[-1] + 1 == review.trajectory.teacher_prompt_ids[-1]
    assert main([*asked, "--template-options", "[1]"]) == 2
    assert "are a JSON object such as" in capsys.readouterr().err


def test_two_vocabularies_are_refused(models, tmp_path, capsys):
    from tiny import make_tokenizer

    make_tokenizer(extra=("<|tool|>",)).save_pretrained(tmp_path / "t")
    assert main(["grade", "--prompt", "hi", *models]) == 2
    assert "do not share a vocabulary" in capsys.readouterr().err


def test_a_teacher_with_another_tokenizer_grades_spans_when_asked(models, tmp_path, capsys):
    from tiny import make_tokenizer

    make_tokenizer(extra=("<|tool|>",)).save_pretrained(tmp_path / "t")
    files = {name: tmp_path / f"review.{name}" for name in ("json", "csv", "html")}
    written = ["--save", str(files["json"]), "--csv", str(files["csv"]), "--html", str(files["html"])]
    asked = ["grade", "--prompt", "hi", "--max-tokens", "12", "--cross-tokenizer", *written, *models]
    assert main(asked) == 0
    assert "because the teacher has another tokenizer" in capsys.readouterr().out
    assert next(iter(opd.load_reviews(files["json"]))).grades.spans is not None
    assert all(file.stat().st_size for file in files.values())
    assert main(["grade", "--open", str(files["json"])]) == 0
    assert main(["branch", str(files["json"]), *models]) == 2
    assert "share a vocabulary" in capsys.readouterr().err


def test_of_a_teacher_that_says_no_numbers_nothing_is_written(models, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "t" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    files = [tmp_path / f"review.{kind}" for kind in ("json", "csv", "html")]
    written = [word for file in files for word in (f"--{file.suffix[1:]}".replace("json", "save"), str(file))]
    assert main(["grade", "--prompt", "hi", "--max-tokens", "4", *written, *models]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"opd: {tmp_path / 't'} gives tokens log-probs that are not finite")
    assert said.out == ""
    assert not any(file.exists() for file in files)


def test_a_disk_that_is_full_is_said_and_nothing_is_left(models, tmp_path):
    """A real failing write: the process may not write files beyond 1 kB."""
    code = (
        "import resource, sys; from opd.cli import main; import opd.models.load, opd.view.terminal;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); sys.exit(main(sys.argv[1:]))"
    )
    arguments = [
        "grade",
        "--prompt",
        "hi",
        "--max-tokens",
        "40",
        "--save",
        str(tmp_path / "out.json"),
        *models,
    ]
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("opd: ")
    assert "Traceback" not in done.stderr
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith("out.json")]


def test_the_mark_that_begins_a_file_is_no_part_of_its_text(models, tmp_path, capsys):
    def written(name, text):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        return str(tmp_path / name)

    saved = tmp_path / "review.json"
    text = ["--prompt", "hi", "--text", written("t.txt", "Yes."), "--save", str(saved)]
    assert main(["grade", *text, *models]) == 0
    (review,) = opd.load_reviews(saved)
    assert review.text == "Yes.<|end|>"
    assert main(["grade", "--chat", written("c.txt", "user: hi\nassistant: Yes."), *models]) == 0
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes."}]
    assert main(["grade", "--chat", written("c.json", json.dumps(chat)), *models]) == 0
    prompts = ["--file", written("p.csv", "prompt,response\nhi,Yes.\n"), "--save", str(saved)]
    assert main(["grade", *prompts, *models]) == 0
    (review,) = opd.load_reviews(saved)
    assert review.text == "Yes.<|end|>", "a response is graded, no new one is sampled"
    capsys.readouterr()
    for name, content in (("s.json", '{"steps": 0}'), ("s.toml", "steps = 0")):
        assert main(["train", "--config", written(name, content)]) == 2
        assert "steps: Input should be greater" in capsys.readouterr().err
