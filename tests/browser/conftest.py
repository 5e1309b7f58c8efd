"""The app in a process of its own, and a Chromium page that notices every error and every outside request."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest

from opd.config import make_config
from opd.runs.jobs import enter
from opd.runs.run import Run
from opd.runs.worker import work

ROOT = Path(__file__).parents[2]
BROKEN_OFF = ("signal is aborted", "Connection errored out")  # in Gradio's words
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # Chromium draws these of its own address bar for every page, which costs a second of CPU each time.
    "--disable-features=WebUIOmniboxPopup,WebUIOmniboxAimPopup",
]
STARTUP_SECONDS = 120


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            # A real browser on a busy machine: a step missed twice is a fault, once it is bad luck.
            item.add_marker(pytest.mark.flaky(reruns=2))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``$OPD_HOME`` of the app."""
    return tmp_path_factory.mktemp("opd-home")


@pytest.fixture(scope="session")
def app(serve, home: Path) -> Iterator[str]:
    """The address of the running app."""
    with serve(home) as (url, _):
        yield url


@pytest.fixture(scope="session")
def serve(browser):
    """Run the app for the length of a block. (The browser comes first: without one nothing need start.)"""
    return running_app


@contextlib.contextmanager
def running_app(home: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """The app in a process of its own: its address, and the process."""
    port = free_port()
    settings = {"OPD_HOME": str(home), "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    log = (home / "app.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=ROOT, env=os.environ | settings, stdout=log, stderr=log
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + STARTUP_SECONDS
        while not answers(url):
            assert process.poll() is None, (home / "app.log").read_text()
            assert time.monotonic() < deadline, "the app did not start"
            time.sleep(0.2)
        yield url, process
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def train(home: Path):
    """Train a run to its end where the app finds it, in this process: importing torch anew takes longer."""

    def train_(name: str, **settings: object) -> Run:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPD_HOME", str(home))
            run = enter(make_config(settings), name)
            with run.hold():
                work(run)
        return run

    return train_


@pytest.fixture(autouse=True)
def no_job_left(home: Path) -> Iterator[None]:
    """A job that a failed test leaves behind would keep its device from all later ones."""
    yield
    kill_jobs(home)


@pytest.fixture
def kill():
    """Kill the processes that work on runs below a folder."""
    return kill_jobs


def kill_jobs(folder: Path) -> None:
    """Kill the processes that work on runs below a folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"opd.runs.worker" in words and any(word.startswith(bytes(folder)) for word in words):
                os.kill(int(process.name), signal.SIGKILL)


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture
def complaints() -> list[str]:
    """What pages complained of."""
    return []


@pytest.fixture
def reload(complaints: list[str]):
    """Load a page anew; that its requests are broken off is no complaint.

    A script given is run in between, where nothing else of the page does.
    """

    def reload_(page, script: str | None = None) -> None:
        before, url = len(complaints), page.url
        if script:
            page.goto(urljoin(url, "/theme.css"))
            page.evaluate(script)
            page.goto(url)
        else:
            page.reload()
        complaints[before:] = [c for c in complaints[before:] if not any(words in c for words in BROKEN_OFF)]

    return reload_


@pytest.fixture
def open_page(browser, complaints: list[str]):
    """Open pages that fail the test on a page error, a console error or a request to anybody else."""
    contexts = []

    def open_(url: str, *, width: int = 1440, height: int = 900, dark: bool = False, touch: bool = False):
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            has_touch=touch,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a busy machine is slow, not wrong
        page.on("pageerror", lambda error: complaints.append(f"page error: {error}"))
        page.on("console", lambda m: m.type == "error" and complaints.append(f"console: {m.text}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        ours = (url.split("#")[0].split("?")[0], "data:", "blob:", "about:")
        page.on("request", lambda r: r.url.startswith(ours) or complaints.append(f"outside: {r.url}"))
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not complaints, complaints


@pytest.fixture(scope="session")
def serious():
    """List what axe calls serious on a page, or in a part of it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

    def serious_(page, **part: object) -> list[tuple[str, str, str]]:
        return [
            (violation["id"], node["html"][:160], node["any"][0]["message"] if node["any"] else "")
            for violation in axe.Axe().run(page, **part).response["violations"]
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]

    return serious_


@pytest.fixture
def page(app: str, open_page):
    """The app's page with the first picture painted."""
    page = open_page(app)
    page.wait_for_selector(".opd-review .token")
    return page
