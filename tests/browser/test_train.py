"""The Train tab: setting up, short runs from start to end, what can be asked of them and seen in them."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from train_form import fill_in

from opd.reports import StepReport
from opd.runs.run import Run

QUICK = {"steps": 4, "prompts_per_step": 16, "eval_every": 2, "eval_prompts": 16, "max_tokens": 64}
LONG = {"steps": 2000, "prompts_per_step": 4, "eval_every": 500, "eval_prompts": 4, "max_tokens": 48}
TOP = "((selector) => document.querySelector(selector).getBoundingClientRect().top)"
STEPS = "document.querySelector('.run-view progress').value"


def open_train(page, **settings) -> None:
    page.get_by_role("tab", name="Train").click()
    page.locator("#start").wait_for()
    if settings:
        fill_in(page, settings)


def start(page, stem: str = "run") -> str:
    """Start a run and return its name, which no run had before."""
    name = f"{stem}-{time.time_ns()}"
    page.locator("#new-run-name textarea").fill(name)
    page.locator("#start").click()
    page.wait_for_selector(f".run-name:has-text('{name}')")
    return name


def state(page, name: str) -> None:
    page.wait_for_selector(f".pill[data-state={name}]", timeout=90_000)


def ask(page, request: str) -> None:
    page.locator(f"[data-request={request}]:visible").click()


def trained_steps(page, at_least: int = 1) -> int:
    page.wait_for_function(f"{STEPS} >= {at_least}", timeout=90_000)
    return page.evaluate(STEPS)


def curve(page, name: str) -> list[int]:
    """The steps of a curve's last trace; plots are drawn when they come into sight."""
    page.locator(f".run-view [data-curve={name}]").scroll_into_view_if_needed()
    trace = f"document.querySelector('.run-view [data-curve={name}]').data?.at(-1)"
    page.wait_for_function(f"{trace}?.x.length")
    return page.evaluate(f"{trace}.x")


@pytest.fixture(scope="session")
def finished(train) -> str:
    """The name of a run that came to its end."""
    return train("finished", **QUICK, save_every=2).name


@pytest.fixture
def copy(home: Path, finished: str):
    """Copy the run that came to its end under a name that no run had before."""

    def copy_(stem: str) -> Run:
        runs = home / "runs"
        return Run(shutil.copytree(runs / finished, runs / f"{stem}-{time.time_ns()}"))

    return copy_


def test_a_run_is_watched_and_its_student_reviewed(page, app, home, open_page, reload):
    open_train(page, **QUICK)
    name = start(page)

    # A reload of the page, and a second one, find the run that trains.
    reload(page)
    second = open_page(app)
    second.get_by_role("tab", name="Train").click()
    for viewer in (page, second):
        viewer.wait_for_selector(f".run-name:has-text('{name}')")
        state(viewer, "finished")
        assert curve(viewer, "accuracy") == [0, 2, 4]
        assert curve(viewer, "loss") == [1, 2, 3, 4]
        assert viewer.locator(".progress-text").inner_text() == "step 4 of 4"
        assert viewer.locator("[data-request]:visible").count() == 0

    page.get_by_role("tab", name="Review").click()
    page.get_by_role("tab", name="Paste").click()
    page.get_by_role("tab", name="Train").click()
    page.locator(".run-view .review").click()
    page.wait_for_selector("#review .pane >> nth=1", timeout=60_000)
    page.wait_for_selector("#sample:not([disabled])")  # in sight, though another source was
    before, after = page.locator("#review .pane-title").all_inner_texts()
    assert (before, after) == ("before training", f"after {name}")
    changed_most = Run(home / "runs" / name).samples.probes_by_change()[0]
    assert page.locator("#review .prompt").inner_text() == changed_most.messages[-1]["content"]


def test_a_page_that_was_opened_before_there_was_any_run_shows_its_curves(app, home, finished, open_page):
    runs = home / "runs"
    aside = runs.rename(home / "aside")
    try:
        page = open_page(app)
        page.wait_for_selector("#review .pane .text")
        page.wait_for_timeout(1000)
        shutil.copytree(aside / finished, runs / finished)
        page.get_by_role("tab", name="Runs").click()
        page.locator(f"[data-run={finished}]").get_by_role("button", name="Open").click()
        state(page, "finished")
        assert curve(page, "loss") == [1, 2, 3, 4]
    finally:
        shutil.rmtree(runs, ignore_errors=True)
        aside.rename(runs)


def test_a_run_is_paused_resumed_stopped_and_taken_up_again(page):
    open_train(page, **LONG | {"eval_every": 1})
    start(page)
    trained_steps(page)

    ask(page, "pause")
    state(page, "paused")
    held = page.evaluate(STEPS)
    assert "resuming is immediate" in page.locator(".message").inner_text()
    page.wait_for_timeout(1500)
    assert page.evaluate(STEPS) == held
    ask(page, "go_on")
    state(page, "running")
    trained_steps(page, held + 1)

    ask(page, "stop")
    state(page, "stopped")
    done = page.evaluate(STEPS)
    told = page.locator(".happened li").all_inner_texts()
    assert told[0].startswith("demo: "), "what the task holds"
    assert [text.split(": ")[-1] for text in told[1:]] == ["Paused.", "Resumed.", "Stopped."]

    ask(page, "resume")
    trained_steps(page, done + 1)
    ask(page, "keep_best")
    state(page, "stopped")
    assert "Kept the best checkpoint" in page.locator(".happened li").last.inner_text()


@pytest.mark.slow
def test_a_second_run_waits_for_the_device_and_says_for_whom(page):
    open_train(page, **LONG)
    holder = start(page, "holder")
    trained_steps(page)
    start(page, "waiter")
    state(page, "queued")
    assert f"which the run {holder} holds" in page.locator(".message").inner_text()
    ask(page, "stop")
    state(page, "stopped")
    page.locator("#run-picker input").click()
    page.get_by_role("option", name=holder).click()
    page.wait_for_selector(f".run-name:has-text('{holder}')")
    ask(page, "stop")
    state(page, "stopped")


@pytest.mark.slow
def test_a_job_that_dies_shows_its_last_words_and_can_be_resumed(page, home, kill):
    open_train(page, **LONG | {"save_every": 1})
    name = start(page)
    trained_steps(page, 2)
    kill(home / "runs" / name)
    state(page, "interrupted")
    message = page.locator(".message").inner_text()
    assert "The process ended without a word." in message
    assert "Resume goes on from the checkpoint of step" in message
    done = page.evaluate(STEPS)
    ask(page, "resume")
    trained_steps(page, done + 1)
    ask(page, "stop")
    state(page, "stopped")


def test_a_zoom_outlives_new_points(app, copy, open_page):
    run = copy("growing")
    run.set_steps(8)
    with run.hold():
        run.take_over()
        page = open_page(f"{app}/?run={run.name}")
        state(page, "running")
        plot = page.locator("[data-curve=loss]")
        assert curve(page, "loss") == [1, 2, 3, 4]
        box = plot.bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 0.3 * box["width"], middle)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], middle, steps=4)
        page.mouse.up()
        zoomed = page.evaluate("document.querySelector('[data-curve=loss]').layout.xaxis.range")
        assert zoomed[0] > 1
        for step in (5, 6):
            run.append(StepReport(step, {"loss": 0.1}))
        trained_steps(page, 6)
        assert curve(page, "loss") == [1, 2, 3, 4, 5, 6]
        assert page.evaluate("document.querySelector('[data-curve=loss]').layout.xaxis.range") == zoomed
    state(page, "interrupted")


def test_the_page_of_a_run_that_ended_asks_rarely_and_notices_who_takes_it_up(app, copy, open_page):
    run = copy("again")
    page = open_page(f"{app}/?run={run.name}")
    state(page, "finished")
    page.wait_for_selector(".time-machine mark", state="attached")
    page.wait_for_timeout(1500)
    asked = []
    page.on("request", lambda request: "component_server" in request.url and asked.append(request.url))
    page.wait_for_timeout(4000)
    assert len(asked) <= 2, "of the run and of its probes"
    with run.hold():  # by another app, or in a terminal
        run.take_over()
        state(page, "running")
    state(page, "interrupted")


def test_a_finished_run_goes_on_for_more_steps(app, copy, open_page):
    page = open_page(f"{app}/?run={copy('longer').name}")
    state(page, "finished")
    assert page.locator(".prolong input").input_value() == "4"
    page.locator(".prolong input").fill("2")
    page.locator(".prolong button").click()
    page.wait_for_function(f"{STEPS} >= 6", timeout=90_000)
    state(page, "finished")
    assert page.locator(".progress-text").inner_text() == "step 6 of 6"
    assert "Prolonged from 4 to 6 steps" in page.locator(".happened").inner_text()
    assert curve(page, "loss") == [1, 2, 3, 4, 5, 6]


def test_a_kl_that_is_a_lower_bound_is_called_so_at_its_curve(app, copy, finished, open_page):
    bounded = copy("bounded")
    metrics = bounded.path / "metrics.jsonl"
    rows = [json.loads(line) | {"reverse_kl_top_k": 8} for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for run, said in ((bounded.name, "training: lower bound (teacher's top 8 and tail)"), (finished, "")):
        page = open_page(f"{app}/?run={run}")
        curve(page, "kl")
        assert page.locator("#run figure:has([data-curve=kl]) .bound").text_content() == said


def test_a_point_opens_its_steps_rollouts_and_they_go_with_the_run(app, copy, finished, open_page):
    page = open_page(f"{app}/?run={finished}")
    state(page, "finished")
    plot = page.locator("[data-curve=loss] .nsewdrag")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    # Step s is at (s + 0.5) of 5 parts.
    at = (box["x"] + box["width"] * 3.5 / 5, box["y"] + box["height"] / 2)
    page.mouse.move(*at)
    page.wait_for_timeout(200)
    page.mouse.click(*at)
    page.wait_for_selector("#trajectories .token")
    assert page.locator(".step-view h3").inner_text() == "Rollouts of step 3"
    assert "moved the way they were meant to" in page.locator(".step-view .words").inner_text()
    points = page.evaluate("document.querySelector('.push-plot').data.map((trace) => trace.x.length)")
    assert len(points) == 4
    page.locator(".step-view .earlier").click()
    page.wait_for_selector(".step-view h3:text-is('Rollouts of step 2')")

    # Another run is opened on the Runs tab, then picked: what belongs to the one before is put away.
    other = copy("other")
    metrics = other.path / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    unverified = [{key: row[key] for key in row if "accuracy" not in key} for row in rows]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in unverified))
    page.get_by_role("tab", name="Runs").click()
    page.locator(f"[data-run={other.name}]").get_by_role("button", name="Open").click()
    page.wait_for_selector(f".run-name:has-text('{other.name}')")
    for selector in (".step-view", "#trajectories .token >> nth=0"):
        page.locator(selector).wait_for(state="hidden")
    # Without answers there is no accuracy: the KL leads.
    curve(page, "kl")
    shown = page.locator("#run .curves.main figure:visible [data-curve]")
    names = shown.evaluate_all("(plots) => plots.map(({ dataset }) => dataset.curve)")
    assert names[:3] == ["kl", "length", "shape"]
    page.locator(".run-view [data-curve=kl] .nsewdrag").click()
    page.wait_for_selector("#trajectories .token")
    page.locator("#run-picker input").click()
    page.get_by_role("option", name=finished, exact=True).click()
    page.locator(".step-view").wait_for(state="hidden")
    assert page.locator("#trajectories .token").count() == 0 or not page.locator("#trajectories").is_visible()
    assert curve(page, "accuracy") == [0, 2, 4]


def test_the_time_machine_shows_what_became_of_each_token(app, finished, open_page):
    page = open_page(f"{app}/?run={finished}")
    page.wait_for_selector(".time-machine .text mark")
    assert page.locator(".time-machine output").inner_text() == "4"
    assert page.locator(".time-machine .probe option").count() == 8
    text = page.locator(".time-machine .text").inner_text()
    page.locator(".time-machine [type=range]").fill("0")
    page.wait_for_selector(".time-machine .change b:has-text('against step 0')")
    assert page.locator(".time-machine .text").inner_text() == text
    # Against itself nothing is healed and nothing new.
    counts = page.locator(".time-machine .change mark").all_inner_texts()
    assert (counts[0], counts[2]) == ("0 healed", "0 new")
    page.locator(".time-machine .probe").select_option("1")
    page.wait_for_function(
        "(old) => document.querySelector('.time-machine .text').innerText !== old", arg=text
    )
    page.locator(".time-machine .look").click()
    page.wait_for_selector(".step-view h3:text-is('Answers to the probes at step 4')")
    assert page.locator("#trajectories .prompt").inner_text() in page.locator(
        ".time-machine .probe option >> nth=1"
    ).inner_text().replace("2. ", "", 1)


def test_an_alarm_opens_its_evidence(app, copy, open_page):
    run = copy("alarmed")
    alarm = {"kind": "length collapse", "step": 2, "message": "Completions have collapsed."}
    run.log_event("alarm", **alarm, metric="completion_tokens", evidence="rollout")
    run.log_event("finished", step=4, message="It ends with an alarm: length.", alarmed=True)
    page = open_page(f"{app}/?run={run.name}")
    assert page.locator(".pill[data-alarmed]").inner_text() == "finished, with an alarm"
    assert page.locator(".message.bad").inner_text() == "It ends with an alarm: length."
    line = page.locator(".alarms li")
    assert "Step 2: Completions have collapsed." in line.inner_text()
    line.get_by_role("button").click()
    page.wait_for_selector(".step-view h3:text-is('Rollouts of step 2')")
    curve(page, "length")
    marks = page.evaluate("document.querySelector('[data-curve=length]').layout.shapes.map((s) => s.x0)")
    assert marks == [2]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"learning_rate": -1}, "learning_rate"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": "fast"}, "learning_rate"),
    ],
)
def test_a_bad_setting_is_named_and_nothing_starts(page, home, settings, sentence):
    runs = {*home.glob("runs/*")}
    open_train(page, **settings)
    page.locator("#start").click()
    message = page.locator(".toast-body").first
    message.wait_for()
    assert sentence in message.inner_text()
    assert "Traceback" not in message.inner_text()
    assert {*home.glob("runs/*")} == runs


def test_an_emptied_field_and_names_that_lead_nowhere_are_told_before_anything_waits(page, home, reload):
    runs = {*home.glob("runs/*")}
    open_train(page, steps="")
    page.locator("#setting-teacher textarea").fill("no-such-model")
    page.locator("#start").click()
    page.locator(".toast-body:has-text('Fill in Steps')").wait_for()
    page.locator("#setting-steps input").fill("3")
    page.wait_for_timeout(500)
    for button in ("#start", "#start-dry-run"):
        page.locator(button).click()
        page.locator(".toast-body:has-text('no model folder')").last.wait_for()
        page.wait_for_selector(f"{button}:not([disabled])")
    assert {*home.glob("runs/*")} == runs

    # What was typed outlives a reload.
    kept = "Object.entries(localStorage).find(([key]) => key.startsWith('opd-form'))"
    page.wait_for_function(f"['no-such-model', ',3,'].every((typed) => {kept}?.[1].includes(typed))")
    reload(page)
    page.get_by_role("tab", name="Train").click()
    page.wait_for_function("document.querySelector('#setting-teacher textarea')?.value === 'no-such-model'")
    assert page.locator("#setting-steps input").input_value() == "3"
    # What does not fit a field, and what is no form, is passed over.
    odd = "form.replace('no-such-model', 'x/y').replace(',3,', ',\"many\",')"
    for change, teacher in ((odd, "x/y"), ("'{'", "demo-teacher")):
        reload(page, f"() => {{ const [key, form] = {kept}; localStorage.setItem(key, {change}); }}")
        page.get_by_role("tab", name="Train").click()
        page.wait_for_function(f"document.querySelector('#setting-teacher textarea')?.value === '{teacher}'")
        assert page.locator("#setting-steps input").input_value() == "60"


def test_a_failed_runs_settings_are_edited(app, copy, finished, open_page):
    run = copy("failed")
    with (run.path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 5}\n')  # without a figure, as another program may leave it
    run.log_event("failed", message="It broke.")
    page = open_page(f"{app}/?run={run.name}")
    state(page, "failed")
    assert "tokens per second" in page.locator(".pace").inner_text()
    page.get_by_role("button", name="Edit these settings").click()
    page.wait_for_selector(".said:has-text('The form holds its settings')")
    page.wait_for_function("document.querySelector('#setting-steps input').value === '4'")
    page.locator("#show-code").click()
    page.wait_for_function("document.querySelector('#command textarea')?.value")
    flags = [word for name, value in QUICK.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = page.locator("#command textarea").input_value().split()
    assert {*flags, "--save-every", "2"} <= {*command}

    # Resume that is refused says why and no more: the run stays as it was.
    config, before = run.path / "config.json", run.events()
    whole = config.read_text()
    config.write_text(whole.replace('"demo-student"', '"/gone"'))
    ask(page, "resume")
    page.wait_for_selector(".toast-body:has-text('no model folder')")
    page.wait_for_selector("#run .said:text-is('')", state="attached")
    state(page, "failed")
    assert (run.events(), run.asked()) == (before, None)
    config.write_text(whole)

    # What is asked of a run that is no longer there is refused, and no word says that it was done.
    shutil.rmtree(run.path)
    page.get_by_role("button", name="Edit these settings").click()
    page.wait_for_selector(".toast-body:has-text('There is no run called')")
    page.wait_for_selector(".said:text-is('This run is gone.')")
    assert page.locator("#run .doors button:visible").count() == 0
    page.locator("#run-picker input").click()
    page.get_by_role("option", name=finished, exact=True).click()
    state(page, "finished")
    for door in (".again", ".copy", ".review", ".prolong"):
        page.locator(f"#run {door}").wait_for()


def test_a_starting_point_fills_in_what_it_names(page):
    open_train(page, steps=7)
    assert "p_S(v)" in page.locator("#objective-explained").inner_text()
    page.locator("#presets").get_by_role("button", name="SFT baseline").click()
    page.wait_for_function(
        "document.querySelector('#objective-explained').innerText.includes('teacher wrote')"
    )
    assert "off-policy" in page.locator("#preset-reason").inner_text()
    page.locator("#setting-sft_prompts:visible").wait_for()
    page.locator("#show-code").click()
    page.wait_for_function("document.querySelector('#command textarea')?.value")
    page.wait_for_function(f"{TOP}('#command') < innerHeight")
    command = page.locator("#command textarea").input_value()
    assert command == "opd train --objective sft --steps 7"
    assert "objective='sft'" in page.locator("#python textarea").input_value()


def test_what_the_first_step_will_punish(page):
    open_train(page, **QUICK)
    page.locator("#start-dry-run").click()
    # Beside the button, which rests meanwhile; on a busy machine one phase may pass between two looks.
    phases = re.compile("Loading|Examining the pair|Sampling|Grading")
    page.locator("#start-row .working:visible").filter(has_text=phases).wait_for()
    assert page.locator("#start-dry-run").is_disabled()
    page.wait_for_selector("[data-kind=punished] tr", timeout=90_000)
    page.wait_for_function(f"{TOP}('.dry-run') < innerHeight / 2")  # the page goes to the answer
    page.wait_for_selector("#start-dry-run:not([disabled])")
    assert re.search(r"(\d+) of \1 checks passed", page.locator(".dry-run summary").inner_text())
    assert "A step: 16 completions" in page.locator(".dry-run .facts").inner_text()
    figures = page.locator("[data-kind=punished] td.advantage").all_inner_texts()
    punished = [float(text.replace("−", "-")) for text in figures]
    assert punished == sorted(punished)
    assert max(punished) < 0
    token = page.locator("[data-kind=punished] td b").first.inner_text().replace("·", " ").strip()
    page.locator("[data-kind=punished] tbody tr").first.click()
    page.wait_for_selector("#trajectories .token")
    assert token in page.locator("#trajectories .text").first.inner_text()


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_shows_the_same_run(serve, tmp_path, open_page):
    with serve(tmp_path) as (url, process):
        page = open_page(url)
        open_train(page, **LONG)
        name = start(page)
        before = trained_steps(page, 2)
        page.goto("about:blank")  # the console errors of a server that is gone are no complaint
        process.kill()
        process.wait()
    with serve(tmp_path) as (url, _):
        page = open_page(f"{url}/?run={name}")
        state(page, "running")
        assert trained_steps(page, before + 1) > before
        ask(page, "stop")
        state(page, "stopped")
        page.goto("about:blank")


@pytest.mark.slow
def test_twenty_viewers_cost_the_server_less_than_a_hundredth_of_a_core_each(serve, tmp_path, open_page):
    with serve(tmp_path) as (url, process):
        page = open_page(url)
        open_train(page, **LONG)
        name = start(page)
        trained_steps(page, 2)
        pages = [page, *(open_page(f"{url}/?run={name}") for _ in range(2))]
        for viewer in pages:
            state(viewer, "running")
        component = component_of(url, "run")
        stop = threading.Event()
        heard: list[int] = []
        clients = [threading.Thread(target=poll, args=(url, component, name, stop, heard)) for _ in range(17)]
        for client in clients:
            client.start()
        time.sleep(5)  # the pages settle, plotly is loaded
        before, started = cpu_seconds(process.pid), time.monotonic()
        time.sleep(20)
        share = (cpu_seconds(process.pid) - before) / (time.monotonic() - started)
        stop.set()
        for client in clients:
            client.join()
        ask(page, "stop")
        for viewer in pages:
            state(viewer, "stopped")
        print(f"{share:.1%} of a core for 20 viewers, {len(heard)} answers")
        assert len({viewer.evaluate(STEPS) for viewer in pages}) == 1
        for viewer in pages:
            viewer.goto("about:blank")  # what is left of a page complains when the server ends
    assert share < 0.20
    assert len(heard) > 17 * 15


def component_of(url: str, elem_id: str) -> int:
    config = json.load(urllib.request.urlopen(f"{url}/config"))
    return next(c["id"] for c in config["components"] if c["props"].get("elem_id") == elem_id)


def poll(url: str, component: int, run: str, stop: threading.Event, heard: list[int]) -> None:
    """Be a viewer: ask for news once a second, knowing what came before."""
    cursor, session = None, os.urandom(6).hex()
    while not stop.wait(1):
        body = {
            "data": [run, cursor],
            "component_id": component,
            "fn_name": "news",
            "session_hash": session,
        }
        request = urllib.request.Request(
            f"{url}/gradio_api/component_server",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        news = json.load(urllib.request.urlopen(request))
        assert news["restart"] == (cursor is None)
        cursor = news["cursor"]
        heard.append(len(news["rows"]))


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
