"""Starting points that run, configs written down, and a look at the first batch before the start."""

import importlib
import json
import shlex
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import make_model

from opd.cli import make_parser
from opd.cli.flags import given_settings
from opd.config import make_config
from opd.models.pair import Pair
from opd.presets import PAIRS, PRESETS, as_command, as_python, combine, preset, race_configs
from opd.training import doctor
from opd.training.distillation import distill
from opd.training.doctor import Finding
from opd.training.preview import preview

pytestmark = pytest.mark.engine
preview_module = importlib.import_module("opd.training.preview")

TINY = {
    "steps": 1,
    "warmup_steps": 0,
    "max_tokens": 12,
    "eval_prompts": 0,
    "prompts_per_step": 8,
    "learning_rate": 1e-2,
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_config_and_trains(name, pair):
    chosen = preset(name)
    assert make_config(chosen.changes)
    assert chosen.reason.endswith(".")
    reports = list(distill(make_config({**chosen.changes, **TINY}), pair))
    assert [report.step for report in reports] == [0, 1]


@pytest.mark.parametrize(
    "values",
    [
        {},
        *(dict(p.changes) for p in (PRESETS | PAIRS).values()),
        {"learning_rate": 2e-3, "student": "some/model"},
        {"student": "a folder/it's", "objective": "gkd", "beta": 0.25, "gradient_checkpointing": True},
        {"teacher": "self", "teacher_live": True, "token_share": 0.1, "tokens": "entropy"},
        {"lora_rank": 8, "learning_rate": 1e-4, "student": "some/model", "teacher_dtype": "4bit"},
        {"steps": 2, "warmup_steps": 1},
        {"template_options": {"enable_thinking": False, "date": "1 May"}, "teacher_template_options": {}},
    ],
)
def test_a_config_written_down_comes_back(values):
    config = make_config(values)
    words = shlex.split(as_command(config))
    assert words[:2] == ["opd", "train"]
    assert make_config(given_settings(make_parser().parse_args(words[1:]))) == config
    names = {}
    program = as_python(config)
    exec(program.partition("\nfor ")[0], names)
    assert names["config"] == config
    assert len(words) <= 2 + 2 * len(values), "only what differs is written down"


def test_lessons_are_written_down_in_python_only():
    lessons = ({"teacher": "demo-teacher", "task": "demo", "share": 0.5},)
    config = make_config({"lessons": lessons})
    with pytest.raises(ValueError, match="--config"):
        as_command(config)
    names = {}
    exec(as_python(config).partition("\nfor ")[0], names)
    assert names["config"] == config


def test_the_program_runs():
    settings = {**TINY, "steps": 1, "prompts_per_step": 2}
    program = as_python(make_config(settings))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("1 {'loss'")


def fresh_pair():
    return Pair(make_model(0), make_model(1, hidden_size=48))


@pytest.mark.parametrize(
    "changes",
    [{}, {"objective": "importance_sampling", "discount": 0.5}, {"tokens": "entropy", "token_share": 0.25}],
    ids=["reverse_kl", "discounted", "entropy"],
)
def test_a_preview_shows_what_the_first_step_pushes_and_changes_nothing(changes):
    config = make_config({**TINY, **changes})
    pair = fresh_pair()
    before = [p.clone() for p in pair.student.model.parameters()]
    seen = preview(config, pair, top=5)
    assert all((a == b).all() for a, b in zip(before, pair.student.model.parameters(), strict=True))
    advantages = [t.advantage for t in seen.punished]
    assert advantages == sorted(advantages)
    assert len(advantages) == 5
    assert max(advantages) < 0 < min(t.advantage for t in seen.rewarded)
    step = list(distill(config, fresh_pair()))[1].metrics
    assert (seen.tokens, seen.trained_tokens) == (step["tokens"], step["trained_tokens"])
    assert seen.completions == 8
    assert 1 <= seen.effective_tokens <= seen.tokens
    assert seen.seconds_per_step > 0
    for token in (*seen.punished, *seen.rewarded):
        review = seen.reviews[token.review]
        assert review.pieces[token.position] == token.text
        if not changes:
            assert token.advantage == pytest.approx(-review.grades.penalty[token.position])
    if not changes:
        lowest = min(float(-review.grades.penalty.max()) for review in seen.reviews)
        assert advantages[0] == pytest.approx(lowest)


def test_a_student_that_equals_its_teacher_has_nothing_to_be_punished_for():
    seen = preview(make_config(TINY), Pair(make_model(0), make_model(0)))
    assert seen.punished == seen.rewarded == []
    assert seen.effective_tokens == 0
    assert np.isfinite(seen.seconds_per_step)


@pytest.mark.parametrize(
    ("settings", "evaluations"),
    [
        ({"steps": 4, "eval_every": 2}, 3),  # steps 0, 2, 4
        ({"steps": 5, "eval_every": 2}, 4),  # and the last one
        ({"eval_prompts": 0}, 0),
    ],
)
def test_the_time_of_a_run_has_its_evaluations_in_it(settings, evaluations):
    config = make_config({**TINY, "eval_prompts": 8, "warmup_steps": 1, **settings})
    seen = preview(config, fresh_pair())
    assert seen.evaluations == evaluations
    made = [r for r in distill(config, fresh_pair()) if "seconds_evaluate" in r.metrics]
    assert len(made) == evaluations
    if evaluations:
        assert seen.seconds_per_evaluation > 0
        assert seen.seconds_of_teacher > 0
        assert f"{evaluations} evaluations included" in " ".join(seen.sentences())
    else:
        assert "nothing is evaluated" in " ".join(seen.sentences())
    evaluating = evaluations * seen.seconds_per_evaluation + seen.seconds_of_teacher
    assert seen.seconds == pytest.approx(seen.steps * seen.seconds_per_step + evaluating)


@pytest.mark.parametrize("answers", [True, False])
def test_an_evaluation_is_estimated_from_the_rows_that_are_there(tmp_path, monkeypatch, answers):
    """By a clock on which a batch costs 2 s, each of its prompts 1 s and grading one 0.1 s."""
    clock = [0.0]

    def pass_time(inner, start, each):
        def slow(model, items, **kwargs):
            clock[0] += start + each * len(items)
            return inner(model, items, **kwargs)

        return slow

    rows = [{"prompt": f"Say {i}."} | ({"answer": f"{i}"} if answers else {}) for i in range(49)]
    task = tmp_path / "small.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {**TINY, "task": str(task), "heldout_share": 0.9, "eval_prompts": 512}
    run = distill(make_config(values), fresh_pair())
    there = len(run.lessons[0].task.heldout(512))
    assert 25 <= there < 40
    monkeypatch.setattr(preview_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(preview_module, "sample", pass_time(preview_module.sample, 2, 1))
    monkeypatch.setattr(preview_module, "grade", pass_time(preview_module.grade, 0, 0.1))
    _, student, teacher = preview_module.estimate_evaluations(run)
    answered = 2 + there
    assert student == pytest.approx(answered * (2 if answers else 1) + 0.1 * there)
    assert teacher == pytest.approx(answered if answers else 0)


def test_a_dry_run_keeps_one_pair_loaded_whatever_teachers_follow(folders, monkeypatch):
    alive, at_once = weakref.WeakSet(), []

    def load(*names):
        at_once.append(len(alive))
        teacher = make_model(1)
        alive.add(teacher.model)
        return teacher

    monkeypatch.setattr(doctor, "load_teacher", load)
    monkeypatch.setattr(doctor, "examine", lambda pair, **run: [Finding("x", "pass", pair[1].name)])
    monkeypatch.setattr(preview_module, "preview", lambda config, pair: len(alive))
    lessons = [{"teacher": folders["other"], "task": "demo", "share": 0.2}] * 3
    config = make_config({"student": folders["student"], "teacher": folders["teacher"], "lessons": lessons})
    findings, kept = preview_module.dry_run(config)
    assert len(findings) == 4
    assert kept == 1
    assert at_once == [0, 1, 1, 1], "beside the run's own teacher there is room for one"


DEMO = make_config({}).model_dump(mode="json")
"""What a run on the embedded pair saves: every setting, chosen or not."""


def test_a_preset_beats_the_file_and_what_is_given_beats_both():
    saved = DEMO | {"seed": 5}
    made = make_config(combine(saved, "post", {"lora_rank": 4}))
    assert (made.objective, made.lora_rank, made.seed) == ("importance_sampling", 4, 5)
    assert make_config(combine(DEMO | {"lora_rank": 8}, "lora")).lora_rank == 32


@pytest.mark.parametrize(
    ("saved", "given", "settled"),
    [
        ({}, {"student": "other/model"}, {"learning_rate": 1e-5}),
        ({}, {"student": "other/model", "lora_rank": 8}, {"learning_rate": 1e-4}),
        ({}, {"steps": 3}, {"warmup_steps": 2}),
        ({"learning_rate": 3e-4}, {"student": "other/model"}, {"learning_rate": 3e-4}),
        ({"warmup_steps": 1}, {"steps": 3}, {"warmup_steps": 1}),
        ({"objective": "jsd"}, {"objective": "gkd"}, {"beta": 0.5, "student_share": 0.5}),
        (
            {"objective": "importance_sampling", "engine": "vllm", "asynchronous": True},
            {"asynchronous": False},
            {"clip": None},
        ),
    ],
)
def test_what_was_settled_in_a_file_is_settled_anew_and_what_was_chosen_stays(saved, given, settled):
    file = make_config(saved).model_dump(mode="json")
    made = make_config(combine(file, given=given)).model_dump()
    assert {name: made[name] for name in settled} == settled


def test_a_folder_keeps_the_name_by_which_its_server_serves_it(monkeypatch, tmp_path):
    (tmp_path / "t").mkdir()
    monkeypatch.chdir(tmp_path)
    served = make_config({"teacher": "t", "teacher_url": "http://127.0.0.1:9"})
    for config in (served.anchored(), served.anchored().anchored()):
        assert (config.teacher, config.teacher_served_as) == (str(tmp_path / "t"), "t")
    named = make_config(served.model_dump() | {"teacher_served_as": "big"})
    assert named.anchored().teacher_served_as == "big"
    assert make_config({"teacher": "t"}).anchored().teacher_served_as is None


def test_what_somebody_wrote_by_hand_stays_though_a_default_would_be_the_same():
    by_hand = {"student": "other/model", "learning_rate": 1e-5, "warmup_steps": 3}
    made = make_config(combine(by_hand, "lora", {"steps": 3000}))
    assert (made.learning_rate, made.lora_rank) == (1e-5, 32)


def test_a_saved_config_alone_comes_back_as_it_was():
    for changes in ({}, {"objective": "rl", "samples_per_prompt": 4, "student": "a/b", "lora_rank": 2}):
        config = make_config(changes)
        assert make_config(combine(config.model_dump(mode="json"))) == config


def test_the_methods_of_a_race_differ_whatever_the_file_and_the_flags_say():
    methods = ["full", "sft", "rl", "lora"]
    for saved, given in ((DEMO, {}), ({}, {"lora_rank": 8, "objective": "jsd", "beta": 0.3})):
        made = race_configs(methods, saved, given)
        assert [made[name].objective for name in ("sft", "rl")] == ["sft", "rl"]
        assert made["full"].lora_rank == 0
        assert made["lora"].lora_rank == given.get("lora_rank", 32)
        assert made["full"].objective == made["lora"].objective == given.get("objective", "reverse_kl")
    with pytest.raises(ValueError, match="lora and recover would train the same"):
        race_configs(["lora", "recover"], {}, {"prompts_per_step": 64, "steps": 100})
    with pytest.raises(ValueError, match="lora needs a lora_rank above 0"):
        race_configs(["lora", "sft"], {}, {"lora_rank": 0})
    with pytest.raises(ValueError, match="sft is named twice"):
        race_configs(["sft", "sft"], {}, {})


@pytest.mark.parametrize("baseline", ["sft", "rl"])
def test_the_file_of_a_baseline_makes_no_baseline_of_another_method(baseline):
    ran = make_config({"objective": baseline, "samples_per_prompt": 4}).model_dump(mode="json")
    made = race_configs(["full", baseline], ran, {})
    assert (made["full"].objective, made[baseline].objective) == ("reverse_kl", baseline)
    assert made["full"].samples_per_prompt == 4
    assert race_configs(["full"], ran, {"objective": "jsd"})["full"].objective == "jsd"
    assert race_configs(["full"], {"objective": "jsd", "beta": 0.3}, {})["full"].beta == 0.3
