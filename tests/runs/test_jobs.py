"""Jobs: paused, resumed and stopped between two steps; one a device, the others in line."""

import fcntl
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

import opd
from opd.cli import main
from opd.runs import jobs, queue
from opd.runs.queue import stand_in_line
from opd.runs.run import Race, Run, create_run, list_runs, open_run
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
        max_tokens=12,
        eval_prompts=4,
        eval_every=2,
        save_every=100,
        learning_rate=1e-2,
        ignore_doctor=True,
    )


def begin(run, on_report=lambda report: None):
    """Work on a run in a thread, as its process would."""

    def body():
        with run.hold():
            run.take_over()
            jobs.work(run, on_report)

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def happened(run):
    return [e["event"] for e in run.events() if e["event"] not in ("task", "examined", "note", "alarm")]


def test_a_pause_keeps_the_step_and_the_run_goes_on_where_it_was(config):
    run = create_run("paused", config)

    def pause_at_two(report):
        if report.step == 2:
            run.ask("pause")

    thread = begin(run, pause_at_two)
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
    whole = create_run("whole", config)
    begin(whole).join(60)
    losses = [[row.get("loss") for row in r.rows()] for r in (run, whole)]
    assert losses[0] == losses[1]


def test_a_finished_run_goes_on_as_the_library_does_with_more_steps(config):
    run = create_run("short", config)
    begin(run).join(60)
    born = run.born
    with run.hold():
        jobs.prolong(run, 8)
        run.take_over()
        jobs.work(run)
    assert run.born == born, "it was not started anew"
    assert (run.config.steps, run.status().state, run.status().step) == (8, "finished", 8)

    short = opd.distill(config)
    reports = list(short)
    longer = opd.distill(config.model_copy(update={"steps": 8}))
    reports += list(longer.load_state_dict(short.state_dict()))
    for name in ("loss", "heldout_accuracy", "learning_rate", "tokens"):
        assert [row.get(name) for row in run.rows()] == [report.row().get(name) for report in reports]
    for report in reports[1:]:
        kept = [sample.review.trajectory.completion_ids.tolist() for sample in run.samples(report.step)]
        assert kept == [sample.trajectory.completion_ids.tolist() for sample in report.samples]

    rates = [row["learning_rate"] for row in run.rows()[1:]]
    assert rates[3] < rates[4] > rates[5], "of the new total from here on"
    (note,) = [event["message"] for event in run.events() if event["event"] == "note"]
    assert "from 4 to 8 steps" in note
    assert f"{rates[4]:.3g} next, after {rates[3]:.3g}" in note


def test_all_that_a_run_notes_is_said_as_it_happens(config, monkeypatch):
    run, heard, inner = (
        create_run("heard", config.model_copy(update={"save_every": 2})),
        [],
        Run.save_checkpoint,
    )

    def full(self, student, state):
        if state["next_step"] == 3:
            raise OSError("No space left on device")
        return inner(self, student, state)

    monkeypatch.setattr(Run, "save_checkpoint", full)
    with run.hold():
        jobs.work(run, say=heard.append)
    assert "problems made as needed" in heard[0]
    assert heard[1:] == run.notes()
    assert any(said.startswith("Step 2: No checkpoint was written") for said in heard)
    assert any(said.startswith("⚠ Step") for said in heard), "a length limit of 12 tokens is an alarm"


def test_a_checkpoint_that_lacks_something_is_named(config):
    run = create_run("lacking", config)
    begin(run).join(60)
    file = run.model_dir / "training.json"
    state = json.loads(file.read_text())
    del state["next_step"]
    for left in (state, None):
        file.write_text(json.dumps(left))
        with run.hold(), pytest.raises(ValueError, match="step-000004 is damaged"):
            jobs.work(run)


def test_who_prolongs_a_run_asks_for_more_than_it_makes(config):
    run = create_run("enough", config)
    with pytest.raises(ValueError, match="makes 4 steps already"):
        jobs.resume(run, 4)
    run = create_run("raced", config, Race("derby", tokens=10))
    run.append(StepReport(1, {"tokens": 12}))
    with pytest.raises(ValueError, match="spent the budget of its race derby"):
        jobs.resume(run, 8)
    assert run.config.steps == 4


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


def test_a_paused_run_can_be_stopped(config):
    run = create_run("stopped", config)
    thread = begin(run, lambda report: run.ask("pause") if report.step == 1 else None)
    wait_for(lambda: run.status().state == "paused")
    run.ask("stop")
    thread.join(60)
    assert run.status().state == "stopped"
    assert run.status().step == 1


def test_stop_and_keep_best_makes_the_best_checkpoint_the_newest(config, monkeypatch):
    accuracy = iter([0.1, 0.5, 0.9, 0.3, 0.2])
    monkeypatch.setattr(
        "opd.training.distillation.Distillation._evaluate",
        lambda self: ({"heldout_accuracy": next(accuracy)}, []),
    )
    run = create_run("best", config.model_copy(update={"steps": 9, "eval_every": 1, "save_every": 1}))
    begin(run, lambda report: run.ask("keep_best") if report.step == 4 else None).join(60)
    assert run.model_dir.name == "step-000002"
    status = run.status()
    assert (status.state, status.step) == ("stopped", 4)
    assert "step 2" in status.message


def test_without_answers_the_lowest_held_out_kl_is_the_best(config):
    run = create_run("kl", config)
    for step, kl in enumerate((0.5, 0.2, 0.3)):
        run.append(StepReport(step, {"heldout_kl": kl}))
        (run.path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    assert run.best_step == 1
    assert run.drop_after_best() == 1
    assert [path.name for path in run.checkpoints] == ["step-000000", "step-000001"]


def test_one_job_a_device_and_the_others_wait_in_order(config):
    first, second, third = (create_run(name, config) for name in ("first", "second", "third"))
    go = threading.Event()
    threads = [begin(first, lambda report: go.wait(60))]
    wait_for(lambda: queue.holders() == {"cpu": "first"})
    for run in (second, third):
        threads.append(begin(run))
        wait_for(lambda run=run: run.status().state == "queued")
    assert queue.queue("cpu") == ["first", "second", "third"]
    assert second.status().message == "Waiting for cpu, which the run first holds."
    assert third.status().message == "Waiting for cpu, which the run first holds; second before this one."
    second.ask("stop")
    threads[1].join(30)
    assert second.status().state == "stopped"
    assert queue.queue("cpu") == ["first", "third"]
    go.set()
    for thread in threads:
        thread.join(60)
    assert [run.status().state for run in (first, third)] == ["finished", "finished"]
    assert third.rows()[0]["step"] == 0
    ended = [e["time"] for e in first.events() if e["event"] == "finished"]
    began = [e["time"] for e in third.events() if e["event"] == "started"]
    assert ended < began
    assert queue.holders() == {}


def test_the_ticket_of_a_job_that_died_counts_for_nothing():
    folder = queue.devices_dir() / "cuda:0"
    folder.mkdir(parents=True)
    (folder / "000003-dead").touch()
    assert queue.holders() == {}
    with stand_in_line("alive", ["cuda:0"]) as place:
        assert place.ahead() == {}
        assert queue.holders() == {"cuda:0": "alive"}
        assert [path.name for path in folder.iterdir()] == ["000001-alive"]


def test_two_devices_are_waited_for_together():
    with stand_in_line("a", ["cuda:0", "cuda:1"]), stand_in_line("b", ["cuda:1"]) as b:
        assert b.ahead() == {"cuda:1": ["a"]}
        with stand_in_line("c", ["cuda:0", "cuda:1"]) as c:
            assert c.ahead() == {"cuda:0": ["a"], "cuda:1": ["a", "b"]}
    assert b.ahead() == {}


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
    assert queue.place_of("derby-sft").ahead() == {"cpu": ["derby-full"]}
    (ticket,) = (word.partition("=")[2] for word in started[0] if "=" in word)
    assert Path(ticket).name == "000001-derby-full"
    for descriptor in kept:
        os.close(descriptor)


def test_a_device_that_is_not_there_is_said_before_anything_is_made(config):
    bad = config.model_copy(update={"device": "cuda:77"})
    with pytest.raises(ValueError, match="cuda:77"):
        jobs.start(bad, "nowhere")
    with pytest.raises(ValueError, match="cuda:77"):
        jobs.start_race({"full": config, "sft": bad}, Race("derby"))
    assert list_runs() == []


def test_many_processes_never_share_a_device():
    inside, most, mistakes = 0, 0, []
    lock = threading.Lock()

    def job(name):
        nonlocal inside, most
        with stand_in_line(name, ["cpu"]) as place:
            while place.ahead():
                time.sleep(0.001)
            with lock:
                inside += 1
                most = max(most, inside)
            if queue.holders() != {"cpu": name}:
                mistakes.append(name)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=job, args=(f"job-{i}",)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1
    assert not mistakes


def test_train_in_a_terminal_waits_its_turn_and_says_so(config, capsys):
    path = open_run(create_run("terminal", config).name).path / "config.json"
    with stand_in_line("other", ["cpu"]):
        thread = threading.Thread(target=lambda: time.sleep(1) or open_run("mine").ask("stop"), daemon=True)
        thread.start()
        assert main(["train", "--config", str(path), "--name", "mine"]) == 0
    assert "Waiting for cpu, which the run other holds." in capsys.readouterr().out
    assert open_run("mine").status().state == "stopped"


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
