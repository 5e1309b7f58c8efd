"""The one-file HTML, opened from the disk with no network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from graded import make_review
from hostile import HOSTILE

from opd.grading.saved_reviews import ReviewGroup, ReviewSet, gallery
from opd.view.page import render_page
from opd.view.payload import CHUNK, visible


@pytest.fixture
def show(open_page, tmp_path: Path):
    """Open a set as a page of its own; any request beside the file itself fails the test."""

    def show_(reviews: ReviewSet, fragment: str = "", **options):
        path = tmp_path / "review.html"
        path.write_text(render_page(reviews), encoding="utf-8")
        page = open_page(path.as_uri() + fragment, **options)
        page.context.set_offline(True)
        page.wait_for_selector(".opd-review .token")
        return page

    return show_


def test_the_page_has_all_that_the_app_has(show):
    reviews = next(iter(gallery().values()))
    page = show(reviews)
    assert page.locator("h1").inner_text() == page.title() == reviews.title
    assert "demo-student, graded by demo-teacher" in page.locator("header").inner_text()
    assert page.locator(".rail label").count() == len(reviews)
    page.locator(".token.fork").first.click()
    page.locator(".pinned .candidate").nth(2).wait_for()
    for signal in ("reverse KL", "JSD", "rank"):
        page.locator(".signals label", has_text=signal).click()
        page.wait_for_selector(".token.heat")
    assert page.locator(".pinned .actions button").count() == 0, "nobody is there to go on writing"


def test_the_far_end_of_a_long_text_is_inside(show):
    last = CHUNK + 40
    page = show(ReviewSet.of([make_review([f" w{i}" for i in range(last)])]), f"#t={last}&s=reverse_kl")
    page.get_by_text(f"token {last} of {last}").wait_for()
    page.locator(".pinned .candidate.sampled", has_text=f"w{last - 1}").wait_for()
    assert page.locator(".signals label:has(input:checked)").inner_text() == "reverse KL"
    page.locator(".pane .text").focus()
    page.keyboard.press("Home")
    page.wait_for_url(re.compile("#t=1&"))


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_has_a_day_and_a_night(show, dark):
    page = show(next(iter(gallery().values())), dark=dark)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", paper)[:3])) < 60) == dark


def test_hostile_text_is_inert_on_the_page(show):
    markup = "</script><img src=x onerror=alert(1)>"
    made = make_review([*HOSTILE, markup], messages=[{"role": "user", "content": markup}])
    page = show(ReviewSet([ReviewGroup(markup, [made])], title=markup, note="${alert(1)} @script@"))
    page.wait_for_timeout(300)
    assert page.locator("img").count() == 0
    assert page.locator("h1").inner_text() == markup
    shown = page.locator(".pane .token").last.evaluate("token => token.textContent")
    assert shown == visible(markup)


def test_on_a_phone_nothing_sticks_out(show):
    page = show(next(iter(gallery().values())), width=390, height=844, touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
