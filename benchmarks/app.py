"""What a user waits for: the first heatmap after the click, and ``opd --help``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.measuring import Figure
from opd.grading.reviewing import stream_reviews
from opd.grading.saved_reviews import ReviewGroup
from opd.models.pair import Pair, load_pair
from opd.tasks import load_task
from opd.trajectory import Prompt
from opd.view.payload import set_payload

TOKENS, TRAJECTORIES, ROUNDS = 64, 4, 12
CLICKS = 6
START_SECONDS = 120
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def measure() -> list[Figure]:
    """Time the work behind the Sample button, the same in a browser, and the command's help."""
    pair, task = load_pair(), load_task("demo")
    waits = [list(_heatmaps(pair, e.prompt, k)) for k, e in enumerate(task.heldout(ROUNDS + 1))][1:]
    help_seconds, bare = _best_start("-m", "opd", "--help"), _best_start("-c", "pass")
    figures = [
        Figure(
            "first_heatmap",
            median(w[0] for w in waits),
            "s",
            at_most=1.0,
            detail="sampled, graded and packed for the page; "
            f"{TRAJECTORIES} trajectories of up to {TOKENS} tokens",
        ),
        Figure("whole_heatmap", median(w[-1] for w in waits), "s", at_most=1.0, detail="the same, complete"),
        Figure(
            "opd_help",
            help_seconds,
            "s",
            at_most=0.5,
            detail=f"best of 10; {help_seconds / bare:.1f} times a bare interpreter's {bare:.3f} s",
        ),
    ]
    if CHROMIUM:
        first, *later = _clicks()
        figures += [
            Figure(
                "click_to_heatmap",
                median(later),
                "s",
                at_most=1.0,
                detail=f"in Chromium, from the click to painted tokens; {len(later)} clicks",
            ),
            Figure("first_click_to_heatmap", first, "s", detail="the same, right after the app's start"),
        ]
    return figures


def _heatmaps(pair: Pair, prompt: Prompt, seed: int) -> Iterator[float]:
    """Yield the seconds since the click at which each state is ready for the page."""
    clicked = time.perf_counter()
    for reviews in stream_reviews(pair, prompt, n=TRAJECTORIES, seed=seed, max_tokens=TOKENS):
        json.dumps(set_payload("bench", [ReviewGroup("", reviews)]), ensure_ascii=False)
        yield time.perf_counter() - clicked


def _best_start(*arguments: str) -> float:
    """Return the best of ten times that Python took to run with ``arguments``."""
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _clicks() -> list[float]:
    """Return the seconds from each click on Sample to the painted tokens of another text."""
    from playwright.sync_api import sync_playwright

    seconds = []
    with _running_app() as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector(".opd-review .token")
        chips = page.locator(".chips button")
        for k in range(CLICKS):
            chips.nth(k % 4).click()  # another question
            page.wait_for_timeout(1000)
            before = page.locator(".pane .text").inner_text()
            clicked = time.perf_counter()
            page.locator("#sample").click()
            page.wait_for_function(
                "before => document.querySelector('.pane .token') && "
                "document.querySelector('.pane .text').innerText !== before",
                arg=before,
            )
            seconds.append(time.perf_counter() - clicked)
            page.wait_for_selector("#sample:not([disabled])")
        browser.close()
    return seconds


@contextlib.contextmanager
def _running_app() -> Iterator[str]:
    """Run the app in a process of its own; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as home:
        settings = {"OPD_HOME": home, "GRADIO_SERVER_PORT": str(port)}
        app = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=Path(__file__).parent.parent,
            env=os.environ | settings,
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(url):
                if app.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("The app did not start.")
                time.sleep(0.2)
            yield url
        finally:
            app.terminate()
            app.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(url, timeout=5).status == 200
    return False
