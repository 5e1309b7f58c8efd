"""The runs as a collection: listed, annotated, compared, deleted."""

import json

import pytest
from running import evaluated

import opd
from opd.cli import main
from opd.reports import StepReport
from opd.runs import collection
from opd.runs.run import RunBusyError, create_run, list_runs, open_run, runs_dir


def test_runs_are_summed_up_and_found_by_words():
    evaluated("plain", [0.2, 0.7, 0.6])
    other = evaluated("other", [0.1], opd.DistillConfig(objective="sft"))
    collection.write_note(other, "Tried on Monday.\nToo slow.")
    collection.pin_baseline(other)
    by_name = {summary.name: summary for summary in collection.summaries()}
    plain = by_name["plain"]
    assert (plain.best_accuracy, plain.teacher_accuracy, plain.step, plain.steps) == (0.7, 0.9, 2, 60)
    assert (plain.state, plain.objective, plain.baseline) == ("interrupted", "reverse_kl", False)
    assert by_name["other"].baseline
    assert by_name["other"].note == "Tried on Monday.\nToo slow."
    assert [s.name for s in collection.summaries("monday SFT")] == ["other"]
    assert collection.summaries("monday plain") == []


def test_a_run_without_accuracy_is_listed_too(capsys):
    create_run("fresh", opd.DistillConfig())
    (summary,) = collection.summaries()
    assert summary.best_accuracy is None
    assert main(["runs"]) == 0
    assert "best -" in capsys.readouterr().out


def test_without_answers_a_run_is_listed_with_the_kl_of_its_best_step(capsys):
    run = create_run("no-answers", opd.DistillConfig())
    for step, (kl, repeated) in enumerate([(0.9, 0.0), (0.4, 0.1), (0.1, 0.95)]):  # at last it loops
        run.append(StepReport(step, {"heldout_kl": kl, "heldout_repetition": repeated}))
    (summary,) = collection.summaries()
    assert (summary.best_accuracy, summary.best_kl) == (None, 0.4)
    assert main(["runs"]) == 0
    assert "best KL 0.400" in capsys.readouterr().out


def test_the_command_line_lists_runs(capsys):
    collection.write_note(evaluated("one", [0.25, 0.5]), "mind \x1b[31m the gap")
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert "one  interrupted  step 1 of 60  best 50.0%" in out
    assert "\x1b" not in out
    assert main(["runs", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["best_accuracy"], row["step"]) == ("one", 0.5, 1)


def test_the_baseline_that_is_deleted_is_no_baseline():
    run = evaluated("gone", [0.1])
    collection.pin_baseline(run)
    assert collection.baseline() == run
    collection.delete_run(run)
    assert collection.baseline() is None
    collection.pin_baseline(None)
    assert collection.baseline() is None


def test_a_live_run_is_not_deleted(capsys, monkeypatch):
    run = evaluated("alive", [0.1])
    with run.hold(), pytest.raises(RunBusyError, match="Another process"):
        collection.delete_run(open_run("alive"))
    assert run.rows()
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main(["runs", "delete", "alive"]) == 0
    assert run.path.exists(), "deleting is confirmed first"
    assert main(["runs", "delete", "alive", "--yes"]) == 0
    assert not list(run.path.parent.glob("*alive*"))
    assert list_runs() == []
    assert main(["runs", "delete", "alive", "--yes"]) == 2


def test_a_run_that_is_deleted_while_runs_are_listed_hides_no_other(monkeypatch):
    evaluated("stays", [0.1])
    gone = evaluated("gone", [0.1])
    monkeypatch.setattr(collection, "all_runs", lambda: [gone, open_run("stays")])
    collection.delete_run(gone)
    assert [summary.name for summary in collection.summaries()] == ["stays"]


def test_two_configs_are_compared(capsys):
    a = create_run("a", opd.DistillConfig())
    b = create_run("b", opd.DistillConfig(objective="jsd", seed=3))
    assert collection.config_diff(a, b) == {
        "objective": ("reverse_kl", "jsd"),
        "beta": (None, 0.5),
        "seed": (0, 3),
    }
    assert collection.config_diff(a, a) == {}
    assert main(["runs", "diff", "a", "b"]) == 0
    assert "seed: 0 | 3" in capsys.readouterr().out


def test_a_run_may_be_called_like_any_file_of_the_store():
    run = create_run("baseline.txt", opd.DistillConfig())
    collection.pin_baseline(run)
    assert collection.baseline() == run
    collection.pin_baseline(None)
    assert collection.baseline() is None


def test_a_baseline_pinned_by_an_earlier_version_stays_pinned():
    run = create_run("old", opd.DistillConfig())
    (runs_dir() / "baseline.txt").write_text("old")
    assert collection.baseline() == run
    collection.pin_baseline(None)
    assert collection.baseline() is None
    (runs_dir() / ".baseline").write_bytes(b"\xff")
    assert collection.baseline() is None
