"""A teacher that computes elsewhere: what an engine tells of it must train and grade as if it were here."""

import threading
from functools import partial

import numpy as np
import pytest
import torch
from elsewhere import Elsewhere
from running import train
from tiny import make_model

import opd
from opd.divergence import TopK, topk_reverse_kl
from opd.engines.transformers import TransformersSampler
from opd.models.pair import Pair
from opd.protocols import EngineError
from opd.reviews import Review
from opd.runs import worker
from opd.runs.run import create_run
from opd.training.distillation import distill
from opd.training.doctor import examine
from opd.training.lessons import main_pair

pytestmark = pytest.mark.engine


@pytest.fixture
def pairs():
    """The same pair twice: with its teacher here, and with the teacher elsewhere."""
    student, teacher = make_model(0), make_model(1)
    return Pair(student, teacher), Pair(make_model(0), make_model(1), Elsewhere(teacher))


def test_grades_of_a_teacher_elsewhere(pairs):
    here, elsewhere = pairs
    done = opd.sample(here, ["hi", "What is 7 + 3?"], n=2, max_tokens=20)
    for known, told in zip(opd.grade(here, done), opd.grade(elsewhere, done, top_k=20), strict=True):
        np.testing.assert_allclose(told.penalty, known.penalty, atol=1e-5)
        np.testing.assert_array_equal(told.verdicts, known.verdicts)
        np.testing.assert_array_equal(told.forks, known.forks)
        np.testing.assert_array_equal(told.teacher_rank, known.teacher_rank)
        assert (told.reverse_kl <= known.reverse_kl + 1e-5).all()
        assert (told.reverse_kl > 0).all()
        assert told.teacher_entropy is None
        assert told.forward_kl is None
        assert known.bound is None
        assert "lower bound" in told.bound
        assert "20 tokens" in told.bound


def test_the_whole_vocabulary_is_as_good_as_a_teacher_here(pairs):
    here, elsewhere = pairs
    done = opd.sample(here, ["hi"], n=2, max_tokens=12)
    whole = opd.grade(elsewhere, done, top_k=here.vocabulary)
    for known, told in zip(opd.grade(here, done, top_k=here.vocabulary), whole, strict=True):
        np.testing.assert_allclose(told.reverse_kl, known.reverse_kl, atol=1e-5)
        np.testing.assert_allclose(told.teacher_entropy, known.teacher_entropy, atol=1e-5)
        assert told.bound is None


SETTINGS = {
    "importance_sampling": {},
    "topk_reverse_kl": {"top_k": 5, "top_k_from": "teacher"},
    "reverse_kl": {"micro_batch_tokens": 4096},  # as many as the whole vocabulary can be told of
}


@pytest.mark.parametrize("objective", SETTINGS)
def test_a_run_is_the_same_wherever_its_teacher_computes(pairs, objective):
    config = opd.DistillConfig(
        objective=objective, steps=2, prompts_per_step=4, substeps=1, max_tokens=12, eval_prompts=0,
        learning_rate=1e-3, device="cpu", **SETTINGS[objective],
    )  # fmt: skip
    runs = [list(opd.distill(config, pair)) for pair in pairs]
    for known, told in zip(*runs, strict=True):
        if known.step:
            for name in ("loss", "penalty", "gradient_norm"):
                assert told.metrics[name] == pytest.approx(known.metrics[name], rel=1e-3, abs=1e-5)
    for a, b in zip(*(pair.student.model.parameters() for pair in pairs), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_the_bound_by_what_is_known_equals_the_one_by_the_whole():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.log_softmax(torch.randn(6, 40, generator=generator) * 2, -1) for _ in range(2))
    top = teacher.topk(7, -1)
    known = TopK(teacher[:, 0], torch.zeros(len(teacher)), top.indices, top.values)
    torch.testing.assert_close(
        topk_reverse_kl(student, known, top.indices), topk_reverse_kl(student, teacher, top.indices)
    )


def test_the_doctor_examines_a_pair_whose_teacher_is_elsewhere(pairs):
    findings = {f.check: f for f in examine(pairs[1], config=opd.DistillConfig(max_tokens=16, device="cpu"))}
    assert {f.level for f in findings.values()} <= {"pass", "warn"}, findings
    assert "nats a token from the student" in findings["teacher"].message


def test_a_review_says_what_is_a_bound_and_keeps_it(pairs):
    ((review,),) = opd.review_prompts(pairs[1], ["hi"], max_tokens=8)
    again = Review.from_dict(review.to_dict())
    assert again.grades.bound == review.grades.bound is not None
    assert again.grades.teacher_entropy is None


POLICY_GRADIENT = {
    "objective": "importance_sampling", "steps": 1, "prompts_per_step": 4, "substeps": 1, "max_tokens": 12,
    "eval_prompts": 0, "learning_rate": 1e-3, "device": "cpu",
}  # fmt: skip


def test_a_run_says_that_its_curves_are_bounds(pairs, monkeypatch):
    for pair, said in zip(pairs, (False, True), strict=True):
        monkeypatch.setattr(worker, "distill", partial(distill, pair=pair))
        config = opd.DistillConfig(**POLICY_GRADIENT, ignore_doctor=True)
        run = train(create_run(f"bound-{said}", config))
        assert any("lower bound" in event.get("message", "") for event in run.events()) == said


REFUSED = {
    "reverse_kl": ({}, "log-probs"),
    "topk_reverse_kl": ({"top_k_from": "student"}, "top_k_from to teacher"),
    "sft": ({}, "completions that the teacher writes"),
    "importance_sampling": ({"temperature": 0.7}, "temperature 1 only"),
}


@pytest.mark.parametrize(
    ("objective", "bounds"),
    [("importance_sampling", (8, 8)), ("topk_reverse_kl", (20, 8)), ("reverse_kl", (None, 8))],
)
def test_each_kl_says_over_how_many_tokens_it_is_a_bound(pairs, objective, bounds):
    given = {"objective": objective, "eval_prompts": 4, "micro_batch_tokens": 4096}
    if objective == "topk_reverse_kl":
        given |= {"top_k": 20, "top_k_from": "teacher"}
    config = opd.DistillConfig(**POLICY_GRADIENT | given)
    for pair, expected in zip(pairs, ((None, None), bounds), strict=True):
        last = list(opd.distill(config, pair))[-1].metrics
        assert (last.get("reverse_kl_top_k"), last.get("heldout_kl_top_k")) == expected


def test_a_teacher_elsewhere_that_ran_out_of_memory_is_asked_anew_for_less(pairs, monkeypatch):
    pair, failures = pairs[1], [1]
    inner = pair.scorer.prompt_logprobs

    def flaky(*args):
        if failures:
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(*args)

    monkeypatch.setattr(pair.scorer, "prompt_logprobs", flaky)
    config = opd.DistillConfig(
        objective="topk_reverse_kl", top_k_from="teacher", steps=1, prompts_per_step=4, substeps=1,
        max_tokens=12, eval_prompts=0, micro_batch_tokens=4000, device="cpu",
    )  # fmt: skip
    (note,) = list(opd.distill(config, pair))[1].notes
    assert "halved to 2000 tokens" in note


@pytest.mark.parametrize("objective", REFUSED)
def test_what_a_server_cannot_serve_is_refused_before_the_run(objective, monkeypatch):
    options, words = REFUSED[objective]
    student = make_model(0)
    monkeypatch.setattr("opd.training.lessons.load_skeleton", lambda name: make_model(0, name=name))

    def server(url, name, *, vocabulary):
        scorer = Elsewhere(student)
        scorer.check = lambda *args, **options: None
        return scorer

    monkeypatch.setattr("opd.engines.remote.RemoteScorer", server)
    config = opd.DistillConfig(objective=objective, teacher_url="http://127.0.0.1:9", **options)
    with pytest.raises(ValueError, match=words):
        main_pair(student, config)


def test_a_pair_whose_teacher_cannot_serve_the_objective_is_refused_before_the_run(pairs):
    config = opd.DistillConfig(**POLICY_GRADIENT | {"objective": "topk_reverse_kl", "top_k_from": "student"})
    with pytest.raises(ValueError, match="top_k_from to teacher"):
        opd.distill(config, pairs[1])


@pytest.mark.parametrize("substeps", [1, 2])
def test_no_more_is_asked_at_once_than_a_micro_batch_holds(pairs, monkeypatch, substeps):
    """Also of what has piled up while the student wrote."""
    asked, inner = [], pairs[1].scorer.prompt_logprobs

    def watched(sequences, lengths, top_k):
        asked.append(sum(map(len, sequences)))
        return inner(sequences, lengths, top_k)

    run = opd.distill(
        opd.DistillConfig(
            **POLICY_GRADIENT
            | {"prompts_per_step": 24, "max_tokens": 20, "substeps": substeps, "micro_batch_tokens": 800}
        ),
        pairs[1],
    )
    next(run)
    monkeypatch.setattr(pairs[1].scorer, "prompt_logprobs", watched)
    next(run)
    assert len(asked) > 4
    assert 400 < max(asked) <= 800


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"teacher_url": "http://x:1", "teacher": "self"}, "not for self"),
        ({"teacher_served_as": "t"}, "needs teacher_url"),
        ({"vllm_sleeps": True}, "need engine vllm"),
        ({"engine": "vllm", "vllm_hot_swap": True}, "needs lora_rank"),
    ],
)
def test_settings_that_do_not_belong_together(settings, words):
    with pytest.raises(ValueError, match=words):
        opd.DistillConfig(**settings)


def test_a_teacher_elsewhere_scores_while_the_student_still_writes(pairs, monkeypatch):
    run, asked = opd.distill(opd.DistillConfig(**POLICY_GRADIENT), pairs[1]), threading.Event()
    score, sample = Elsewhere.score, TransformersSampler.sample

    def scored(self, *args, **options):
        asked.set()
        return score(self, *args, **options)

    def patient(self, *args, **options):
        for i, trajectory in enumerate(sample(self, *args, **options)):
            yield trajectory
            assert i or asked.wait(60), "nobody scored the first one while others waited"

    next(run)
    asked.clear()
    monkeypatch.setattr(Elsewhere, "score", scored)
    monkeypatch.setattr(TransformersSampler, "sample", patient)
    assert next(run).metrics["tokens"] > 4


@pytest.mark.parametrize("substeps", [1, 2])
def test_a_teacher_elsewhere_is_asked_once_for_each_trajectory(pairs, monkeypatch, substeps):
    run = opd.distill(opd.DistillConfig(**POLICY_GRADIENT | {"substeps": substeps}), pairs[1])
    next(run)
    asked, score = [], Elsewhere.score

    def counted(self, trajectories, **options):
        asked.extend(trajectories)
        return score(self, trajectories, **options)

    monkeypatch.setattr(Elsewhere, "score", counted)
    next(run)
    assert len(asked) == len({id(t) for t in asked}) == 4
    assert not run.teachers.kept, "the scores of a step that is over are kept"


def test_a_teacher_that_dies_while_the_student_writes_ends_the_step_untrained(pairs, monkeypatch):
    run = opd.distill(opd.DistillConfig(**POLICY_GRADIENT), pairs[1])
    next(run)
    before = {name: p.clone() for name, p in run.parameters.items()}

    def dead(self, *args, **options):
        raise EngineError("The server is gone.")

    monkeypatch.setattr(Elsewhere, "score", dead)
    with pytest.raises(EngineError, match="is gone"):
        next(run)
    assert all(torch.equal(p, before[name]) for name, p in run.parameters.items())
