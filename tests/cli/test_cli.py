"""The command line as a person uses it: exit codes, one clear sentence, files that open."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import opd
from opd.cli import main
from opd.runs.run import open_run

pytestmark = pytest.mark.engine


@pytest.fixture
def models(folders, tmp_path):
    """Copies, which a test may change."""
    student, teacher = (shutil.copytree(folders[name], tmp_path / name[0]) for name in ("student", "teacher"))
    return ["--student", str(student), "--teacher", str(teacher)]


def train_arguments(models, *more):
    quick = ["--steps", "2", "--warmup-steps", "1", "--prompts-per-step", "4", "--max-tokens", "12"]
    return ["train", *models, *quick, "--eval-prompts", "4", *more]


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


def test_train_writes_a_run_and_resume_refuses_other_settings(models, capsys):
    assert main(train_arguments(models, "--name", "mine", "--seed", "3")) == 0
    out = capsys.readouterr().out
    assert "Run mine finished at step 2 of 2." in out
    assert "Training took" in out
    run = open_run("mine")
    assert run.config.seed == 3
    assert [row["step"] for row in run.rows()] == [0, 1, 2]
    assert main(train_arguments(models, "--name", "mine")) == 2
    assert "--resume mine" in capsys.readouterr().err
    assert main(["train", "--resume", "mine", "--seed", "9"]) == 2
    assert "its own settings" in capsys.readouterr().err
    assert main(["train", "--resume", "mine", "--steps", "3"]) == 0
    assert "Run mine finished at step 3 of 3." in capsys.readouterr().out


def test_a_saved_config_reproduces_the_run(models):
    assert main(train_arguments(models, "--name", "one")) == 0
    config = str(open_run("one").path / "config.json")
    assert main(["train", "--config", config, "--name", "two"]) == 0

    def figures(name):
        rows = open_run(name).rows()
        return [{k: v for k, v in r.items() if "second" not in k and "memory" not in k} for r in rows]

    assert figures("one") == figures("two")


def test_eval_prints_sample_size_and_interval(models, capsys):
    assert main(["eval", models[1], "-n", "5", "--max-tokens", "8", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == 5
    assert result["low"] <= result["accuracy"] <= result["high"]


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


def test_doctor_prints_every_finding_and_fails_on_a_bad_pair(models, tmp_path, capsys):
    assert main(["doctor", *models, "--max-tokens", "16"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("pass  vocabulary: ")
    assert "self" in out
    from tiny import make_tokenizer

    make_tokenizer(extra=("<|tool|>",)).save_pretrained(tmp_path / "t")
    assert main(["doctor", *models]) == 1
    assert capsys.readouterr().out.startswith("fail  vocabulary: ")


def test_train_reads_prompts_from_a_file_and_settings_from_toml(models, tmp_path, capsys):
    rows = [{"prompt": f"Say {i}.", "answer": str(i)} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nbroken\n")
    settings = [f'task = "{tmp_path / "rows.jsonl"}"', 'objective = "rl"', "samples_per_prompt = 2"]
    (tmp_path / "settings.toml").write_text("\n".join([*settings, 'verifier = "numeric"']))
    assert main(train_arguments(models, "--config", str(tmp_path / "settings.toml"), "--name", "rows")) == 0
    run = open_run("rows")
    assert run.config.objective == "rl"
    assert "reward" in run.rows()[1]
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    (task,) = (e["message"] for e in events if e["event"] == "task")
    assert "60 prompts" in task
    assert "line 61" in task, "the broken row is counted"
    findings = next(e for e in events if e["event"] == "examined")["findings"]
    assert {"vocabulary", "memory"} <= {f["check"] for f in findings}


def test_prompts_without_answers_train_and_report_the_kl_alone(models, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"prompt": f"Say {i}."}) for i in range(60)))
    assert main(train_arguments(models, "--task", str(tmp_path / "rows.jsonl"), "--name", "plain")) == 0
    rows = open_run("plain").rows()
    assert "heldout_kl" in rows[-1]
    assert "heldout_accuracy" not in rows[-1]
    assert "reward" not in rows[-1]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "No such file"),
        (b"\xff\xfe\x00", "is UTF-16: save it as UTF-8"),
        (b"\x80", "is not UTF-8: save it as UTF-8"),
        (b"objective = ", "cannot be read as settings"),
        (b'objectiv = "jsd"', "there is no setting objectiv; did you mean objective?"),
        (b"max_grad_norm = inf", "max_grad_norm: Input should be a finite number"),
    ],
)
def test_a_settings_file_that_cannot_be_used_is_one_sentence(tmp_path, capsys, content, sentence):
    if content is not None:
        (tmp_path / "s.toml").write_bytes(content)
    assert main(["train", "--config", str(tmp_path / "s.toml")]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_config_of_another_version_is_one_sentence(models, capsys):
    assert main(train_arguments(models, "--name", "old")) == 0
    (open_run("old").path / "config.json").write_text('{"setting_of_another_version": 1}')
    capsys.readouterr()
    assert main(["train", "--resume", "old"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_who_resumes_a_run_that_lives_does_not_undo_its_stop(models, capsys):
    assert main(train_arguments(models, "--name", "mine")) == 0
    run = open_run("mine")
    with run.hold():
        run.ask("stop")
        assert main(["train", "--resume", "mine"]) == 2
        assert run.asked() == "stop"
    assert "Another process" in capsys.readouterr().err


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


def test_eval_is_greedy_at_temperature_0_and_knows_no_setting_of_training(models, capsys):
    greedy = ["eval", models[1], "-n", "3", "--max-tokens", "8", "--json", "--temperature", "0"]
    assert main(greedy) == 0
    first = capsys.readouterr().out
    assert main([*greedy, "--seed", "5"]) == 0
    assert capsys.readouterr().out == first
    assert main(["eval", models[1], "-n", "3", "--temperature", "-1"]) == 2
    assert "temperature" in capsys.readouterr().err


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


def test_training_tells_what_it_leaves_out_and_what_the_doctor_warns_of(models, tmp_path, capsys):
    rows = [json.dumps({"prompt": f"Say {i}."}) for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, "broken \x1b[31m"]))
    same = ["--student", models[1], "--teacher", models[1], "--task", str(tmp_path / "rows.jsonl")]
    assert main(train_arguments(same, "--name", "told")) == 0
    out = capsys.readouterr().out
    assert "30 prompts (" in out
    assert "1 malformed rows: line 31: it is not valid JSON" in out
    assert "The teacher says exactly what the student says" in out


def test_a_dry_run_asks_the_doctor(models, tmp_path, capsys):
    from tiny import make_tokenizer

    same = ["--student", models[1], "--teacher", models[1]]
    assert main(train_arguments(same, "--dry-run")) == 0
    out = capsys.readouterr().out
    assert "The teacher says exactly what the student says" in out
    assert "A step: 4 completions" in out
    make_tokenizer(extra=("<|tool|>",)).save_pretrained(tmp_path / "t")
    assert main(train_arguments(models, "--dry-run")) == 1
    out = capsys.readouterr().out
    assert "fail  vocabulary: " in out
    assert "A step" not in out


def test_a_finished_run_that_is_resumed_says_how_to_go_on(models, capsys):
    assert main(train_arguments(models, "--name", "done")) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "done"]) == 2
    assert "The run done is finished. To go on with it, ask for more than 2 steps" in capsys.readouterr().err


def test_a_run_named_by_relative_paths_is_resumed_from_another_folder(models, tmp_path, monkeypatch, capsys):
    rows = [json.dumps({"prompt": f"Say {i}."}) for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    here = ["--student", "s", "--teacher", "./t", "--task", "rows.jsonl"]
    assert main(train_arguments(here, "--name", "moved")) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", "--resume", "moved", "--steps", "3"]) == 0
    assert "has changed" not in capsys.readouterr().out
    (tmp_path / "rows.jsonl").write_text("\n".join(rows[5:]))
    assert main(["train", "--resume", "moved", "--steps", "4"]) == 0
    assert "rows.jsonl has changed since the run last read it" in capsys.readouterr().out
    assert main(["train", "--resume", "moved", "--steps", "5"]) == 0
    assert "has changed" not in capsys.readouterr().out, "it is said once"


@pytest.mark.parametrize("port", ["70000", "-1", "0"])
def test_a_port_that_is_none_is_one_sentence(port, capsys, monkeypatch):
    assert main(["app", "--port", port]) == 2
    assert capsys.readouterr().err == f"opd: The port must be a number from 1 to 65535, not {port}.\n"
    monkeypatch.setenv("GRADIO_SERVER_PORT", "abc")
    assert main(["app"]) == 2


def test_what_a_file_says_cannot_act_on_the_terminal(tmp_path, capsys):
    hostile = "\x1b]0;title\x07\u202e"
    (tmp_path / "s.json").write_text(json.dumps({f"steps{hostile}": 1}))
    assert main(["train", "--config", str(tmp_path / "s.json")]) == 2
    (tmp_path / "r.jsonl").write_text(json.dumps({hostile: "x"}))
    assert main(["train", "--task", str(tmp_path / "r.jsonl")]) == 2
    errors = capsys.readouterr().err
    assert "␛]0;title␇⟨U+202E⟩" in errors
    assert not {"\x1b", "\x07", "\u202e"} & set(errors)


def test_make_pair_leaves_a_pair_that_is_there_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.delattr("multiprocessing.get_context")  # nothing may begin to train
    mine = tmp_path / "out" / "student" / "model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert main(["make-pair", "--out", str(tmp_path / "out")]) == 2
    assert "student exists already" in capsys.readouterr().err
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "student-1.pt").touch()  # of another seed
    assert main(["make-pair", "--out", str(tmp_path / "out")]) == 2
    assert mine.exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["train", "--config"],
        ["grade", "--chat"],
        ["grade", "--prompt", "x", "--text"],
        ["eval", "demo-student", "--task"],
    ],
)
def test_a_file_that_windows_wrote_is_named_with_the_way_out(flags, tmp_path, capsys):
    file = tmp_path / "mine.csv"
    for encoding in ("utf-16-le", "utf-16-be"):
        file.write_bytes("\ufeffuser: Hä?".encode(encoding))
        assert main([*flags, str(file)]) == 2
        assert capsys.readouterr().err == f"opd: {file} is UTF-16: save it as UTF-8.\n"


def test_settings_of_another_encoding_are_named_with_the_way_out(tmp_path, capsys):
    (tmp_path / "s.toml").write_bytes('student = "Hä"'.encode("latin-1"))
    assert main(["train", "--config", str(tmp_path / "s.toml")]) == 2
    assert "s.toml is not UTF-8: save it as UTF-8." in capsys.readouterr().err


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
    said = " ".join(capsys.readouterr().out.split())
    before, _, behind = said.partition(".parquet")
    assert "opd-studio[data]" in before[-60:] + behind[:60]
