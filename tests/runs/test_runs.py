"""The run directory and the jobs that write it: nothing whole is lost, nothing half appears."""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pandas
import pytest

import opd
from opd.models.load import load_model
from opd.runs import jobs
from opd.runs.history import export_zip, summaries
from opd.runs.run import Run, RunBusyError, RunExistsError, create_run, list_runs, open_run, runs_dir, told
from opd.trajectory import StepReport

pytestmark = pytest.mark.engine


@pytest.fixture
def config(folders):
    """A quick run on a tiny random pair that lies on disk."""
    return opd.DistillConfig(
        student=folders["student"],
        teacher=folders["teacher"],
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
    """Metrics without times and memory."""
    return [{k: v for k, v in r.items() if "second" not in k and "memory" not in k} for r in run.rows()]


def frozen(run):
    """How the frozen probes were scored at each evaluation."""
    return [(record.step, record.index, record.scores.to_dict()) for record in run.frozen()]


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
    assert {s["step"] for s in samples if s["kind"] == "rollout"} == {1, 2, 3, 4}
    probes = [s for s in samples if s["kind"] == "probe"]
    assert {s["step"] for s in probes} == {0, 2, 4}
    asked = [[p["review"]["messages"] for p in probes if p["step"] == step] for step in (0, 2, 4)]
    assert asked[0]
    assert asked[0] == asked[1] == asked[2]
    assert {record.step for record in run.frozen()} == {0, 2, 4}
    assert opd.Review.from_dict(samples[0]["review"]).text
    student = load_model(str(run.model_dir))
    base = load_model(config.student)
    assert any(
        (a != b).any() for a, b in zip(student.model.parameters(), base.model.parameters(), strict=True)
    )
    assert [c.name for c in run.checkpoints] == ["step-000002", "step-000004"]


def test_a_run_that_ends_with_an_alarm_says_so(config):
    """Every completion of the random student runs into a limit of 4 tokens."""
    run = create_run("alarmed", config.model_copy(update={"max_tokens": 4, "eval_prompts": 0}))
    with run.hold():
        jobs.work(run)
    status = run.status()
    assert (status.state, status.alarmed) == ("finished", True)
    assert "It ends with an alarm: clipping." in status.message
    assert summaries()[0].alarmed
    assert "Finished. It ends with an alarm" in told(run.events()[-1])[0]["text"]


def test_an_adapter_checkpoint_loads_in_plain_peft_from_anywhere(config, tmp_path, monkeypatch):
    folder = Path(config.student)
    monkeypatch.chdir(folder.parent)
    run = create_run("adapter", config.model_copy(update={"lora_rank": 4, "student": folder.name}))
    with run.hold():
        jobs.work(run)
    from peft import AutoPeftModelForCausalLM

    model_dir = run.model_dir.resolve()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = Run(model_dir.parents[1])
    plain = AutoPeftModelForCausalLM.from_pretrained(model_dir)
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
        with pytest.raises(RunBusyError, match="Another process"), open_run("locked").hold():
            pass
        run.ask("stop")
        assert run.status().state == "stopping"
    assert not run.status().live


def test_a_checkpoint_is_whole_or_not_there(config, monkeypatch):
    run = create_run("full-disk", config)
    inner, calls = Run.save_checkpoint, []

    def disk_full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def save(self, *args):
        calls.append(1)
        if len(calls) == 2:
            monkeypatch.setattr("safetensors.torch.save_file", disk_full)
        return inner(self, *args)

    monkeypatch.setattr(Run, "save_checkpoint", save)
    with run.hold(), pytest.raises(OSError, match="No space left"):
        jobs.work(run)
    assert [c.name for c in run.checkpoints] == ["step-000002"]
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["step-000002"]
    status = run.status()
    assert status.state == "failed"
    assert "No space left" in status.message


def test_odd_generation_settings_train_and_are_saved_as_they_came(config, tmp_path):
    """temperature without do_sample: transformers reads it, and refuses to write it."""
    folder = tmp_path / "odd"
    shutil.copytree(config.student, folder)
    file = folder / "generation_config.json"
    odd = json.loads(file.read_text()) | {"temperature": 0.6, "top_p": 0.9}
    file.write_text(json.dumps(odd))
    run = create_run("odd", config.model_copy(update={"student": str(folder), "steps": 2, "eval_prompts": 0}))
    with run.hold():
        jobs.work(run)
    saved = json.loads((run.model_dir / "generation_config.json").read_text())
    assert {key: saved[key] for key in ("temperature", "top_p", "eos_token_id")} == {
        key: odd[key] for key in ("temperature", "top_p", "eos_token_id")
    }
    assert load_model(str(run.model_dir)).causal_lm.generation_config.top_p == 0.9
    assert any("temperature, top_p" in note for note in run.notes())


def test_a_checkpoint_that_cannot_be_written_is_known_before_the_first_step(config, monkeypatch):
    run = create_run("no-room", config)
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=2**10))
    with run.hold(), pytest.raises(OSError, match=r"takes \d+ MiB, and 0 MiB are free"):
        jobs.work(run)
    assert not run.rows()
    (run.path / "checkpoints").rmdir()
    (run.path / "checkpoints").write_text("a file")
    with run.hold(), pytest.raises(OSError, match="could not be saved in"):
        jobs.work(run)
    assert not run.rows()


def test_a_library_that_refuses_to_write_the_model_does_not_cost_what_was_trained(config, monkeypatch):
    from transformers import PreTrainedModel

    inner = PreTrainedModel.save_pretrained

    def refuses(self, folder, *, state_dict=None, **kwargs):
        if state_dict is None:
            raise RuntimeError("Some tensors share memory.")
        inner(self, folder, state_dict=state_dict, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", refuses)
    run = create_run("refused", config)
    with run.hold():
        jobs.work(run)
    assert run.status().state == "finished"
    assert any("Step 4: No model" in n and "share memory" in n for n in run.notes())
    state = run.load_checkpoint()
    assert state["next_step"] == 5
    resumed = opd.distill(config).load_state_dict(state)
    assert all((resumed.parameters[name] == state["weights"][name]).all() for name in resumed.parameters)


def test_a_checkpoint_that_fails_in_between_does_not_end_the_training(config, monkeypatch):
    inner, full = Run.save_checkpoint, [True, False, False]

    def save(self, *args):
        if full and full.pop(0):
            raise OSError(28, "No space left on device")
        return inner(self, *args)

    monkeypatch.setattr(Run, "save_checkpoint", save)
    run = create_run("short", config)
    with run.hold():
        jobs.work(run)
    assert [c.name for c in run.checkpoints] == ["step-000004"]
    assert any("Step 2: No checkpoint was written" in note for note in run.notes())


def wait_for(run, condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition(run.status()):
        assert time.monotonic() < deadline, f"{run.status()}\n{(run.path / 'log.txt').read_text()}"
        time.sleep(0.1)
    return run.status()


def test_a_job_runs_in_its_own_process_and_stops_within_a_step(config):
    ballast = np.ones(2**30, np.uint8)
    del ballast
    ours = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = jobs.start(config.model_copy(update={"steps": 1000}), "job")
    assert run.status().state == "running", "a started job must never look dead"
    wait_for(run, lambda status: status.step >= 2)
    at = run.status().step
    run.ask("stop")
    status = wait_for(run, lambda status: not status.live)
    assert status.state == "stopped"
    assert at <= status.step < 1000
    assert run.rows()[-1]["memory_peak_bytes"] < ours - 2**28, "the peak is its own, not its parent's"
    assert run.model_dir.name == f"step-{status.step:06d}"


def test_a_job_that_cannot_load_says_why(config, tmp_path):
    student = shutil.copytree(config.student, tmp_path / "torn")
    weights = student / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    run = jobs.start(config.model_copy(update={"student": str(student)}), "hopeless")
    status = wait_for(run, lambda status: not status.live)
    assert status.state == "failed"
    assert "torn cannot be loaded" in status.message


def test_a_resumed_run_equals_the_uninterrupted_one(config):
    whole = create_run("whole", config)
    with whole.hold():
        jobs.work(whole)
    part = create_run("part", config)

    def stop_at_three(report):
        if report.step == 3:
            part.ask("stop")

    with part.hold():
        jobs.work(part, stop_at_three)
    assert part.status().state == "stopped"
    with part.hold():
        part.take_over()
        jobs.work(part)
    assert part.status().state == "finished"
    assert measured(part) == measured(whole)
    assert frozen(part) == frozen(whole)


def test_runs_are_listed_newest_first(config):
    for i, name in enumerate(["a", "b", "c"]):
        path = create_run(name, config).path / "config.json"
        os.utime(path, (i, i))
    assert [run.name for run in list_runs()] == ["c", "b", "a"]
    (runs_dir() / "b" / "config.json").write_text('{"setting_of_another_version": 1}')
    assert [run.name for run in list_runs()] == ["c", "a"], "one strange run must not hide the others"


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
            assert run.load_checkpoint()["next_step"] == int(run.model_dir.name[-6:]) + 1
        assert not run.status().live
        if run.status().state == "finished":
            break
    else:
        done = subprocess.run(resume, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
    assert run.status().state == "finished"
    assert measured(run) == measured(whole)
    assert frozen(run) == frozen(whole)


def test_the_best_and_the_pinned_checkpoint_outlive_newer_ones(config, monkeypatch):
    accuracy = iter([0.1, 0.5, 0.9, 0.3, 0.2, 0.1, 0.1])
    monkeypatch.setattr(
        "opd.training.distillation.Distillation._evaluate",
        lambda self: ({"heldout_accuracy": next(accuracy)}, []),
    )
    changes = {"steps": 6, "eval_every": 1, "save_every": 1, "keep_checkpoints": 1}
    run = create_run("best", config.model_copy(update=changes))

    def pin_first(report):
        if report.step == 2:
            run.pin(1)

    with run.hold():
        jobs.work(run, pin_first)
    assert [c.name for c in run.checkpoints] == ["step-000001", "step-000002", "step-000006"]
    assert run.best_step == 2
    assert run.checkpoint(2) == run.checkpoints[1]
    with pytest.raises(ValueError, match="no checkpoint of step 4; it has 1, 2, 6"):
        run.checkpoint(4)


def test_metrics_open_with_one_pandas_call(config):
    run = create_run("frame", config)
    with run.hold():
        jobs.work(run)
    frame = pandas.read_json(run.path / "metrics.jsonl", lines=True)
    assert frame["step"].tolist() == [0, 1, 2, 3, 4]
    assert frame["loss"].notna().sum() == 4


def test_metrics_go_to_a_tracker_that_is_installed(config, monkeypatch):
    calls = []
    fake = types.SimpleNamespace(
        __spec__=ModuleSpec("trackio", None),
        init=lambda **k: calls.append(k["name"]),
        log=lambda metrics, step: calls.append((step, len(metrics))),
        finish=lambda: calls.append("sent"),
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    run = create_run("tracked", config.model_copy(update={"report_to": "trackio"}))
    with run.hold():
        jobs.work(run)
    assert calls[0] == "tracked"
    assert [step for step, _ in calls[1:-1]] == [0, 1, 2, 3, 4]
    assert calls[-1] == "sent"
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match="pip install trackio"), jobs.tracker(run):
        pass


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(config):
    run = create_run("damaged", config)
    with run.hold():
        jobs.work(run)
    weights = run.model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with run.hold(), pytest.raises(ValueError, match=r"step-000004 is damaged .* Delete it"):
        jobs.work(run)
    shutil.rmtree(run.model_dir)
    with run.hold():
        jobs.work(run)
    assert run.status().state == "finished"


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 4}], ids=["full", "lora"])
def test_a_checkpoint_holds_the_weights_once_and_one_that_holds_them_twice_still_resumes(config, changes):
    from safetensors.torch import load_file, save_file

    def work(name, steps=4):
        run = create_run(name, config.model_copy(update={"warmup_steps": 0, **changes}))
        with run.hold():
            jobs.work(run, lambda report: run.ask("stop") if report.step == steps else None)
        return run

    whole, once, twice = work("whole"), work("once", 2), work("twice", 2)
    weights = once.load_checkpoint()["weights"]
    assert load_file(once.model_dir / "training-weights.safetensors") == {}
    assert len(weights) > 4
    # As checkpoints were before: all trained weights beside the model, and no word of the model's files.
    save_file(weights, twice.model_dir / "training-weights.safetensors")
    training = twice.model_dir / "training.json"
    training.write_text(
        json.dumps({k: v for k, v in json.loads(training.read_text()).items() if "held" not in k})
    )
    (twice.model_dir / ("adapter_model" if changes else "model")).with_suffix(".safetensors").unlink()
    for run in (once, twice):
        with run.hold():
            run.take_over()
            jobs.work(run)
        assert measured(run) == measured(whole)


def test_a_weight_that_the_model_saves_otherwise_is_kept_beside_it(config):
    run, student = create_run("apart", config), load_model(config.student)
    state = opd.distill(config).state_dict()
    name, changed = next(iter(state["weights"])), {}
    changed[name] = state["weights"][name] + 1
    saved = run.save_checkpoint(student, {**state, "next_step": 1, "weights": state["weights"] | changed})
    loaded = run.load_checkpoint()["weights"]
    assert (loaded[name] == changed[name]).all()
    assert loaded.keys() == state["weights"].keys()
    assert (saved / "training-weights.safetensors").stat().st_size < changed[name].nbytes + 1000


def test_a_library_that_no_longer_writes_the_model_costs_no_model_that_is_there(
    config, monkeypatch, tmp_path
):
    run, student = (
        create_run("refused", config.model_copy(update={"keep_checkpoints": 1})),
        load_model(config.student),
    )
    state = opd.distill(config).state_dict()
    written = run.save_checkpoint(student, {**state, "next_step": 2})

    def refuses(*args, **kwargs):
        raise RuntimeError("it cannot be written")

    monkeypatch.setattr(student, "save", refuses)
    for step in (2, 3):
        run.save_checkpoint(student, {**state, "next_step": step + 1})
    assert [path.name for path in run.checkpoints] == ["step-000001", "step-000003"]
    assert run.model_dir == written
    assert run.saved_step == 3
    assert run.load_checkpoint()["next_step"] == 4
    export_zip(run, tmp_path / "student.zip")
    with pytest.raises(ValueError, match="only training state at step 3: there is no model"):
        export_zip(run, tmp_path / "none.zip", 3)


def test_a_run_that_never_began_gives_its_name_back(config, tmp_path):
    hopeless = create_run("again", config.model_copy(update={"task": "nowhere.jsonl"}))
    with hopeless.hold(), pytest.raises(ValueError, match=r"nowhere\.jsonl cannot be read"):
        jobs.work(hopeless)
    assert hopeless.status().state == "failed"
    run = create_run("again", config)
    assert run.config == config
    assert not (run.path / "events.jsonl").exists()
    with run.hold():
        jobs.work(run)
    with pytest.raises(RunExistsError):
        create_run("again", config)


def test_a_folder_that_cannot_be_made_names_the_way_out(config, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot be made: Not a directory\. Set OPD_HOME"):
        create_run("nowhere", config)
