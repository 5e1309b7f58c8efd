"""The quiz: real candidates at forks, and nothing that gives the teacher away before the answer."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from component_page import write_page
from graded import make_review
from hostile import HOSTILE

from opd.grading.saved_reviews import ReviewGroup, ReviewSet, gallery
from opd.reviews import BranchPoint
from opd.view.page import render_page

# The student gives every token 0.6 and " yes" 0.32; where the penalty is 3 the teacher would say " yes"
# (0.78), elsewhere it agrees.
PENALTY = [0, 0, 3, 0, 0, 0, 0, 3, 0, 0, 0, 0]


def story(name: str) -> list[str]:
    return [f" {name}{i}" for i in range(len(PENALTY))]


@pytest.fixture
def open_quiz(open_page, tmp_path):
    """Open a page with these reviews and press Quiz."""

    def open_(*reviews, **options):
        page = open_page(write_page(tmp_path / "page.html", [ReviewGroup("", reviews)]), **options)
        page.evaluate("view.show(stored.set)")
        page.locator(".to-quiz").click()
        page.locator(".quiz-options li").first.wait_for()
        return page

    return open_


@pytest.fixture
def answer():
    return make_review(story("a"), penalty=PENALTY, correct=False)


def current(page) -> dict:
    """What the question on the page is about."""
    return page.evaluate(
        """() => {
            const { question } = view.quiz;
            const options = question.options.map(({ text, right, sampled }) => ({ text, right, sampled }));
            return { sample: question.sample, index: question.index, options };
        }"""
    )


def place_of(options: list[dict], **wanted: bool) -> int:
    return next(i for i, option in enumerate(options) if all(option[k] == v for k, v in wanted.items()))


def test_the_keyboard_plays_to_the_end_and_the_score_is_counted(open_quiz, answer):
    page = open_quiz(answer, make_review(story("b"), penalty=PENALTY))
    title, score = page.locator(".quiz-title"), page.locator(".quiz-score")
    total = int(title.inner_text().split()[-1])
    mine = theirs = 0
    chance = 0.0
    for n in range(1, total + 1):
        assert title.inner_text() == f"Fork {n} of {total}"
        options = current(page)["options"]
        assert 3 <= len(options) <= 5
        assert page.locator(".quiz-options code").all_inner_texts() == [o["text"] for o in options]
        fair = n % 3 > 0
        chosen = place_of(options, right=fair)
        page.keyboard.press(str(chosen + 1))
        mine += fair
        theirs += next(o["right"] for o in options if o["sampled"])
        chance += sum(o["right"] for o in options) / len(options)
        told = page.locator(".quiz-reveal").inner_text()
        assert ("✓ right" if fair else "✗ wrong") in told
        assert page.locator(".quiz-live").inner_text().startswith("✓ right" if fair else "✗ wrong")
        page.keyboard.press("12345"[chosen - 1])  # an answer stands
        assert f"you {mine} of {n} · the student {theirs} of {n}" in score.inner_text()
        assert ("streak 2" in score.inner_text()) == (n % 3 == 2)
        page.keyboard.press("Enter")
    words = page.locator(".quiz-result").inner_text()
    assert f"at {mine} of {total} forks" in words
    assert f"the student at {theirs};" in words
    assert f"blindly finds {chance:.1f} on average" in words
    page.keyboard.press("Escape")
    page.locator(".quiz").wait_for(state="hidden")


def test_half_are_places_where_the_student_was_right(open_quiz, answer):
    page = open_quiz(answer, make_review(story("b"), penalty=PENALTY))
    said = page.evaluate("view.quiz.questions.map(({ said }) => said.right)")
    assert said.count(False) == said.count(True) == 4


def test_what_keeps_a_chat_apart_is_never_offered(open_quiz, answer):
    """A third candidate fills up the options, but nobody would take one that ends the turn."""
    n = len(answer.trajectory)
    apart = dict(answer.vocabulary) | {n + 1: "<|assistant|>"}
    page = open_quiz(replace(answer, vocabulary=apart))
    offered = page.evaluate("view.quiz.questions.map(({ options }) => options.map(({ text }) => text))")
    assert offered
    assert all("<|assistant|>" not in texts and "·perhaps" in texts for texts in offered)


def test_trajectories_take_turns_and_each_goes_forward(open_quiz, answer):
    page = open_quiz(answer, make_review(story("b"), penalty=PENALTY))
    places = page.evaluate("view.quiz.questions.map(({ sample, index }) => [sample, index])")
    for sample in (0, 1):
        own = [index for s, index in places if s == sample]
        assert own == sorted(own)
    assert {sample for sample, _ in places[:2]} == {0, 1}


def test_before_the_answer_nothing_tells(open_quiz, answer):
    page = open_quiz(answer)
    # The dialog covers every point of the page, and what is behind it cannot be reached.
    assert page.evaluate(
        """() => {
            const quiz = document.querySelector(".quiz");
            const points = Array.from({ length: 40 }, (_, i) => [
                (innerWidth * (i % 8) + 5) / 8, (innerHeight * Math.floor(i / 8) + 5) / 5,
            ]);
            return points.every(([x, y]) => document.elementFromPoint(x, y)?.closest(".quiz") === quiz);
        }"""
    )
    background = page.locator(".quiz").evaluate("e => getComputedStyle(e).backgroundColor")
    assert re.fullmatch(r"rgb\(.*\)", background), "one can see through it"
    for _ in range(12):
        page.keyboard.press("Tab")
        inside = "document.activeElement === document.body || !!document.activeElement.closest('.quiz')"
        assert page.evaluate(inside)
    # Options differ in their number and text alone, and the text ends before the fork.
    rows = page.eval_on_selector_all(
        ".quiz-options li",
        "rows => rows.map(row => { row = row.cloneNode(true);"
        "row.querySelector('code').textContent = row.querySelector('kbd').textContent = '';"
        "return row.outerHTML; })",
    )
    assert len(set(rows)) == 1
    index = current(page)["index"]
    assert page.locator(".quiz-passage").evaluate("e => e.textContent") == "".join(story("a")[:index]) + "?"
    shown = page.locator(".quiz").inner_text()
    assert "%" not in shown
    assert "nats" not in shown
    assert page.locator(".quiz [class*=heat], .quiz [class*=is-], .quiz .share").count() == 0


def test_the_order_of_options_is_the_same_again_and_says_nothing(open_quiz):
    reviews = [make_review(story(name), penalty=PENALTY) for name in "abcdefghij"]
    page = open_quiz(*reviews)
    read = "view.quiz.questions.map(({ options }) => options.map(({ text }) => text))"
    first = page.evaluate(read)
    page.keyboard.press("Escape")
    page.locator(".to-quiz").click()
    page.locator(".quiz-options li").first.wait_for()
    assert page.evaluate(read) == first
    places = page.evaluate(
        "view.quiz.questions.map(({ options, said, best }) => [options.indexOf(said), options.indexOf(best)])"
    )
    assert len(places) == 20
    for who in (0, 1):
        assert {place[who] for place in places} == {0, 1, 2, 3}


def test_the_answer_shows_both_models_and_the_verdict(open_quiz, answer):
    page = open_quiz(answer)
    while current(page)["index"] not in (2, 7):  # a blunder
        page.keyboard.press("1")
        page.keyboard.press("Enter")
    options = current(page)["options"]
    page.locator(".quiz-options button").nth(place_of(options, sampled=True)).click()
    told = page.locator(".quiz-reveal").inner_text()
    assert "The teacher would say ·yes (78\u00a0%)" in told
    assert "3.0\u00a0% of the time; the student said the same: blunder ??." in told
    row = page.locator(".quiz-options li.chosen")
    assert "60\u00a0%" in row.locator(".share.student").inner_text()
    assert "3.0\u00a0%" in row.locator(".share.teacher").inner_text()
    assert row.locator(".tags").inner_text() == "yours · the student’s"
    assert "78\u00a0%" in page.locator(".quiz-options li.right .share.teacher").inner_text()


def details(*candidates: tuple[str, float | None, float | None], sampled: int, entropy: float = 1.0) -> dict:
    """What the page knows of one place, by hand: text, the student's and the teacher's probability."""
    listed = []
    for i, (text, student, teacher) in enumerate(candidates):
        given = {"student": student, "teacher": teacher}
        shares = {name: share for name, share in given.items() if share is not None}
        listed.append({"id": i, "text": text, "spelling": text, "sampled": i == sampled} | shares)
    return {"figures": {"student_entropy": entropy}, "listed": listed}


@pytest.mark.parametrize(
    ("known", "strayed", "right"),
    [
        # At least 0.8 times the best is right as well.
        (
            details((" a", 0.5, 0.40), (" b", 0.3, 0.33), (" c", 0.1, 0.31), (" d", 0.1, 0), sampled=0),
            False,
            [" a", " b"],
        ),
        # The student strayed, but nearly tied with the best: nothing it did wrong.
        (
            details((" a", 0.5, 0.38), (" b", 0.3, 0.40), (" c", 0.1, 0.1), (" d", 0.1, 0), sampled=0),
            True,
            None,
        ),
        # Texts that look equal are one candidate, with all of its probability.
        (
            details((" a", 0.5, 0.3), (" b", 0.3, 0.25), (" b", 0.1, 0.25), (" c", 0.1, None), sampled=0),
            True,
            [" b"],
        ),
        # Two are too few to guess from.
        (details((" a", 0.5, 0.1), (" b", 0.3, 0.9), sampled=0), True, None),
        # The student had no doubt: no hesitation.
        (
            details((" a", 0.9, 0.9), (" b", 0.05, 0.05), (" c", 0.05, 0.05), sampled=0, entropy=0.1),
            False,
            None,
        ),
        # All alike to the teacher: most guesses would be right.
        (details(*[(f" {i}", 0.2, 0.2) for i in range(5)], sampled=0), False, None),
        # What was sampled and what either model likes best are among five, however many are likelier.
        (
            details(*[(f" {i}", 0.1, 0.1) for i in range(8)], (" z", None, 0.2), (" q", 0, 0), sampled=9),
            True,
            [" z"],
        ),
        # Where little is likely, an unlikely candidate that is really listed completes them.
        (details((" a", 0.6, 0), (" b", 0.4, 1), (" c", 1e-5, None), sampled=0), True, [" b"]),
    ],
)
def test_what_is_asked_and_what_is_right(open_quiz, answer, known, strayed, right):
    page = open_quiz(answer)
    found = page.evaluate(
        "([known, strayed]) => makeQuestion({ hash: 1 }, known, strayed)?.options ?? null", [known, strayed]
    )
    if right is None:
        assert found is None
        return
    assert 3 <= len(found) <= 5
    assert sum(bool(option["sampled"]) for option in found) == 1
    texts = [option["text"] for option in found]
    assert len(set(texts)) == len(texts)
    assert sorted(o["text"] for o in found if o["right"]) == [text.replace(" ", "·") for text in right]


def test_leaving_brings_the_view_back_as_it_was(open_quiz):
    long = make_review([f" w{i}" if i % 9 else ".\n" for i in range(600)], penalty=[0, 3, 0] * 200)
    page = open_quiz(long, make_review(story("b")))
    page.keyboard.press("Escape")
    page.evaluate("view.set({ granularity: 'word', cumulative: true }); view.colourBy('reverse_kl')")
    page.locator(".pane .token").nth(300).click()
    page.get_by_text("token 301 of").wait_for()
    page.locator(".filters label", has_text="forks").click()
    look = """() => [
        view.state(), document.querySelector(".pane .text").scrollTop, scrollY,
        document.querySelector(".layout").innerHTML, document.querySelector(".formula").textContent,
    ]"""
    page.wait_for_timeout(400)
    before = page.evaluate(look)
    assert before[1] > 0
    page.locator(".to-quiz").click()
    page.locator(".quiz-options li").first.wait_for()
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.locator(".quiz-leave").click()
    page.wait_for_timeout(400)
    assert page.evaluate(look) == before
    assert page.evaluate("document.activeElement.matches('.to-quiz')")


def test_no_fork_no_quiz_and_branches_ask_nothing(open_page, tmp_path, answer):
    def offered(*reviews) -> bool:
        page = open_page(write_page(tmp_path / "page.html", [ReviewGroup("", reviews)]))
        page.evaluate("view.show(stored.set)")
        return page.locator(".to-quiz").is_visible()

    assert offered(answer)
    assert not offered(make_review(story("a")))
    branch = replace(answer, branch=BranchPoint(0, 1, "student"))
    assert not offered(make_review(story("a")), branch)


def test_the_same_text_is_asked_about_once(open_quiz, answer):
    page = open_quiz(answer, answer, answer)
    places = page.evaluate("view.quiz.questions.map(({ index }) => index)")
    assert len(set(places)) == len(places)


def test_a_pasted_text_is_not_called_the_student(open_quiz, answer):
    nobody = replace(answer.trajectory, behaviour_logprobs=None)
    page = open_quiz(replace(answer, trajectory=nobody))
    page.keyboard.press("1")
    assert "the text said" in page.locator(".quiz-reveal").inner_text()
    assert "the text" in page.locator(".quiz-score").inner_text()


def test_missing_candidates_are_said(open_page, tmp_path, answer):
    page = open_page(write_page(tmp_path / "page.html", [ReviewGroup("", [answer])]))
    page.evaluate("stored.alternatives = []; view.show(stored.set)")
    page.locator(".to-quiz").click()
    page.get_by_text("no fork has candidates at hand").first.wait_for()
    page.keyboard.press("Escape")
    page.locator(".quiz").wait_for(state="hidden")


def test_hostile_texts_are_inert(open_quiz):
    page = open_quiz(
        make_review(HOSTILE, penalty=[3.0, 0, 0, 0] * (len(HOSTILE) // 4) + [0] * (len(HOSTILE) % 4))
    )
    for _ in range(int(page.locator(".quiz-title").inner_text().split()[-1])):
        assert page.locator(".quiz :is(img, script, svg, b)").count() == 0
        assert page.evaluate("document.querySelector('.quiz').scrollWidth <= innerWidth")
        page.keyboard.press("2")
        assert page.locator(".quiz :is(img, script, svg, b)").count() == 0
        page.keyboard.press("Enter")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_is_accessible_and_fits(open_quiz, serious, answer, dark, width):
    page = open_quiz(answer, dark=dark, width=width, touch=width < 600)
    for step in ("ask", "tell", "sum up"):
        if step == "tell":
            row = page.locator(".quiz-options button").first
            assert row.bounding_box()["height"] >= 44
            row.tap() if width < 600 else row.click()
        elif step == "sum up":
            page.evaluate("while (view.quiz.question) { view.quiz.choose(0); view.quiz.next(); }")
        assert not serious(page), step
        assert page.evaluate("document.querySelector('.quiz').scrollWidth <= innerWidth")


def test_the_one_file_page_asks_offline(open_page, tmp_path):
    for reviews in gallery().values():
        path = tmp_path / "review.html"
        path.write_text(render_page(ReviewSet(reviews.groups)), encoding="utf-8")
        page = open_page(path.as_uri())
        page.context.set_offline(True)
        page.wait_for_selector(".opd-review .token")
        if not page.locator(".to-quiz").is_visible():
            continue
        page.locator(".to-quiz").click()
        page.locator(".quiz-options li").first.wait_for()
        page.keyboard.press("1")
        assert "The teacher would say" in page.locator(".quiz-reveal").inner_text()
