"""The Train tab: a short run from start to the comparison, and what goes wrong."""

import pytest

QUICK = {"steps": 6, "prompts_per_step": 8, "eval_every": 2, "eval_prompts": 32, "max_tokens": 96}


def open_train(page, **settings) -> None:
    page.get_by_role("tab", name="Train").click()
    page.locator("#start").wait_for()
    if settings:
        page.get_by_text("More settings").click()
    for name, value in settings.items():
        page.locator(f"#setting-{name} input, #setting-{name} textarea").first.fill(str(value))


def state(page, name: str) -> None:
    page.wait_for_selector(f".pill[data-state={name}]", timeout=90_000)


def points(page, curve: str) -> int:
    """Points in a curve's last trace."""
    return page.evaluate(f"document.querySelector('[data-curve={curve}]').data.at(-1).x.length")


def test_a_run_is_watched_and_its_student_reviewed(page):
    open_train(page, **QUICK)
    page.locator("#start").click()
    state(page, "running")
    assert page.locator("#start").is_disabled()
    page.wait_for_function(
        "document.querySelector('[data-curve=loss]')?.data?.at(-1).x.length > 1", timeout=90_000
    )

    # A reload finds the same run, with all that has happened; a zoom outlives new points.
    page.reload()
    page.get_by_role("tab", name="Train").click()
    page.wait_for_function(
        "document.querySelector('[data-curve=loss]')?.data?.at(-1).x.length > 1", timeout=60_000
    )
    page.evaluate("Plotly.relayout(document.querySelector('[data-curve=loss]'), {'xaxis.range': [0, 3]})")
    state(page, "finished")
    assert page.evaluate("document.querySelector('[data-curve=loss]').layout.xaxis.range") == [0, 3]
    assert points(page, "loss") == points(page, "reverse_kl") == QUICK["steps"]
    assert points(page, "accuracy") == 1 + QUICK["steps"] // QUICK["eval_every"]
    assert "step 6 of 6" in page.locator(".progress-text").inner_text()

    page.locator("#review-trained:not([disabled])").click()
    page.wait_for_selector(".pane >> nth=1", timeout=60_000)
    page.wait_for_selector("#sample:not([disabled])")
    before, after = page.locator(".pane-title").all_inner_texts()
    assert before == "before training"
    assert after.startswith("after ")
    assert page.locator(".opd-review .prompt").inner_text() == page.locator("#prompt textarea").input_value()


def test_stop_takes_effect_and_the_rest_is_kept(page):
    open_train(page, **QUICK | {"steps": 500, "eval_prompts": 0})
    page.locator("#start").click()
    state(page, "running")
    page.wait_for_function(
        "document.querySelector('[data-curve=loss]')?.data?.at(-1).x.length > 0", timeout=90_000
    )
    page.locator("#stop-training:not([disabled])").click()
    state(page, "stopped")
    done = points(page, "loss")
    assert 1 <= done < 500
    page.wait_for_selector("#start:not([disabled])")
    page.wait_for_timeout(2500)
    assert points(page, "loss") == done


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


def test_the_chosen_objective_is_explained(page):
    open_train(page)
    explained = page.locator("#objective-explained")
    assert "p_S(v)" in explained.inner_text()
    page.locator("#setting-objective input").click()
    page.get_by_role("option", name="sft").click()
    page.wait_for_function(
        "document.querySelector('#objective-explained').innerText.includes('teacher wrote')"
    )
    assert "log p_S(y)" in explained.inner_text()
