"""The component on a plain page without Gradio: verdicts, units, signals, search, table, actions, state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from component_page import write_page
from graded import by_spans, make_review
from hostile import HOSTILE

from opd import verdicts as cutoffs
from opd.grading.saved_reviews import ReviewGroup
from opd.grading.summary import report_card
from opd.reviews import BranchPoint, PromptText
from opd.trajectory import TokenScores
from opd.view.payload import LONGEST_TOKEN, set_payload, shown_pieces

ACTIONS = ["branch", "typed", "teacherLine", "forkValue", "noReturn"]
PIECES = ["We", " add", " 2", " and", " 2", ".", " It", " is", " fi", "ve", ".", "\n", "So", " five", "!"]
PENALTY = [0, 0.3, 0, 0, 0, 0, 0, 0.2, 3, 0.4, 0, 0, 0, 1.5, 0]
EVIDENCE = {
    "forkValue": {
        "8": {
            "options": [
                {"token": 8, "text": " fi", "by": "student", "n": 32, "right": 4, "kl": 0.2},
                {"token": 15, "text": " <b>yes", "by": "teacher", "n": 32, "right": 30, "kl": 0.1},
            ],
            "verdict": "decisive",
            "points": 81.0,
            "low": 60.0,
            "high": 92.0,
            "more": None,
            "sentence": "30 of 32 against 4 of 32: decisive.",
        }
    },
    "noReturn": {
        "at": 8,
        "points": [{"index": 0, "n": 8, "right": 7, "low": 0.5, "high": 1}],
        "sentence": "A right answer gets out of reach at token 9.",
    },
}


@pytest.fixture
def open_component(open_page, tmp_path):
    """Open a page of its own with these groups of reviews shown."""

    def open_(*reviews, actions=ACTIONS, **options):
        groups = [ReviewGroup("", reviews)]
        page = open_page(write_page(tmp_path / "page.html", groups, actions=actions), **options)
        page.evaluate("view.show(stored.set)")
        return page

    return open_


@pytest.fixture
def answer():
    return make_review(PIECES, penalty=PENALTY, correct=False)


def random_scores(rng: np.random.Generator, tokens: int) -> tuple[TokenScores, TokenScores]:
    """Scores with many tokens exactly on a threshold."""

    def scores() -> TokenScores:
        taken = rng.choice([0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9, rng.random()], tokens)
        best = np.maximum(taken, rng.choice([0.1, 0.3, 0.6, 0.7, 0.8, 0.9, 1.0, rng.random()], tokens))
        with np.errstate(divide="ignore"):
            return TokenScores(
                logprobs=np.log(taken).astype(np.float32),
                entropy=rng.choice([0.0, 0.04999999, 0.05, 0.05000001, 1.0], tokens).astype(np.float32),
                ranks=np.where(taken == best, 0, rng.integers(0, 3, tokens)).astype(np.int32),
                top_ids=np.zeros((tokens, 1), np.int32),
                top_logprobs=np.log(best).astype(np.float32)[:, None],
            )

    return scores(), scores()


@pytest.mark.parametrize(
    "edited",
    [
        {},
        {"BLUNDER": 0.5, "MISTAKE": 0.2, "INACCURACY": 0.05},
        {"BRILLIANT_GAIN": 0.1, "BRILLIANT_STUDENT": 0.5, "FORCED_ENTROPY": 0.04999999},
        {"BLUNDER": 0.1, "MISTAKE": 0.1, "INACCURACY": 0.1},
    ],
)
def test_the_browser_judges_like_python(open_component, monkeypatch, edited):
    rng = np.random.default_rng(7)
    tokens = 4000
    review = make_review(["a"] * tokens)
    student, teacher = random_scores(rng, tokens)
    review = replace(review, grades=replace(review.grades, student=student, teacher=teacher))
    page = open_component(review)
    for name, value in edited.items():
        monkeypatch.setattr(cutoffs, name, value)
    thresholds = {
        "blunder": cutoffs.BLUNDER,
        "mistake": cutoffs.MISTAKE,
        "inaccuracy": cutoffs.INACCURACY,
        "slip": cutoffs.SLIP,
        "brilliantGain": cutoffs.BRILLIANT_GAIN,
        "brilliantStudent": cutoffs.BRILLIANT_STUDENT,
        "forcedEntropy": cutoffs.FORCED_ENTROPY,
    }
    page.evaluate("thresholds => view.judgeBy(thresholds)", thresholds)
    judged = page.evaluate("[...view.panes[0].review.verdicts]")
    expected = cutoffs.verdicts(student, teacher)
    assert len(set(expected.tolist())) >= 6, "the data must reach the classes"
    np.testing.assert_array_equal(judged, expected)


def test_editing_a_threshold_changes_text_counts_and_agreement(open_component, answer):
    page = open_component(answer)
    blunders = page.locator(".report .is-blunder .count")
    before = page.locator(".report .agreement dd").inner_text(), blunders.inner_text()
    field = page.get_by_label("Threshold of blunder")
    assert field.input_value() == "0.6"
    field.fill("0.2")
    field.press("Enter")
    page.wait_for_function(
        "old => document.querySelector('.is-blunder .count').textContent !== old", arg=before[1]
    )
    assert int(blunders.inner_text().split()[0]) == page.locator(".token.is-blunder").count() > 1
    # A lesser fault never needs a larger blame than a greater one.
    assert page.get_by_label("Threshold of mistake").input_value() == "0.2"
    page.get_by_text("Back to the usual thresholds").click()
    page.wait_for_function(
        "old => document.querySelector('.is-blunder .count').textContent === old", arg=before[1]
    )
    assert field.input_value() == "0.6"


def test_units_add_penalties_average_entropies_and_take_the_worst_verdict(open_component, answer):
    page = open_component(answer)

    def units(granularity: str, signal: str = "penalty") -> list[float]:
        page.locator(".units label", has_text=granularity).click()
        page.evaluate("signal => view.colourBy(signal)", signal)
        page.wait_for_function("name => view.panes[0].signal === name", arg=signal)
        page.wait_for_function("view.panes[0].unitValues.every((value) => !Number.isNaN(value))")
        return page.evaluate("[...view.panes[0].unitValues]")

    near = lambda values: pytest.approx(values, abs=5e-3)  # noqa: E731
    # Words: "fi" and "ve" are one, a full stop stands alone.
    assert units("word") == near([0, 0.3, 0, 0, 0, 0, 0, 0.2, 3.4, 0, 0, 0, 1.5, 0])
    assert units("sentence") == near([0.3, 3.6, 0, 1.5])
    assert units("step") == near([3.9, 1.5])
    entropy = answer.grades.student.entropy
    assert units("step", "student_entropy") == near([entropy[:12].mean(), entropy[12:].mean()])
    ranks = answer.grades.teacher_rank + 1  # shown from 1
    assert units("step", "teacher_rank") == [ranks[:12].max(), ranks[12:].max()]
    page.evaluate("view.colourBy('penalty')")
    first_line = page.locator(".token").nth(0)
    assert "is-blunder" in first_line.get_attribute("class")
    assert "dislike-5" in first_line.get_attribute("class")  # 3.9 nats on the fixed scale


def test_the_scale_is_fixed_unless_fitted(open_component, answer):
    page = open_component(answer)
    fixed = page.locator(".scale").inner_text()
    assert "0.25" in fixed
    page.get_by_text("fit", exact=True).click()
    fitted = page.locator(".scale").inner_text()
    assert fitted != fixed
    assert "\n3\n" in fitted  # the 99th percentile of these penalties
    page.get_by_text("fit", exact=True).click()
    assert page.locator(".scale").inner_text() == fixed


def test_a_signal_that_is_absent_is_disabled_and_says_why(open_component, answer):
    page = open_component(answer, replace(answer, grades=replace(answer.grades, jsd=answer.grades.penalty)))
    jsd = page.locator(".signals label", has_text="JSD")
    assert jsd.locator("input").is_disabled()
    assert "does not hold it" in jsd.get_attribute("title")
    page.locator(".rail label").nth(1).click()
    assert jsd.locator("input").is_enabled()
    jsd.click()
    page.wait_for_selector(".token.heat")


def test_forks_follow_the_chosen_definition(open_component, answer):
    page = open_component(answer)
    for i, name in enumerate(cutoffs.FORK_DEFINITIONS):
        page.get_by_label("What a fork is").select_option(index=i)
        marks = cutoffs.find_forks([answer.grades], name)[0]
        page.wait_for_function(
            "n => document.querySelectorAll('.token.fork').length === n", arg=int(marks.sum())
        )
        shown = page.eval_on_selector_all(".token", "all => all.map(t => t.classList.contains('fork'))")
        assert shown == marks.tolist()


def test_search_finds_across_tokens_counts_and_walks(open_component, answer):
    page = open_component(answer)
    page.locator(".pane .text").focus()
    page.keyboard.press("/")
    page.keyboard.type("FIVE")
    output = page.locator(".find output")
    assert output.inner_text() == "2 found"
    hits = page.eval_on_selector_all(".token.hit", "hits => hits.map((hit) => hit.textContent)")
    assert hits == ["fi", "ve", "five"]
    page.keyboard.press("Enter")
    page.get_by_text("token 9 of").wait_for()
    assert output.inner_text() == "1 of 2"
    page.keyboard.press("Enter")
    page.get_by_text("token 14 of").wait_for()
    page.keyboard.press("Shift+Enter")
    page.get_by_text("token 9 of").wait_for()
    page.keyboard.press("Escape")
    assert page.locator(".token.hit").count() == 0
    assert page.evaluate("document.activeElement.className") == "text"


def test_a_count_lights_its_tokens_and_walks_them(open_component, answer):
    page = open_component(answer)
    count = page.locator(".report .is-blunder .count")
    count.hover()
    page.wait_for_timeout(300)
    faded = "token => getComputedStyle(token).opacity < 1"
    assert not page.locator(".token.is-blunder").first.evaluate(faded)
    assert page.locator(".token.is-best, .token.is-good").first.evaluate(faded)
    count.click()
    page.get_by_text("token 9 of").wait_for()
    assert count.evaluate("button => button === document.activeElement"), "walking keeps its place"


def test_a_filter_dims_the_rest(open_component, answer):
    page = open_component(answer)
    page.locator(".filters label", has_text="forks").click()
    page.wait_for_timeout(300)
    opacity = "token => Number(getComputedStyle(token).opacity)"
    assert page.locator(".token.fork").first.evaluate(opacity) == 1
    assert page.locator(".token:not(.fork)").first.evaluate(opacity) < 0.5


def test_hovering_the_graph_and_the_minimap_lights_the_token(open_component, answer):
    page = open_component(answer)
    page.locator(".graph canvas").hover(position={"x": 8.5 * 14, "y": 40})
    page.wait_for_selector(".token.pointed")
    assert page.locator(".token.pointed").evaluate("token => token.index") == 8
    page.locator(".card.preview").wait_for()
    box = page.locator(".minimap").bounding_box()
    page.locator(".minimap").hover(position={"x": 7, "y": box["height"] * 1.5 / 15})
    page.wait_for_function("document.querySelector('.token.pointed')?.index === 1")


def test_the_table_is_an_equal_path(open_component, answer):
    page = open_component(answer)
    page.locator(".toggles label", has_text="table").click()
    rows = page.locator(".table tbody tr")
    rows.first.wait_for()
    assert rows.count() == len(PIECES)
    assert not page.locator(".pane .page").is_visible()
    page.get_by_role("button", name="penalty", exact=True).click()
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    assert rows.first.locator(".place").inner_text() == "9"
    assert rows.first.locator(".penalty").inner_text() == "3.00"
    rows.first.get_by_role("button").click()
    page.get_by_text("token 9 of").wait_for()


def test_actions_say_where_and_what(open_component, answer):
    page = open_component(answer)
    here = {"key": "key", "group": 0, "sample": 0, "index": 8}
    page.locator(".token").nth(8).click()
    page.get_by_label("Let the student go on from here with ·yes").click()
    page.get_by_label("Text to go on with").fill(" six")
    page.get_by_role("button", name="Go on", exact=True).click()
    for name in ("Teacher’s line", "Fork value", "Point of no return"):
        page.get_by_role("button", name=name).click()
    page.locator(".pane .text").focus()
    for key in ("b", "Enter", "t"):
        page.keyboard.press(key)
    page.wait_for_function("told.filter(([name]) => name !== 'state').length === 8")
    yes = len(PIECES)  # the id of " yes"
    whole = {name: here[name] for name in ("key", "group", "sample")}
    assert [entry for entry in page.evaluate("told") if entry[0] != "state"] == [
        ["branch", here | {"token": yes}],
        ["typed", here | {"text": " six"}],
        ["teacherLine", here],
        ["forkValue", here],
        ["noReturn", whole],
        ["branch", here | {"token": yes}],
        ["branch", here | {"token": yes}],
        ["teacherLine", here],
    ]


def test_any_listed_token_can_be_forced_however_unlikely(open_component):
    page = open_component(make_review(PIECES, student_gives=0.9999))
    page.locator(".token").nth(8).click()
    no = page.get_by_label("Let the student go on from here with ·no")
    page.get_by_text("3 less likely").wait_for()
    assert not no.is_visible()
    page.get_by_text("3 less likely").click()
    no.click()
    page.wait_for_function("told.some(([name]) => name === 'branch')")
    [forced] = [data for name, data in page.evaluate("told") if name == "branch"]
    assert forced["token"] == len(PIECES) + 1


def test_without_listeners_there_are_no_buttons(open_component, answer):
    page = open_component(answer, actions=[])
    page.locator(".token").nth(8).click()
    page.locator(".pinned .candidate").nth(1).wait_for()
    assert page.locator(".pinned button").count() == 1  # close
    page.keyboard.press("b")


def test_branches_hang_under_their_parent_and_open_at_their_token(open_component, answer):
    branch = replace(answer, branch=BranchPoint(0, 8, "student", forced=2), correct=True)
    other = make_review(PIECES)
    page = open_component(answer, other, branch)
    rail = page.locator(".rail label")
    assert rail.locator(".ordinal").all_inner_texts() == ["1", "3", "2"]
    assert "from token 9, the student went on" in rail.nth(1).inner_text()
    # A branch is no answer of its own, and one that nobody verified is not wrong.
    assert page.locator(".rail legend").inner_text() == "0 of 1 right, 1 not verified"
    blunders = page.locator(".report .is-blunder .count")
    assert blunders.inner_text() == "1 ??"
    assert page.locator(".token.is-blunder.fork").count() == 1
    rail.nth(1).click()
    assert page.locator(".token.before").count() == 8
    assert "before" not in page.locator(".token").nth(8).get_attribute("class")
    # What was forced is no blunder and no fork of the student's; what it wrote afterwards counts.
    assert blunders.inner_text() == "0 ??"
    assert page.locator(".token.is-blunder").count() == 0
    card = report_card(branch)
    share = f"{100 * card.agreement:.0f}\u00a0% of 5"
    assert page.locator(".report .agreement dd").inner_text() == share
    assert rail.nth(1).locator(".numbers").inner_text() == f"{share} · {card.mean_penalty:.2f} nats"
    assert "what the student wrote from token 11 on: 5 tokens" in page.locator(".note").inner_text()
    page.locator(".token").nth(9).click()
    assert "put here" in page.locator(".pinned .judgement").inner_text()


def test_a_share_is_none_or_all_only_where_it_is_that(open_component, answer):
    page = open_component(answer)
    said = page.evaluate("[0, 1e-5, 0.034, 0.5, 0.996, 0.9996, 1].map(percent)")
    assert said == [f"{n}\u00a0%" for n in ("0", "<0.1", "3.4", "50", "99.6", ">99.9", "100")]


def test_the_teachers_own_line_has_no_figures_of_the_student(open_component, answer):
    line = replace(answer, branch=BranchPoint(0, 8, "teacher", forced=0), correct=True)
    page = open_component(answer, line)
    assert page.locator(".rail legend").inner_text() == "0 of 1 right"
    page.locator(".rail label").nth(1).click()
    assert page.locator(".report dt").all_inner_texts() == ["answer", "ended by itself"]
    assert page.locator(".rail .numbers").nth(1).inner_text() == ""
    assert "From token 9 on the teacher wrote" in page.locator(".note").inner_text()


def test_before_and_after_are_counted_over_what_was_verified(open_component, answer):
    right, unknown = replace(answer, correct=True), replace(answer, correct=None)
    page = open_component(answer, right, right, unknown)
    legend = page.locator(".rail legend")
    assert legend.inner_text() == "2 of 3 right, 1 not verified"
    page.evaluate("stored.set.groups.push(stored.set.groups[0]); view.show(stored.set)")
    assert legend.inner_text() == "2 → 2 of 3 right, 2 not verified"
    page.evaluate(
        "const [a] = stored.set.groups; const b = { ...a, reviews: a.reviews.slice(0, 2) };"
        "view.show({ ...stored.set, groups: [a, b] })"
    )
    assert legend.inner_text() == "2 of 3 → 1 of 2 right, 1 not verified"


def test_ranks_are_counted_from_1_and_blame_from_0_to_1_wherever_they_stand(open_component, answer):
    page = open_component(answer)
    blamed = cutoffs.blame(answer.grades.student, answer.grades.teacher)
    page.get_by_text("table", exact=True).click()
    for index in (0, 8):
        rank, blame = str(answer.grades.teacher.ranks[index] + 1), f"{blamed[index]:.2f}"
        page.get_by_label(f"Show token {index + 1}", exact=True).click()
        page.locator(".pinned .position", has_text=f"token {index + 1} of").wait_for()
        figures = page.locator(".pinned .figures")
        assert figures.locator("div", has_text="the teacher’s rank").locator("dd").inner_text() == rank
        assert figures.locator("div", has_text="blame B").locator("dd").inner_text() == blame
        row = page.locator(f".table tr[data-index='{index}']")
        assert row.locator(".teacher_rank").inner_text() == rank
        assert row.locator(".blame").inner_text() == blame
    page.locator(".signals label", has_text="rank").click()
    page.wait_for_function("view.panes[0].signal === 'teacher_rank'")
    assert "1 is its first" in page.locator(".formula").inner_text()
    assert page.locator(".scale .swatch").first.inner_text() == "2"
    first_choices = int((answer.grades.teacher.ranks == 0).sum())
    assert page.locator(".text .token:not(.heat)").count() == first_choices


def test_a_set_that_continues_another_opens_its_branch(open_component, answer):
    branch = replace(answer, branch=BranchPoint(0, 8, "teacher"))
    page = open_component(answer, branch)
    page.evaluate(
        "window.later = stored.set.groups[0].reviews.pop(); view.show({ ...stored.set, key: 'first' })"
    )
    page.locator(".token").nth(8).click()
    page.evaluate("stored.set.groups[0].reviews.push(later)")
    page.evaluate("view.show({ ...stored.set, continues: 'first', opens: 1 })")
    assert page.locator(".rail label").nth(1).locator("input").is_checked()
    assert page.locator(".token.before").count() == 8


def test_edited_thresholds_hold_while_a_text_grows(open_component):
    page = open_component(
        make_review(PIECES[:9], penalty=PENALTY[:9], finish_reason=None), make_review(PIECES, penalty=PENALTY)
    )
    page.evaluate("view.judgeBy({ ...view.thresholds, blunder: 0.4 })")
    assert page.locator(".token.is-blunder").count() == 1
    page.evaluate("stored.set.groups[0].reviews.shift(); stored.columns[0].shift()")
    page.evaluate("view.show(stored.set)")
    page.wait_for_function("document.querySelectorAll('.token.is-blunder').length === 2")


def test_evidence_is_shown_with_the_token_and_the_graph(open_component, answer):
    page = open_component(replace(answer, evidence=EVIDENCE))
    assert "out of reach at token 9" in page.locator(".caption").inner_text()
    page.locator(".token").nth(8).click()
    evidence = page.locator(".pinned .evidence")
    evidence.wait_for()
    assert "30 of 32 against 4 of 32: decisive." in evidence.inner_text()
    assert evidence.locator(".option").count() == 2
    assert "·<b>yes" in evidence.inner_text()


def test_state_is_told_and_restored(open_component, answer):
    page = open_component(answer, make_review(PIECES, penalty=PENALTY))
    state = {"sample": 1, "group": 0, "token": 13, "signal": "reverse_kl"}
    page.evaluate("state => view.restore(state)", state)
    page.get_by_text("token 14 of").wait_for()
    page.wait_for_function("told.some(([name]) => name === 'state')")
    assert page.evaluate("told.at(-1)") == ["state", state]
    assert page.evaluate("view.state()") == state
    page.evaluate("view.restore({ sample: 9, token: 1e9, signal: 'constructor' })")  # nonsense is harmless
    assert page.evaluate("view.state()") == state


def test_a_state_waits_for_its_token_while_the_text_grows(open_component, answer):
    page = open_component(make_review(PIECES[:3], finish_reason=None), make_review(PIECES))
    page.evaluate(
        "Object.assign(stored.set, { key: 'sampled' }); view.show({ ...stored.set, growing: true })"
    )
    page.evaluate("view.restore({ token: 14 })")
    assert page.evaluate("view.state().token") is None
    assert "still writing …" in page.locator(".report").inner_text()
    assert page.locator(".rail .mark").first.inner_text() == "…"
    page.evaluate("stored.set.groups[0].reviews.shift(); view.show(stored.set)")  # the whole text
    page.get_by_text("token 15 of").wait_for()


def test_a_text_that_nobody_writes_on_is_not_still_being_written(open_component):
    page = open_component(make_review(PIECES[:3], finish_reason=None))
    assert "unfinished" in page.locator(".report").inner_text()
    page.evaluate(
        "Object.assign(stored.set, { key: 'sampled' }); view.show({ ...stored.set, growing: true })"
    )
    assert "still writing" in page.locator(".report").inner_text()
    page.evaluate("view.show(stored.set)")  # stopped
    page.evaluate("view.show({ ...stored.set, growing: true })")  # it was on its way
    assert "still writing" not in page.locator(".opd-review").inner_text()
    assert page.locator(".rail .mark").inner_text() == "·"
    page.evaluate("view.show({ ...stored.set, growing: true, opens: 0 })")  # somebody branches
    assert "still writing" in page.locator(".report").inner_text()


def test_a_wrong_ending_is_not_praised(open_component, answer):
    page = open_component(answer)
    caption = page.locator(".caption").inner_text()
    share = 100 * answer.grades.agreement[9:].mean()
    assert (
        f"Downstream of fork 1 they agree on {share:.0f}\u00a0% of 6 tokens: the teacher goes along"
        in caption
    )
    assert "no praise of the ending" in caption
    minded = make_review(PIECES, penalty=[0] * 8 + [4] + [3] * 6, correct=False)
    caption = open_component(minded).locator(".caption").inner_text()
    assert "they agree on 43\u00a0% of 6 tokens: the teacher minds most of what follows too." in caption
    assert "goes along" not in caption
    right = open_component(replace(answer, correct=True))
    assert "Downstream" not in right.locator(".caption").inner_text()


def test_hostile_texts_are_inert_readable_and_bounded(open_component):
    page = open_component(make_review(HOSTILE, penalty=[2.0] * len(HOSTILE)))
    assert page.locator(".panes :is(img, script, svg, b)").count() == 0
    shown = page.eval_on_selector_all(".token", "all => all.map(token => token.textContent)")
    for text, expected in zip(shown, shown_pieces(HOSTILE), strict=True):
        if len(expected) > LONGEST_TOKEN:
            assert text == expected[:LONGEST_TOKEN] + "…"
        else:
            assert text == expected.removesuffix("\n").removeprefix(" ")
    assert "cannot be written as text and shows \ufffd" in page.locator(".note").inner_text()
    long = next(i for i, piece in enumerate(HOSTILE) if len(piece) == 10_000)
    page.locator(".token").nth(long).click()
    page.get_by_text("all 10,000 characters").click()
    assert page.locator(".pinned .whole pre").inner_text() == "x" * 10_000
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_axe_finds_nothing_serious(open_component, serious, answer, dark, width):
    page = open_component(replace(answer, evidence=EVIDENCE), dark=dark, width=width)
    for prepare in (
        "view.unpin()",
        "view.pin(view.panes[0], 8)",
        "view.set({ tabled: true })",
        "view.parts.help.showModal()",
    ):
        page.evaluate(prepare)
        page.wait_for_timeout(400)
        assert not serious(page), prepare


def test_on_a_phone_the_card_is_a_sheet_and_nothing_sticks_out(open_component, answer):
    page = open_component(answer, answer, width=390, height=844, touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".token").nth(2).tap()
    page.locator(".card.pinned").wait_for()
    sheet = page.locator(".card.pinned").bounding_box()
    assert sheet["x"] == pytest.approx(0, abs=1)
    assert sheet["y"] + sheet["height"] == pytest.approx(844, abs=1)
    page.evaluate("view.pin(view.panes[0], 14)")
    page.get_by_text("token 15 of").wait_for()
    assert page.locator(".token.cursor").evaluate("t => t.getBoundingClientRect().bottom") < sheet["y"]


def test_with_few_colours_underlines_speak(open_component, answer):
    page = open_component(answer)
    page.emulate_media(forced_colors="active")
    style = page.locator(".token.is-blunder").first.evaluate("t => getComputedStyle(t).textDecorationLine")
    assert "underline" in style


# Graded by spans: the teacher has another tokenizer


@pytest.fixture
def spans(answer):
    """One span of " fi" and "ve"; " 2" and the last token are not graded."""
    return by_spans(answer, [0, 1, -1, 3, 4, 5, 6, 7, 8, 8, 10, 11, 12, 13, -1])


def test_what_cannot_be_graded_is_hatched_and_named(open_component, spans):
    page = open_component(spans)
    hatched = page.locator(".text .token.ungraded")
    assert hatched.all_inner_texts() == ["2", "!"]
    assert "gradient" in hatched.first.evaluate("token => getComputedStyle(token).backgroundImage")
    assert "heat" not in hatched.first.get_attribute("class")
    assert page.locator(".scale .ungraded").inner_text() == "not graded"
    note = page.locator(".note").inner_text()
    assert "the teacher has another tokenizer" in note
    assert "2 tokens could not be graded: hatched." in note
    page.locator(".toggles label", has_text="table").click()
    cells = page.locator(".table tbody tr").nth(2).locator("td")
    assert cells.nth(2).inner_text() == "–", "absent, not 0"
    assert page.locator(".table code.ungraded").count() == 2


def test_a_review_by_spans_claims_no_verdicts(open_component, spans):
    page = open_component(spans)
    assert page.locator(".report .agreement, .report .is-blunder").count() == 0
    assert "reverse KL" not in page.locator(".report").inner_text()
    assert page.locator(".verdicts .is-blunder").is_hidden()
    assert page.get_by_label("blunders").is_disabled()
    assert "%" not in page.locator(".rail .numbers").inner_text()
    assert page.locator(".to-quiz").is_hidden()


def test_a_span_is_one_value_and_units_add_up_what_is_known(open_component, spans):
    page = open_component(spans)
    pinned = page.locator(".pinned")
    page.evaluate("view.pin(view.panes[0], 9)")
    pinned.locator(".sentence", has_text="it grades ·five as one, +3.40 nats").wait_for()
    assert "each of the 2 tokens has an equal share" in pinned.inner_text()
    page.locator(".text .token").nth(8).hover()
    assert page.locator(".token.pointed").all_inner_texts() == ["fi", "ve"]
    page.locator(".units label", has_text="word").click()
    page.wait_for_function("view.panes[0].unitValues.length === 14")
    values = page.evaluate(
        "[...view.panes[0].unitValues].map((value) => (Number.isNaN(value) ? null : value))"
    )
    expected = [0, 0.3, None, 0, 0, 0, 0, 0.2, 3.4, 0, 0, 0, 1.5, None]
    assert [value is None for value in values] == [value is None for value in expected]
    known = [value for value in expected if value is not None]
    assert [value for value in values if value is not None] == pytest.approx(known, abs=5e-3)
    page.locator(".units label", has_text="step").click()
    page.wait_for_function("view.panes[0].unitValues.length === 2")
    assert page.evaluate("[...view.panes[0].unitValues]") == pytest.approx([3.9, 1.5], abs=5e-3)


def test_a_token_says_what_the_teacher_would_begin_with_and_offers_no_branch(open_component, spans):
    page = open_component(spans)
    page.evaluate("view.pin(view.panes[0], 8)")
    sentence = page.locator(".pinned .sentence")
    sentence.locator("text=The teacher would rather begin with").wait_for()
    assert sentence.locator("code").last.inner_text() == "·yes"
    assert page.locator(".pinned .actions button").count() == 0
    page.locator(".text").press("b")
    page.locator(".text").press("t")
    assert not [name for name, _ in page.evaluate("told") if name != "state"]
    page.evaluate("view.pin(view.panes[0], 14)")
    page.locator(".pinned .judgement", has_text="not graded").wait_for()
    assert "does not read it as it stands" in sentence.inner_text()


def test_what_was_read_is_there_token_by_token_and_the_teachers_where_it_differs(open_component, answer):
    student = PromptText(["<|user|>", "Say", " <", "|end|>", "<|go|>\n"], [0, 4], [2, 3], templated=True)
    teacher = PromptText(["Say", " it: <b>7"], [], [], templated=False)
    prompts = {"prompt_ids": np.arange(7, 12), "teacher_prompt_ids": np.arange(2)}
    told = replace(
        answer, trajectory=replace(answer.trajectory, **prompts), prompt=student, teacher_prompt=teacher
    )
    alike = replace(answer, prompt=PromptText(["<|user|>", "Hi", "!"], [0], [], templated=True))
    page = open_component(told, alike, answer)
    fold = page.locator(".read")
    assert (
        fold.locator("summary").inner_text() == "What the student read: 5 tokens, and the teacher: 2 tokens"
    )
    fold.locator("summary").click()
    fold.locator("section").nth(1).wait_for()
    ours, theirs = fold.locator("section").all()
    assert ours.locator(".control").all_inner_texts() == ["<|user|>", "<|go|>↵"]
    assert ours.locator(".spelled").all_inner_texts() == [" <", "|end|>"]
    assert ours.locator(".piece").nth(1).get_attribute("title") == "token 2, id 8"
    assert "no chat template" in theirs.inner_text()
    assert theirs.locator(".rendered").inner_text() == "Say it: <b>7"
    for pressed in ("true", "false"):
        fold.get_by_role("button", name="Ids").click()
        assert fold.get_by_role("button", name="Ids").get_attribute("aria-pressed") == pressed
    page.evaluate("view.choose(1)")
    assert (
        fold.locator("summary").inner_text() == "What the student read: 3 tokens; the teacher read the same"
    )
    page.wait_for_function("document.querySelector('.rendered').textContent === '<|user|>Hi!'")
    page.evaluate("view.choose(2)")
    page.wait_for_function("document.querySelector('.rendered').textContent === '0 1 2'")
    assert "not recorded" in fold.inner_text()


def test_reasoning_is_folded_and_opens_where_somebody_looks(open_component):
    thought = make_review(["<think>", "Hm", ".", "</think>", "\n", "Yes"], penalty=[0, 3, 0, 0, 0, 0])
    page = open_component(thought, make_review(["Yes"]))
    bar, hidden = page.locator(".thoughts"), page.locator(".thought")
    assert (bar.inner_text(), bar.get_attribute("aria-expanded")) == ("Reasoning, 4 tokens", "false")
    assert not hidden.is_visible()
    bar.click()
    assert hidden.text_content() == "<think>Hm.</think>"
    bar.click()
    assert not hidden.is_visible()
    page.evaluate("view.pin(view.panes[0], 1)")
    assert hidden.is_visible()
    assert bar.get_attribute("aria-expanded") == "true"
    page.evaluate("view.choose(1)")
    assert not bar.is_visible()


def test_reasoning_that_is_being_written_stays_open(open_component):
    pieces = ["<think>", "Hm", "</think>", "Yes", "!"]
    states = [make_review(pieces[:n], finish_reason="stop" if n == 5 else None) for n in (2, 4, 5)]
    page = open_component(states[0])
    for state in states:
        page.evaluate("(set) => view.show(set)", set_payload("key", [ReviewGroup("", [state])]))
        assert page.locator(".thought").is_visible()
    assert page.locator(".thoughts").inner_text() == "Reasoning, 3 tokens"
    assert page.locator(".text").inner_text().replace("\n", "") == "<think>Hm</think>Yes!"
