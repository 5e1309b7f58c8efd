"""One job a device, the others in line."""

import threading
import time

import pytest
from running import begin, wait_for

from opd.cli import main
from opd.runs import queue
from opd.runs.queue import ahead, stand_in_line
from opd.runs.run import create_run, open_run

pytestmark = pytest.mark.engine


def test_the_ticket_of_a_job_that_died_counts_for_nothing():
    folder = queue.devices_dir() / "cuda:0"
    folder.mkdir(parents=True)
    (folder / "000003-dead").touch()
    assert queue.holders() == {}
    with stand_in_line("alive", ["cuda:0"]):
        assert ahead("alive") == {}
        assert queue.holders() == {"cuda:0": "alive"}
        assert [path.name for path in folder.iterdir()] == ["000001-alive"]


def test_two_devices_are_waited_for_together():
    with stand_in_line("a", ["cuda:0", "cuda:1"]), stand_in_line("b", ["cuda:1"]):
        assert ahead("b") == {"cuda:1": ["a"]}
        with stand_in_line("c", ["cuda:0", "cuda:1"]):
            assert ahead("c") == {"cuda:0": ["a"], "cuda:1": ["a", "b"]}
    assert ahead("b") == {}


def test_many_processes_never_share_a_device():
    inside, most, mistakes = 0, 0, []
    lock = threading.Lock()

    def job(name):
        nonlocal inside, most
        with stand_in_line(name, ["cpu"]):
            while ahead(name):
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


def test_train_in_a_terminal_waits_its_turn_and_says_so(config, capsys):
    path = open_run(create_run("terminal", config).name).path / "config.json"
    with stand_in_line("other", ["cpu"]):
        thread = threading.Thread(target=lambda: time.sleep(1) or open_run("mine").ask("stop"), daemon=True)
        thread.start()
        assert main(["train", "--config", str(path), "--name", "mine"]) == 0
    assert "Waiting for cpu, which the run other holds." in capsys.readouterr().out
    assert open_run("mine").status().state == "stopped"
