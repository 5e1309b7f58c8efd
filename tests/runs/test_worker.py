"""What the process of a run does: it trains, pauses, stops, goes on, and a kill loses nothing whole."""

import json
import os
import random
import subprocess
import sys
import time
import types
from importlib.machinery import ModuleSpec

import pandas
import pytest
from running import begin, measured, train, wait_for

import opd
from opd.models.load import load_model
from opd.runs.checkpoints import read_checkpoint
from opd.runs.collection import summaries
from opd.runs.events import entries
from opd.runs.run import Run, RunExistsError, create_run, open_run
from opd.runs.worker import tracker

pytestmark = pytest.mark.engine


def frozen(run):
    """How the frozen probes were scored at each evaluation."""
    steps = run.samples.steps("frozen")
    return [(step, i, s.to_dict()) for step in steps for i, s in run.samples.frozen(step).items()]


def happened(run):
    return [e["event"] for e in run.events() if e["event"] not in ("task", "examined", "note", "alarm")]


def test_a_finished_run_holds_config_metrics_samples_and_a_loadable_student(config):
    run = train(create_run("first", config))
    assert open_run("first").config == config
    rows = run.rows()
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    wanted = {"step", "loss", "penalty", "reverse_kl", "tokens_per_second", "seconds_sample"}
    assert all(wanted | {"seconds_teacher", "seconds_update"} <= row.keys() for row in rows[1:])
    evaluated = [row["step"] for row in rows if "heldout_accuracy" in row]
    assert evaluated == [0, 2, 4]
    assert all({"teacher_accuracy", "heldout_n"} <= rows[i].keys() for i in evaluated)
    assert run.status().state == "finished"
    samples = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert {s["step"] for s in samples if s["kind"] == "rollout"} == {1, 2, 3, 4}
    probes = [s for s in samples if s["kind"] == "probe"]
    assert {s["step"] for s in probes} == {0, 2, 4}
    asked = [[p["review"]["messages"] for p in probes if p["step"] == step] for step in (0, 2, 4)]
    assert asked[0]
    assert asked[0] == asked[1] == asked[2]
    assert run.samples.steps("frozen") == [0, 2, 4]
    assert opd.Review.from_dict(samples[0]["review"]).text
    student = load_model(str(run.model_dir))
    base = load_model(config.student)
    assert any(
        (a != b).any() for a, b in zip(student.model.parameters(), base.model.parameters(), strict=True)
    )
    assert [c.name for c in run.checkpoints] == ["step-000002", "step-000004"]


def test_metrics_open_with_one_pandas_call(config):
    run = train(create_run("frame", config))
    frame = pandas.read_json(run.path / "metrics.jsonl", lines=True)
    assert frame["step"].tolist() == [0, 1, 2, 3, 4]
    assert frame["loss"].notna().sum() == 4


def test_a_run_that_ends_with_an_alarm_says_so(config):
    """Every completion of the random student runs into a limit of 4 tokens, and its teacher is a stranger."""
    run = train(create_run("alarmed", config.model_copy(update={"max_tokens": 4, "eval_prompts": 0})))
    status = run.status()
    assert (status.state, status.alarmed) == ("finished", True)
    assert "It ends with 2 alarms: overlap, clipping." in status.message
    assert summaries()[0].alarmed
    assert "Finished. It ends with 2 alarms" in entries(run.events()[-1])[0]["text"]


def test_all_that_a_run_notes_is_said_as_it_happens(config, monkeypatch):
    run, heard, inner = create_run("heard", config), [], Run.save_checkpoint

    def full(self, student, state):
        if state["next_step"] == 3:
            raise OSError("No space left on device")
        return inner(self, student, state)

    monkeypatch.setattr(Run, "save_checkpoint", full)
    train(run, say=heard.append)
    assert "problems made as needed" in heard[0]
    assert heard[1:] == run.notes()
    assert any(said.startswith("Step 2: No checkpoint was written") for said in heard)
    assert any(said.startswith("⚠ Step") for said in heard), "a length limit of 12 tokens is an alarm"


def test_metrics_go_to_a_tracker_that_is_installed(config, monkeypatch):
    calls = []
    fake = types.SimpleNamespace(
        __spec__=ModuleSpec("trackio", None),
        init=lambda **k: calls.append(k["name"]),
        log=lambda metrics, step: calls.append((step, len(metrics))),
        finish=lambda: calls.append("sent"),
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    run = train(create_run("tracked", config.model_copy(update={"report_to": "trackio"})))
    assert calls[0] == "tracked"
    assert [step for step, _ in calls[1:-1]] == [0, 1, 2, 3, 4]
    assert calls[-1] == "sent"
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match="pip install trackio"), tracker(run):
        pass


def test_a_run_that_never_began_gives_its_name_back(config, tmp_path):
    hopeless = create_run("again", config.model_copy(update={"task": "nowhere.jsonl"}))
    with pytest.raises(ValueError, match=r"nowhere\.jsonl cannot be read"):
        train(hopeless)
    assert hopeless.status().state == "failed"
    run = create_run("again", config)
    assert run.config == config
    assert not (run.path / "events.jsonl").exists()
    train(run)
    with pytest.raises(RunExistsError):
        create_run("again", config)


def test_a_pause_keeps_the_step_and_the_run_goes_on_where_it_was(config):
    run = create_run("paused", config.model_copy(update={"save_every": 100}))
    thread = begin(run, lambda report: run.ask("pause") if report.step == 2 else None)
    wait_for(lambda: run.status().state == "paused")
    assert run.status().live
    assert run.model_dir.name == "step-000002", "a pause loses nothing if the machine goes"
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.1, "waiting must cost next to nothing"
    assert run.status().step == 2
    run.ask(None)
    thread.join(60)
    assert run.status().state == "finished"
    assert happened(run) == ["loading", "started", "paused", "resumed", "finished"]
    whole = train(create_run("whole", config))
    losses = [[row.get("loss") for row in r.rows()] for r in (run, whole)]
    assert losses[0] == losses[1]


def test_a_paused_run_can_be_stopped(config):
    run = create_run("stopped", config)
    thread = begin(run, lambda report: run.ask("pause") if report.step == 1 else None)
    wait_for(lambda: run.status().state == "paused")
    run.ask("stop")
    thread.join(60)
    assert run.status().state == "stopped"
    assert run.status().step == 1


def test_a_resumed_run_equals_the_uninterrupted_one(config):
    whole, part = train(create_run("whole", config)), create_run("part", config)
    train(part, lambda report: part.ask("stop") if report.step == 3 else None)
    assert part.status().state == "stopped"
    train(part)
    assert part.status().state == "finished"
    assert measured(part) == measured(whole)
    assert frozen(part) == frozen(whole)


@pytest.mark.slow
def test_a_run_killed_twenty_times_equals_one_that_was_not(config):
    """Killed at random moments, and resumed each time."""
    config = config.model_copy(update={"steps": 40, "eval_every": 5, "save_every": 3})
    whole, run, chance = create_run("whole", config), create_run("killed", config), random.Random(0)
    # Both in processes of their own with one thread: the number of threads decides how sums are rounded.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    resume = [sys.executable, "-m", "opd", "train", "--resume"]
    done = subprocess.run([*resume, "whole"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    resume.append("killed")
    for _ in range(20):
        process = subprocess.Popen(
            resume, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        try:
            target, deadline = len(run.rows()) + chance.randrange(3), time.monotonic() + 120
            while len(run.rows()) <= target and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(chance.random() * 0.3)
            assert process.poll() in (None, 0), "it must live until it is killed"
        finally:
            process.kill()
            process.wait()
        steps = [row["step"] for row in run.rows()]
        assert steps == list(range(len(steps))), "every complete line is there"
        if run.model_dir:
            assert read_checkpoint(run.newest_checkpoint)["next_step"] == int(run.model_dir.name[-6:]) + 1
        assert not run.status().live
        if run.status().state == "finished":
            break
    else:
        done = subprocess.run(resume, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
    assert run.status().state == "finished"
    assert measured(run) == measured(whole)
    assert frozen(run) == frozen(whole)
