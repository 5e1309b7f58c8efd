"""What lies broken on disk: a run that cannot be read is named, and hides none of the others."""

import pytest
from graded import make_review

import opd
from opd.cli import main
from opd.reports import FrozenScores, Push, StepReport
from opd.runs import collection
from opd.runs.collection import config_diff, summaries
from opd.runs.export import metrics_csv
from opd.runs.queue import ahead, stand_in_line
from opd.runs.run import Race, Run, all_runs, create_run, list_runs, open_run
from opd.ui.feed import news_of
from opd.view.report import render_report

REVIEW = make_review(list("abcd"), penalty=[0, 1, -0.2, 3])


def make_run(name):
    """A run with a line of everything."""
    run = create_run(name, opd.DistillConfig(), Race("derby", tokens=9))
    collection.write_note(run, "A note.")
    run.ask("pause")
    run.log_event("examined", findings=[{"level": "warn", "check": "ends", "message": "Mind the end."}])
    column = REVIEW.grades.penalty
    run.append(
        StepReport(
            0,
            {"heldout_accuracy": 0.5, "heldout_accuracy_low": 0.4, "heldout_accuracy_high": 0.6},
            [REVIEW],
            [Push(column, column)],
            [REVIEW],
            [FrozenScores(column, column, column)],
        )
    )
    return run


FILES = ("config.json", "race.json", "note.txt", "control.json", "metrics.jsonl", "events.jsonl")


def read_samples(run):
    return [run.samples.rollouts(step) for step in run.samples.steps("rollout")]


READERS = {
    Run.status: ["config.json"],
    lambda run: run.read_from(None): [],
    lambda run: news_of(run.name, None): [],
    read_samples: ["samples.jsonl"],
    lambda run: render_report(run, collection.read_note(run)): ["config.json"],
    lambda run: config_diff(run, run): ["config.json"],
    metrics_csv: [],
    Run.notes: [],
    Run.race: ["race.json"],
    Run.asked: [],
    lambda run: run.best_step: [],
}
"""All that the faces ask of a run, with the files that forbid an answer if what they hold is broken."""


DEEP = b"[" * 600 + b"]" * 600
BROKEN = {
    "not UTF-8": b"\xff\xfe\x00",
    "null": b"null\n",
    "a list": b"[1]\n",
    "deep": DEEP + b"\n",
    "deeper": b'{"step": 1, "kind": "probe", "index": 0, "a":' + b"[" * 99_999 + b"\n",
    "other names": b'{"step": 1, "kind": "rollout", "index": 0, "event": "alarm", "time": 1}\n',
    "huge": b'{"step": 1e30, "event": "started", "time": 1e30, "name": "derby", "tokens": 1e999}\n',
    "a huge number": b'{"step": 1, "loss": 1' + b"0" * 400 + b', "kl": NaN, "event": [], "name": 3}\n',
    "half a row": b'{"step": 2, "heldout_accuracy": 1e300, "heldout_accuracy_high": 1, "tokens": -1e300}\n',
    "findings": b'{"event": "examined", "time": 1, "findings": [1, {"level": "warn"}]}\n',
    "a long number": b'{"step": ' + b"1" * 5000 + b', "kind": "probe", "index": 0}\n',
    "a folder": None,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("file", [*FILES, "samples.jsonl", "log.txt", "lock"])
def test_a_broken_file_of_a_run_hides_no_other_run(file, content, capsys):
    make_run("whole")
    run = make_run("broken")
    path = run.path / file
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    found = {summary.name: summary for summary in summaries()}
    assert found.keys() == {"whole", "broken"}
    assert found["whole"].state == "interrupted"
    assert (found["broken"].state == "broken") == bool(found["broken"].fault)
    assert main(["runs"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 2
    assert not err
    assert open_run("broken").name == "broken"
    for read, needed in READERS.items():
        try:
            read(run)
        except (ValueError, OSError):  # a sentence; anything else would be a traceback
            assert content is None or file in needed


def test_a_broken_run_is_listed_with_the_reason_found_by_it_and_deleted(capsys):
    run = make_run("odd")
    (run.path / "config.json").write_text('{"setting_of_another_version": 1}')
    (summary,) = summaries("setting_of_another_version")
    assert summary.state == "broken"
    assert "there is no setting setting_of_another_version" in summary.fault
    assert main(["runs"]) == 0
    assert "setting_of_another_version" in capsys.readouterr().out
    assert list_runs() == []
    assert main(["runs", "delete", "odd", "--yes"]) == 0
    assert all_runs() == []


def test_lines_that_are_no_records_are_passed_over():
    run = make_run("lines")
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('null\n[]\n{"step": 1, "loss": NaN, "kl": 0.5, "words": "x"}\n')
    assert [row["step"] for row in run.rows()] == [0, 1]
    assert run.rows()[1] == {"step": 1, "kl": 0.5}
    assert run.read_from(None).rows == run.rows()
    assert run.status().step == 1


def test_a_note_of_another_encoding_is_shown():
    run = make_run("noted")
    (run.path / "note.txt").write_bytes("Grüße".encode("latin-1"))
    assert collection.read_note(run) == "Gr\ufffd\ufffde"


def test_foreign_folders_among_checkpoints_and_tickets_are_passed_over(opd_home):
    run = make_run("strange")
    for name in ("step-000002", "step-old", "step-1000000", "step-"):
        (run.path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in run.checkpoints] == ["step-000002", "step-1000000"]
    assert run.saved_step == 1_000_000
    (opd_home / "devices" / "cpu").mkdir(parents=True)
    (opd_home / "devices" / "cpu" / "not-mine").touch()
    with stand_in_line("a", ["cpu"]):
        assert ahead("a") == {}
