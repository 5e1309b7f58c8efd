"""The runs as a collection: listed, annotated, compared, deleted, exported, published."""

import csv
import io
import json
import zipfile

import numpy as np
import pytest

import opd
from opd.cli import main
from opd.models.load import load_model
from opd.runs import history, jobs
from opd.runs.run import Race, RunBusyError, create_run, list_runs, open_run
from opd.trajectory import StepReport

pytestmark = pytest.mark.engine


@pytest.fixture
def config(folders):
    """A quick run on a tiny random pair that lies on disk."""
    return opd.DistillConfig(
        student=folders["student"],
        teacher=folders["teacher"],
        steps=3,
        warmup_steps=1,
        prompts_per_step=4,
        max_tokens=12,
        eval_prompts=4,
        eval_every=1,
        save_every=1,
        keep_checkpoints=2,
        learning_rate=1e-2,
        ignore_doctor=True,
    )


@pytest.fixture
def trained(config):
    run = create_run("trained", config)
    with run.hold():
        run.take_over()
        jobs.work(run)
    return run


def evaluated(name, accuracies, config=None):
    run = create_run(name, config or opd.DistillConfig())
    for step, accuracy in enumerate(accuracies):
        run.append(StepReport(step, {"heldout_accuracy": accuracy, "teacher_accuracy": 0.9}))
    return run


def test_runs_are_summed_up_and_found_by_words():
    evaluated("plain", [0.2, 0.7, 0.6])
    other = evaluated("other", [0.1], opd.DistillConfig(objective="sft"))
    history.write_note(other, "Tried on Monday.\nToo slow.")
    history.pin_baseline(other)
    by_name = {summary.name: summary for summary in history.summaries()}
    plain = by_name["plain"]
    assert (plain.best_accuracy, plain.teacher_accuracy, plain.step, plain.steps) == (0.7, 0.9, 2, 60)
    assert (plain.state, plain.objective, plain.baseline) == ("interrupted", "reverse_kl", False)
    assert by_name["other"].baseline
    assert by_name["other"].note == "Tried on Monday.\nToo slow."
    assert [s.name for s in history.summaries("monday SFT")] == ["other"]
    assert history.summaries("monday plain") == []


def test_a_run_without_accuracy_is_listed_too(capsys):
    create_run("fresh", opd.DistillConfig())
    (summary,) = history.summaries()
    assert summary.best_accuracy is None
    assert main(["runs"]) == 0
    assert "best -" in capsys.readouterr().out


def test_without_answers_a_run_is_listed_with_the_kl_of_its_best_step(capsys):
    run = create_run("no-answers", opd.DistillConfig())
    for step, (kl, repeated) in enumerate([(0.9, 0.0), (0.4, 0.1), (0.1, 0.95)]):  # at last it loops
        run.append(StepReport(step, {"heldout_kl": kl, "heldout_repetition": repeated}))
    (summary,) = history.summaries()
    assert (summary.best_accuracy, summary.best_kl) == (None, 0.4)
    assert main(["runs"]) == 0
    assert "best KL 0.400" in capsys.readouterr().out


def test_the_command_line_lists_runs(capsys):
    history.write_note(evaluated("one", [0.25, 0.5]), "mind \x1b[31m the gap")
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert "one  interrupted  step 1 of 60  best 50.0%" in out
    assert "\x1b" not in out
    assert main(["runs", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["best_accuracy"], row["step"]) == ("one", 0.5, 1)


def test_the_baseline_that_is_deleted_is_no_baseline():
    run = evaluated("gone", [0.1])
    history.pin_baseline(run)
    assert history.baseline() == run
    history.delete_run(run)
    assert history.baseline() is None
    history.pin_baseline(None)
    assert history.baseline() is None


def test_a_live_run_is_not_deleted(capsys, monkeypatch):
    run = evaluated("alive", [0.1])
    with run.hold(), pytest.raises(RunBusyError, match="Another process"):
        history.delete_run(open_run("alive"))
    assert run.rows()
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main(["runs", "delete", "alive"]) == 0
    assert run.path.exists(), "deleting is confirmed first"
    assert main(["runs", "delete", "alive", "--yes"]) == 0
    assert not list(run.path.parent.glob("*alive*"))
    assert list_runs() == []
    assert main(["runs", "delete", "alive", "--yes"]) == 2


def test_two_configs_are_compared(capsys):
    a = create_run("a", opd.DistillConfig())
    b = create_run("b", opd.DistillConfig(objective="jsd", seed=3))
    assert history.config_diff(a, b) == {
        "objective": ("reverse_kl", "jsd"),
        "beta": (None, 0.5),
        "seed": (0, 3),
    }
    assert history.config_diff(a, a) == {}
    assert main(["runs", "diff", "a", "b"]) == 0
    assert "seed: 0 | 3" in capsys.readouterr().out


def test_metrics_leave_as_csv(capsys):
    run = evaluated("table", [0.25])
    run.append(StepReport(1, {"loss": 0.5}))
    rows = list(csv.DictReader(io.StringIO(history.metrics_csv(run))))
    assert [row["step"] for row in rows] == ["0", "1"]
    assert (rows[0]["heldout_accuracy"], rows[0]["loss"], rows[1]["loss"]) == ("0.25", "", "0.5")
    assert main(["runs", "csv", "table"]) == 0
    assert capsys.readouterr().out == history.metrics_csv(run)


@pytest.mark.parametrize("rank", [0, 4], ids=["weights", "adapter"])
def test_a_zip_unpacks_to_a_student_that_loads(config, tmp_path, rank):
    run = create_run("zipped", config.model_copy(update={"lora_rank": rank, "steps": 1, "warmup_steps": 0}))
    with run.hold():
        run.take_over()
        jobs.work(run)
    assert main(["runs", "zip", "zipped", str(tmp_path / "out.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert not [name for name in archive.namelist() if "training" in name]
        archive.extractall(tmp_path / "unpacked")
    ours, theirs = load_model(str(run.model_dir)), load_model(str(tmp_path / "unpacked" / "zipped"))
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert (a == b).all()


def test_a_run_without_checkpoint_has_nothing_to_export(tmp_path, capsys):
    create_run("bare", opd.DistillConfig())
    assert main(["runs", "zip", "bare", str(tmp_path / "out.zip")]) == 2
    assert "no checkpoint yet" in capsys.readouterr().err
    assert not (tmp_path / "out.zip").exists()


def test_two_checkpoints_answer_the_same_prompts_and_stay(trained):
    first, last = 2, 3
    pairs = list(history.compare_checkpoints((trained, first), (trained, last), n=3, seed=5))
    assert len(pairs) == 3
    for a, b in pairs:
        assert a.messages == b.messages
        assert a.student == f"trained, step {first}"
        assert np.array_equal(a.trajectory.prompt_ids, b.trajectory.prompt_ids)
    assert all((trained.checkpoint(step) / "pinned").exists() for step in (first, last))
    (same, again), *_ = history.compare_checkpoints((trained, last), (trained, last), n=1)
    assert same.text == again.text


class FakeHub:
    """What a hub would receive."""

    calls: list

    def __init__(self, token):
        type(self).calls = [("token", token)]

    def create_repo(self, repo_id, private, exist_ok):
        self.calls.append(("repo", repo_id, private))

    def create_commit(self, repo_id, operations, commit_message):
        self.calls.append(("files", sorted(operation.path_in_repo for operation in operations)))
        return type("Commit", (), {"repo_url": f"https://hub/{repo_id}"})


def test_publishing_sends_the_student_and_keeps_the_token_nowhere(trained, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert main(["runs", "publish", "trained", "me/student"]) == 0
    assert "https://hub/me/student" in capsys.readouterr().out
    assert FakeHub.calls[:2] == [("token", "hf_secret"), ("repo", "me/student", True)]
    files = FakeHub.calls[2][1]
    assert {"model.safetensors", "tokenizer.json", "opd-config.json"} <= set(files)
    assert not [name for name in files if "training" in name]
    written = (path for path in trained.path.rglob("*") if path.is_file())
    assert not [path for path in written if b"hf_secret" in path.read_bytes()]


def test_a_hub_that_refuses_is_quoted_without_the_token(trained, monkeypatch):
    def refuse(self, repo_id, private, exist_ok):
        raise OSError("401: hf_secret is not welcome")

    monkeypatch.setattr(FakeHub, "create_repo", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    with pytest.raises(ValueError, match="did not take the run trained: 401: … is not welcome") as refused:
        history.publish(trained, "me/student", "hf_secret")
    assert "hf_secret" not in str(refused.value)


def test_a_race_trains_each_method_until_its_budget_is_spent(config, tmp_path, capsys):
    path = tmp_path / "race.json"
    path.write_text(config.model_dump_json(include={"student", "teacher", "max_tokens", "eval_prompts"}))
    arguments = ["--config", str(path), "--methods", "full", "sft", "--budget-tokens", "60"]
    assert main(["race", "sprint", *arguments, "--prompts-per-step", "4", "--steps", "50"]) == 0
    for method in ("full", "sft"):
        run = open_run(f"sprint-{method}")
        assert run.race() == Race("sprint", tokens=60)
        tokens = [row.get("tokens", 0) for row in run.rows()]
        assert sum(tokens) >= 60 > sum(tokens[:-1])
        assert run.status().state == "finished"
        assert "budget" in run.status().message
    assert open_run("sprint-sft").config.objective == "sft"
    assert [s.name for s in history.summaries("sprint sft")] == ["sprint-sft"]
    assert Race("r", seconds=3.0).is_over([{"seconds_sample": 2.0, "seconds_update": 1.0}])
    assert not Race("r").is_over([{"tokens": 10**9}])


def test_a_run_that_is_deleted_while_runs_are_listed_hides_no_other(monkeypatch):
    evaluated("stays", [0.1])
    gone = evaluated("gone", [0.1])
    monkeypatch.setattr(history, "all_runs", lambda: [gone, open_run("stays")])
    history.delete_run(gone)
    assert [summary.name for summary in history.summaries()] == ["stays"]
