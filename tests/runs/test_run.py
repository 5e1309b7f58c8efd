"""The run directory: named, created, held by one process, read by many; what it says of itself."""

import json
import os
import shutil
import threading
import time

import pytest

import opd
from opd.reports import StepReport
from opd.runs.collection import delete_run
from opd.runs.run import (
    Run,
    RunBusyError,
    RunExistsError,
    all_runs,
    create_run,
    list_runs,
    open_run,
    runs_dir,
)


def test_a_name_that_exists_is_refused_and_names_resume(config):
    create_run("same", config)
    with pytest.raises(RunExistsError, match="--resume same"):
        create_run("same", config)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 101, "sp ace"])
def test_a_name_that_is_no_file_name_is_refused(config, name):
    with pytest.raises(ValueError, match="is no name for a run"):
        create_run(name, config)
    with pytest.raises(ValueError, match="There is no run called"):
        open_run(name)


def test_a_folder_that_cannot_be_made_names_the_way_out(config, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot be made: Not a directory\. Set OPD_HOME"):
        create_run("nowhere", config)


def test_runs_are_listed_newest_first(config):
    for i, name in enumerate(["a", "b", "c"]):
        path = create_run(name, config).path / "config.json"
        os.utime(path, (i, i))
    assert [run.name for run in list_runs()] == ["c", "b", "a"]
    (runs_dir() / "b" / "config.json").write_text('{"setting_of_another_version": 1}')
    assert [run.name for run in list_runs()] == ["c", "a"], "one strange run must not hide the others"


def test_who_holds_the_lock_lives(config):
    run = create_run("locked", config)
    assert run.status().state == "interrupted"
    with run.hold():
        assert run.status().state == "running"
        with pytest.raises(RunBusyError, match="Another process"), open_run("locked").hold():
            pass
        run.ask("stop")
        assert run.status().state == "stopping"
    assert not run.status().live


def test_what_was_asked_shows_until_it_is_done(config):
    run = create_run("asked", config)
    with run.hold():
        run.take_over()
        run.log_event("started", step=0)
        run.ask("pause")
        assert run.status().state == "pausing"
        run.log_event("paused", step=1)
        assert run.status().state == "paused"
        run.ask("keep_best")
        assert run.status().state == "stopping"
    with run.hold():
        run.take_over()
        assert run.status().state == "running", "what was asked of a dead process is forgotten"


def test_the_last_state_is_found_behind_any_number_of_notes(run):
    run.log_event("finished", step=3)
    for step in range(400):
        run.log_event("note", step=step, message="x" * 200)
    assert run.status().state == "finished"


def report(step, **metrics):
    return StepReport(step, {"loss": 1.0, **metrics})


def test_only_what_is_new_is_read(run):
    news = run.read_from()
    assert (news.rows, news.events, news.restart) == ([], [], True)
    run.append(report(0))
    run.log_event("started", step=0)
    news = run.read_from(news.cursor)
    assert [row["step"] for row in news.rows] == [0]
    assert [event["event"] for event in news.events] == ["started"]
    assert not news.restart
    again = run.read_from(news.cursor)
    assert (again.rows, again.events, again.cursor) == ([], [], news.cursor)


def test_a_reader_learns_that_a_resumed_run_makes_steps_again(run):
    for step in range(4):
        run.append(report(step))
    news = run.read_from()
    run.append(report(2, redone=1))
    fresh = run.read_from(news.cursor)
    assert fresh.rows == [{"step": 2, "loss": 1.0, "redone": 1}]
    assert not fresh.restart
    known = {row["step"]: row for row in (*news.rows, *fresh.rows)}
    assert [known[step] for step in sorted(known)] == run.rows()
    assert run.status().step == 2


@pytest.mark.parametrize("cursor", ["", "x", "1-2-3", "-1--5", "9" * 50, None])
def test_a_cursor_that_is_none_of_this_run_starts_over(run, cursor):
    run.append(report(0))
    news = run.read_from(cursor)
    assert news.restart
    assert len(news.rows) == 1


def test_another_run_of_the_same_name_starts_over(run):
    for step in range(5):
        run.append(report(step))
    cursor = run.read_from().cursor
    shutil.rmtree(run.path)
    create_run("live", opd.DistillConfig(steps=7)).append(report(0))
    news = run.read_from(cursor)
    assert news.restart
    assert len(news.rows) == 1
    assert run.status().steps == 7


def test_viewers_of_a_run_that_is_being_written_all_see_every_row_once(run):
    stop = threading.Event()

    def write():
        for step in range(300):
            run.append(report(step))
        stop.set()

    seen = [[] for _ in range(4)]

    def view(mine):
        cursor = None
        while True:
            last = stop.is_set()
            news = run.read_from(cursor)
            cursor = news.cursor
            mine += [row["step"] for row in news.rows]
            if last:
                return

    threads = [threading.Thread(target=write), *(threading.Thread(target=view, args=(s,)) for s in seen)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(steps == list(range(300)) for steps in seen)


def test_a_look_at_a_long_run_costs_far_less_than_one_per_cent_of_a_core_at_1_hz(run):
    row = {f"metric_{i}": i / 7 for i in range(30)}
    lines = [json.dumps({"step": step, **row}) for step in range(2000)]
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run.log_event("started", step=0)
    with run.hold():
        cursor, polls = run.read_from().cursor, 100
        before = time.process_time()
        for _ in range(polls):
            run.read_from(cursor)
            assert run.status().state == "running"
        spent = (time.process_time() - before) / polls
    assert spent < 0.002, f"{1000 * spent:.2f} ms a look"


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
    delete_run(open_run("new"))
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
