"""Alarms: each rule speaks when its trouble begins, once, and never on a healthy run."""

from types import SimpleNamespace

import numpy as np
import pytest
from graded import make_review

from opd.alarms import QUIET, RULES, alarms_at, merit, standing
from opd.config import DistillConfig
from opd.reports import StepReport
from opd.runs.run import create_run
from opd.training.rollouts import Rollout
from opd.training.step_metrics import repetition, step_metrics
from opd.trajectory import Trajectory

HEALTHY = {
    "completion_tokens": 80.0,
    "student_entropy": 0.4,
    "teacher_entropy": 0.35,
    "repetition": 0.15,
    "topk_overlap": 0.7,
    "clipped_share": 0.05,
    "degenerate_share": 0.0,
}


def healthy_rows(steps, rng):
    """A run that goes well: figures with noise, entropy down to the teacher's, KL down, overlap up."""
    rows = [{"step": 0, "heldout_kl": 0.5}]
    for step in range(1, steps + 1):
        done = step / steps
        row = {name: value * (1 + 0.1 * rng.standard_normal()) for name, value in HEALTHY.items()}
        row |= {"step": step, "student_entropy": 0.6 - 0.25 * done, "topk_overlap": 0.6 + 0.2 * done}
        if step % 10 == 0:
            row["heldout_kl"] = 0.5 - 0.4 * done + 0.01 * rng.standard_normal()
        rows.append(row)
    return rows


def raised(rows):
    return [alarm for end in range(1, len(rows) + 1) for alarm in alarms_at(rows[:end])]


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_raises_no_alarm(seed):
    assert raised(healthy_rows(100, np.random.default_rng(seed))) == []


@pytest.mark.parametrize(
    ("kind", "sick"),
    [
        ("length collapse", {"completion_tokens": 9.0}),
        ("length explosion", {"completion_tokens": 300.0}),
        ("entropy collapse", {"student_entropy": 0.02}),
        ("repetition", {"repetition": 0.9}),
        ("overlap", {"topk_overlap": 0.3}),
        ("clipping", {"clipped_share": 0.6}),
        ("degenerate", {"degenerate_share": 0.9}),
    ],
)
def test_each_trouble_raises_its_alarm_once_and_names_the_evidence(kind, sick):
    rows = healthy_rows(60, np.random.default_rng(0))
    rows[30:] = [row | sick for row in rows[30:]]
    (alarm,) = raised(rows)
    assert alarm.kind == kind
    assert 30 <= alarm.step <= 35
    assert alarm.metric in sick
    assert alarm.evidence == "rollout"


COLLAPSED = {"repetition": 0.89, "clipped_share": 1.0, "degenerate_share": 1.0, "student_entropy": 0.002}


@pytest.mark.parametrize("begins", [1, 2, 3])
def test_a_collapse_in_a_run_of_four_steps_is_told_although_the_kl_falls(begins):
    rows = [{"step": 0, "heldout_kl": 1.7}]
    for step in range(1, 5):
        sick = COLLAPSED if step >= begins else {}
        rows.append(HEALTHY | {"completion_tokens": 30.0, "teacher_entropy": 0.003, "step": step} | sick)
    rows[-1]["heldout_kl"] = 0.2
    alarms = raised(rows)
    assert {alarm.kind for alarm in alarms} >= {"repetition", "clipping", "degenerate"}
    assert len(alarms) == len({alarm.kind for alarm in alarms}), "each is said once"
    assert len(standing(rows)) == len(alarms)


@pytest.mark.parametrize(
    ("kind", "sick", "said"),
    [
        ("clipping", {"clipped_share": 1.0}, "cuts off 100% of the completions"),
        ("overlap", {"topk_overlap": 0.05}, "likeliest tokens have 5% in common: the teacher would hardly"),
    ],
)
def test_what_is_bad_from_the_first_step_on_is_said(kind, sick, said):
    rows = [HEALTHY | sick | {"step": step} for step in range(1, 15)]
    (alarm,) = raised(rows)
    assert (alarm.kind, alarm.step) == (kind, 2)
    assert said in alarm.message
    assert standing(rows) == [alarm.kind]


def test_an_alarm_whose_trouble_has_passed_does_not_stand():
    rows = healthy_rows(30, np.random.default_rng(0))
    rows[5:12] = [row | {"repetition": 0.9} for row in rows[5:12]]
    assert [alarm.kind for alarm in raised(rows)] == ["repetition"]
    assert standing(rows) == []
    assert standing([]) == []


def test_a_teacher_that_tells_no_entropy_is_no_reason_to_fail():
    rows = [
        {k: v for k, v in row.items() if k != "teacher_entropy"}
        for row in healthy_rows(20, np.random.default_rng(0))
    ]
    assert raised(rows) == []


def test_a_held_out_kl_far_above_the_first_one_is_told_at_once():
    (alarm,) = raised([{"step": 0, "heldout_kl": 1.5}, {"step": 4, "heldout_kl": 2.6}])
    assert alarm.kind == "held-out KL rising"
    assert "2.600 nats a token, 1.500 at the start" in alarm.message
    assert raised([{"step": 0, "heldout_kl": 0.01}, {"step": 4, "heldout_kl": 0.05}]) == []


def test_certain_answers_to_a_task_that_has_but_one_are_no_collapse():
    certain = {"student_entropy": 0.003, "teacher_entropy": 0.003}
    assert raised([HEALTHY | certain | {"step": step} for step in range(1, 15)]) == []


def test_a_student_that_a_reward_leads_may_leave_its_teacher():
    rows = [{"step": 0, "heldout_kl": 0.2}, {"step": 4, "heldout_kl": 2.6}]
    assert standing(rows) == ["held-out KL rising"]
    assert standing(rows, rewarded=True) == alarms_at(rows, rewarded=True) == []
    assert DistillConfig(objective="rl", samples_per_prompt=2).rewarded
    assert DistillConfig(reward_weight=0.5, samples_per_prompt=2).rewarded
    assert not DistillConfig().rewarded


def test_a_student_that_has_collapsed_is_not_the_best_for_being_near_to_its_teacher():
    healthy, loop = {"heldout_kl": 0.9, "heldout_repetition": 0.1}, {"heldout_kl": 0.1}
    assert merit(healthy) > merit(loop | {"heldout_repetition": 0.9})
    assert merit(healthy) > merit(loop | {"heldout_degenerate_share": 0.8})
    assert merit(healthy) < merit(loop | {"heldout_repetition": 0.1})
    assert merit({"heldout_kl": 0.9}) < merit({"heldout_kl": 0.8}), "as older runs have it"


def test_a_held_out_kl_that_rises_three_times_raises_an_alarm_and_two_do_not():
    values = [0.5, 0.4, 0.42, 0.45, 0.41, 0.43, 0.46, 0.5, 0.55]
    rows = [{"step": 10 * i, "heldout_kl": kl} for i, kl in enumerate(values)]
    (alarm,) = raised(rows)
    assert (alarm.kind, alarm.step, alarm.evidence) == ("held-out KL rising", 70, "probe")
    assert "0.410 to 0.500" in alarm.message


def test_trouble_that_comes_back_is_said_again():
    rows = healthy_rows(80, np.random.default_rng(0))
    for start in (20, 20 + QUIET + 10):
        rows[start] = rows[start] | {"degenerate_share": 1.0}
    assert [(a.kind, a.step) for a in raised(rows)] == [("degenerate", 20), ("degenerate", 20 + QUIET + 10)]


def test_a_run_that_makes_a_step_again_says_its_alarm_once(tmp_path):
    run = create_run("twice", DistillConfig())
    rows = healthy_rows(20, np.random.default_rng(0))
    rows[20] |= {"degenerate_share": 1.0}
    report = StepReport(20, rows[20], alarms=alarms_at(rows))
    run.append(report)
    run.append(report)
    (event,) = (event for event in run.events() if event["event"] == "alarm")
    assert event["kind"] == "degenerate"
    assert event["metric"] == "degenerate_share"
    assert run.notes() == [f"⚠ Step 20: {event['message']}"]


def test_repetition_counts_the_4_grams_that_came_before():
    assert repetition(np.arange(50)) == 0
    assert repetition(np.full(53, 7)) == pytest.approx(49 / 50)
    assert repetition(np.array([1, 2, 3])) == 0
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 3, 200)
    grams = [tuple(ids[i : i + 4]) for i in range(197)]
    assert repetition(ids) == pytest.approx(1 - len(set(grams)) / len(grams))


@pytest.mark.parametrize(
    ("completion", "share"),
    [
        *[([9], 1.0), ([4, 4, 4, 4, 9], 1.0), ([4, 4, 4, 9], 0.0), ([4, 5, 4, 5, 9], 0.0)],
        *[([1, 2, 3, 2, 9], 1.0), ([1, 2, 3, 4, 9], 0.0)],
    ],
)
def test_blank_and_single_token_completions_are_degenerate(completion, share):
    spelled = {1: " ", 2: "\n", 3: "\t", 4: "a", 5: "b"}
    student = SimpleNamespace(eos_ids=[9], text=lambda ids: "".join(spelled[i] for i in ids))
    trajectory = Trajectory(np.array([1]), np.array(completion), None, "stop", np.array([1]))
    grades = make_review(["x"] * len(completion)).grades
    metrics = step_metrics([Rollout(None, None, trajectory, None)], [grades], student, fresh=1)
    assert metrics["degenerate_share"] == share


def test_every_rule_watches_a_metric_of_the_loop():
    assert {metric for metric, _, _ in RULES.values()} <= {*HEALTHY, "heldout_kl"}
