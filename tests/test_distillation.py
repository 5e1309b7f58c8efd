"""The loop: it lowers the KL, its gradient ignores the split, it goes on exactly where it stopped."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_model

import opd
from opd import distillation
from opd.distillation import distill, learning_rate
from opd.models import Pair
from opd.rollouts import gather

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


def test_a_student_that_is_its_own_teacher_does_not_move():
    pair = Pair(make_model(0), make_model(0))
    before = [p.clone() for p in pair.student.model.parameters()]
    report = list(distill(config(steps=1, warmup_steps=0, objective="importance_sampling"), pair))[1]
    assert report.metrics["penalty"] == 0
    assert report.metrics["reverse_kl"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, pair.student.model.parameters(), strict=True))


def first_rollouts(run):
    return gather(run.config, run.lessons, run.sampler, 1)


def gradients(**changes):
    run = distill(config(**changes), fresh_pair())
    run._gradient(first_rollouts(run))
    return {name: p.grad.clone() for name, p in run.parameters.items()}


def test_the_gradient_does_not_depend_on_the_micro_batch():
    whole, split = gradients(micro_batch_tokens=10**6), gradients(micro_batch_tokens=1)
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_the_loss_is_the_mean_over_the_tokens_of_the_step():
    run = distill(config(), fresh_pair())
    rollouts = first_rollouts(run)
    graded = run._gradient(rollouts)
    kl = np.concatenate([g.reverse_kl for g in graded.grades])
    assert len(kl) == sum(len(r.trajectory) for r in rollouts)
    assert graded.loss == pytest.approx(float(kl.mean()), rel=1e-5)


def test_what_trains_is_what_review_shows():
    run = distill(config(), fresh_pair())
    rollouts = first_rollouts(run)
    shown = opd.grade(run.lessons[0].pair, [r.trajectory for r in rollouts], top_k=8)
    for a, b in zip(run._gradient(rollouts).grades, shown, strict=True):
        np.testing.assert_allclose(a.penalty, b.penalty, atol=1e-5)
        np.testing.assert_allclose(a.reverse_kl, b.reverse_kl, atol=1e-5)
        assert np.array_equal(a.forks, b.forks)


def test_out_of_memory_halves_the_micro_batch_says_so_and_repeats_the_step(monkeypatch):
    plain = list(distill(config(steps=1, warmup_steps=0), fresh_pair()))[1]
    pair, inner, failures = fresh_pair(), distillation.distributions, [1, 1]

    def flaky(model, *args, **kwargs):
        if model is not pair.teacher and failures:
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(model, *args, **kwargs)

    monkeypatch.setattr(distillation, "distributions", flaky)
    report = list(distill(config(steps=1, warmup_steps=0, micro_batch_tokens=4000), pair))[1]
    assert [note.split("halved to ")[1].split()[0] for note in report.notes] == ["2000", "1000"]
    for key in ("loss", "penalty", "gradient_norm"):
        assert report.metrics[key] == pytest.approx(plain.metrics[key], rel=1e-4)


def test_a_loss_that_is_not_finite_stops_before_the_step(monkeypatch):
    pair = fresh_pair()
    run = distill(config(), pair)
    next(run)
    with torch.no_grad():
        pair.teacher.model.get_output_embeddings().weight.fill_(float("nan"))
    before = [p.clone() for p in run.parameters.values()]
    with pytest.raises(RuntimeError, match="not finite"):
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


def test_evaluation_uses_the_same_draws_every_time():
    run = distill(config(eval_prompts=32), fresh_pair())
    (once, probes), (again, same_probes) = run._evaluate(), run._evaluate()
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


def test_every_default_has_its_reason():
    reasons = Path(__file__).parents[1].joinpath("docs/defaults.md").read_text(encoding="utf-8")
    settings = {
        name
        for row in re.findall(r"^\|([^|]*)\|", reasons, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert settings == set(opd.DistillConfig.model_fields)
