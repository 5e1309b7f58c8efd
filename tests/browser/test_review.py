"""The Review tab: sample, paste, open, look, point, walk, take away."""

import json
import re
from dataclasses import replace

import pandas
import pytest
from graded import make_review

from opd.grading.saved_reviews import ReviewGroup, ReviewSet, gallery, load_reviews, save_reviews


def set_sampling(page, **settings) -> None:
    """Fill in what is set under the prompt."""
    if not page.get_by_label("Trajectories").is_visible():
        page.get_by_text("Sampling and system prompt").click()
    for label, value in settings.items():
        page.get_by_label(label.replace("_", " "), exact=True).fill(str(value))
    page.wait_for_timeout(500)  # the page tells the server of an input a moment after it changed


def sample(page, **settings) -> None:
    """Press Sample with these settings and wait for the end."""
    if settings:
        set_sampling(page, **settings)
    page.locator("#sample").click()
    page.wait_for_selector("#stop-sampling:not([disabled])")
    page.wait_for_selector("#sample:not([disabled])")


def toast(page) -> str:
    message = page.locator(".toast-body").first
    message.wait_for()
    return message.inner_text()


def test_a_new_page_explains_itself_with_a_graded_answer(page):
    assert "teacher grades every token" in page.locator("#introduction").inner_text()
    assert page.locator(".rail label").count() == 4
    assert page.locator(".report").inner_text()


def test_sampling_paints_tokens_by_their_penalty(page):
    offered = page.locator("#prompt textarea").input_value()
    page.locator(".chips button").nth(1).click()
    page.wait_for_function("old => document.querySelector('#prompt textarea').value !== old", arg=offered)
    prompt = page.locator("#prompt textarea").input_value()
    sample(page, Trajectories=3, Seed=5)
    assert page.locator(".rail label").count() == 3
    assert page.locator(".opd-review .prompt").inner_text() == prompt
    assert re.search(r"right|wrong", page.locator(".report").inner_text())

    # The colour of a token is the step of its penalty, which its card shows.
    heated = page.locator(".token.heat").first
    ramp, step = re.search(r"(dislike|like)-(\d)", heated.get_attribute("class")).groups()
    heated.click()
    figure = page.locator(".pinned .figures dd").first.inner_text()
    penalty = float(figure.replace("−", "-").split()[0])
    assert (penalty < 0) == (ramp == "like")
    bounds = [0.1, 0.25, 0.5, 1, 2, 4, float("inf")]
    assert bounds[int(step) - 1] - 0.006 <= abs(penalty) <= bounds[int(step)] + 0.006


def test_the_same_seed_gives_the_same_picture(page):
    sample(page, Trajectories=1, Seed=7)
    first = page.locator(".pane .text").inner_text()
    sample(page, Trajectories=1, Seed=8)
    assert page.locator(".pane .text").inner_text() != first
    sample(page, Trajectories=1, Seed=7)
    assert page.locator(".pane .text").inner_text() == first


def test_hover_shows_what_both_models_wanted(page):
    page.locator(".pane .token.heat").first.hover()
    card = page.locator(".card.preview")
    card.wait_for()
    assert card.locator(".candidate.sampled").count() == 1
    assert card.locator(".candidate .student .figure").count() >= 2
    assert card.locator(".candidate .teacher .figure").count() >= 2
    assert re.search(r"student gave this token .* the teacher", card.inner_text())
    page.locator("#introduction").hover()
    card.wait_for(state="hidden")


def test_a_click_pins_and_escape_lets_go(page):
    token = page.locator(".pane .token").nth(3)
    token.click()
    pinned = page.locator(".card.pinned")
    pinned.wait_for()
    assert "token 4 of" in pinned.inner_text()
    assert "cursor" in token.get_attribute("class")
    page.keyboard.press("Escape")
    pinned.wait_for(state="hidden")
    assert page.locator(".token.cursor").count() == 0


def test_the_keyboard_walks_the_text(page):
    position = page.locator(".pinned .position")
    text = page.locator(".pane .text")
    text.focus()
    page.keyboard.press("End")
    last = page.locator(".pane .token").count()
    position.get_by_text(f"token {last} of {last}").wait_for()
    page.keyboard.press("ArrowLeft")
    position.get_by_text(f"token {last - 1} of").wait_for()
    page.keyboard.press("Home")
    position.get_by_text("token 1 of").wait_for()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("parseInt(document.querySelector('.pinned .position').textContent.slice(6)) > 3")
    assert text.get_attribute("aria-activedescendant") == page.locator(".token.cursor").get_attribute("id")
    assert page.locator(".opd-review .live").inner_text().startswith("token ")


def test_n_and_p_walk_the_forks(page):
    rows = page.locator(".rail label")
    for i in range(rows.count()):  # a trajectory with forks
        rows.nth(i).click()
        if page.locator(".token.fork").count():
            break
    else:
        pytest.fail("the first picture, the same for everybody, shows no fork")
    page.locator(".pane .text").focus()
    for key in "np":
        page.keyboard.press(key)
        page.wait_for_selector(".token.cursor")
        assert "fork" in page.locator(".token.cursor").get_attribute("class")


def test_every_signal_has_its_formula_and_repaints(page):
    def classes() -> list[str]:
        return page.eval_on_selector_all(".pane .token", "tokens => tokens.map(t => t.className)")

    painted = [classes()]
    formulas = [page.locator(".formula").inner_text()]
    for signal, column in (("reverse KL", "reverse_kl"), ("student entropy", "student_entropy")):
        page.locator(".signals label", has_text=signal).click()
        page.wait_for_selector(f".pane[data-signal={column}]")  # it is fetched when it is chosen
        painted.append(classes())
        formulas.append(page.locator(".formula").inner_text())
    assert len({*map(tuple, painted)}) == 3
    assert len({*formulas}) == 3


def test_stop_ends_the_sampling(page):
    page.get_by_text("Sampling and system prompt").click()
    page.get_by_label("Trajectories").fill("64")
    page.locator("#sample").click()
    page.locator("#stop-sampling:not([disabled])").click()
    page.wait_for_selector("#sample:not([disabled])")
    page.wait_for_function("!document.querySelector('.report').innerText.includes('still writing')")
    sample(page, Trajectories=1)
    assert page.locator(".rail label").count() == 1


def test_bad_input_is_one_sentence_and_loses_nothing(page):
    before = page.locator(".pane .text").inner_text()
    asked = page.locator("#prompt textarea").input_value()
    usual = {"Trajectories": 1, "Temperature": 1}
    for settings, prompt, sentence in (
        ({}, "   ", "prompt is empty"),
        ({}, "again " * 9000, "tokens long"),
        ({"Trajectories": 0}, asked, "at least 1"),
        ({"Temperature": -1}, asked, "temperature must be"),
        ({"Trajectories": ""}, asked, "fill in “Trajectories” under “Sampling and system prompt”"),
    ):
        page.locator("#prompt textarea").fill(prompt)
        set_sampling(page, **usual | settings)
        page.locator("#sample").click()
        page.locator(".toast-body", has_text=sentence).wait_for()
        page.wait_for_selector("#sample:not([disabled])")
        assert "Traceback" not in page.locator(".toast-body").last.inner_text()
        assert page.locator(".pane .text").inner_text() == before


def test_an_unknown_model_is_refused_and_the_pair_stays(page):
    page.get_by_text("Models", exact=True).click()
    page.get_by_label("Student", exact=True).fill("./no-such-folder")
    page.locator("#load-pair").click()
    assert "no-such-folder" in toast(page)
    assert "demo-student" in page.locator("#pair-line").inner_text()
    sample(page)


def test_text_a_user_types_is_inert(page):
    page.locator("#prompt textarea").fill("<img src=x onerror=alert(1)> ${alert(2)} {{value}} </textarea>")
    sample(page, Trajectories=1)
    assert "onerror" in page.locator(".opd-review .prompt").inner_text()
    assert page.locator(".opd-review img").count() == 0


def test_dark_mode_is_dark(app, open_page):
    page = open_page(f"{app}/?__theme=dark", dark=True)
    page.wait_for_selector(".opd-review .token")
    paper = page.eval_on_selector(".pane .text", "text => getComputedStyle(text).backgroundColor")
    assert max(map(int, re.findall(r"\d+", paper)[:3])) < 60


def test_on_a_phone_nothing_sticks_out_and_the_card_is_a_sheet(app, open_page):
    page = open_page(app, width=390, height=844, touch=True)
    page.locator(".pane .token").nth(2).tap()
    page.locator(".card.pinned").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    sheet = page.locator(".card.pinned").bounding_box()
    assert sheet["x"] == pytest.approx(0, abs=1)
    assert sheet["y"] + sheet["height"] == pytest.approx(844, abs=1)
    page.locator(".pinned .close").tap()
    page.locator(".card.pinned").wait_for(state="hidden")


def test_the_doctor_examines_the_pair_on_the_page(page):
    page.get_by_text("Models", exact=True).click()
    page.locator("#examine-pair").click()
    page.wait_for_selector("#findings li", timeout=60_000)
    findings = page.locator("#findings").inner_text()
    assert "Both models mean the same" in findings
    assert "✗" not in findings


def shown_title(page) -> str:
    return page.locator("#shown h2").inner_text()


def review_of(page) -> str | None:
    return page.evaluate("new URLSearchParams(location.search).get('review')")


def paste(page, prompt: str, text: str) -> None:
    page.get_by_role("tab", name="Paste").click()
    page.locator("#text-prompt textarea").fill(prompt)
    page.locator("#text textarea").fill(text)
    page.wait_for_timeout(500)  # the page tells the server of an input a moment after it changed
    page.locator("#grade-text").click()


def test_a_pasted_text_is_graded_and_labelled(page):
    paste(page, "What is 3 + 4?", "The sum is 3 + 4 = 7. The answer is 7.")
    page.locator(".pane .note", has_text="Off-policy").wait_for()
    assert page.locator(".pane .text").inner_text().startswith("The sum is 3 + 4 = 7.")
    assert page.locator(".opd-review .prompt").inner_text() == "What is 3 + 4?"
    assert not page.locator("#shown h2").is_visible()


def test_a_pasted_chat_is_graded_turn_by_turn(page):
    paste(page, "", "user: What is 3 + 4?\nassistant: 7.\nuser: And 8?\nassistant: It is 15.")
    page.wait_for_function("document.querySelectorAll('.rail label').length === 2")
    page.locator(".rail label").nth(1).click()
    page.locator(".pane .text", has_text="It is 15.").wait_for()
    assert page.locator(".opd-review .prompt").inner_text() == "And 8?"


def test_a_text_that_cannot_be_graded_is_one_sentence(page):
    before = page.locator(".pane .text").inner_text()
    for prompt, text, sentence in (
        ("What?", "", "text is empty"),
        ("", "Just words.", "begin with a role"),
        ("", "[{]", "not valid JSON"),
        ("What?", "word " * 3000, "tokens long"),
    ):
        paste(page, prompt, text)
        page.locator(".toast-body", has_text=sentence).wait_for()
        assert page.locator(".pane .text").inner_text() == before


def test_a_file_of_prompts_is_answered(page, tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": "What is 3 + 4?"}, {"prompt": "What is 5 + 4?", "completion": "9."}, {"prompt": 3}]
    path.write_text("\n".join(map(json.dumps, rows)))
    page.get_by_role("tab", name="File").click()
    page.locator("#prompt-file input[type=file]").set_input_files(path)
    page.locator("#prompt-file", has_text="p.jsonl").wait_for()
    page.locator("#grade-file").click()
    page.wait_for_function("document.querySelectorAll('.rail label').length === 5")
    assert "Row 3" in toast(page)
    page.locator(".rail label").last.click()
    page.locator(".pane .text", has_text="9.").wait_for()
    page.wait_for_selector("#grade-file:not([disabled])")


def test_the_gallery_opens_and_its_address_opens_it_again(page, app, open_page):
    ident, reviews = list(gallery().items())[3]
    page.get_by_role("tab", name="Open").click()
    page.get_by_role("button", name=reviews.title).click()
    page.locator("#shown h2", has_text=reviews.title).wait_for()
    assert page.locator("#shown .words p").inner_text() == reviews.note
    assert review_of(page) == ident
    again = open_page(page.url)
    again.locator("#shown h2", has_text=reviews.title).wait_for()
    prompt = again.locator(".opd-review .prompt").inner_text()
    assert again.locator("#prompt textarea").input_value() == prompt, "what stands above it is its own prompt"


def test_a_link_restores_review_token_and_signal(page, app, open_page):
    page.locator(".signals label", has_text="reverse KL").click()
    page.locator(".rail label").nth(2).click()
    page.locator(".pane .token").nth(7).click()
    page.locator(".card.pinned").wait_for()
    page.locator("#shown .keep").click()
    page.locator("#shown .link").wait_for()
    page.wait_for_function("location.hash.includes('t=8')")
    assert re.fullmatch(r"[0-9a-f]{16}", review_of(page))
    again = open_page(page.url)
    again.get_by_text("token 8 of").wait_for()
    assert (
        again.locator(".signals input:checked").evaluate("i => i.closest('label').innerText") == "reverse KL"
    )
    assert again.locator(".pane .text").inner_text() == page.locator(".pane .text").inner_text()
    assert shown_title(again) == shown_title(page)


@pytest.mark.parametrize("fragment", ["#t=99999&s=nonsense&i=77&g=9", "#t=-1&i=x", "#%%%", "#t=1e3"])
def test_a_strange_fragment_does_no_harm(app, open_page, fragment):
    page = open_page(f"{app}/{fragment}")
    page.wait_for_selector(".opd-review .token")
    assert page.locator(".signals input:checked").count() == 1


@pytest.mark.parametrize("ident", ["0" * 16, "..%2F..%2Fx", "<b>"])
def test_an_unknown_review_says_so_and_the_page_works(app, open_page, ident):
    page = open_page(f"{app}/?review={ident}")
    assert "There is no review" in toast(page)
    page.wait_for_selector(".opd-review .token")


def test_sampling_leaves_the_link_behind(page):
    page.locator("#shown .keep").click()
    page.wait_for_function("location.search.includes('review=')")
    sample(page, Trajectories=1)
    assert review_of(page) is None


def test_downloads_are_what_is_shown(page, tmp_path):
    title = shown_title(page)
    paths = {}
    for kind in ("json", "csv", "html"):
        with page.expect_download() as download:
            page.locator(f"#shown [data-kind={kind}]").click()
        paths[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(paths[kind])
    reviews = load_reviews(paths["json"])
    assert reviews.title == title
    assert paths["json"].stem == f"review-{reviews.id}"
    assert len(pandas.read_csv(paths["csv"])) == sum(len(r.trajectory) for r in reviews)
    assert title in paths["html"].read_text(encoding="utf-8")


def open_file(page, path) -> None:
    page.get_by_role("tab", name="Open").click()
    page.locator("#review-file input[type=file]").set_input_files(path)


def test_a_saved_file_opens_and_once_saved_is_listed_on_every_page(page, tmp_path, app, open_page):
    reviews = replace(list(gallery().values())[4], title="Mine <b>now</b>")
    path = tmp_path / "mine.json"
    path.write_text(reviews.to_json(), encoding="utf-8")
    another = open_page(app)
    another.get_by_role("tab", name="Open").click()
    another.locator("#saved .count").wait_for()
    assert another.locator("#saved a", has_text=reviews.title).count() == 0
    open_file(page, path)
    page.locator("#shown h2", has_text=reviews.title).wait_for()
    labels = [group.label for group in reviews.groups]
    assert page.locator(".pane-title").all_inner_texts() == labels
    page.locator("#shown .keep").click()
    for listing in (another, page):
        listing.locator("#saved li:first-child a", has_text=reviews.title).click()
        listing.wait_for_function("location.search.includes('review=')")
        listing.locator("#shown h2", has_text=reviews.title).wait_for()
        assert listing.locator(".pane-title").all_inner_texts() == labels
        assert review_of(listing) == reviews.id
        with listing.expect_download() as download:
            listing.locator("#shown [data-kind=json]").click()
        assert load_reviews(download.value.path()).title == reviews.title


def test_a_large_file_is_said_to_be_opened_while_it_is_read(page, tmp_path):
    long = make_review([" word"] * 3000)
    save_reviews(tmp_path / "large.json", ReviewSet([ReviewGroup("", [long] * 15)], title="Large"))
    open_file(page, tmp_path / "large.json")
    line = page.locator("#source .working", has_text="Opening large.json")
    line.wait_for()
    page.locator("#shown h2", has_text="Large").wait_for()
    line.wait_for(state="detached")


@pytest.mark.parametrize("content", ["{}", "no json", '{"format": "opd-review", "version": 9}'])
def test_a_file_that_is_no_review_is_refused(page, tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_text(content)
    title = shown_title(page)
    open_file(page, path)
    assert "mine.json" in toast(page)
    assert shown_title(page) == title


def test_hostile_titles_and_reviews_stay_text(page, tmp_path):
    reviews = next(r for r in gallery().values() if any("<script>" in one.text for one in r))
    data = json.loads(reviews.to_json())
    data["title"] = data["note"] = "<img src=x onerror=alert(1)> ${alert(2)} {{value}}"
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data))
    open_file(page, path)
    page.locator("#shown h2", has_text="onerror").wait_for()
    page.locator(".pane .text", has_text="<script>").wait_for()
    assert page.locator("#shown img, .panes img, .panes script").count() == 0
