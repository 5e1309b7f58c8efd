"""Many trajectories at once: the table, the worst tokens, the swaps, the map."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graded import make_review
from hostile import HOSTILE

from opd.grading.saved_reviews import ReviewGroup, ReviewSet, save_reviews
from opd.grading.summary import QUADRANTS, report_card, swaps, token_map, worst_tokens
from opd.reviews import BranchPoint

TRAJECTORIES, TOKENS = 64, 200
WORDS = np.array([" we", " need", " the", " sum", " of", " pairs", ",", ".", " 2026", ".\n", "ing", " so"])
PROMPTS = ["How many pairs are there?", "Name <b>one</b> of them: ${1+1}"]


OVERVIEW = {"include": [[".opd-corpus"]], "exclude": [[".opd-corpus tbody tr:nth-child(n + 13)"]]}
"""What axe looks at: of rows that are alike a dozen."""


def random_review(rng: np.random.Generator, number: int):
    penalty = rng.exponential(1.0, TOKENS) * (rng.random(TOKENS) < 0.2)
    return make_review(
        [f"Answer {number}:", *rng.choice(WORDS, TOKENS - 1).tolist()],
        penalty=penalty,
        correct=[True, False, None][number % 3],
        student_gives=0.6 if number % 2 else 0.995,
        messages=[{"role": "user", "content": PROMPTS[number % 2]}],
    )


@pytest.fixture(scope="module")
def many() -> list:
    rng = np.random.default_rng(3)
    hostile = make_review(HOSTILE, penalty=[1.5] * len(HOSTILE), correct=True)
    return [*(random_review(rng, number) for number in range(TRAJECTORIES - 1)), hostile]


def saved(home: Path, reviews: ReviewSet) -> str:
    """Keep a set where the app finds it, and return the query that opens it."""
    (home / "reviews").mkdir(exist_ok=True)
    save_reviews(home / "reviews" / f"{reviews.id}.json", reviews)
    return f"?review={reviews.id}"


@pytest.fixture(scope="module")
def address(app, home, many) -> str:
    return app + "/" + saved(home, ReviewSet([ReviewGroup("", many)]))


@pytest.fixture
def open_many(open_page, address):
    """Open the page of 64 trajectories with their overview unfolded."""

    def open_(**options):
        page = open_page(address, **options)
        page.wait_for_selector(".opd-review .token")
        corpus = page.locator(".opd-corpus")
        assert corpus.locator(".bar").is_hidden(), "it is folded until somebody wants it"
        corpus.locator("summary").click()
        corpus.locator("#corpus-table tbody tr").first.wait_for()
        return page

    return open_


def rows(page, tab: str):
    """The rows of a tab's own table, not of what is listed beside it."""
    return page.locator(f"#corpus-{tab} .table:not(.selection > .table) tbody tr")


def show(page, tab: str) -> None:
    page.locator(f"#corpus-tab-{tab}").click()


def column(page, tab: str, name: str) -> list[str]:
    return page.locator(f"#corpus-{tab} tbody td.{name}").all_inner_texts()


def floats(texts: list[str]) -> list[float]:
    return [float(text.replace("−", "-").replace("\u00a0%", "")) for text in texts]


def test_one_trajectory_has_no_overview(app, home, open_page):
    one = ReviewSet([ReviewGroup("", [make_review(["a", "b"])])])
    page = open_page(f"{app}/{saved(home, one)}")
    page.locator(".opd-review .token").nth(1).wait_for()
    page.wait_for_function("document.querySelectorAll('.opd-review .token').length === 2")
    assert page.locator(".opd-corpus").is_hidden()


def test_the_table_shows_sorts_and_opens_with_the_keyboard(open_many, many):
    page = open_many()
    tokens = sum(len(review.grades) for review in many)
    words = f"64 trajectories, 22 of 43 right, 21 not verified, {tokens:,} tokens"
    assert words in page.locator(".opd-corpus summary").inner_text()
    assert rows(page, "table").count() == TRAJECTORIES
    # The list above is as high as the window at most, names each prompt, and goes where the table points.
    rail = page.locator(".opd-review .rail")
    assert rail.evaluate("rail => rail.clientHeight < innerHeight && rail.scrollHeight > innerHeight")
    asked = rail.locator("label:nth-of-type(-n + 3) .asked").all_inner_texts()
    assert asked == [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    head = page.locator("#corpus-table th.agreement")
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    cards = [report_card(review) for review in many]
    best_first = sorted(range(len(many)), key=lambda i: -(cards[i].agreement or 0))
    assert column(page, "table", "place") == [str(i + 1) for i in best_first]
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    # The sort is stable: among equal answers the order by agreement stays.
    page.locator("#corpus-table th.answer button").click()
    answers = [text.split()[-1] for text in column(page, "table", "answer")]
    assert answers == sorted(answers, key=["right", "wrong", "–"].index)
    agreement = floats(column(page, "table", "agreement"))
    assert agreement[:22] == sorted(agreement[:22])
    assert head.get_attribute("aria-sort") is None

    button = page.locator("#corpus-table td.place button").nth(5)
    number = int(button.inner_text())
    button.focus()
    page.keyboard.press("Enter")
    page.locator(f".rail label:nth-of-type({number}) input:checked").wait_for(state="attached")
    chosen = rail.locator("label:has(:checked)").bounding_box()
    assert 0 <= chosen["y"] - rail.bounding_box()["y"] < rail.bounding_box()["height"]
    assert page.locator(".pane .text").inner_text().startswith(f"Answer {number - 1}:")
    assert page.evaluate("document.activeElement.matches('.pane .text')"), "arrow keys go on from there"


def test_the_worst_token_of_a_trajectory_opens_at_its_place_and_keeps_the_signal(open_many, many):
    page = open_many()
    page.locator(".signals label", has_text="reverse KL").click()
    page.locator("#corpus-table td.worst button").nth(7).click()
    worst = int(many[7].grades.penalty.argmax())
    page.locator(".pinned .position", has_text=f"token {worst + 1} of {TOKENS}").wait_for()
    page.wait_for_function("location.hash.includes('i=8')")
    assert f"t={worst + 1}" in page.evaluate("location.hash")
    assert page.locator(".signals label:has(:checked)").inner_text() == "reverse KL"


def test_filters_choose_trajectories_and_their_tokens(open_many, many):
    page = open_many()
    corpus = page.locator(".opd-corpus")

    def shown(count: int) -> None:
        page.wait_for_function(
            "n => document.querySelectorAll('#corpus-table tbody tr').length === n", arg=count
        )

    corpus.get_by_label("Answer", exact=True).select_option("wrong")
    shown(sum(review.correct is False for review in many))
    assert set(column(page, "table", "answer")) == {"✗ wrong"}
    corpus.get_by_label("Prompt or text holds").fill("answer 1")
    wrong = [i for i, r in enumerate(many) if r.correct is False and "Answer 1" in r.text]
    shown(len(wrong))
    assert column(page, "table", "place") == [str(i + 1) for i in wrong]
    corpus.get_by_label("Verdict", exact=True).select_option("blunder")
    expected = [i for i in wrong if report_card(many[i]).counts["blunder"]]
    shown(len(expected))
    show(page, "worst")
    rows(page, "worst").first.wait_for()
    assert {int(place.split()[0]) - 1 for place in column(page, "worst", "place")} <= set(expected)
    assert set(column(page, "worst", "verdict")) == {"blunder ??"}
    corpus.get_by_label("Prompt or text holds").fill("nobody wrote this")
    corpus.get_by_text("No token like that has a penalty.").wait_for()
    assert rows(page, "worst").count() == 0


def test_worst_tokens_are_those_of_the_library(open_many, many):
    page = open_many()
    show(page, "worst")
    rows(page, "worst").first.wait_for()
    expected = worst_tokens(many, 100)
    assert column(page, "worst", "place") == [f"{t.review + 1} · {t.index + 1}" for t in expected]
    assert floats(column(page, "worst", "penalty")) == pytest.approx([t.penalty for t in expected], abs=0.006)
    rows(page, "worst").nth(2).click()
    page.locator(".pinned .position", has_text=f"token {expected[2].index + 1} of").wait_for()
    page.wait_for_function("n => location.hash.includes(`i=${n}`)", arg=expected[2].review + 1)


def test_swaps_list_their_places_and_follow_the_threshold(open_many, many):
    page = open_many()
    show(page, "swaps")
    rows(page, "swaps").first.wait_for()
    expected = swaps(many)
    first = rows(page, "swaps").first.inner_text().split()
    assert first[-1] == "%"
    assert rows(page, "swaps").count() == min(100, len(expected))
    rows(page, "swaps").first.click()
    selection = page.locator("#corpus-swaps .selection")
    selection.locator("tbody tr").first.wait_for()
    assert selection.locator("tbody tr").count() == expected[0].count
    selection.locator("td.place button").first.click()
    review, index = expected[0].places[0]
    page.locator(".pinned .position", has_text=f"token {index + 1} of {len(many[review].grades)}").wait_for()
    page.get_by_label("Least blame").fill("0.72")
    fewer = swaps(many, least_blame=0.72)
    assert 0 < len(fewer) < 100
    selection.wait_for(state="hidden")
    rows(page, "swaps").nth(len(fewer)).wait_for(state="detached")
    assert rows(page, "swaps").count() == len(fewer)


def test_the_map_lists_quadrants_and_what_is_drawn_round_and_opens_points(open_many, many):
    page = open_many()
    show(page, "map")
    page.locator("#corpus-map .plot canvas").first.wait_for()
    found = token_map(many)
    counts = np.bincount(found.quadrants, minlength=4)
    buttons = page.locator(".quadrants button")
    for i, name in enumerate(QUADRANTS):
        assert buttons.nth(i).inner_text().startswith(f"{name} {counts[i]:,} token")
    fork = buttons.nth(QUADRANTS.index("fork"))
    fork.focus()
    page.keyboard.press("Enter")
    selection = page.locator("#corpus-map .selection")
    selection.locator("tbody tr").first.wait_for()
    assert fork.get_attribute("aria-pressed") == "true"
    listed = floats(selection.locator("td.penalty").all_inner_texts())
    forks = found.quadrants == QUADRANTS.index("fork")
    largest = np.sort(found.reverse_kl[forks])[::-1][: len(listed)]
    assert [abs(value) / 2 for value in listed] == pytest.approx(largest.tolist(), abs=0.006)

    page.wait_for_timeout(500)  # the plot makes room for the list
    plot = page.locator("#corpus-map .plot")
    plot.scroll_into_view_if_needed()
    box = page.locator("#corpus-map .plot .nsewdrag").bounding_box()
    left, right, top = box["x"] + box["width"] * 0.7, box["x"] + box["width"] - 3, box["y"] + 3
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, top + 160), (left, top + 160), (left, top)):
        page.mouse.move(x, y, steps=8)
    page.mouse.up()
    selection.locator("h4", has_text="Drawn round").wait_for()
    assert selection.locator("tbody tr").count() > 0
    assert fork.get_attribute("aria-pressed") == "false"

    selection.get_by_label("Close the list").click()
    selection.wait_for(state="hidden")
    # A click on a point opens it: the first token that the plot has in the upper right.
    page.wait_for_timeout(500)
    where = page.evaluate(
        """() => {
          const plot = document.querySelector("#corpus-map .plot");
          const { xaxis, yaxis } = plot._fullLayout;
          const i = plot.data[0].y.findIndex((y) => y > 1);
          const box = plot.querySelector(".nsewdrag").getBoundingClientRect();
          const at = (axis, value) => axis.d2p(value);
          return [box.x + at(xaxis, plot.data[0].x[i]), box.y + at(yaxis, plot.data[0].y[i])];
        }"""
    )
    page.mouse.move(*where)
    page.locator("#corpus-map .pointed", has_text="reverse KL").wait_for()
    page.mouse.click(*where)
    page.locator(".pinned .position").wait_for()


def test_a_branch_is_listed_with_what_the_student_wrote_there(app, home, open_page, many):
    forced = int(many[0].grades.penalty.argmax())
    branches = [
        replace(many[0], branch=BranchPoint(0, forced, "student"), correct=True),
        replace(many[0], branch=BranchPoint(0, forced, "teacher", forced=0), correct=True),
    ]
    main = [replace(many[0], correct=False), many[2]]
    page = open_page(f"{app}/{saved(home, ReviewSet([ReviewGroup('', [*main, *branches])]))}")
    page.wait_for_selector(".opd-review .token")
    summary = page.locator(".opd-corpus summary")
    summary.click()
    rows(page, "table").nth(3).wait_for()
    own = 2 * TOKENS + TOKENS - forced - 1
    words = f"2 trajectories, 2 branches, 0 of 1 right, 1 not verified, {own:,} tokens"
    assert words in summary.inner_text()
    card = report_card(branches[0])
    assert column(page, "table", "blunders")[2:] == [str(card.counts["blunder"]), "–"]
    assert column(page, "table", "agreement")[2] == f"{100 * card.agreement:.0f}\u00a0%"
    assert column(page, "table", "agreement")[3] == column(page, "table", "worst")[3] == "–"


def test_two_students_are_told_apart_and_chosen(app, home, open_page, many):
    groups = [ReviewGroup("before", many[:2]), ReviewGroup("after <b>run</b>", many[2:5])]
    page = open_page(f"{app}/{saved(home, ReviewSet(groups))}")
    page.wait_for_selector(".opd-review .token")
    page.locator(".opd-corpus summary").click()
    rows(page, "table").nth(4).wait_for()
    assert column(page, "table", "student") == ["before"] * 2 + ["after <b>run</b>"] * 3
    page.get_by_label("Which student").select_option("after <b>run</b>")
    rows(page, "table").nth(3).wait_for(state="detached")
    assert column(page, "table", "place") == ["1", "2", "3"]
    show(page, "worst")
    rows(page, "worst").first.click()
    worst = worst_tokens(many[2:5], 1)[0]
    page.locator(".pinned .position", has_text=f"token {worst.index + 1} of").wait_for()
    page.wait_for_function("location.hash.includes('g=2')")


def test_it_follows_what_is_shown(page):
    """From the four of the gallery to a sampling, and into its new trajectories."""
    page.locator(".opd-corpus summary").click()
    rows(page, "table").nth(3).wait_for()
    page.get_by_role("tab", name="Ask").click()
    page.get_by_text("Sampling and system prompt").click()
    page.get_by_label("Trajectories", exact=True).fill("6")
    page.wait_for_timeout(500)  # the page tells the server of an input a moment after it changed
    page.locator("#sample").click()
    rows(page, "table").nth(5).wait_for()
    page.wait_for_selector("#sample:not([disabled])")
    page.wait_for_function(
        "() => [...document.querySelectorAll('#corpus-table td.answer')].every(c => c.innerText !== '…')"
    )
    lengths = [int(text) for text in column(page, "table", "tokens")]
    assert f"{sum(lengths):,} tokens" in page.locator(".opd-corpus summary").inner_text()
    assert page.locator("#corpus-table th.prompt").is_hidden(), "there is one prompt only"


def test_64_trajectories_of_200_tokens_are_fluent(open_many):
    page = open_many()

    def seconds(act, ready: str) -> float:
        start = time.monotonic()
        act()
        page.wait_for_function(ready)
        return time.monotonic() - start

    filled = "name => document.querySelector(`#corpus-${name} tbody tr`) !== null"
    for tab in ("worst", "swaps"):
        assert seconds(lambda tab=tab: show(page, tab), f"({filled})('{tab}')") < 1.5, tab
    page.locator("#corpus-tab-table").click()
    head = page.locator("#corpus-table th.kl button")
    assert seconds(head.click, "document.querySelector('#corpus-table th.kl').ariaSort !== null") < 1
    show(page, "map")
    page.locator("#corpus-map .plot canvas").first.wait_for()  # plotly is there from now on
    show(page, "table")
    # The map anew, with other tokens.
    redrawn = "document.querySelector('#corpus-map .plot').data[0].x.length === "
    everything = page.evaluate("document.querySelector('#corpus-map .plot').data[0].x.length")
    show(page, "map")
    page.locator(".opd-corpus").get_by_label("Answer", exact=True).select_option("wrong")
    page.wait_for_function(f"!({redrawn}{everything})")
    again = seconds(
        lambda: page.locator(".opd-corpus").get_by_label("Answer", exact=True).select_option(""),
        f"{redrawn}{everything}",
    )
    assert again < 3


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)], ids=["1440-light", "390-dark"])
def test_axe_finds_nothing_serious_and_nothing_sticks_out(open_many, serious, dark, width):
    page = open_many(dark=dark, width=width)
    for tab in ("table", "worst", "swaps", "map"):
        show(page, tab)
        if tab == "map":
            page.locator("#corpus-map .plot canvas").first.wait_for()
            page.locator(".quadrants button").nth(3).click()
        else:
            rows(page, tab).first.wait_for()
        if tab == "swaps":
            rows(page, tab).first.click()
        page.wait_for_timeout(400)
        assert not serious(page, context=OVERVIEW), tab
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab


def test_hostile_texts_are_inert(open_many, many):
    page = open_many()
    page.locator(".opd-corpus").get_by_label("Prompt or text holds").fill("onerror=alert")
    page.wait_for_function("document.querySelectorAll('#corpus-table tbody tr').length === 1")
    for tab in ("worst", "swaps"):
        show(page, tab)
        rows(page, tab).first.wait_for()
    show(page, "worst")
    texts = column(page, "worst", "context")
    assert any("<img·src=x·onerror=al" in text for text in texts)
    assert any("${alert(1)}" in text for text in texts)
    assert page.locator(".opd-corpus img").count() == 0
    assert not any("\u202e" in text or "\x1b" in text for text in texts)
