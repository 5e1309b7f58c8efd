"""Objectives against exact enumeration, float64 brute force and TRL; stray options are refused."""

import itertools

import numpy as np
import pytest
import torch
from tiny import make_model

import opd
from opd import divergence
from opd.config import make_config, override
from opd.models.pair import Pair
from opd.objectives import OBJECTIVES
from opd.training.distillation import distill
from opd.training.losses import LOSSES, Chunk, policy_gradient, token_loss
from opd.training.rollouts import discounted, select_tokens, settle
from opd.training.update import gradient

V, T = 3, 3
PREFIXES = [p for n in range(T) for p in itertools.product(range(V), repeat=n)]
SEQUENCES = list(itertools.product(range(V), repeat=T))


def config(**values):
    return make_config({"samples_per_prompt": 2, **values})


def tabular(seed):
    """A model with one free distribution for each prefix: logits ``[prefixes, V]``."""
    return torch.randn(len(PREFIXES), V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected_gradient(logits, teacher, settings):
    """Sum over all sequences of p_student(sequence) x the gradient of its summed token losses."""
    student = torch.log_softmax(logits, -1)
    total = 0.0
    for sequence in SEQUENCES:
        rows = [PREFIXES.index(sequence[:t]) for t in range(T)]
        ids = torch.tensor(sequence)
        s, q = student[rows], teacher[rows]
        taken = divergence.sampled(s, ids)
        advantages = None
        if settings.discount:
            penalty = (taken - divergence.sampled(q, ids)).detach().numpy()
            advantages = -torch.from_numpy(discounted(penalty, settings.discount)).double()
        chunk = Chunk(s, q, ids, taken.detach(), advantages, torch.zeros(T, dtype=torch.float64))
        total = total + taken.sum().exp().detach() * token_loss(chunk, settings).sum()
    return torch.autograd.grad(total, logits)[0]


def test_at_discount_0_the_policy_gradient_is_the_kl_gradient_at_fixed_prefixes():
    logits, teacher = tabular(0).requires_grad_(), torch.log_softmax(tabular(1), -1)
    got = expected_gradient(logits, teacher, config(objective="importance_sampling"))
    student = torch.log_softmax(logits, -1)
    reach = [
        sum(student[PREFIXES.index(p[:t]), p[t]] for t in range(len(p))) if p else torch.tensor(0.0)
        for p in PREFIXES
    ]
    kl = divergence.reverse_kl(student, teacher)
    wanted = sum(r.exp().detach() * k for r, k in zip(reach, kl, strict=True))
    torch.testing.assert_close(got, torch.autograd.grad(wanted, logits)[0], atol=1e-6, rtol=1e-5)


def test_at_discount_1_the_policy_gradient_is_that_of_the_sequence_kl():
    logits, teacher = tabular(0).requires_grad_(), torch.log_softmax(tabular(1), -1)
    got = expected_gradient(logits, teacher, config(objective="importance_sampling", discount=1.0))
    student = torch.log_softmax(logits, -1)
    wanted = 0.0
    for sequence in SEQUENCES:
        rows, ids = [PREFIXES.index(sequence[:t]) for t in range(T)], torch.tensor(sequence)
        log_s, log_q = (divergence.sampled(m[rows], ids).sum() for m in (student, teacher))
        wanted = wanted + log_s.exp() * (log_s - log_q)
    torch.testing.assert_close(got, torch.autograd.grad(wanted, logits)[0], atol=1e-6, rtol=1e-5)
    other = expected_gradient(logits, teacher, config(objective="importance_sampling"))
    assert (got - other).abs().max() > 0.01, "the two discounts must differ for the test to mean anything"


def random_chunk(n=6, v=9):
    g = torch.Generator().manual_seed(3)
    student = torch.log_softmax(torch.randn(n, v, generator=g, dtype=torch.float64) * 2, -1).requires_grad_()
    teacher = torch.log_softmax(torch.randn(n, v, generator=g, dtype=torch.float64) * 2, -1)
    ids = torch.randint(0, v, (n,), generator=g)
    zeros = torch.zeros(n, dtype=torch.float64)
    return Chunk(student, teacher, ids, divergence.sampled(student, ids).detach(), None, zeros)


def brute_jsd(s, t, beta):
    m = beta * t + (1 - beta) * s
    return (beta * t * np.log(t / m) + (1 - beta) * s * np.log(s / m)).sum(-1)


def brute_topk(s, t, support):
    out = []
    for p, q, keep in zip(s, t, support, strict=True):
        p2, q2 = np.append(p[keep], 1 - p[keep].sum()), np.append(q[keep], 1 - q[keep].sum())
        out.append((p2 * np.log(p2 / q2)).sum())
    return np.array(out)


BRUTE = {
    "reverse_kl": lambda s, t, ids: (s * np.log(s / t)).sum(-1),
    "forward_kl": lambda s, t, ids: (t * np.log(t / s)).sum(-1),
    "jsd": lambda s, t, ids: brute_jsd(s, t, 0.5),
    "gkd": lambda s, t, ids: brute_jsd(s, t, 0.5),
    "topk_reverse_kl": lambda s, t, ids: brute_topk(s, t, np.argsort(-s, axis=-1)[:, :4]),
    "sft": lambda s, t, ids: -np.log(s[np.arange(len(ids)), ids]),
}


@pytest.mark.parametrize("name", BRUTE)
def test_each_divergence_equals_float64_brute_force(name):
    chunk = random_chunk()
    options = {"top_k": 4} if name == "topk_reverse_kl" else {}
    got = token_loss(chunk, config(objective=name, **options)).detach().numpy()
    wanted = BRUTE[name](chunk.student.detach().exp().numpy(), chunk.teacher.exp().numpy(), chunk.ids.numpy())
    np.testing.assert_allclose(got, wanted, atol=1e-7)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_top_k_is_a_lower_bound_and_exact_with_the_whole_vocabulary(side):
    chunk = random_chunk()
    full = token_loss(chunk, config(objective="reverse_kl"))
    for k in (1, 4, 8):
        cut = token_loss(chunk, config(objective="topk_reverse_kl", top_k=k, top_k_from=side))
        assert (cut <= full + 1e-9).all()
    whole = token_loss(chunk, config(objective="topk_reverse_kl", top_k=9, top_k_from=side))
    torch.testing.assert_close(whole, full, atol=1e-5, rtol=0)


def test_top_k_with_tail_leaves_equal_models_alone():
    chunk = random_chunk()
    same = Chunk(chunk.student, chunk.student.detach(), chunk.ids, chunk.behaviour, None, chunk.rewards)
    token_loss(same, config(objective="topk_reverse_kl", top_k=3)).sum().backward()
    # The gradient with respect to the log-probs is p itself; projected on the simplex it must vanish.
    g, p = same.student.grad, same.student.detach().exp()
    assert (g - p * g.sum(-1, keepdim=True)).abs().max() < 1e-9


def test_the_jsd_vanishes_between_equal_models_and_is_bounded():
    chunk = random_chunk()
    assert divergence.jsd(chunk.teacher, chunk.teacher, 0.3).abs().max() < 1e-12
    far = torch.tensor([[0.0, -80.0]], dtype=torch.float64)
    bounded = divergence.jsd(torch.log_softmax(far, -1), torch.log_softmax(far.flip(-1), -1), 0.5)
    assert float(bounded) == pytest.approx(np.log(2), abs=1e-9)


def test_clip_is_pessimistic():
    chunk = random_chunk()
    far = Chunk(chunk.student, chunk.teacher, chunk.ids, chunk.behaviour - 1.0, None, chunk.rewards)
    up, down = torch.ones(6, dtype=torch.float64), -torch.ones(6, dtype=torch.float64)
    assert torch.allclose(-policy_gradient(far, up, 0.2), torch.tensor(1.2, dtype=torch.float64))
    assert torch.allclose(-policy_gradient(far, down, 0.2), torch.tensor(-np.e, dtype=torch.float64))
    assert torch.autograd.grad(policy_gradient(far, up, 0.2).sum(), far.student)[0].abs().max() == 0


@pytest.mark.parametrize(
    ("objective", "beta"), [("reverse_kl", 1.0), ("jsd", 0.5), ("jsd", 0.2), ("forward_kl", 0.0)]
)
def test_the_gradient_equals_trl(tmp_path, objective, beta):
    """The whole path: the gradient of our step against TRL's DistillationTrainer loss on the same batch."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    settings = {"steps": 1, "warmup_steps": 0, "prompts_per_step": 6, "max_tokens": 20, "eval_prompts": 0}

    def models():  # without padded rows, which TRL's loss would count
        return make_model(0, rows=261), make_model(1, rows=261, hidden_size=48)

    settings |= {"objective": objective} | ({"beta": beta} if objective == "jsd" else {})
    run = distill(opd.DistillConfig(**settings), Pair(*models()))
    rollouts = run.sample(1)
    updated = gradient(run.learner, rollouts, run.teachers)
    norm = torch.sqrt(sum((p.grad**2).sum() for p in run.parameters.values()))
    ours = {n: p.grad / norm for n, p in run.parameters.items()}

    student, teacher = models()
    trainer = DistillationTrainer(
        model=student.model.requires_grad_(True),
        teacher_model=teacher.model,
        args=DistillationConfig(str(tmp_path), beta=beta, report_to=[], use_cpu=True, bf16=False),
        train_dataset=Dataset.from_list([{"prompt": "hi"}] * 8),
        processing_class=run.student.tokenizer,
    )
    pad = run.student.tokenizer.pad_token_id
    prompts = [torch.tensor(r.trajectory.prompt_ids) for r in rollouts]
    completions = [torch.tensor(r.trajectory.completion_ids) for r in rollouts]

    def padded(rows, side, value):
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)

    inputs = {
        "prompt_ids": padded(prompts, "left", pad),
        "prompt_mask": padded([torch.ones_like(p) for p in prompts], "left", 0),
        "completion_ids": padded(completions, "right", pad),
        "completion_mask": padded([torch.ones_like(c) for c in completions], "right", 0),
    }
    total = sum(len(c) for c in completions)
    loss, *_ = trainer._compute_loss(trainer.model, inputs, torch.tensor(total))
    loss.backward()
    assert updated.loss == pytest.approx(loss.item(), rel=1e-4)
    theirs = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    norm = torch.sqrt(sum((g**2).sum() for g in theirs.values()))
    assert theirs.keys() == ours.keys()
    for name, own in ours.items():
        torch.testing.assert_close(own, theirs[name] / norm, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"objective": "reverse_kl", "discount": 0.5},
            "discount is no option of reverse_kl.*importance_sampling",
        ),
        ({"objective": "rl", "beta": 0.5}, "beta is no option of rl; it belongs to jsd, gkd"),
        ({"objective": "jsd", "beta": 0.0}, "forward_kl"),
        ({"objective": "jsd", "beta": 1.0}, "reverse_kl"),
        ({"objective": "rl", "clip": 0.2, "substeps": 1}, "clip needs substeps > 1"),
        ({"objective": "rl", "samples_per_prompt": 1}, "samples_per_prompt must be at least 2"),
        ({"reward_weight": 1.0, "samples_per_prompt": 1}, "samples_per_prompt must be at least 2"),
        ({"objective": "sft", "reward_weight": 1.0}, "does not mix with the baseline sft"),
        ({"objective": "rl", "chain": 3}, "multiple of chain"),
        ({"objective": "k3"}, "Input should be"),
        ({"teacher_live": True}, "teacher_live needs teacher self"),
        ({"stepz": 3}, "there is no setting stepz; did you mean steps"),
        ({"substeps": 7, "prompts_per_step": 3}, "substeps \\(7\\) exceeds the 6 completions"),
        ({"objective": "sft", "sft_prompts": 100}, "multiple of prompts_per_step \\(128\\)"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm: Input should be a finite number"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"template_options": "{"}, r"template_options: .* JSON object such as .*; \'{\' is none: Expecting"),
        ({"teacher_template_options": 3}, "teacher_template_options: .*, not 3"),
        ({"template_options": {"add_generation_prompt": False}}, "add_generation_prompt cannot be set"),
        ({"template_options": {"at": float("nan")}}, "cannot be written as JSON"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        config(**values)


def test_another_objective_takes_over_a_saved_config():
    saved = config(objective="importance_sampling", discount=0.5, seed=7).model_dump(mode="json")
    assert make_config(override(saved, {})).discount == 0.5
    other = make_config(override(saved, {"objective": "jsd"}))
    assert (other.beta, other.discount, other.kl_coefficient, other.seed) == (0.5, None, None, 7)
    saved = config(objective="gkd", beta=0.3).model_dump(mode="json")
    assert make_config(override(saved, {"objective": "jsd"})).beta == 0.3, "an option of both stays"


def test_a_short_run_warms_up_no_longer_than_it_lasts():
    assert [config(steps=n).warmup_steps for n in (1, 2, 3, 4, 60)] == [0, 1, 2, 3, 3]
    with pytest.raises(ValueError, match="must be smaller than steps"):
        config(steps=2, warmup_steps=3)


def test_every_objective_is_described_and_has_its_defaults_settled():
    assert OBJECTIVES.keys() == LOSSES.keys()
    for name, objective in OBJECTIVES.items():
        settled = config(objective=name)
        assert all(getattr(settled, option) == default for option, default in objective.options.items())
        assert objective.sentence.endswith(".")
        assert objective.formula


def quick(pair, **values):
    settings = {
        "steps": 2,
        "warmup_steps": 1,
        "prompts_per_step": 4,
        "samples_per_prompt": 4,
        "max_tokens": 16,
    }
    return distill(make_config({"eval_prompts": 0, "learning_rate": 1e-2, **settings, **values}), pair)


class HalfRight:
    """A task whose answers are right when the completion has an even number of characters."""

    name = "half"

    def batch(self, n, *, step, seed):
        return [opd.tasks.Example(f"q{step}-{i}", "even") for i in range(n)]

    def heldout(self, n, *, split="test"):
        return [opd.tasks.Example(f"held {i}", "even") for i in range(n)]

    def sizes(self):
        return {}

    def summary(self):
        return "half"

    def verify(self, example, completion, *, cut=False):
        return len(completion) % 2 == 0


@pytest.fixture
def small(monkeypatch):
    import opd.tasks
    import opd.training.lessons

    monkeypatch.setattr(opd.training.lessons, "load_task", lambda name, options: HalfRight())
    return Pair(make_model(0), make_model(1, hidden_size=48))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.engine
def test_every_objective_trains(small, name):
    before = [p.clone() for p in small.student.model.parameters()]
    reports = list(quick(small, objective=name))
    assert len(reports) == 3
    assert any((a != b).any() for a, b in zip(before, small.student.model.parameters(), strict=True))


def test_rewards_are_centred_in_their_group_and_chains_share_one(small):
    run = quick(small, objective="rl")
    rewards = np.array([r.reward for r in run.sample(1)]).reshape(4, 4)
    assert np.abs(rewards.mean(axis=1)).max() < 1e-12
    assert np.abs(rewards).max() > 0
    run = quick(small, objective="rl", chain=2)
    rollouts = run.sample(1)
    right = np.array([r.right for r in rollouts]).reshape(2, 2, 4)
    rewards = np.array([r.reward for r in rollouts]).reshape(2, 2, 4)
    both = right.all(axis=1).astype(float)
    np.testing.assert_allclose(rewards[:, 0], both - both.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(rewards[:, 0], rewards[:, 1])


def test_a_mixed_reward_reaches_the_gradient(small):
    def of(**values):
        run = quick(Pair(make_model(0), make_model(1, hidden_size=48)), **values)
        gradient(run.learner, run.sample(1), run.teachers)
        return torch.cat([p.grad.flatten() for p in run.parameters.values()])

    assert not torch.allclose(of(), of(reward_weight=1.0), atol=1e-4)


def test_sft_reads_the_teacher_and_a_fixed_set_repeats(small):
    run = quick(small, objective="sft", sft_prompts=8)
    steps = [run.sample(k) for k in (1, 2, 3)]
    ids = [[r.trajectory.completion_ids.tolist() for r in rollouts] for rollouts in steps]
    assert ids[0] == ids[2] != ids[1]
    assert all(r.trajectory.behaviour_logprobs is None for r in steps[0])
    graded = opd.grade(Pair(small.teacher, small.teacher), [r.trajectory for r in steps[0]])
    assert np.concatenate([g.student.logprobs for g in graded]).mean() > -3.7, "written by another model"


def test_gkd_mixes_in_the_asked_share(small):
    run = quick(small, objective="gkd", student_share=0.25, prompts_per_step=50)
    ours = [r.trajectory.behaviour_logprobs is not None for r in run.sample(1)]
    assert 0.15 < np.mean(ours) < 0.35


@pytest.mark.parametrize("which", ["entropy", "penalty", "fork_score"])
@pytest.mark.engine
def test_only_the_top_share_of_tokens_trains(small, which):
    run = quick(small, tokens=which, token_share=0.1)
    report = list(run)[1]
    assert report.metrics["trained_tokens"] == round(0.1 * report.metrics["tokens"])


def test_token_selection_takes_the_highest_scores(pair):
    graded = opd.grade(pair, opd.sample(pair, ["hi", "ho"], n=3, max_tokens=20))
    marks = select_tokens(config(tokens="penalty", token_share=0.25), graded)
    penalties, chosen = np.concatenate([g.penalty for g in graded]), np.concatenate(marks) > 0
    assert chosen.sum() == round(0.25 * len(penalties))
    assert penalties[chosen].min() >= penalties[~chosen].max()


def test_unselected_tokens_get_no_gradient(small):
    """With one token chosen, the loss is that token's KL and nothing else's."""
    run = quick(small, tokens="penalty", token_share=1e-9)
    rollouts = run.sample(1)
    rollouts = settle(run.config, rollouts, run.grade(rollouts))
    updated = gradient(run.learner, rollouts, run.teachers)
    penalties = np.concatenate([g.penalty for g in updated.grades])
    kl = np.concatenate([g.reverse_kl for g in updated.grades])
    assert updated.loss == pytest.approx(float(kl[penalties.argmax()]), rel=1e-4)


@pytest.mark.engine
def test_substeps_make_several_updates_of_a_step(small):
    run = quick(small, substeps=4, steps=2)
    assert "importance_ratio" in list(run)[2].metrics
    assert int(run.learner.optimizer.state[next(iter(run.parameters.values()))]["step"]) == 8


@pytest.mark.engine
def test_substeps_split_the_step_and_the_ratio_moves(small):
    run = quick(small, objective="importance_sampling", substeps=4, clip=0.2, learning_rate=5e-2)
    report = list(run)[1]
    assert report.metrics["importance_ratio_max"] > 1.01, "later substeps see a student that has moved"
    assert int(run.learner.optimizer.state[next(iter(run.parameters.values()))]["step"]) == 8


@pytest.mark.engine
def test_a_part_without_any_chosen_token_changes_nothing(small):
    """One token of the step is chosen: it lies in one of four parts, the others have nothing to divide by."""
    run = quick(small, tokens="penalty", token_share=1e-9, substeps=4)
    report = list(run)[1]
    assert report.metrics["trained_tokens"] == 1
    assert np.isfinite(report.metrics["loss"])


@pytest.mark.engine
def test_the_mismatch_is_measured_before_the_student_moves(small):
    run = quick(small, substeps=4, learning_rate=5e-2)
    report = list(run)[1]
    assert report.metrics["importance_ratio_max"] > 1.01
    assert abs(report.metrics["sampler_mismatch"]) < 1e-5


@pytest.mark.parametrize("objective", [name for name, of in OBJECTIVES.items() if of.judge == "teacher"])
def test_the_teacher_reaches_every_loss_that_names_it(small, objective):
    losses = []
    for seed in (1, 2):
        run = quick(Pair(make_model(0), make_model(seed)), objective=objective, substeps=1)
        run.config = run.config.model_copy(update={"student_share": 1.0})  # the same completions for both
        losses.append(gradient(run.learner, run.sample(1), run.teachers).loss)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_settled_advantages_are_the_discounted_penalties(small):
    run = quick(small, objective="importance_sampling", discount=0.5, kl_coefficient=2.0)
    rollouts = run.sample(1)
    grades = run.grade(rollouts)
    for rollout, graded in zip(settle(run.config, rollouts, grades), grades, strict=True):
        p = graded.penalty
        wanted = [-2 * sum(0.5 ** (k - t) * p[k] for k in range(t, len(p))) for t in range(len(p))]
        np.testing.assert_allclose(rollout.advantages, wanted, rtol=1e-4, atol=1e-5)
