"""Models from the hub: told when absent, fetched from a hub on this machine, refused in words."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from running import wait_for
from tiny import make_model, save_adapter

from opd import DistillConfig
from opd.models import hub as hub_source
from opd.models.sources import absent
from opd.runs import jobs
from opd.runs.run import create_run, open_run

pytestmark = pytest.mark.engine

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """The few answers of a hub that a download asks for; ``asked`` keeps every path.

    ``files`` are those of tiny/model, ``others`` those of further repositories by their name.
    """

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    others: dict[str, dict[str, bytes]]
    asked: list[str]
    piece = 2**16
    seconds_a_piece = 0.0

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0].strip("/")
        if "/gated/" in f"/{path}/":
            self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Ask first."})
            return
        repository = "/".join(path.removeprefix("api/models/").split("/")[:2])
        files = {"tiny/model": self.files, **self.others}.get(repository)
        if files is None:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            sizes = {name: len(data) for name, data in files.items()}
            listed = [{"type": "file", "path": n, "size": s, "oid": "0" * 40} for n, s in sizes.items()]
            self.answer(200, json.dumps(listed).encode())
        elif path.startswith("api/models/"):
            self.answer(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": []}).encode())
        elif path.rpartition("/")[2] in files:
            data = files[path.rpartition("/")[2]]
            etag = hashlib.sha1(data).hexdigest()
            self.answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        with contextlib.suppress(OSError):
            for start in range(0, len(body) if self.command == "GET" else 0, self.piece):
                self.wfile.write(body[start : start + self.piece])
                time.sleep(self.seconds_a_piece)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has tiny/model; processes that are started know its address."""
    make_model(0).save(tmp_path / "model")
    Hub.files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    Hub.files |= {"pytorch_model.bin": b"x" * 10**6, "README.md": b"# Tiny"}
    Hub.others = {}
    Hub.asked = []
    Hub.piece, Hub.seconds_a_piece = 2**16, 0.0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # here, where a start is looked at
    yield Hub
    server.shutdown()
    server.server_close()


def run_program(program: str, **environment: str) -> str:
    """Run Python in a process of its own: the hub's library reads its settings when it is imported."""
    command, settings = [sys.executable, "-c", program], os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


FETCH = """
from opd.models.hub import fetch
from opd.models.sources import absent
name = {name!r}
assert absent([name, "demo-student", name]) == [name]
try:
    for progress in fetch(name):
        print(progress)
except ValueError as error:
    print(error)
"""


def test_what_is_fetched_is_found_by_transformers_without_asking_again(hub):
    hub.seconds_a_piece = 0.3
    *_, before, last = run_program(FETCH.format(name="tiny/model")).splitlines()
    size = sum(len(data) for name, data in hub.files.items() if not name.endswith((".bin", ".md")))
    assert last == f"Downloading tiny/model: {size / 1e6:,.1f} of {size / 1e6:,.1f} MB"
    assert before.startswith("Downloading tiny/model: 0."), "told while it went on"
    assert not [path for path in hub.asked if "pytorch_model" in path or "README" in path]

    asked = len(hub.asked)
    program = "from opd.models.sources import absent; from opd.models.load import load_model\n"
    program += "print(absent(['tiny/model']), load_model('tiny/model').vocabulary)"
    assert run_program(program, HF_HUB_OFFLINE="1") == "[] 261\n"
    assert len(hub.asked) == asked


@pytest.mark.parametrize(
    ("name", "environment", "sentence"),
    [
        ("tiny/none", {}, "There is no model tiny/none on the hub, or it is private and HF_TOKEN is not set"),
        ("tiny/none", {"HF_TOKEN": "hf_x"}, "or it is private and HF_TOKEN may not read it"),
        ("gated/model", {}, "gated/model is gated: accept its terms"),
        ("gated/model", {"HF_TOKEN": "hf_x"}, "the account of your token has no access to it: accept its"),
        ("tiny/model", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids"),
        ("tiny/model", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "Is there a network?"),
    ],
)
def test_what_goes_wrong_is_one_sentence(hub, name, environment, sentence):
    said = run_program(FETCH.format(name=name), **environment).splitlines()
    assert len(said) == 1
    assert sentence in said[0]


def test_a_repository_without_safetensors_and_a_full_disk_are_refused_before_anything_comes(hub):
    hub.files = {name: data for name, data in hub.files.items() if not name.endswith(".safetensors")}
    assert "no weights as safetensors" in run_program(FETCH.format(name="tiny/model"))
    hub.files |= {"model.safetensors": b"x" * 1000}
    full = "import shutil; shutil.disk_usage = lambda path: type('Usage', (), {'free': 10})\n"
    assert "Make room" in run_program(full + FETCH.format(name="tiny/model"))
    assert not [path for path in hub.asked if path.startswith("GET /tiny/model/resolve")]


DATA_SET = """
from opd.tasks import load_task
try:
    load_task({name!r})
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("name", "environment", "sentence"),
    [
        ("tiny/none", {}, "There is no data set tiny/none on the hub, or it is private and HF_TOKEN"),
        ("gated/rows", {}, "gated/rows is gated: accept its terms"),
        ("tiny/rows", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids to ask the hub for it. Unset it, or"),
        ("tiny/rows", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "Is there a network?"),
    ],
)
def test_a_data_set_that_cannot_be_had_is_refused_in_the_same_words(hub, name, environment, sentence):
    pytest.importorskip("datasets")
    (said,) = run_program(DATA_SET.format(name=name), **environment).splitlines()
    assert sentence in said


LOAD = """
import json, sys
from contextlib import redirect_stderr
from opd.cli import main
from opd.models.load import load_model, load_skeleton
from opd.ui.pairs import PairNames, loaded_pair

def said(call, *arguments):
    try:
        return call(*arguments)
    except ValueError as error:
        return print(error)

def commands(name):
    for command in (
        ["grade", "--prompt", "hi", "--student", name],
        ["grade", "--prompt", "hi", "--teacher", name],
        ["doctor", "--student", name],
        ["eval", name],
    ):
        with redirect_stderr(sys.stdout):
            assert main(command) == 2
    said(loaded_pair, PairNames(name))
"""


def test_every_command_that_loads_has_the_hub_s_sentences(hub):
    gguf = {"model.gguf": b"GGUF", "config.json": b"{}"}
    hub.others = {"tiny/gguf": gguf, "tiny/pickled": {"pytorch_model.bin": b"x", "config.json": b"{}"}}
    names = ("tiny/none", "gated/model", "tiny/gguf", "tiny/pickled")
    said = run_program(LOAD + f"for name in {names}: commands(name)").splitlines()
    sentences = ("no model tiny/none on the hub", "accept its terms", "GGUF files", "pickled files")
    assert len(said) == 5 * len(names)
    for place, line in enumerate(said):
        assert sentences[place // 5] in line
        assert line.removeprefix("opd: ").startswith((names[place // 5], "There is no model tiny/none"))


def test_what_the_hub_gives_is_loaded_and_known_by_its_name(hub, tmp_path):
    """Only what is needed comes: an adapter brings its base, a skeleton no weights; a half is not a whole."""
    adapter = save_adapter("tiny/model", tmp_path / "adapter")
    hub.others["tiny/adapter"] = {path.name: path.read_bytes() for path in adapter.iterdir()}
    program = """
load_skeleton("tiny/model")
print(*absent(["tiny/model"]))
adapted = load_model("tiny/adapter")
print(adapted.model.active_peft_config.base_model_name_or_path, adapted.causal_lm.name_or_path)
print(*absent(["tiny/model", "tiny/adapter"]))
load_model("tiny/model")
"""
    program = f"{LOAD}\nfrom opd.models.sources import absent\n{program}"
    assert run_program(program).splitlines() == ["tiny/model", "tiny/model tiny/model", ""]
    assert len([path for path in hub.asked if path.startswith("GET") and "/model.safetensors" in path]) == 1


def test_a_model_that_is_here_in_part_is_absent_and_fetched_wholly(hub):
    whole = hub.files.pop("model.safetensors")
    hub.files |= {"model-00001-of-00002.safetensors": whole, "model-00002-of-00002.safetensors": whole}
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": shards}).encode()
    program = """
import shutil
from pathlib import Path
from opd.models.hub import folder
from opd.models.sources import absent
first = Path(folder("tiny/model"))
shutil.rmtree(first.parents[1] / "trees", ignore_errors=True)  # as other programs leave it
print(absent(["tiny/model"]))
(first / "model-00002-of-00002.safetensors").unlink()
print(absent(["tiny/model"]))
print(folder("tiny/model") == str(first), (first / "model-00002-of-00002.safetensors").exists())
"""
    assert run_program(program).splitlines() == ["[]", "['tiny/model']", "True True"]


def test_what_is_wholly_here_is_not_fetched_again_and_stands_in_where_the_hub_refuses(hub):
    hub.files["model.safetensors.index.json"] = b"stale"
    program = """
from opd.models.hub import folder
from opd.models.sources import absent
folder("tiny/model")
print(absent(["tiny/model"]))
"""
    assert run_program(program) == "[]\n"
    asked = [path for path in hub.asked if "/resolve/" in path]
    assert run_program(program) == "[]\n"
    assert asked == [path for path in hub.asked if "/resolve/" in path]
    again = "import sys\nsys.stderr = sys.stdout\nfrom opd.models.hub import folder\nfolder('tiny/model')"
    said = run_program(again, HF_ENDPOINT="http://127.0.0.1:9")
    assert said.count("The copy on this machine is used.") == 1
    assert run_program(again, HF_HUB_OFFLINE="1") == ""


def test_a_broken_index_is_not_here_and_a_lone_tokenizer_is_no_model(hub):
    hub.files["model-00001-of-00001.safetensors"] = hub.files.pop("model.safetensors")
    hub.files["model.safetensors.index.json"] = b"{"
    hub.others["tiny/tokenizer"] = {"tokenizer_config.json": b"{}"}
    program = """
from pathlib import Path
from huggingface_hub import constants
from opd.models.hub import check_reachable, folder
from opd.models.sources import absent
print(Path(folder("tiny/model")).is_dir(), absent(["tiny/model"]))
print(Path(folder("tiny/tokenizer", weights=False)).is_dir())
constants.HF_HUB_OFFLINE = True
try:
    check_reachable("tiny/tokenizer", weights=False)
except ValueError as error:
    print(error)
"""
    first, second, said = run_program(program).splitlines()
    assert (first, second) == ("True ['tiny/model']", "True")
    assert "tiny/tokenizer is not (wholly) on this machine" in said


def test_a_download_that_nobody_waits_for_ends(hub):
    hub.piece, hub.seconds_a_piece = 2**20, 0.2
    hub.files["model.safetensors"] = bytes(2**20 * 100)  # the library looks up every 10 MB
    program = """
import time
from opd.models.hub import fetch
download = fetch("tiny/model")
print(next(download).total > 0)
began = time.monotonic()
download.close()
print(time.monotonic() - began < 10)
"""
    assert run_program(program).split() == ["True", "True"]


def test_a_run_downloads_its_student_first_and_says_how_far_it_is(hub, tmp_path):
    hub.seconds_a_piece = 0.3
    run = create_run("hubbed", tiny_run(tmp_path))
    jobs.resume(run)
    wait_for(lambda: "Downloading tiny/model: " in (run.path / "log.txt").read_text(), run)
    wait_for(lambda: not run.status().live, run)
    assert run.status().state == "finished", run.status()


def test_a_run_whose_student_the_hub_does_not_have_says_so(hub, tmp_path):
    run = jobs.start(tiny_run(tmp_path).model_copy(update={"student": "tiny/none"}), "hopeless")
    wait_for(lambda: not run.status().live)
    assert open_run("hopeless").status().state == "failed"
    assert "There is no model tiny/none on the hub" in run.status().message


def tiny_run(folder) -> DistillConfig:
    return DistillConfig(
        student="tiny/model",
        teacher=str(folder / "model"),
        steps=1,
        prompts_per_step=2,
        max_tokens=4,
        eval_prompts=0,
        ignore_doctor=True,
    )


def test_which_names_are_those_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "model").mkdir(parents=True)
    assert hub_source.has("Qwen/Qwen3-0.6B")
    assert not any(
        map(hub_source.has, ("own/model", "demo-student", "self", "./a", "~/a", "/a", "a/b/c", ""))
    )
    assert absent(["own/model", "self", "no such/model"]) == ["no such/model"]
