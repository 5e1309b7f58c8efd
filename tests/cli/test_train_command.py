"""opd train: runs and their settings, resumed and prolonged, and the dry run."""

import json
import re

import pytest

import opd
from opd.cli import main
from opd.config import GROUPS, grouped_settings
from opd.runs.run import open_run

pytestmark = pytest.mark.engine


def test_train_writes_a_run_and_resume_refuses_other_settings(train, capsys):
    assert train("--name", "mine", "--seed", "3") == 0
    out = capsys.readouterr().out
    assert "Run mine finished at step 2 of 2." in out
    assert "Training took" in out
    run = open_run("mine")
    assert run.config.seed == 3
    assert [row["step"] for row in run.rows()] == [0, 1, 2]
    assert train("--name", "mine") == 2
    assert "--resume mine" in capsys.readouterr().err
    assert main(["train", "--resume", "mine", "--seed", "9"]) == 2
    assert "its own settings" in capsys.readouterr().err
    assert main(["train", "--resume", "mine", "--steps", "3"]) == 0
    assert "Run mine finished at step 3 of 3." in capsys.readouterr().out


def test_a_saved_config_reproduces_the_run(train):
    assert train("--name", "one") == 0
    config = str(open_run("one").path / "config.json")
    assert main(["train", "--config", config, "--name", "two"]) == 0

    def figures(name):
        rows = open_run(name).rows()
        return [{k: v for k, v in r.items() if "second" not in k and "memory" not in k} for r in rows]

    assert figures("one") == figures("two")


def test_train_reads_prompts_from_a_file_and_settings_from_toml(train, tmp_path, capsys):
    rows = [{"prompt": f"Say {i}.", "answer": str(i)} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nbroken\n")
    settings = [f'task = "{tmp_path / "rows.jsonl"}"', 'objective = "rl"', "samples_per_prompt = 2"]
    (tmp_path / "settings.toml").write_text("\n".join([*settings, 'verifier = "numeric"']))
    assert train("--config", str(tmp_path / "settings.toml"), "--name", "rows") == 0
    run = open_run("rows")
    assert run.config.objective == "rl"
    assert "reward" in run.rows()[1]
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    (task,) = (e["message"] for e in events if e["event"] == "task")
    assert "60 prompts" in task
    assert "line 61" in task, "the broken row is counted"
    findings = next(e for e in events if e["event"] == "examined")["findings"]
    assert {"vocabulary", "memory"} <= {f["check"] for f in findings}


def test_prompts_without_answers_train_and_report_the_kl_alone(train, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"prompt": f"Say {i}."}) for i in range(60)))
    assert train("--task", str(tmp_path / "rows.jsonl"), "--name", "plain") == 0
    rows = open_run("plain").rows()
    assert "heldout_kl" in rows[-1]
    assert "heldout_accuracy" not in rows[-1]
    assert "reward" not in rows[-1]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "No such file"),
        (b"\xff\xfe\x00", "is damaged UTF-16: save it as UTF-8"),
        (b"\x80", "is not UTF-8: save it as UTF-8"),
        (b"objective = ", "cannot be read as settings"),
        (b'objectiv = "jsd"', "there is no setting objectiv; did you mean objective?"),
        (b"top_p = 0.9", "top_p is not offered: sampling takes the model's whole distribution"),
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


def test_a_config_of_another_version_is_one_sentence(train, capsys):
    assert train("--name", "old") == 0
    (open_run("old").path / "config.json").write_text('{"setting_of_another_version": 1}')
    capsys.readouterr()
    assert main(["train", "--resume", "old"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_who_resumes_a_run_that_lives_does_not_undo_its_stop(train, capsys):
    assert train("--name", "mine") == 0
    run = open_run("mine")
    with run.hold():
        run.ask("stop")
        assert main(["train", "--resume", "mine"]) == 2
        assert run.asked() == "stop"
    assert "Another process" in capsys.readouterr().err


def test_training_tells_what_it_leaves_out_and_what_the_doctor_warns_of(train, models, tmp_path, capsys):
    rows = [json.dumps({"prompt": f"Say {i}."}) for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, "broken \x1b[31m"]))
    same = ["--student", models[1], "--teacher", models[1], "--task", str(tmp_path / "rows.jsonl")]
    assert train("--name", "told", pair=same) == 0
    out = capsys.readouterr().out
    assert "30 prompts (" in out
    assert "1 malformed rows: line 31: it is not valid JSON" in out
    assert "The teacher says exactly what the student says" in out


def test_a_dry_run_asks_the_doctor(train, models, tmp_path, capsys):
    from tiny import make_tokenizer

    same = ["--student", models[1], "--teacher", models[1]]
    assert train("--dry-run", pair=same) == 0
    out = capsys.readouterr().out
    assert "The teacher says exactly what the student says" in out
    assert "A step: 4 completions" in out
    make_tokenizer(extra=("<|tool|>",)).save_pretrained(tmp_path / "t")
    assert train("--dry-run") == 1
    out = capsys.readouterr().out
    assert "fail  vocabulary: " in out
    assert "A step" not in out


def test_a_finished_run_that_is_resumed_says_how_to_go_on(train, capsys):
    assert train("--name", "done") == 0
    capsys.readouterr()
    assert main(["train", "--resume", "done"]) == 2
    assert "The run done is finished. To go on with it, ask for more than 2 steps" in capsys.readouterr().err


def test_a_run_named_by_relative_paths_is_resumed_from_another_folder(train, tmp_path, monkeypatch, capsys):
    rows = [json.dumps({"prompt": f"Say {i}."}) for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    here = ["--student", "s", "--teacher", "./t", "--task", "rows.jsonl"]
    assert train("--name", "moved", pair=here) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", "--resume", "moved", "--steps", "3"]) == 0
    assert "has changed" not in capsys.readouterr().out
    (tmp_path / "rows.jsonl").write_text("\n".join(rows[5:]))
    assert main(["train", "--resume", "moved", "--steps", "4"]) == 0
    assert "rows.jsonl has changed since the run last read it" in capsys.readouterr().out
    assert main(["train", "--resume", "moved", "--steps", "5"]) == 0
    assert "has changed" not in capsys.readouterr().out, "it is said once"


def test_settings_of_another_encoding_are_named_with_the_way_out(tmp_path, capsys):
    (tmp_path / "s.toml").write_bytes('student = "Hä"'.encode("latin-1"))
    assert main(["train", "--config", str(tmp_path / "s.toml")]) == 2
    assert "s.toml is not UTF-8: save it as UTF-8." in capsys.readouterr().err


def test_an_unknown_preset_is_refused_with_those_there_are(capsys):
    assert main(["train", "--preset", "magic"]) == 2
    assert "There is no preset called 'magic'. Presets: quick-look" in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_starts_nothing(capsys, opd_home):
    arguments = ["--max-tokens", "24", "--prompts-per-step", "4", "--preset", "lora"]
    assert main(["train", "--dry-run", *arguments]) == 0
    out = capsys.readouterr().out
    assert out.startswith("opd train ")
    assert "--lora-rank 32" in out
    for part in ("4 completions", "s a step", "Memory: about", "Punished most", "Rewarded most"):
        assert part in out
    assert not (opd_home / "runs").exists()


def test_given_settings_win_over_the_preset(monkeypatch):
    made = []
    monkeypatch.setattr("opd.runs.worker.work", lambda run, *_: made.append(run))
    assert main(["train", "--preset", "post", "--lora-rank", "4", "--name", "x"]) == 0
    config = made[0].config
    assert (config.objective, config.lora_rank) == ("importance_sampling", 4)
    assert opd.DistillConfig().objective == "reverse_kl"


def test_the_settings_stand_in_their_groups(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    usage, *groups = re.split(rf"^({'|'.join(GROUPS)}):$", capsys.readouterr().out, flags=re.MULTILINE)
    assert "--student" not in usage
    assert groups[::2] == list(GROUPS)
    for text, names in zip(groups[1::2], grouped_settings().values(), strict=True):
        flags = re.findall(r"^  --([a-z-]+)", text, re.MULTILINE)
        assert flags == [name.replace("_", "-") for name in names if name != "lessons"]


def test_a_mistyped_flag_does_not_print_all_of_them(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--steps", "x"])
    assert len(capsys.readouterr().err.splitlines()) < 6
