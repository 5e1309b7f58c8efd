"""The Runs tab: runs are found, compared, annotated, taken along and deleted; a race is watched there."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from train_form import fill_in

SMALL = {
    "steps": 2,
    "prompts_per_step": 8,
    "eval_every": 1,
    "eval_prompts": 8,
    "max_tokens": 48,
    "save_every": 1,
}
LINES = "document.querySelector('#overlay [data-curve={}]')?.data?.map(({{ name }}) => name)"


@pytest.fixture(scope="module")
def runs(home: Path, train) -> list[str]:
    """Two runs that differ in the seed, or say so: the curves are the same."""
    north = train("north", **SMALL)
    south = shutil.copytree(north.path, north.path.with_name("south")) / "config.json"
    south.write_text(json.dumps(json.loads(south.read_text()) | {"seed": 1}))
    return ["north", "south"]


def open_runs(page, *chosen: str) -> None:
    page.get_by_role("tab", name="Runs").click()
    for name in chosen:
        page.locator(f"[data-run={name}] [type=checkbox]").check()
        page.wait_for_selector(f"#about-heading:has-text('{name}')")


def test_runs_are_searched_laid_over_each_other_and_compared_in_their_settings(runs, page):
    open_runs(page, *runs)
    row = page.locator("[data-run=north]").inner_text()
    assert "finished" in row
    assert "2 / 2" in row
    for curve in ("accuracy", "kl"):
        # Curves are drawn when they come into sight, and below many runs they are not.
        page.locator(f"#overlay [data-curve={curve}]").scroll_into_view_if_needed()
        page.wait_for_function(f"{LINES.format(curve)}?.join() === 'north,south'")
    steps = page.evaluate("document.querySelector('#overlay [data-curve=kl]').data[0].x")
    assert steps == [1, 2]
    page.locator("#overlay .axis").select_option("tokens")
    tokens = "document.querySelector('#overlay [data-curve=kl]').data[0].x"
    page.wait_for_function(f"{tokens}[0] > 8")
    first, second = page.evaluate(tokens)
    assert first < second
    assert page.locator("#overlay .diff tbody tr").all_inner_texts() == ["seed\t0\t1"]

    page.locator("#runs [type=search]").fill("south")
    page.wait_for_function("document.querySelectorAll('.run-table tbody tr').length === 1")
    page.locator("#runs [type=search]").fill("no such run")
    page.wait_for_function("document.querySelectorAll('.run-table tbody tr').length === 0")


def test_runs_that_are_ticked_faster_than_the_page_answers_are_all_chosen(runs, page):
    open_runs(page)
    boxes = [f"[data-run={name}] [type=checkbox]" for name in runs]
    page.locator(boxes[0]).wait_for()
    # The second comes while the first is on its way to the server.
    tick = """async (boxes) => {
        for (const box of boxes) {
            document.querySelector(box).click();
            await new Promise((resolve) => setTimeout(resolve, 20));
        }
    }"""
    page.evaluate(tick, boxes)
    page.wait_for_selector("#about-heading:has-text('of 2 chosen runs')")
    assert page.locator(".run-table :checked").count() == 2
    page.evaluate(tick, boxes)
    page.locator("#about-run").wait_for(state="hidden")
    assert page.locator(".run-table :checked").count() == 0


def test_a_note_and_the_baseline_are_kept(runs, page, reload):
    open_runs(page, "north")
    page.locator("#note textarea").fill("The one <b>to</b> beat")
    page.locator("#keep-note").click()
    page.wait_for_selector("[data-run=north] .note:has-text('The one <b>to</b> beat')")
    page.locator("#note textarea").fill("Still being written")
    page.locator("#pin").click()
    page.wait_for_selector("[data-run=north]:has-text('★')")
    page.wait_for_selector("#pin:has-text('Unpin')")
    assert page.locator("#note textarea").input_value() == "Still being written"
    reload(page)
    open_runs(page, "south")
    # The baseline joins what is chosen.
    page.wait_for_function(f"{LINES.format('accuracy')}?.join() === 'south,north'")
    open_runs(page, "north")
    assert page.locator("#note textarea").input_value() == "The one <b>to</b> beat"
    page.locator("#pin").click()
    page.wait_for_selector("[data-run=north]:not(:has-text('★'))")


def test_two_checkpoints_answer_the_same_prompts_side_by_side(runs, page):
    open_runs(page, "north")
    assert page.locator("#first-checkpoint input").input_value() == "step 1 of north"
    page.locator("#compare-n input").fill("2")
    page.locator("#compare").click()
    page.wait_for_selector("#compared .pane >> nth=1", timeout=90_000)
    assert page.locator("#compared .pane-title").all_inner_texts() == ["step 1 of north", "step 2 of north"]


def test_metrics_and_weights_are_taken_along(runs, page, tmp_path):
    open_runs(page, "north")
    for button, name in (("#csv", "north-metrics.csv"), ("#make-zip", "north.zip")):
        with page.expect_download() as waiting:
            page.locator(button).click()
        assert waiting.value.suggested_filename == name
        waiting.value.save_as(tmp_path / name)
    assert (tmp_path / "north-metrics.csv").read_text().count("\n") == 1 + 3
    assert "north/model.safetensors" in zipfile.ZipFile(tmp_path / "north.zip").namelist()


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])
def test_a_report_is_taken_along_and_shows_everything_offline(runs, page, open_page, tmp_path, width, dark):
    open_runs(page, "north")
    with page.expect_download() as waiting:
        page.locator("#report").click()
    waiting.value.save_as(tmp_path / "report.html")
    report = open_page((tmp_path / "report.html").as_uri(), width=width, height=844, dark=dark)
    report.context.set_offline(True)
    assert report.locator("h1").inner_text() == "north"
    assert "held-out accuracy" in report.locator(".outcome").inner_text()
    assert report.locator(".barcodes figure").count() == 8
    accuracy = report.locator("figure:has-text('Held-out accuracy') .measured")
    assert accuracy.evaluate("path => path.getTotalLength()") > 100
    # The answers of the first and of the last evaluation, in the component.
    assert report.locator(".opd-review .pane-title").all_inner_texts() == ["step 0", "step 2"]
    report.locator(".opd-review .token").first.click()
    report.locator(".pinned .candidate").first.wait_for()
    assert report.evaluate("document.documentElement.scrollWidth") <= width


def test_publishing_asks_for_what_it_needs_and_forgets_the_token(runs, page):
    open_runs(page, "north")
    page.locator("#publish .label-wrap").click()
    assert page.locator("#hub-token input").get_attribute("type") == "password"
    page.locator("#do-publish").click()
    page.locator(".toast-body:has-text('a token that may write there')").wait_for()


def test_runs_are_deleted_only_when_that_is_confirmed_and_then_all_that_are_chosen(runs, page, home):
    for name in ("doomed", "doomed-too"):
        shutil.copytree(home / "runs" / "south", home / "runs" / name, dirs_exist_ok=True)
    open_runs(page, "doomed-too", "doomed")
    page.locator("#delete").click()
    page.locator("#keep-run").click()
    page.locator("#really-delete").wait_for(state="hidden")
    page.locator("#delete").click()
    page.wait_for_selector("#doomed:has-text('Delete doomed-too and doomed?')")
    page.locator("#really-delete").click()
    for name in ("doomed", "doomed-too"):
        page.wait_for_selector(f"[data-run={name}]", state="detached")
        assert not (home / "runs" / name).exists()


def test_a_broken_run_is_listed_with_the_reason_and_can_be_deleted(runs, page, home):
    shutil.copytree(home / "runs" / "north", home / "runs" / "broken")
    (home / "runs" / "broken" / "config.json").write_text("{")
    open_runs(page, "broken")
    row = page.locator("[data-run=broken]")
    assert "cannot be read as settings" in row.inner_text()
    assert row.get_by_role("button", name="Open").count() == 0
    page.locator("#delete").click()
    page.locator("#really-delete").click()
    page.wait_for_selector("[data-run=broken]", state="detached")
    assert page.locator("[data-run=north]").is_visible()


def test_a_run_is_opened_on_the_train_tab(runs, page):
    open_runs(page)
    page.locator("[data-run=south]").get_by_role("button", name="Open").click()
    page.wait_for_selector(".run-view .run-name:text-is('south')")


@pytest.mark.slow
def test_a_race_is_watched_on_shared_axes(page):
    page.get_by_role("tab", name="Train").click()
    fill_in(page, SMALL | {"save_every": 20})
    page.locator("#race .label-wrap").click()
    page.locator("#race-methods label:has-text('RL')").click()  # it would take 128 completions a step
    page.locator("#race-name textarea").fill("derby")
    page.locator("#start-race").click()
    page.wait_for_function(f"{LINES.format('accuracy')}?.join() === 'derby-full,derby-sft'")
    page.wait_for_selector("[data-run=derby-sft]:has-text('finished')", timeout=120_000)
    done = (
        "document.querySelector('#overlay [data-curve=kl]').data.map(({ x }) => x.at(-1))?.join() === '2,2'"
    )
    page.wait_for_function(done)
