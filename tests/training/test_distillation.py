"""The loop: it lowers the KL, its gradient ignores the split, it goes on exactly where it stopped."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import make_model

import opd
from opd.config import GROUPS, grouped_settings
from opd.grading.evaluation import evaluate
from opd.models.pair import Pair
from opd.protocols import NotFiniteError
from opd.tasks import Example
from opd.training import distillation, learner
from opd.training.distillation import distill
from opd.training.learner import learning_rate
from opd.training.update import gradient

pytestmark = pytest.mark.engine

QUICK = {
    "steps": 5,
    "warmup_steps": 1,
    "prompts_per_step": 8,
    "max_tokens": 24,
    "eval_prompts": 0,
    "learning_rate": 1e-2,
}


def fresh_pair(**student):
    return Pair(make_model(0, **student), make_model(1, hidden_size=48))


def config(**changes):
    return opd.DistillConfig(**QUICK | changes)


def kl_on_fixed_text(pair):
    """Mean reverse KL on trajectories that the untrained student wrote."""
    fixed = opd.sample(fresh_pair(), ["hi", "What is 3 + 4?"], n=16, max_tokens=24, seed=9)
    return float(np.concatenate([g.reverse_kl for g in opd.grade(pair, fixed)]).mean())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": "importance_sampling", "prompts_per_step": 32},
        {"lora_rank": 8, "learning_rate": 5e-2},
        {"gradient_checkpointing": True},
    ],
    ids=["reverse_kl", "importance_sampling", "lora", "checkpointing"],
)
def test_five_steps_lower_the_kl_on_fixed_prompts(changes):
    pair = fresh_pair()
    before = kl_on_fixed_text(pair)
    reports = list(distill(config(**changes), pair))
    assert [r.step for r in reports] == [0, 1, 2, 3, 4, 5]
    assert kl_on_fixed_text(pair) < 0.95 * before


def test_the_teacher_is_not_touched_and_reaches_the_loss():
    pair = fresh_pair()
    before = [p.clone() for p in pair.teacher.model.parameters()]
    first = list(distill(config(steps=1, warmup_steps=0), pair))[1]
    assert all(p.grad is None for p in pair.teacher.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, pair.teacher.model.parameters(), strict=True))
    other = Pair(make_model(0), make_model(2))
    assert list(distill(config(steps=1, warmup_steps=0), other))[1].metrics["loss"] != first.metrics["loss"]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_student_that_is_its_own_teacher_does_not_move(temperature):
    """At any temperature: sampler, trainer and teacher speak of the same tempered distribution."""
    pair = Pair(make_model(0), make_model(0))
    before = [p.clone() for p in pair.student.model.parameters()]
    values = {"steps": 1, "warmup_steps": 0, "objective": "importance_sampling", "temperature": temperature}
    report = list(distill(config(**values), pair))[1]
    assert report.metrics["penalty"] == 0
    assert report.metrics["reverse_kl"] == 0
    assert report.metrics["importance_ratio_max"] == pytest.approx(1, abs=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before, pair.student.model.parameters(), strict=True))


def gradients(**changes):
    run = distill(config(**changes), fresh_pair())
    gradient(run.learner, run.sample(1), run.teachers)
    return {name: p.grad.clone() for name, p in run.parameters.items()}


def test_the_gradient_does_not_depend_on_the_micro_batch():
    whole, split = gradients(micro_batch_tokens=10**6), gradients(micro_batch_tokens=1)
    for name, wanted in whole.items():
        torch.testing.assert_close(split[name], wanted, atol=1e-6, rtol=1e-4, msg=name)


def test_the_loss_is_the_mean_over_the_tokens_of_the_step():
    run = distill(config(), fresh_pair())
    rollouts = run.sample(1)
    graded = gradient(run.learner, rollouts, run.teachers)
    kl = np.concatenate([g.reverse_kl for g in graded.grades])
    assert len(kl) == sum(len(r.trajectory) for r in rollouts)
    assert graded.loss == pytest.approx(float(kl.mean()), rel=1e-5)


def test_what_trains_is_what_review_shows():
    run = distill(config(), fresh_pair())
    rollouts = run.sample(1)
    shown = opd.grade(run.lessons[0].pair, [r.trajectory for r in rollouts], top_k=8)
    for a, b in zip(gradient(run.learner, rollouts, run.teachers).grades, shown, strict=True):
        np.testing.assert_allclose(a.penalty, b.penalty, atol=1e-5)
        np.testing.assert_allclose(a.reverse_kl, b.reverse_kl, atol=1e-5)
        assert np.array_equal(a.forks, b.forks)


def test_out_of_memory_halves_the_micro_batch_says_so_and_repeats_the_step(monkeypatch):
    plain = list(distill(config(steps=1, warmup_steps=0), fresh_pair()))[1]
    pair, inner, failures = fresh_pair(), learner.distributions, [1, 1]

    def flaky(model, *args, **kwargs):
        if failures:
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(model, *args, **kwargs)

    monkeypatch.setattr(learner, "distributions", flaky)
    report = list(distill(config(steps=1, warmup_steps=0, micro_batch_tokens=4000), pair))[1]
    assert [note.split("halved to ")[1].split()[0] for note in report.notes] == ["2000", "1000"]
    for key in ("loss", "penalty", "gradient_norm"):
        assert report.metrics[key] == pytest.approx(plain.metrics[key], rel=1e-4)


@pytest.mark.parametrize("objective", ["importance_sampling", "reverse_kl"])
def test_a_teacher_that_says_no_numbers_is_named_and_stops_before_the_step(objective):
    pair = fresh_pair()
    run = distill(config(objective=objective), pair)
    next(run)
    with torch.no_grad():
        pair.teacher.model.get_output_embeddings().weight.fill_(float("nan"))
    before = [p.clone() for p in run.parameters.values()]
    with pytest.raises(
        NotFiniteError, match=f"^{pair.teacher.name} gives tokens log-probs that are not finite"
    ):
        next(run)
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters.values(), strict=True))


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 4}], ids=["full", "lora"])
def test_a_restored_run_equals_the_uninterrupted_one(changes):
    def measured(report):
        return {k: v for k, v in report.metrics.items() if "second" not in k and "memory" not in k}

    whole = [measured(r) for r in distill(config(eval_prompts=8, **changes), fresh_pair())]
    first = distill(config(eval_prompts=8, **changes), fresh_pair())
    rows = [measured(next(first)) for _ in range(3)]
    state = first.state_dict()
    second = distill(config(eval_prompts=8, **changes), fresh_pair()).load_state_dict(state)
    assert rows + [measured(r) for r in second] == whole


def test_problems_without_an_answer_are_not_evaluated(pair):
    examples = [Example("One?", "1"), Example("Two?"), Example("Three?", "3")]
    task = SimpleNamespace(
        name="riddles",
        heldout=lambda n, split: examples,
        verify=lambda example, completion, *, cut=False: True,
    )
    with pytest.raises(ValueError, match="riddles has no answers to 1 of 3 held-out problems"):
        evaluate(pair.student, task)


def test_evaluation_uses_the_same_draws_every_time():
    run = distill(config(eval_prompts=32), fresh_pair())
    (once, probes), (again, same_probes) = run.watch.evaluate(), run.watch.evaluate()
    assert once["heldout_accuracy"] == again["heldout_accuracy"]
    assert [p.text for p in probes] == [p.text for p in same_probes]


def test_learning_rate_warms_up_and_decays_linearly():
    c = config(steps=10, warmup_steps=2, learning_rate=0.8)
    rates = [learning_rate(c, k) for k in range(1, 11)]
    assert rates[2] == pytest.approx(0.8)
    assert rates[:2] == pytest.approx([0.8 / 3, 1.6 / 3])
    assert np.diff(rates[2:]) == pytest.approx([-0.1] * 7)
    assert rates[-1] == pytest.approx(0.1)


def test_default_learning_rates_fit_the_student():
    assert opd.DistillConfig().learning_rate == 2e-3
    assert opd.DistillConfig(student="Qwen/Qwen3-0.6B").learning_rate == 1e-5
    assert opd.DistillConfig(student="Qwen/Qwen3-0.6B", lora_rank=32).learning_rate == 1e-4


def test_every_default_has_its_reason_in_its_group():
    reasons = Path(__file__).parents[2].joinpath("docs/defaults.md").read_text(encoding="utf-8")
    _, *groups = re.split(r"^## (.+)$", reasons, flags=re.MULTILINE)
    assert groups[::2] == list(GROUPS)
    rows = [
        (group, re.findall(r"`(\w+)`", row))
        for group, text in zip(groups[::2], groups[1::2], strict=True)
        for row in re.findall(r"^\|([^|]*)\|", text, re.MULTILINE)
    ]
    assert {name for _, names in rows for name in names} == set(opd.DistillConfig.model_fields)
    assert all(names[0] in grouped_settings()[group] for group, names in rows if names)


LOSSES = {
    "reverse_kl": 0.0727316,
    "importance_sampling": 0.101185,
    "forward_kl": 0.0218671,
    "jsd": 0.00639836,
    "topk_reverse_kl": 0.0724606,
    "sft": 0.0716333,
    "gkd": 0.00570188,
    "rl": -0.0217014,
}
"""Nats per token; seed 0, 8 prompts, 2 samples each."""


@pytest.mark.parametrize("objective", LOSSES)
def test_the_first_losses_of_the_embedded_pair_are_those_on_record(objective):
    """A change of these figures is a change of what a run does: of sampling, scoring or the objective."""
    values = {"steps": 1, "prompts_per_step": 8, "substeps": 1, "samples_per_prompt": 2, "eval_prompts": 0}
    run = distill(opd.DistillConfig(objective=objective, **values))
    assert gradient(run.learner, run.sample(1), run.teachers).loss == pytest.approx(
        LOSSES[objective], rel=1e-3
    )


def test_frozen_probes_are_scored_as_a_fresh_grading_would_at_every_evaluation():
    pair = fresh_pair()
    run = distill(config(eval_prompts=8, eval_every=2), pair)
    written = []
    for report in run:
        if not report.probes:
            assert report.frozen == ()
            continue
        if report.step == 0:
            written = [probe.trajectory for probe in report.probes]
        fresh = opd.grade(run.lessons[0].pair, written)
        assert len(report.frozen) == len(written) == 8
        for scores, grades in zip(report.frozen, fresh, strict=True):
            np.testing.assert_allclose(scores.penalty, grades.penalty, atol=1e-5)
            np.testing.assert_allclose(scores.reverse_kl, grades.reverse_kl, atol=1e-5)
            np.testing.assert_allclose(scores.logprobs, grades.student.logprobs, atol=1e-5)


def test_a_restored_run_finds_the_frozen_probes_again():
    settings = {"eval_prompts": 8, "eval_every": 1, "steps": 3}
    whole = [report.frozen for report in distill(config(**settings), fresh_pair())]
    first = distill(config(**settings), fresh_pair())
    parts = [next(first).frozen, next(first).frozen]
    second = distill(config(**settings), fresh_pair()).load_state_dict(first.state_dict())
    parts += [report.frozen for report in second]
    for a, b in zip(whole, parts, strict=True):
        assert [x.to_dict() for x in a] == [x.to_dict() for x in b]


def test_a_teacher_that_moves_with_the_student_is_scored_anew():
    settings = {"teacher": "self", "teacher_live": True, "objective": "rl", "samples_per_prompt": 2}
    pair = fresh_pair()
    pair.teacher = pair.student
    run = distill(config(**settings, eval_prompts=4, eval_every=1, steps=2), pair)
    run.lessons[0].pair.teacher = run.student
    for report in run:
        assert all(np.abs(scores.penalty).max() == 0 for scores in report.frozen)


def test_kept_rollouts_know_what_they_were_given_and_what_the_update_did():
    pair = fresh_pair()
    run = distill(config(objective="importance_sampling", prompts_per_step=16, substeps=1), pair)
    next(run)
    report = next(run)
    assert len(report.pushes) == len(report.samples) == 4
    after = opd.grade(run.lessons[0].pair, [review.trajectory for review in report.samples])
    for review, push, now in zip(report.samples, report.pushes, after, strict=True):
        np.testing.assert_allclose(push.advantage, -review.grades.penalty, atol=1e-6)
        change = now.student.logprobs - review.grades.student.logprobs
        np.testing.assert_allclose(push.change, change, atol=1e-5)
    given, done = (
        np.concatenate([getattr(push, name) for push in report.pushes]) for name in ("advantage", "change")
    )
    assert np.corrcoef(given, done)[0, 1] > 0.1, "tokens move the way they are pushed"


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({"objective": "sft"}, lambda review, weights: np.ones(len(weights))),
        (
            {"tokens": "entropy", "token_share": 0.25},
            lambda review, weights: -review.grades.penalty * weights,
        ),
    ],
    ids=["sft", "entropy"],
)
def test_what_a_token_is_given_follows_the_objective(changes, given):
    run = distill(config(prompts_per_step=16, **changes), fresh_pair())
    next(run)
    report = next(run)
    for review, push in zip(report.samples, report.pushes, strict=True):
        expected = given(review, push.advantage != 0)
        np.testing.assert_allclose(push.advantage, expected, atol=1e-6)
    share = np.mean(np.concatenate([push.advantage for push in report.pushes]) != 0)
    assert share == 1 if "objective" in changes else 0 < share < 0.6


def test_looking_at_what_an_update_did_does_not_change_the_run(monkeypatch):
    def losses():
        run = distill(config(prompts_per_step=16, steps=3), fresh_pair())
        reports = list(run)
        return [report.metrics.get("loss") for report in reports], [len(r.pushes) for r in reports]

    watched, counts = losses()
    assert counts == [0, 4, 4, 4]
    monkeypatch.setattr(distillation, "PUSHES_FROM", 17)
    unwatched, none = losses()
    assert watched == unwatched
    assert none == [0, 0, 0, 0]
