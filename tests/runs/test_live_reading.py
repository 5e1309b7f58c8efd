"""Reading a run while it is written: only what is new, whole lines, and cheap."""

import json
import shutil
import threading
import time

import numpy as np
import pytest
from graded import make_review

import opd
from opd.runs.run import create_run
from opd.traces import FrozenScores, Push
from opd.trajectory import StepReport


@pytest.fixture
def run():
    return create_run("live", opd.DistillConfig(steps=2000))


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


def test_a_line_that_is_being_written_waits_and_a_torn_one_is_passed_over(run):
    run.append(report(0))
    cursor = run.read_from().cursor
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 1, "lo')
        file.flush()
        assert run.read_from(cursor).rows == []
        file.write(b'ss": 3.0}\n{"step": 2, "l')
    news = run.read_from(cursor)
    assert news.rows == [{"step": 1, "loss": 3.0}]
    run.append(report(2))
    assert [row["step"] for row in run.read_from(news.cursor).rows] == [2]


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


def test_the_last_state_is_found_behind_any_number_of_notes(run):
    run.log_event("finished", step=3)
    for step in range(400):
        run.log_event("note", step=step, message="x" * 200)
    assert run.status().state == "finished"


def kept(step, seed=0, **groups):
    """A report that keeps one rollout, with what was meant and done to its three tokens."""
    columns = np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)
    made = make_review(["a", "b", str(step)])
    return StepReport(step, {"loss": 1.0}, samples=[made, made], pushes=[Push(*columns)] * 2, **groups)


def test_kept_rollouts_probes_and_frozen_probes_are_read_by_step(run):
    scores = FrozenScores(*np.float32([[0.5, -1, 2], [0.25, 0, 1e-7], [-0.1, -1.23456789, -9]]))
    run.append(StepReport(0, {}, probes=[make_review(["p"]), make_review(["q"])], frozen=[scores]))
    for step in range(1, 6):
        run.append(kept(step, seed=step))
    assert run.saved_steps() == [1, 2, 3, 4, 5]
    assert run.saved_steps("probe") == run.saved_steps("frozen") == [0]
    samples = run.samples(4)
    assert [(s.step, s.index, s.review.text) for s in samples] == [(4, 0, "ab4"), (4, 1, "ab4")]
    np.testing.assert_allclose(samples[0].push.advantage, kept(4, seed=4).pushes[0].advantage, rtol=1e-3)
    assert [review.text for review in run.probes(0)] == ["p", "q"]
    (frozen,) = run.frozen()
    assert (frozen.step, frozen.index) == (0, 0)
    np.testing.assert_allclose(frozen.scores.logprobs, scores.logprobs, rtol=1e-3)
    assert run.frozen(since=0) == []
    assert run.samples(77) == run.probes(3) == []


def test_a_step_that_was_made_again_shows_its_newest_rollouts(run):
    run.append(kept(1, seed=1))
    assert len(run.samples(1)) == 2
    with (run.path / "samples.jsonl").open("ab") as file:
        file.write(b'{"step": 1, "kind": "rollout", "index": 1, "rev')
    run.append(kept(1, seed=2))
    samples = run.samples(1)
    assert len(samples) == 2
    np.testing.assert_allclose(samples[1].push.change, kept(1, seed=2).pushes[0].change, rtol=1e-3)


def test_a_step_of_a_large_file_is_found_without_parsing_the_others(run, monkeypatch):
    for step in range(1, 40):
        run.append(kept(step))
    run.saved_steps()
    parsed, loads = [], json.loads
    monkeypatch.setattr("json.loads", lambda text: parsed.append(1) or loads(text))
    assert len(run.samples(20)) == 2
    assert len(parsed) == 2


def test_the_file_of_rollouts_is_bounded_and_says_so_once(run, monkeypatch):
    size = len(json.dumps(make_review(["a", "b", "1"]).to_dict())) + 200
    monkeypatch.setattr("opd.runs.run.SAMPLES_LIMIT", 40 * size)
    for step in range(1, 2001, 20):
        run.append(kept(step))
    run.append(StepReport(2000, {}, probes=[make_review(["p"])]))
    assert (run.path / "samples.jsonl").stat().st_size < 30 * size
    steps = run.saved_steps()
    assert 5 < len(steps) < 20
    assert steps[0] == 1
    assert steps[-1] > 1500, "rollouts are kept all along a run, not only at its start"
    assert run.saved_steps("probe") == [2000], "probes find room when rollouts no longer do"
    assert len(run.notes()) == 1
    assert "MiB of graded trajectories" in run.notes()[0]
