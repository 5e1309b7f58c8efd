"""The component by itself in a Gradio page, given reviews made by hand."""

from __future__ import annotations

import json

import gradio as gr
import pytest
from graded import make_review
from hostile import HOSTILE

from opd.grading.saved_reviews import ReviewGroup, ReviewSet
from opd.ui.kept_sets import KeptSets
from opd.ui.token_review import ACTIONS, TokenReview

LONG = 3000
SETS = {
    "hostile": [
        ReviewGroup(
            "<b>before</b> ${alert(1)}",
            [make_review(HOSTILE, penalty=[2.0] * len(HOSTILE), bias="<i>biased</i>", correct=False)],
        )
    ],
    "pair": [
        ReviewGroup("before training", [make_review(["A", " fork", "."], penalty=[0, 3, 0], correct=False)]),
        ReviewGroup("after quick", [make_review(["A", " word", "."], correct=True)]),
    ],
    "growing": [
        ReviewGroup("", [make_review(["One", " two"], penalty=[0.0, 0.3], finish_reason=None)]),
    ],
    "long": [
        ReviewGroup("", [make_review([f" w{i}" if i % 20 else "\n" for i in range(LONG)])]),
    ],
}


@pytest.fixture(scope="module")
def component(browser):
    """The address of a page with the component and a text box that chooses what it shows."""
    with gr.Blocks(analytics_enabled=False) as page:
        choice = gr.Textbox(label="set")
        review = TokenReview(KeptSets(), ["branch"], linked=True)
        heard = gr.Textbox(label="heard", elem_id="heard")

        def show(name: str) -> str:
            if name == "grown":
                grown = make_review(["One", " two", " three"], penalty=[0.0, 0.3, 5.0])
                return review.show("growing", ReviewSet.of([grown]))
            return review.show(name, ReviewSet(SETS[name]))

        def hear(event: gr.EventData) -> str:
            return json.dumps(["branch", event._data])

        choice.submit(show, choice, review)
        review.branch(hear, None, heard)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield url.rstrip("/")
    page.close()


@pytest.fixture
def show(component, open_page):
    page = open_page(component)

    def show_(name: str):
        page.get_by_label("set").fill(name)
        page.get_by_label("set").press("Enter")
        page.wait_for_selector(".opd-review .token")
        return page

    return show_


def test_hostile_text_is_inert_and_readable(show):
    page = show("hostile")
    page.wait_for_timeout(300)
    for tag in ("img", "script", "b.before", "i.biased"):
        assert page.locator(f".panes {tag}").count() == 0
    tokens = page.locator(".pane .token")
    assert tokens.count() == len(HOSTILE)
    tokens.nth(0).click()
    page.locator(".pinned .candidate").nth(2).wait_for()
    assert "onerror" in page.locator(".pinned .token").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_the_address_follows_and_brings_back(show, component, open_page):
    page = show("pair")
    page.locator(".signals label", has_text="reverse KL").click()
    page.locator(".pane").nth(1).locator(".token").nth(2).click()
    page.wait_for_function("location.hash === '#t=3&s=reverse_kl&g=2'")
    again = open_page(component + "/#t=2&s=reverse_kl&g=2")
    again.get_by_label("set").fill("pair")
    again.get_by_label("set").press("Enter")
    again.get_by_text("token 2 of 3").wait_for()
    assert again.locator(".signals label:has(:checked)").inner_text() == "reverse KL"
    assert again.locator(".pane").nth(1).locator(".token.cursor").count() == 1


def test_before_and_after_stand_together(show):
    page = show("pair")
    assert page.locator(".pane-title").all_inner_texts() == ["before training", "after quick"]
    assert page.locator(".rail legend").inner_text() == "0 → 1 of 1 right"
    first, second = page.locator(".pane").all()
    assert first.locator(".token.fork").count() == 1
    assert second.locator(".token.fork").count() == 0
    first.locator(".token.fork").click()
    page.locator(".pinned .candidate").nth(1).wait_for()
    second.locator(".token").first.click()
    page.get_by_text("token 1 of 3").wait_for()
    assert page.locator(".token.cursor").count() == 1


def test_a_growing_text_keeps_its_place_and_its_pin(show):
    page = show("growing")
    page.locator(".pane .token").nth(1).click()
    page.locator(".card.pinned").wait_for()
    page.evaluate("document.querySelector('.pane .token').dataset.mark = 'same element'")
    show("grown")
    page.locator(".pane .token").nth(2).wait_for()
    assert page.locator("[data-mark='same element']").count() == 1
    assert "cursor" in page.locator(".pane .token").nth(1).get_attribute("class")
    assert "blunder" in page.locator(".pane .token").nth(2).get_attribute("class")
    page.locator(".pane .token").nth(2).click()
    page.locator(".pinned .candidate.sampled", has_text="three").wait_for()


def test_alternatives_of_a_long_text_come_when_looked_at(show):
    page = show("long")
    page.locator(".pane .text").focus()
    page.keyboard.press("End")
    page.get_by_text(f"token {LONG} of {LONG}").wait_for()
    page.locator(".pinned .candidate.sampled", has_text=f"w{LONG - 1}").wait_for()
    assert page.locator(".pane .token").last.is_visible()
    page.locator(".graph canvas").click(position={"x": 2, "y": 20})
    page.wait_for_function("parseInt(document.querySelector('.pinned .position').textContent.slice(6)) < 50")


def test_other_signals_are_fetched_when_chosen(show):
    page = show("pair")
    page.locator(".signals label", has_text="reverse KL").click()
    page.wait_for_function(
        "document.querySelectorAll('.pane .token')[1].className.includes('dislike-4')"
    )  # 1.5 nats


def test_python_hears_of_what_the_card_asks(show):
    page = show("pair")
    page.locator(".pane").first.locator(".token").nth(1).click()
    page.get_by_label("Let the student go on from here with ·yes").click()
    page.wait_for_function("document.querySelector('#heard textarea').value.includes('branch')")
    heard = json.loads(page.locator("#heard textarea").input_value())
    assert heard == ["branch", {"key": "pair", "group": 0, "sample": 0, "index": 1, "token": 3}]
    assert page.get_by_role("button", name="Fork value").count() == 0  # nobody listens


def test_the_quiz_fetches_its_candidates(show):
    page = show("pair")
    page.get_by_role("button", name="Quiz").click()
    page.locator(".quiz-options li").first.wait_for()
    behind = page.get_by_label("set")  # the page around the component is out of reach as well
    behind.focus()
    assert not behind.evaluate("input => input === document.activeElement")
    page.keyboard.press("1")
    assert "The teacher would say" in page.locator(".quiz-reveal").inner_text()
    page.keyboard.press("Escape")
    page.locator(".quiz").wait_for(state="hidden")


@pytest.mark.parametrize(
    "address",
    [
        ["x", 0, 0, 0],
        ["pair", 9, 0, 0],
        ["pair", -1, 0, 0],
        ["pair", 0, 0, "nope"],
        ["pair", 0, 0, []],
        "pair",
        None,
        [[]],
    ],
)
def test_asking_for_what_is_not_there_gives_nothing(address):
    review = TokenReview(KeptSets())
    review.show("pair", ReviewSet(SETS["pair"]))
    assert review.alternatives_at(address) is None
    assert review.column_of(address) is None


def test_what_is_no_longer_at_hand_is_said():
    with pytest.raises(ValueError, match="no longer at hand"):
        KeptSets().find("gone")


def test_every_action_is_an_event():
    with gr.Blocks():
        review = TokenReview(KeptSets(), ACTIONS)
        for action in ACTIONS:
            getattr(review, action)(lambda: None)
