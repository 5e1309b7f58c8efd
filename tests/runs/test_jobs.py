"""Runs that are started, resumed, prolonged and raced, in processes of their own."""

import fcntl
import os
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from running import train, wait_for

import opd
from opd.cli import main
from opd.reports import StepReport
from opd.runs import jobs, queue
from opd.runs.collection import summaries
from opd.runs.run import Race, create_run, list_runs, open_run

pytestmark = pytest.mark.engine


def test_a_job_runs_in_its_own_process_and_stops_within_a_step(config):
    ballast = np.ones(2**30, np.uint8)
    del ballast
    ours = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = jobs.start(config.model_copy(update={"steps": 1000}), "job")
    assert run.status().state == "running", "a started job must never look dead"
    wait_for(lambda: run.status().step >= 2, run)
    at = run.status().step
    run.ask("stop")
    wait_for(lambda: not run.status().live, run)
    status = run.status()
    assert status.state == "stopped"
    assert at <= status.step < 1000
    assert run.rows()[-1]["memory_peak_bytes"] < ours - 2**28, "the peak is its own, not its parent's"
    assert run.model_dir.name == f"step-{status.step:06d}"


def test_a_job_that_cannot_load_says_why(config, tmp_path):
    student = shutil.copytree(config.student, tmp_path / "torn")
    weights = student / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    run = jobs.start(config.model_copy(update={"student": str(student)}), "hopeless")
    wait_for(lambda: not run.status().live, run)
    assert run.status().state == "failed"
    assert "torn cannot be loaded" in run.status().message


@pytest.mark.slow
def test_a_job_that_was_killed_says_so_and_resumes_from_its_checkpoint(config, monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(
        "subprocess.Popen", lambda *args, **kwargs: started.append(popen(*args, **kwargs)) or started[-1]
    )
    run = jobs.start(config.model_copy(update={"steps": 1000, "save_every": 1}), "killed")
    wait_for(lambda: run.status().step >= 2)
    with (run.path / "log.txt").open("a") as log:
        log.write("The last words.\n")
    started[0].kill()
    wait_for(lambda: not run.status().live)
    status = run.status()
    assert status.state == "interrupted"
    assert "The last words." in status.message
    at = status.step
    jobs.resume(run)
    assert run.status().state == "running"
    wait_for(lambda: run.status().step > at)
    run.ask("stop")
    wait_for(lambda: not run.status().live)
    assert run.status().state == "stopped"


def test_a_device_that_is_not_there_is_said_before_anything_is_made(config):
    bad = config.model_copy(update={"device": "cuda:77"})
    with pytest.raises(ValueError, match="cuda:77"):
        jobs.start(bad, "nowhere")
    with pytest.raises(ValueError, match="cuda:77"):
        jobs.start_race({"full": config, "sft": bad}, Race("derby"))
    assert list_runs() == []


def test_runs_stand_in_line_in_the_order_in_which_they_were_started(config, monkeypatch):
    kept, started = [], []

    def slow_to_begin(command, *, pass_fds, **kwargs):
        kept.extend(map(os.dup, pass_fds))  # a child holds what it inherits
        started.append(command)

    monkeypatch.setattr("subprocess.Popen", slow_to_begin)
    race = Race("derby")
    names = [run.name for run in jobs.start_race(dict.fromkeys(["full", "sft", "lora"], config), race)]
    names.append(jobs.start(config, "later").name)
    assert queue.queue("cpu") == names
    assert queue.ahead("derby-sft") == {"cpu": ["derby-full"]}
    (ticket,) = (word.partition("=")[2] for word in started[0] if "=" in word)
    assert Path(ticket).name == "000001-derby-full"
    for descriptor in kept:
        os.close(descriptor)


def test_resume_refuses_what_is_finished_or_held(config):
    run = create_run("done", config)
    run.log_event("finished", step=4)
    with pytest.raises(ValueError, match="is finished"):
        jobs.resume(run)
    busy = create_run("busy", config)
    busy.ask("stop")
    descriptor = os.open(busy.path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="Another process"):
        jobs.resume(busy)
    assert busy.asked() == "stop", "what is asked of the process that holds it stays asked"
    os.close(descriptor)


def test_who_prolongs_a_run_asks_for_more_than_it_makes(config):
    run = create_run("enough", config)
    with pytest.raises(ValueError, match="makes 4 steps already"):
        jobs.resume(run, 4)
    run = create_run("raced", config, Race("derby", tokens=10))
    run.append(StepReport(1, {"tokens": 12}))
    with pytest.raises(ValueError, match="spent the budget of its race derby"):
        jobs.resume(run, 8)
    assert run.config.steps == 4


def test_a_finished_run_goes_on_as_the_library_does_with_more_steps(config):
    run = train(create_run("short", config))
    born = run.born
    with run.hold():
        jobs.prolong(run, 8)
    train(run)
    assert run.born == born, "it was not started anew"
    assert (run.config.steps, run.status().state, run.status().step) == (8, "finished", 8)

    short = opd.distill(config)
    reports = list(short)
    longer = opd.distill(config.model_copy(update={"steps": 8}))
    reports += list(longer.load_state_dict(short.state_dict()))
    for name in ("loss", "heldout_accuracy", "learning_rate", "tokens"):
        assert [row.get(name) for row in run.rows()] == [report.row().get(name) for report in reports]
    for report in reports[1:]:
        kept = [sample.review for sample in run.samples.rollouts(report.step)]
        ours, theirs = (
            [review.trajectory.completion_ids.tolist() for review in reviews]
            for reviews in (kept, report.samples)
        )
        assert ours == theirs

    rates = [row["learning_rate"] for row in run.rows()[1:]]
    assert rates[3] < rates[4] > rates[5], "of the new total from here on"
    (note,) = [event["message"] for event in run.events() if event["event"] == "note"]
    assert "from 4 to 8 steps" in note
    assert f"{rates[4]:.3g} next, after {rates[3]:.3g}" in note


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
    assert [s.name for s in summaries("sprint sft")] == ["sprint-sft"]
    assert Race("r", seconds=3.0).is_over([{"seconds_sample": 2.0, "seconds_update": 1.0}])
    assert not Race("r").is_over([{"tokens": 10**9}])


def test_a_race_that_cannot_be_entered_leaves_nothing_behind():
    create_run("derby-sft", opd.DistillConfig())
    configs = {name: opd.DistillConfig() for name in ("full", "sft")}
    with pytest.raises(ValueError, match="a run called derby-sft already"):
        jobs.enter_race(configs, Race("derby"))
    assert [run.name for run in list_runs()] == ["derby-sft"]


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), -5, 0])
def test_a_budget_is_a_positive_number(budget, capsys):
    with pytest.raises(ValueError, match="The budget in seconds must be a positive number"):
        Race("derby", seconds=budget)
    with pytest.raises(ValueError, match="The budget in tokens must be a positive number"):
        Race("derby", tokens=budget)
    assert main(["race", "derby", "--budget-seconds", str(budget)]) == 2
    assert "must be a positive number" in capsys.readouterr().err
    assert list_runs() == []
