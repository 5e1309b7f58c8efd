"""What lies broken on disk: one run or review that cannot be read is named, and hides none of the others."""

import copy
import json
from dataclasses import replace

import pytest
from graded import by_spans, make_review

import opd
from opd.cli import main
from opd.grading.saved_reviews import (
    ReviewGroup,
    ReviewSet,
    gallery,
    heading,
    load_reviews,
    save_reviews,
    store,
    store_dir,
    stored,
    to_csv,
)
from opd.runs import collection
from opd.runs.collection import baseline, config_diff, pin_baseline, summaries
from opd.runs.export import metrics_csv
from opd.runs.queue import stand_in_line
from opd.runs.run import Race, Run, all_runs, create_run, list_runs, open_run, runs_dir
from opd.traces import FrozenScores, Push
from opd.trajectory import BranchPoint, StepReport
from opd.ui.feed import news_of
from opd.view.payload import alternatives_payload, set_payload
from opd.view.report import render_report
from opd.view.terminal import render

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


def test_a_run_may_be_called_like_any_file_of_the_store():
    run = create_run("baseline.txt", opd.DistillConfig())
    pin_baseline(run)
    assert baseline() == run
    pin_baseline(None)
    assert baseline() is None


def test_a_baseline_pinned_by_an_earlier_version_stays_pinned():
    run = create_run("old", opd.DistillConfig())
    (runs_dir() / "baseline.txt").write_text("old")
    assert baseline() == run
    pin_baseline(None)
    assert baseline() is None
    (runs_dir() / ".baseline").write_bytes(b"\xff")
    assert baseline() is None


def test_what_a_deletion_or_a_start_left_halfway_is_no_run_and_is_removed_in_the_end(monkeypatch):
    left = [runs_dir() / name for name in (".gone.deleted", ".start.0123abcd.partial", ".held.deleted")]
    for path in left:
        run = create_run("gone", opd.DistillConfig())
        run.path.rename(path)
    mine = [runs_dir() / name for name in (".git", ".mine.partial", ".deleted")]
    for path in mine:
        path.mkdir()
    assert all_runs() == []
    create_run("new", opd.DistillConfig())
    assert all(path.exists() for path in left), "somebody may be at work on them"
    monkeypatch.setattr("opd.runs.run.LEFT_SECONDS", -1)
    with Run(left[-1]).hold():
        create_run("newer", opd.DistillConfig())
    assert [path.exists() for path in left] == [False, False, True]
    assert all(path.exists() for path in mine)
    collection.delete_run(open_run("new"))
    assert not left[-1].exists()


def test_a_start_that_was_killed_gives_its_name_back(monkeypatch):
    for name, left in (("empty", []), ("halfway", ["config.json.partial"])):
        (runs_dir() / name).mkdir(parents=True)
        for file in left:
            (runs_dir() / name / file).touch()
        assert create_run(name, opd.DistillConfig()).config.steps == 60
    (runs_dir() / "mine").mkdir()
    (runs_dir() / "mine" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="mine exists already and is no run"):
        create_run("mine", opd.DistillConfig())

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("opd.runs.run.write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        create_run("killed", opd.DistillConfig())
    monkeypatch.undo()
    assert not (runs_dir() / "killed").exists()


def test_a_race_that_cannot_be_entered_leaves_nothing_behind():
    from opd.runs.jobs import enter_race

    create_run("derby-sft", opd.DistillConfig())
    configs = {name: opd.DistillConfig() for name in ("full", "sft")}
    with pytest.raises(ValueError, match="a run called derby-sft already"):
        enter_race(configs, Race("derby"))
    assert [run.name for run in all_runs()] == ["derby-sft"]


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), -5, 0])
def test_a_budget_is_a_positive_number(budget, capsys):
    with pytest.raises(ValueError, match="The budget in seconds must be a positive number"):
        Race("derby", seconds=budget)
    with pytest.raises(ValueError, match="The budget in tokens must be a positive number"):
        Race("derby", tokens=budget)
    assert main(["race", "derby", "--budget-seconds", str(budget)]) == 2
    assert "must be a positive number" in capsys.readouterr().err
    assert all_runs() == []


def test_foreign_folders_among_checkpoints_and_tickets_are_passed_over(opd_home):
    run = make_run("strange")
    for name in ("step-000002", "step-old", "step-1000000", "step-"):
        (run.path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in run.checkpoints] == ["step-000002", "step-1000000"]
    assert run.saved_step == 1_000_000
    (opd_home / "devices" / "cpu").mkdir(parents=True)
    (opd_home / "devices" / "cpu" / "not-mine").touch()
    with stand_in_line("a", ["cpu"]) as place:
        assert place.ahead() == {}


# Reviews


def shown(reviews):
    """All that the faces make of a set."""
    json.dumps(set_payload("key", reviews.groups), default=str, allow_nan=False)
    for review in reviews:
        alternatives_payload(review, 0)
        render(review, color=True)
    return reviews.id, heading(reviews), to_csv(reviews), reviews.to_json()


def everything():
    """A set in which every field has a value, as JSON."""
    options = [{"token": 1, "text": "x", "by": "student", "n": 4, "right": 2, "kl": 0.1}]
    value = {"options": options, "verdict": "decides", "points": 1.0, "low": 0.0, "high": 2.0, "more": None}
    points = [{"index": 1, "n": 3, "right": 1, "low": 0.0, "high": 0.5}]
    evidence = {
        "forkValue": {"1": value | {"sentence": "s"}},
        "noReturn": {"at": 1, "points": points, "sentence": "s"},
    }
    main_line = replace(REVIEW, evidence=evidence, correct=True, seed=3)
    branch = replace(REVIEW, branch=BranchPoint(0, 1, "student"))
    groups = [ReviewGroup("a", [main_line, branch]), ReviewGroup("b", [by_spans(REVIEW, [0, 1, 1, 3])])]
    return json.loads(ReviewSet(groups, title="t", note="n").to_json())


def places(data, path=()):
    yield path
    if isinstance(data, dict):
        for key in data:
            yield from places(data[key], (*path, key))
    elif isinstance(data, list) and data:
        yield from places(data[0], (*path, 0))


LONG = "LONG"  # stands for a number of more digits than Python reads
WILD = [
    float("inf"),
    float("nan"),
    1e30,
    10**400,
    10**19,
    -1,
    None,
    "x",
    [],
    {},
    True,
    json.loads(DEEP),
    LONG,
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("wild", WILD, ids=[str(value)[:8] for value in WILD])
def test_a_file_that_holds_anything_anywhere_is_shown_or_refused_in_a_sentence(wild):
    whole = everything()
    shown(ReviewSet.from_json(json.dumps(whole)))
    further = [("reviews", 0, "evidence", "x"), ("reviews", 0, "evidence", "forkValue", "1", "x"), ("x",)]
    for *path, last in [place for place in places(whole) if place] + further:
        data = copy.deepcopy(whole)
        inner = data
        for key in path:
            inner = inner[key]
        inner[last] = wild
        try:
            opened = ReviewSet.from_json(json.dumps(data).replace(f'"{LONG}"', "1" * 5000))
        except ValueError:
            continue
        shown(opened)


def test_a_broken_review_hides_no_other_one(tmp_path, monkeypatch, capsys):
    good = store(ReviewSet.of([REVIEW]))
    data = json.loads((store_dir() / f"{good}.json").read_text())
    data["reviews"][0]["messages"] = []
    (store_dir() / "00000000000000ff.json").write_text(json.dumps(data))
    (store_dir() / "00000000000000fe.json").write_bytes(b"\x1b[31m")
    (store_dir() / "00000000000000fd.json").write_text('{"version": ' + "1" * 5000 + "}")
    assert {s.id: s.heading for s in stored()}[good] == "Which one?"
    assert main(["reviews"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{good} Which one?" in lines
    (broken,) = (line for line in lines if line.startswith("00000000000000ff"))
    assert "messages" in broken
    monkeypatch.setattr("opd.grading.saved_reviews.assets_dir", lambda: tmp_path)
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "a.json").write_text("{")
    save_reviews(tmp_path / "gallery" / "b.json", [REVIEW])
    gallery.cache_clear()
    assert list(gallery()) == [load_reviews(tmp_path / "gallery" / "b.json").id]
    gallery.cache_clear()
