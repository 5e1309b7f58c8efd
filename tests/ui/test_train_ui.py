"""What the Train tab tells its viewers and makes of its inputs, without a browser."""

import contextlib
import inspect
import re

import gradio as gr
import numpy as np
import pytest
import torch
from graded import make_review
from tiny import make_model

from opd.config import GROUPS, DistillConfig, grouped_settings, make_config
from opd.presets import PAIRS, PRESETS, preset
from opd.reports import FrozenScores, Push, StepReport, moved_as_meant
from opd.runs.run import create_run
from opd.ui import feed, pairs, train_tab
from opd.ui.app import build_app
from opd.ui.feed import news_of
from opd.ui.pairs import PairNames
from opd.ui.setup_card import SetupCard, _absent

pytestmark = pytest.mark.engine


@pytest.fixture
def card():
    with gr.Blocks():
        return SetupCard()


def values(card: SetupCard, **settings):
    """What the page sends: every field, as it stands there."""
    return [settings.get(name, field.value) for name, field in card.fields.items()]


def shown(card: SetupCard, filled):
    """What stands in the fields after some updates."""
    return {
        name: update["value"] if isinstance(update, dict) else update
        for name, update in zip(card.fields, filled, strict=True)
    }


def test_only_what_is_new_is_told():
    run = create_run("told", DistillConfig(steps=5))
    run.append(StepReport(1, {"loss": 0.5}))
    run.log_event("note", step=1, message="Something happened.")
    news = news_of("told", None)
    assert [row["step"] for row in news["rows"]] == [1]
    assert news["happened"] == [{"kind": "note", "text": "Step 1: Something happened."}]
    run.append(StepReport(2, {"loss": 0.4}))
    run.log_event("alarm", kind="x", step=2, message="Watch out.", metric="loss", evidence="rollout")
    later = news_of("told", news["cursor"])
    assert [row["step"] for row in later["rows"]] == [2]
    assert later["happened"] == [
        {"kind": "alarm", "text": "Step 2: Watch out.", "step": 2, "metric": "loss", "evidence": "rollout"}
    ]
    assert not later["restart"]


def test_what_a_task_holds_out_is_told():
    create_run("held", DistillConfig()).log_event("task", message="x.jsonl: 34 prompts, 7 for the test.")
    assert news_of("held", None)["happened"] == [
        {"kind": "mark", "text": "x.jsonl: 34 prompts, 7 for the test."}
    ]


def test_the_probe_that_changed_most_comes_first():
    run = create_run("probed", DistillConfig())
    probes = [make_review(["a"], messages=[{"role": "user", "content": f"probe {i}"}]) for i in range(3)]
    for step, kls in ((0, (1.0, 2.0, 0.5)), (4, (0.9, 0.1, 1.5))):
        frozen = [FrozenScores(*np.full((3, 2), kl, np.float32)) for kl in kls]
        run.append(StepReport(step, {}, probes=probes, frozen=frozen))
    asked = [review.messages[-1]["content"] for review in run.samples.probes_by_change()]
    assert asked == ["probe 1", "probe 2", "probe 0"]
    assert create_run("unprobed", DistillConfig()).samples.probes_by_change() == []


def test_what_is_a_lower_bound_is_told_in_words():
    run = create_run("bounded", DistillConfig(steps=5))
    run.append(StepReport(1, {"reverse_kl": 0.5, "reverse_kl_top_k": 8, "topk_overlap": 0.5, "loss": 1.0}))
    news = news_of("bounded", None)
    assert news["bounds"] == {"reverse_kl": "lower bound (teacher's top 8 and tail)"}


def test_viewers_of_a_moment_share_one_reading(monkeypatch):
    create_run("shared", DistillConfig())
    monkeypatch.setattr(feed.time, "monotonic", lambda: 7.0)
    assert news_of("shared", None) is news_of("shared", None)
    first = news_of("shared", None)
    monkeypatch.setattr(feed.time, "monotonic", lambda: 7.0 + feed.MOMENT)
    assert news_of("shared", None) is not first


def test_a_run_that_nobody_works_on_says_how_it_goes_on():
    create_run("dead", DistillConfig()).log_event("started", step=0)
    news = news_of("dead", None)
    assert (news["state"], news["live"], news["resumable"]) == ("interrupted", False, True)
    assert news["message"].endswith("Resume goes on from the beginning: it had no checkpoint.")


def test_while_a_run_is_worked_on_its_phase_is_told():
    run = create_run("loading", DistillConfig())
    with run.hold():
        run.take_over()
        assert run.status().phase == "Starting"
        run.write_phase("Evaluating demo-student: 3 of 8")
        assert news_of("loading", None)["phase"] == "Evaluating demo-student: 3 of 8"
        run.ask("pause")
        run.log_event("paused", step=1)
        assert run.status().phase == "", "it does nothing then"
    assert run.status().phase == "", "who died does nothing"


def test_a_run_that_is_not_there_is_gone():
    assert news_of("../etc", "x") == {"gone": True}


def test_the_cards_hold_every_setting_and_begin_with_the_defaults(card):
    of_group = {name: group for group, names in grouped_settings().items() for name in names}
    assert {*card.fields, "lessons", "shard"} == of_group.keys() == DistillConfig.model_fields.keys()
    cards = [of_group[name] for name in card.fields]
    assert list(dict.fromkeys(cards)) == list(GROUPS)
    assert cards == sorted(cards, key=list(GROUPS).index), "a group's fields stand together"
    assert card.config(values(card)) == DistillConfig()


def test_what_is_filled_in_counts_and_hidden_options_do_not(card):
    given = values(
        card, steps=2, learning_rate="3e-4", objective="sft", beta="0.9", gradient_checkpointing=True
    )
    assert card.config(given) == make_config(
        {"steps": 2, "learning_rate": 3e-4, "objective": "sft", "gradient_checkpointing": True}
    )


def test_what_does_not_fit_is_named(card):
    with pytest.raises(ValueError, match="beta"):
        card.config(values(card, objective="jsd", beta="2"))


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_an_emptied_field_is_named_and_no_default_takes_its_place(card, empty):
    with pytest.raises(ValueError, match="Fill in Teacher and Steps: nothing stands there"):
        card.config(values(card, steps=empty, teacher=empty))
    assert card.config(values(card, teacher_hint=empty)) == DistillConfig(), "this one may be empty"


def test_any_run_s_settings_fill_the_form(card):
    config = make_config({"objective": "jsd", "beta": 0.3, "student": "x/y", "steps": 7, "teacher_hint": "H"})
    form = shown(card, card.filled_like(config))
    assert card.config([form[name] for name in card.fields]) == config
    assert form["verifier"] == "", "the default can be chosen again"
    assert form["learning_rate"] == "", "it followed from the student, and follows from the next one"
    filled = dict(zip(card.fields, card.filled_like(config), strict=True))
    assert (filled["beta"]["visible"], filled["top_k"]["visible"]) == (True, False)


@pytest.mark.parametrize("name", PRESETS | PAIRS)
def test_a_starting_point_makes_a_config_and_keeps_the_rest(card, name):
    reason, *filled = card.start_from(name, values(card, seed=5))
    assert re.search(r"[^.]\.$", reason["value"])
    settings = shown(card, filled)
    config = card.config(values(card, **settings))
    assert config.seed == 5
    wanted = {key: value for key, value in preset(name).changes.items() if value is not None}
    assert {key: getattr(config, key) for key in wanted} == wanted
    back = dict(zip(card.fields, card.start_from("embedded", values(card, **settings))[1:], strict=True))
    assert shown(card, back.values())["student"] == "demo-student"


def test_settings_are_called_by_plain_words_and_abbreviations_are_spelt_as_such(card):
    labels = {name: field.label for name, field in card.fields.items()}
    assert labels["max_grad_norm"] == "Max grad norm"
    odd = {"kl_coefficient": "KL coefficient", "lora_rank": "LoRA rank", "teacher_url": "Teacher URL"}
    odd |= {"sft_prompts": "SFT prompts", "vllm_hot_swap": "vLLM hot swap"}
    assert odd == {name: labels[name] for name in odd}


def test_models_that_a_start_would_download_are_named():
    line = _absent(" nobody/student", "demo-teacher")
    assert line["visible"]
    assert "`nobody/student` (from the hub). Start downloads it" in line["value"]
    assert (
        "`nobody/student` and `nobody/teacher` (from the hub). Start downloads them"
        in _absent("nobody/student", "nobody/teacher")["value"]
    )
    assert not _absent("demo-student", "self")["visible"]


def test_how_many_tokens_moved_as_they_were_meant_to():
    advantage = np.array([1, -1, -2, 0, 3], np.float32)
    change = np.array([0.1, -0.1, 0.2, 0.5, 0], np.float32)
    assert moved_as_meant([Push(advantage, change)]) == (2 / 3, 3)
    assert moved_as_meant([Push(0 * advantage, change)]) == (0.0, 0)


def test_while_a_run_holds_the_gpu_the_app_works_on_the_cpu(monkeypatch, tmp_path):
    loaded = []
    names = [f"{tmp_path}/{name}" for name in "ab"]

    def load(name, device):
        loaded.append((name, device))
        return make_model(0)

    monkeypatch.setattr("opd.models.load.resolve_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr("opd.models.load.load_model", load)
    monkeypatch.setattr("opd.models.pair.Pair", lambda *models, **options: None)
    monkeypatch.setattr(pairs, "holders", lambda: {"cuda:0": "busy", "cpu": "other"})
    pairs.loaded_pair(PairNames(*names))
    assert loaded == [(name, "cpu") for name in names]
    with pytest.raises(ValueError, match="The run busy holds cuda:0"):
        pairs.refuse_if_taken(["cuda:0"])
    pairs.refuse_if_taken(["cpu", "cuda:1"])
    monkeypatch.setattr(pairs, "holders", dict)
    pairs.loaded_pair(PairNames(*names))
    assert loaded[2:] == [(name, "auto") for name in names]


@pytest.fixture(scope="module")
def handlers():
    """What the page calls with the data of an event, which anybody can send."""
    calls = {function.fn for function in build_app().fns.values() if function.fn}
    return [call for call in calls if "event" in inspect.signature(call).parameters]


@pytest.mark.parametrize("data", [None, [], [["run", "x"]], "run", {"run": 3}, {"run": "gone"}, {"step": -1}])
def test_an_event_that_means_nothing_is_refused_in_words(handlers, data):
    expected = {"_open_saved", "_choose", "_show_previewed", "branch", "control"}
    assert expected <= {handler.__name__ for handler in handlers}
    for handler in handlers:
        others = [None] * (len(inspect.signature(handler).parameters) - 1)
        with contextlib.suppress(gr.Error):
            answer = handler(*others, gr.EventData(None, data))
            if inspect.isgenerator(answer):
                next(answer)


def test_a_run_is_of_the_pair_that_a_relative_path_names(tmp_path, monkeypatch):
    for name in ("s", "t"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    told = {"enable_thinking": False}
    run = create_run("near", DistillConfig(student="s", teacher="./t", teacher_template_options=told))
    named = PairNames("./s", "t", teacher_template_options='{"enable_thinking": false}')
    assert train_tab.pair_of(run) == train_tab.anchored(named) != named
