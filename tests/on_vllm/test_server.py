"""A teacher on a real vLLM server. It takes a minute to start, so there is one, which dies and returns."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
import torch
from tiny import make_model

import opd
from opd.engines.remote import KEY_VARIABLE, SERVER_VARIABLE, RemoteScorer
from opd.models.load import load_skeleton, locate
from opd.models.pair import load_pair
from opd.models.scoring import distributions

KEY = "a-key-for-this-test"
FP32 = 1e-4
START_SECONDS = 600
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_COMPILE_DISABLE": "1",
}


class Server:
    """The embedded teacher behind vLLM's own server, on one port for all its lives."""

    def __init__(self, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.log = log

    def start(self):
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        options = {
            "model": locate("demo-teacher"),
            "served-model-name": "teacher",
            "host": "127.0.0.1",
            "port": self.url.rpartition(":")[2],
            "dtype": "float32",
            "gpu-memory-utilization": "0.15",
            "api-key": KEY,
        }
        for name, value in options.items():
            command += [f"--{name}", value]
        self.process = subprocess.Popen(
            [*command, "--enforce-eager"],
            env=os.environ | ENVIRONMENT,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def wait(self):
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health").is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        pytest.fail("The server did not start.")

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with (tmp_path_factory.mktemp("server") / "log.txt").open("wb") as log:
        server = Server(log)
        server.start()
        try:
            server.wait()
            yield server
        finally:
            server.kill()


@pytest.fixture(autouse=True)
def key(monkeypatch, server):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv(SERVER_VARIABLE, server.url)


@pytest.fixture(scope="module")
def demo():
    return load_pair()


def connect(server):
    return RemoteScorer(server.url, "teacher", vocabulary=load_skeleton("demo-teacher").vocabulary)


def questions(n):
    return [f"What is {3 + i % 7} + {2 + i % 5} * {1 + i % 9}?" for i in range(n)]


def assert_scores_are_those_of(teacher, trajectories, scores):
    with torch.inference_mode():
        d = distributions(
            teacher, trajectories, side="teacher", temperature=1.0, vocabulary=teacher.vocabulary
        )
        rows = d.log_probs(d.hidden).numpy()
    ids = np.concatenate([t.completion_ids for t in trajectories])
    own = rows[np.arange(len(ids)), ids]
    np.testing.assert_allclose(scores.logprobs, own, rtol=0, atol=FP32)
    top = scores.top_ids.numpy()
    best = -np.sort(-rows, axis=1)[:, : top.shape[1]]
    np.testing.assert_allclose(np.take_along_axis(rows, top, 1), best, rtol=0, atol=FP32)
    np.testing.assert_allclose(scores.top_logprobs, best, rtol=0, atol=FP32)


@pytest.mark.parametrize("top_k", [0, 1, 20])
def test_scores_are_transformers(server, demo, top_k):
    done = opd.sample(demo, questions(8), n=2, max_tokens=60)
    with connect(server) as scorer:
        assert_scores_are_those_of(demo.teacher, done, scorer.score(done, side="teacher", top_k=top_k))


def test_the_check_knows_the_teacher_from_others(server, demo):
    with connect(server) as scorer:
        scorer.check(demo.student, top_k=20)
        with pytest.raises(ValueError, match="another vocabulary than tiny"):
            scorer.check(make_model(0))
        with pytest.raises(ValueError, match="--max-logprobs"):
            scorer.check(demo.student, top_k=21)


def test_a_completion_may_fill_the_context_but_for_one_token(server, demo):
    (t,) = opd.sample(demo, questions(1), max_tokens=8)
    for length, fits in ((1023, True), (1024, False)):
        ids = np.resize(t.completion_ids, length - len(t.prompt_ids))
        long = opd.trajectory.Trajectory(t.prompt_ids, ids, None, None, t.prompt_ids)
        with connect(server) as scorer:
            if fits:
                assert_scores_are_those_of(demo.teacher, [long], scorer.score([long], side="teacher"))
            else:
                with pytest.raises(ValueError, match="exceed the 1023 tokens"):
                    scorer.score([long], side="teacher")


def test_without_the_key_the_way_out_is_said(server, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(ValueError, match=KEY_VARIABLE):
        connect(server)


def test_a_run_waits_for_a_killed_server_and_trains_on_every_grade(server, monkeypatch, caplog):
    settings = {
        "objective": "importance_sampling", "steps": 3, "warmup_steps": 0, "prompts_per_step": 64,
        "max_tokens": 64, "eval_prompts": 0, "device": "cpu",
    }  # fmt: skip
    elsewhere = {"teacher_url": server.url, "teacher_served_as": "teacher"}
    run, asks = opd.distill(opd.DistillConfig(**settings, **elsewhere)), itertools.count(1)
    ask = httpx.Client.request

    def killing(client, *arguments, **options):
        if run.next_step == 2 and next(asks) == 20:  # of 64: some of the step's grades are there, some not
            server.kill()
            server.start()
        return ask(client, *arguments, **options)

    monkeypatch.setattr(httpx.Client, "request", killing)
    told = [report.metrics for report in run][1:]
    assert f"{server.url} does not answer" in caplog.text
    here = [report.metrics for report in opd.distill(opd.DistillConfig(**settings), load_pair())][1:]
    assert len(told) == 3
    for a, b in zip(here, told, strict=True):
        assert b["trained_tokens"] == b["tokens"] == a["tokens"]
        assert b["penalty"] == pytest.approx(a["penalty"], abs=1e-3)
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-3)
