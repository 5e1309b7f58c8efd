"""A teacher on a server: what is asked, what is waited for, what is refused. The server here is a small one
that answers as vLLM does, with the log-probs of a real model; tests/on_vllm has the real one.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from tiny import make_model

import opd
from opd.cli import main
from opd.engines.remote import KEY_VARIABLE, SERVER_VARIABLE, RemoteScorer
from opd.packed import cut
from opd.protocols import EngineError
from opd.runs.run import open_run
from opd.trajectory import Trajectory

pytestmark = pytest.mark.engine

PROMPTS = ["hi", "What is 7 + 3?", "Why is the sky blue?"]
SECRET = "k3y-of-the-teacher"


class Server(ThreadingHTTPServer):
    """Answers as vLLM does.

    Attributes:
        model: whose log-probs it tells.
        troubles: answers to give first, instead of a completion: (status, body), or None to hang up.
        change: edits the entries of a prompt before they are sent.
        bodies, keys: what it was asked, and with which keys.
        together, most: requests now under way, and the most there ever were.
    """

    daemon_threads = True

    def __init__(self, model):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.lock = model, threading.Lock()
        self.troubles, self.bodies, self.keys = [], [], []
        self.change = lambda entries: None
        self.together = self.most = 0
        self.gate = threading.Event()
        self.gate.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.keys.append(self.headers["Authorization"])
        served = [{"id": "teacher", "max_model_len": 256}] if self.path == "/v1/models" else []
        self.answer(200, {"data": served})

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.keys.append(self.headers["Authorization"])
            server.together += 1
            server.most = max(server.most, server.together)
            trouble = server.troubles.pop(0) if server.troubles else ()
        server.gate.wait(10)
        with server.lock:
            server.together -= 1
        if trouble is None:
            self.close_connection = True
        elif trouble:
            self.answer(*trouble)
        else:
            found = entries(server.model, body["prompt"], body["prompt_logprobs"])
            server.change(found)
            self.answer(200, {"choices": [{"prompt_logprobs": found}]})

    def answer(self, status, body):
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def entries(model, ids, top_k):
    """What vLLM says of a prompt: the token that is there and the likeliest, by id."""
    logprobs = plain_logprobs(model, ids)
    found = [None]
    for row, taken in zip(logprobs, ids[1:], strict=True):
        kept = {taken, *row.topk(top_k).indices.tolist()}
        found.append(
            {
                str(i): {
                    "logprob": float(row[i]),
                    "rank": int((row > row[i]).sum()) + 1,
                    "decoded_token": model.tokenizer.decode([i]),
                }
                for i in kept
            }
        )
    return found


def plain_logprobs(model, ids):
    """Log-probs of each next token, ``[len(ids) - 1, V]``, from the model's own forward."""
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor(ids)[None]).logits[0, :-1, : model.vocabulary]
    return torch.log_softmax(logits, -1)


@pytest.fixture
def server():
    server = Server(make_model(1, name="teacher"))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.gate.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("opd.engines.remote.FIRST_DELAY", 0.01)


def connect(server, **options):
    return RemoteScorer(server.url, "teacher", vocabulary=server.model.vocabulary, **options)


def written(n=1, max_tokens=12):
    return opd.sample(make_model(0), PROMPTS, n=n, max_tokens=max_tokens)


def test_scores_are_the_models_own(server):
    trajectories = written(n=3)
    told = [
        Trajectory(t.prompt_ids, t.completion_ids, None, None, np.append(t.prompt_ids, 7))
        for t in trajectories
    ]
    with connect(server) as scorer:
        for side, done in (("student", trajectories), ("teacher", told)):
            found = cut(scorer.score(done, side=side, top_k=5), done)
            for t, scores in zip(done, found, strict=True):
                prompt = t.prompt_ids if side == "student" else t.teacher_prompt_ids
                rows = plain_logprobs(server.model, [*prompt, *t.completion_ids])[len(prompt) - 1 :]
                taken = rows.gather(1, torch.tensor(t.completion_ids)[:, None])
                top = rows.topk(5)
                np.testing.assert_allclose(scores.logprobs, taken[:, 0], atol=1e-5)
                np.testing.assert_array_equal(scores.ranks, (rows > taken).sum(-1))
                np.testing.assert_array_equal(scores.top_ids, top.indices)
                np.testing.assert_allclose(scores.top_logprobs, top.values, atol=1e-5)
        assert all(type(i) is int for body in server.bodies for i in body["prompt"]), "ids travel, not text"


def test_no_more_requests_at_once_than_allowed(server):
    server.gate.clear()
    with connect(server, concurrency=3) as scorer:
        timer = threading.Timer(0.5, server.gate.set)
        timer.start()
        done = written(n=4)
        assert len(scorer.score(done, side="teacher").logprobs) == sum(len(t) for t in done)
    assert server.most == 3


def test_a_server_in_trouble_is_asked_again_until_every_grade_is_there(server):
    server.troubles = [(503, "starting"), None, (429, "slow down"), (500, "oops"), None]
    heard, trajectories = [], written(n=2)
    with connect(server, on_wait=heard.append) as scorer:
        scores = scorer.score(trajectories, side="teacher", top_k=2)
    assert len(scores.logprobs) == sum(len(t) for t in trajectories)
    assert len(server.bodies) == len(trajectories) + 5
    assert 1 <= len(heard) < 5, "an outage is told once, not by each request that waits"
    assert server.url in heard[0]


def test_a_server_that_stays_away_is_given_up_in_words(server):
    with connect(server, patience=0.2) as scorer:
        server.troubles = [(503, "no")] * 1000
        with pytest.raises(EngineError, match=rf"{server.url} has not answered for .*503.*Start its server"):
            scorer.score(written(), side="teacher")


def test_a_server_that_is_not_there_is_given_up_in_words(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(EngineError, match=r"has not answered.*Start its server"):
        connect(server, patience=0.1)


def test_a_server_that_hangs_is_given_up_after_the_timeout(server):
    with connect(server, timeout=0.2, patience=0.3) as scorer:
        server.gate.clear()
        with pytest.raises(EngineError, match="timed out"):
            scorer.score(written(), side="teacher")


@pytest.mark.parametrize(
    ("status", "said", "advice"),
    [
        (400, "Requested prompt logprobs of 50, which is greater than max allowed: 20", "--max-logprobs"),
        (400, "longer than the maximum model length of 64", "--max-model-len"),
        (404, "The model `teacher` does not exist", "does not exist"),
        (401, "Unauthorized", KEY_VARIABLE),
    ],
)
def test_what_a_server_refuses_is_not_asked_again(server, status, said, advice):
    with connect(server, concurrency=1) as scorer:
        server.troubles = [(status, {"error": {"message": said}})]
        with pytest.raises(ValueError, match=advice):
            scorer.score(written()[:1], side="teacher")
    assert len(server.bodies) == 1


def drop_a_position(found):
    found.pop()


def drop_a_token(found):
    found[-1] = {"0" if "0" not in found[-1] else "1": {"logprob": -1.0, "rank": 1}}


def not_a_number(found):
    next(iter(found[-1].values()))["logprob"] = float("nan")


def no_logprob(found):
    next(iter(found[-1].values()))["logprob"] = None


def one_alternative_less(found):
    del found[-1][min(found[-1], key=lambda i: found[-1][i]["rank"])]


@pytest.mark.parametrize(
    "damage", [drop_a_position, drop_a_token, not_a_number, no_logprob, one_alternative_less]
)
def test_no_grade_is_made_of_an_incomplete_answer(server, damage):
    server.change = damage
    ids = np.full(6, 65)  # one token again and again: entries of a wrong place would name the right token
    with connect(server) as scorer, pytest.raises(ValueError, match="log-probs"):
        scorer.score([Trajectory(ids, ids, None, None, ids)], side="teacher", top_k=2)


def test_one_refused_request_fails_the_call_without_waiting_for_the_others(server):
    with connect(server, concurrency=2) as scorer:
        server.troubles = [(503, "no"), (400, {"error": {"message": "bad prompt"}})] + [(503, "no")] * 1000
        with pytest.raises(ValueError, match="bad prompt"):
            scorer.score(written()[:2], side="teacher")


def test_tokens_the_student_does_not_have_are_refused(server):
    def padded(found):
        found[-1]["263"] = {"logprob": -0.01, "rank": 1}

    server.change = padded
    with connect(server) as scorer, pytest.raises(ValueError, match="expects token 263"):
        scorer.score(written(), side="teacher", top_k=1)


def test_the_key_comes_from_the_environment_and_is_never_shown(server, monkeypatch, caplog):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    monkeypatch.setenv(SERVER_VARIABLE, f"{server.url}/v1")
    with connect(server, patience=0.1) as scorer:
        scorer.score(written()[:1], side="teacher")
        assert set(server.keys) == {f"Bearer {SECRET}"}
        server.troubles = [(503, "no")] * 1000
        with pytest.raises(EngineError) as failed:
            scorer.score(written()[:1], side="teacher")
        server.troubles = [(401, {"error": {"message": "Unauthorized"}})]
        with pytest.raises(ValueError, match=KEY_VARIABLE) as refused:
            scorer.score(written()[:1], side="teacher")
    shown = f"{scorer!r} {vars(scorer)!r} {failed.value} {refused.value} {caplog.text}"
    assert SECRET not in shown
    assert server.url in caplog.text


@pytest.mark.parametrize(
    "meant", [None, "http://127.0.0.1:9", "https://127.0.0.1", "http://localhost:{port}"]
)
def test_the_key_goes_to_no_server_but_its_own(server, monkeypatch, meant):
    """Whoever can name a server, as on a page, would otherwise be sent the key."""
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    monkeypatch.delenv(SERVER_VARIABLE, raising=False)
    if meant:
        monkeypatch.setenv(SERVER_VARIABLE, meant.format(port=server.url.rpartition(":")[2]))
    with connect(server) as scorer:
        scorer.score(written()[:1], side="teacher")
    assert set(server.keys) == {None}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8000", "no URL"),
        ("ftp://127.0.0.1", "no URL"),
        ("", "no URL"),
        ("http://me:secret@127.0.0.1", "no password"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url, message):
    with pytest.raises(ValueError, match=message) as refused:
        RemoteScorer(url, "teacher", vocabulary=261)
    assert "secret" not in str(refused.value)


def test_a_model_that_is_not_served_is_named(server):
    with pytest.raises(ValueError, match="serves teacher, not pupil"):
        RemoteScorer(f"{server.url}/v1/", "pupil", vocabulary=261)


def test_the_check_passes_for_the_teacher_that_is_wanted(server):
    with connect(server) as scorer:
        scorer.check(make_model(0), top_k=3)


def test_the_check_tells_another_vocabulary(server):
    student = make_model(0, name="student")
    texts = student.tokenizer.decode
    student.tokenizer.decode = lambda ids: texts([i + 1 for i in ids])
    with (
        connect(server) as scorer,
        pytest.raises(ValueError, match=r"another vocabulary than student: token \d+"),
    ):
        scorer.check(student)


def test_needs_that_cannot_be_served_are_refused_before_the_run(server):
    with connect(server) as scorer:
        assert scorer.refusal("sampled") is None
        assert scorer.refusal("top_k") is None
        assert scorer.refusal("full", tokens=2_000_000 // 261) is None
        assert "2,000,000" in scorer.refusal("full", tokens=2_000_000 // 261 + 1)
        assert "top_k_from" in scorer.refusal("chosen")
        assert "temperature to 1" in scorer.refusal("sampled", temperature=0.7)
        (t,) = written()[:1]
        with pytest.raises(ValueError, match="temperature to 1"):
            scorer.score([t], side="teacher", temperature=0.7)
        long = Trajectory(t.prompt_ids, np.zeros(256, np.int64), None, None, t.prompt_ids)
        with pytest.raises(ValueError, match="exceed the 255 tokens that teacher can take"):
            scorer.score([long], side="teacher")
    assert not server.bodies


def test_a_whole_vocabulary_is_the_distribution(server):
    (t,) = written()[:1]
    with connect(server) as scorer:
        scores = scorer.score([t], side="teacher", top_k=server.model.vocabulary)
    rows = plain_logprobs(server.model, [*t.prompt_ids, *t.completion_ids])[len(t.prompt_ids) - 1 :]
    np.testing.assert_allclose(scores.rows(slice(None)), rows, atol=1e-5)


def test_a_run_with_a_teacher_on_a_server_trains_and_is_listed(server, folders, capsys):
    models = ["--student", folders["student"], "--teacher", folders["teacher"]]
    quick = ["--steps", "1", "--warmup-steps", "0", "--prompts-per-step", "4", "--max-tokens", "12"]
    served = ["--teacher-url", server.url, "--teacher-served-as", "teacher", "--eval-prompts", "4"]
    policy_gradient = ["--objective", "importance_sampling", "--name", "afar", "--ignore-doctor"]
    code = main(["train", *models, *quick, *served, *policy_gradient])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert "step 1: held-out accuracy 0.0% of 4\n" in shown.out + shown.err, "its teacher answers nothing"
    assert "KL ≥ " in shown.err
    assert open_run("afar").rows()[1]["reverse_kl_top_k"] == 8
    assert main(["runs"]) == 0
    assert "afar  finished  step 1 of 1  best 0.0%" in capsys.readouterr().out
