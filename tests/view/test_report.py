"""The report of a run: its figures are the run's, its drawings stand where the numbers say."""

import re
from html import unescape

import numpy as np
import pytest
from graded import make_review
from hostile import MARKUP, Parsed

import opd
from opd.cli import main
from opd.reports import FrozenScores, StepReport
from opd.runs.run import create_run
from opd.view.chart import barcode, chart, panels
from opd.view.payload import visible
from opd.view.report import render_report

ACCURACY = {"heldout_accuracy": 0.25, "heldout_accuracy_low": 0.2, "heldout_accuracy_high": 0.31}


@pytest.fixture
def run():
    """Two evaluations and a step between, a probe that says nothing nice, an alarm."""
    run = create_run("told", opd.DistillConfig(steps=2, seed=7))
    asked = [{"role": "user", "content": MARKUP}]
    for step, accuracy in ((0, 0.25), (1, None), (2, 0.75)):
        measured = accuracy is not None
        metrics = {"reverse_kl": 0.5 - step / 8, "tokens": 1000, "seconds_sample": 60.0} if step else {}
        if measured:
            taught = {"teacher_accuracy": 0.9, "heldout_n": 64, "heldout_kl": 1 - step / 4}
            metrics |= ACCURACY | taught | {"heldout_accuracy": accuracy}
        column = np.array([4.5, 0.0], np.float32) * (2 - step) / 2
        probe = make_review([f"step {step}", MARKUP], penalty=[1.0, 0.0], messages=asked)
        frozen = [FrozenScores(column, column, column)] if measured else []
        run.append(StepReport(step, metrics, probes=[probe] if measured else [], frozen=frozen))
    run.log_event("alarm", kind="x", step=2, message=f"Look: {MARKUP}", metric="y", evidence="probe")
    run.log_event("finished", step=2)
    return run


def text_of(page: str) -> str:
    return " ".join(re.sub("<[^>]*>", " ", page).split())


def test_the_outcome_and_what_differs_from_the_defaults_are_told(run):
    said = text_of(render_report(run, "A note of mine"))
    assert "A note of mine" in said
    assert "finished, step 2 of 2" in said
    assert "first, step 0 best, step 2 last, step 2" in said
    assert "held-out accuracy 25.0% 20.0% to 31.0% 75.0%" in said
    assert "held-out KL 1.000 nats a token 0.500" in said
    assert "The teacher reaches 90.0%. Over 64 problems of the test split" in said
    assert "Training took 2.0 minutes for 2,000 completion tokens" in said
    assert "steps 2 60 seed 7 0" in said
    assert "opd train --steps 2 --seed 7" in said
    assert "Step 2: Finished." in said


def test_a_hostile_run_makes_no_element_and_the_page_asks_nobody(run):
    page = render_report(run, MARKUP)
    tags = [tag for tag, _ in Parsed(page).tags]
    assert tags.count("script") == 2
    assert "⚠ Step 2: Look: &lt;/script&gt;" in page
    assert not re.search(r"""(src|href)\s*=|url\(|@import""", page.split("<body", 1)[1].split("<script")[0])
    assert "default-src 'none'" in page


def test_the_answers_of_the_first_and_the_last_evaluation_are_inside(run):
    page = render_report(run)
    data = Parsed(page).texts["reviews"]
    assert visible("step 0") in data
    assert visible("step 2") in data
    assert len(page) < 1_000_000


def test_a_run_that_measured_nothing_has_a_report_too(capsys, tmp_path):
    run = create_run("empty", opd.DistillConfig())
    assert "Nothing was measured" in render_report(run)
    assert main(["runs", "report", "empty", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == render_report(run)
    assert "Saved to" in capsys.readouterr().out


def test_a_kl_that_is_a_lower_bound_is_called_so_in_the_table_and_at_its_curve(run):
    assert "≥ 0.500" not in (exact := text_of(render_report(run)))
    assert "lower bound" not in exact
    row = {"reverse_kl": 0.2, "reverse_kl_top_k": 20, "heldout_kl": 0.5, "heldout_kl_top_k": 8}
    row |= ACCURACY | {"heldout_accuracy": 0.75}
    run.append(StepReport(2, row))
    said = unescape(text_of(render_report(run)))
    assert "held-out KL 1.000 nats a token ≥ 0.500 nats" in said
    assert (
        "Reverse KL to the teacher nats a token training held-out training: lower bound (teacher's top 20 "
        "and tail); held-out: lower bound (teacher's top 8 and tail)"
    ) in said
    assert said.count("top 20") == 1, "another curve is called a bound"
    run.append(StepReport(2, row | {"reverse_kl_top_k": 8}))
    assert "training, held-out: lower bound (teacher's top 8 and tail)" in unescape(render_report(run))


def test_how_sure_an_accuracy_is_is_told_of_a_teacher_that_only_scores_too(run):
    run.append(StepReport(2, ACCURACY | {"heldout_n": 32}))
    said = text_of(render_report(run))
    assert "The teacher reaches" not in said
    assert "Over 32 problems of the test split at temperature 1; the small figures are 95 % intervals" in said


def panel(*looks: str, **more) -> dict:
    traces = [{"key": f"k{i}", "label": look, "colour": "c", "look": look} for i, look in enumerate(looks)]
    return {"name": "n", "title": "A title", "words": "words", "traces": traces, **more}


def path_of(figure: str, look: str) -> list[tuple[float, float]]:
    drawn = re.search(rf'<path class="{look}"[^>]* d="([^"]*)"', figure)[1]
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", drawn)]


def test_a_curve_goes_through_its_points():
    rows = [{"step": 0, "k0": 0.0}, {"step": 1}, {"step": 2, "k0": 0.5}, {"step": 4, "k0": 1.0}]
    figure = chart(panel("raw", range=[0, 1], unit=".0%"), rows, 4)
    # Five places for the steps 0 to 4, each in the middle of its fifth; 0 is at the bottom.
    assert path_of(figure, "raw") == [(100, 1000), (500, 500), (900, 0)]
    assert 'aria-label="A title: 100% at step 4"' in figure
    assert re.findall(r"top: ([\d.]+)%", figure) == ["100.0", "80.0", "60.0", "40.0", "20.0", "0.0"]


def test_a_smoothed_curve_averages_ten_steps():
    rows = [{"step": step, "k0": float(step == 1)} for step in range(1, 21)]
    heights = [(1000 - y) / 1000 for _, y in path_of(chart(panel("mean", range=[0, 1]), rows, 20), "mean")]
    np.testing.assert_allclose(heights[:10], [1 / n for n in range(1, 11)], atol=1e-3)
    assert heights[10:] == [0.0] * 10


def test_a_band_reaches_from_its_floor_to_its_top():
    rows = [{"step": 0, "k0": 0.2, "k1": 0.4}, {"step": 1, "k0": 0.6, "k1": 0.8}]
    figure = chart(panel("floor", "band", range=[0, 1]), rows, 1)
    assert path_of(figure, "band") == [(250, 600), (750, 200), (750, 400), (250, 800)]


def test_parts_stand_on_each_other():
    rows = [{"step": 1, "k0": 1.0, "k1": 3.0}]
    tops = re.findall(r"V([\d.]+)h", chart(panel("part", "part"), rows, 1))
    assert tops == ["0.0", "750.0"], "the sum at the top, the lower part a quarter high and in front"


@pytest.mark.parametrize("value", [0.0, 1e-9, 123456.0, -3.0])
def test_any_value_has_an_axis_around_it(value):
    figure = chart(panel("measured"), [{"step": 0, "k0": value}], 1)
    places = [float(top) for top in re.findall(r"top: ([\d.]+)%", figure)]
    assert 2 <= len(places) <= 8
    assert all(0 <= place <= 100 for place in places)


def test_what_was_not_measured_is_not_drawn():
    assert chart(panel("raw"), [{"step": 0}, {"step": 1, "k0": float("nan")}], 1) == ""


def test_a_barcode_has_the_colour_of_each_place():
    lines = [(0, np.array([0.0, 0.0, 9.0, 9.0])), (10, np.array([0.3, 0.0, 0.0, 0.0]))]
    figure = barcode(lines, "a < b", "words")
    assert "a &lt; b" in figure
    assert '--dislike-6)" d="M500 0h500v500h-500z"' in figure
    assert '--dislike-2)" d="M0 500h250v500h-250z"' in figure
    assert "M0 0h500v500h-500zM250 500h750v500h-750z" in figure


@pytest.mark.parametrize("share", ["repetition", "degenerate_share", "clipped_share"])
def test_what_goes_wrong_with_held_out_answers_is_drawn(share):
    rows = [{"step": step, f"heldout_{share}": 0.25} for step in (0, 1)]
    assert len([panel for panel in panels() if "<path" in chart(panel, rows, 1)]) == 1
