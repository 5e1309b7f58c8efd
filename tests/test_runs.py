"""The run directory and the jobs that write it: nothing whole is lost, nothing half appears."""

import json
import os
import subprocess
import sys
import time

import pytest
from conftest import make_model

import opd
from opd import jobs, runs
from opd.models import load_model
from opd.runs import RunBusyError, RunExistsError, create_run, list_runs, open_run
from opd.trajectory import StepReport


@pytest.fixture
def config(tmp_path):
    """A quick run on a tiny random pair that lies on disk."""
    for seed, name in enumerate(("student", "teacher")):
        model = make_model(seed)
        model.model.save_pretrained(tmp_path / name)
        model.tokenizer.save_pretrained(tmp_path / name)
    return opd.DistillConfig(
        student=str(tmp_path / "student"),
        teacher=str(tmp_path / "teacher"),
        steps=4,
        warmup_steps=1,
        prompts_per_step=4,
        max_tokens=16,
        eval_prompts=8,
        eval_every=2,
        save_every=2,
        learning_rate=1e-2,
    )


def measured(run):
    return [{k: v for k, v in row.items() if "second" not in k} for row in run.rows()]


def test_a_finished_run_holds_config_metrics_samples_and_a_loadable_student(config):
    run = create_run("first", config)
    with run.hold():
        jobs.work(run)
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
    assert {s["step"] for s in samples} == {1, 2, 3, 4}
    assert opd.Review.from_dict(samples[0]["review"]).text
    student = load_model(str(run.model_dir))
    base = load_model(config.student)
    assert any(
        (a != b).any() for a, b in zip(student.model.parameters(), base.model.parameters(), strict=True)
    )
    assert [c.name for c in run.checkpoints] == ["step-000002", "step-000004"]


def test_an_adapter_checkpoint_loads_in_plain_peft(config):
    run = create_run("adapter", config.model_copy(update={"lora_rank": 4}))
    with run.hold():
        jobs.work(run)
    from peft import AutoPeftModelForCausalLM

    plain = AutoPeftModelForCausalLM.from_pretrained(run.model_dir)
    ours = load_model(str(run.model_dir))
    ids = ours.render("hi")[None]
    import torch

    torch.testing.assert_close(plain(torch.tensor(ids)).logits, ours.model(torch.tensor(ids)).logits)


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


def test_lines_survive_a_writer_that_died_inside_one(config):
    run = create_run("torn", config)
    run.append(StepReport(0, {"loss": 1.0}))
    run.append(StepReport(1, {"loss": 2.0}))
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "lo')
    assert [row["loss"] for row in run.rows()] == [1.0, 2.0]
    run.append(StepReport(2, {"loss": 3.0}))
    run.append(StepReport(1, {"loss": 9.0}))
    assert [row["loss"] for row in run.rows()] == [1.0, 9.0, 3.0]
    assert [row["step"] for row in run.rows(since=1)] == [2]


def test_who_holds_the_lock_lives(config):
    run = create_run("locked", config)
    assert run.status().state == "interrupted"
    with run.hold():
        assert run.status().state == "running"
        with pytest.raises(RunBusyError, match="Another process"), Run_again(run).hold():
            pass
        run.request_stop()
        assert run.status().state == "stopping"
    assert not run.status().live


def Run_again(run):
    return runs.open_run(run.name)


def test_a_checkpoint_is_whole_or_not_there(config, monkeypatch):
    run = create_run("full-disk", config)
    inner, calls = runs.Run.save_checkpoint, []

    def disk_full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def save(self, *args):
        calls.append(1)
        if len(calls) == 2:
            monkeypatch.setattr("safetensors.torch.save_file", disk_full)
        return inner(self, *args)

    monkeypatch.setattr(runs.Run, "save_checkpoint", save)
    with run.hold(), pytest.raises(OSError, match="No space left"):
        jobs.work(run)
    assert [c.name for c in run.checkpoints] == ["step-000002"]
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["step-000002"]
    status = run.status()
    assert status.state == "failed"
    assert "No space left" in status.message


def wait_for(run, condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition(run.status()):
        assert time.monotonic() < deadline, f"{run.status()}\n{(run.path / 'log.txt').read_text()}"
        time.sleep(0.1)
    return run.status()


def test_a_job_runs_in_its_own_process_and_stops_within_a_step(config):
    run = jobs.start(config.model_copy(update={"steps": 1000}), "job")
    assert run.status().state == "running", "a started job must never look dead"
    wait_for(run, lambda status: status.step >= 2)
    at = run.status().step
    run.request_stop()
    status = wait_for(run, lambda status: not status.live)
    assert status.state == "stopped"
    assert at <= status.step < 1000
    assert run.model_dir.name == f"step-{status.step:06d}"


def test_a_job_that_cannot_load_says_why(config, tmp_path):
    run = jobs.start(config.model_copy(update={"student": str(tmp_path / "gone")}), "hopeless")
    status = wait_for(run, lambda status: not status.live)
    assert status.state == "failed"
    assert "There is no model folder" in status.message


def test_a_resumed_run_equals_the_uninterrupted_one(config):
    whole = create_run("whole", config)
    with whole.hold():
        jobs.work(whole)
    part = create_run("part", config)

    def stop_at_three(report):
        if report.step == 3:
            part.request_stop()

    with part.hold():
        jobs.work(part, stop_at_three)
    assert part.status().state == "stopped"
    part.clear_control()
    with part.hold():
        jobs.work(part)
    assert part.status().state == "finished"
    assert measured(part) == measured(whole)


def test_runs_are_listed_newest_first(config):
    for i, name in enumerate(["a", "b", "c"]):
        path = create_run(name, config).path / "config.json"
        os.utime(path, (i, i))
    assert [run.name for run in list_runs()] == ["c", "b", "a"]


def test_a_killed_job_is_interrupted_and_can_go_on(config):
    run = create_run("killed", config.model_copy(update={"steps": 200, "save_every": 2, "warmup_steps": 1}))
    code = """
from opd import jobs, runs
run = runs.open_run("killed")
with run.hold():
    jobs.work(run)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 90
        while len(run.checkpoints) < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert run.status().state == "interrupted"
    state = run.load_checkpoint()
    assert state["next_step"] - 1 == int(run.model_dir.name[-6:])
