"""Vocabularies that agree but for a few ids: both models know what they share, and no more than that."""

import numpy as np
import pytest
import torch
from elsewhere import Elsewhere
from tiny import make_model, make_tokenizer, small_config

import opd
from opd.engines.sampling import requests
from opd.engines.transformers import TransformersSampler
from opd.grading.branching import branch, fork_value, teacher_line
from opd.grading.saved_reviews import ReviewSet, load_reviews, save_reviews
from opd.models.load import load_skeleton
from opd.models.network import LanguageModel
from opd.models.pair import Pair, VocabularyMismatch
from opd.objectives import OBJECTIVES
from opd.tasks import Example, load_task
from opd.training.doctor import examine
from opd.training.lessons import load_lessons
from opd.training.update import gradient
from opd.view.payload import notes

END, TURN, OTHER_END = 256, 259, 261
"""The student's end of turn, an id with two meanings, and the teacher's end of turn."""


def tokenizer_of(*added: str, **renamed: str):
    """A tokenizer with added tokens behind the common ones, some of which are called otherwise."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(list(added))
    names = {f"<|{old}|>": f"<|{new}|>" for old, new in renamed.items()}
    known = {names.get(token, token): i for token, i in tokenizer.get_vocab().items()}
    tokenizer.get_vocab = lambda: dict(known)
    return tokenizer


def loud(model: LanguageModel, *ids: int) -> LanguageModel:
    """Let a model like some tokens so much that by itself it would write them often."""
    weight = model.causal_lm.lm_head.weight.data
    weight[list(ids)] = 1.5 * weight[:261].roll(len(model.name), 0)[: len(ids)]
    return model


def make(seed: int, tokenizer, **config) -> LanguageModel:
    options = {"rows": 280, "tie_word_embeddings": False, "tokenizer": tokenizer, **config}
    return make_model(seed, name=f"model-{seed}", **options)


def student_model() -> LanguageModel:
    return loud(make(0, tokenizer_of("<think>", "</think>")), TURN, 261, 262, END)


def teacher_model(**config) -> LanguageModel:
    """What the student calls user and end has other names here, it ends otherwise and has added tokens."""
    tokenizer = tokenizer_of("<|eot|>", "<tool>", "</tool>", user="human", end="over")
    tokenizer.eos_token = "<|eot|>"
    return loud(make(1, tokenizer, hidden_size=48, **config), TURN, 262, 263, OTHER_END)


@pytest.fixture
def pair() -> Pair:
    return Pair(student_model(), teacher_model(), shared_vocabulary=True)


def log_probs(model: LanguageModel, prompt, ids, end: int, temperature: float = 1.0) -> torch.Tensor:
    """What plain transformers says, over the shared tokens alone, float64 ``[T, 261]``; -inf elsewhere."""
    read = torch.from_numpy(np.concatenate([prompt, ids[:-1]]))[None]
    with torch.no_grad():
        logits = model.whole.causal_lm(read).logits[0, len(prompt) - 1 :].double()
    shared = torch.full((len(ids), 261), -torch.inf, dtype=torch.float64)
    kept = [i for i in range(261) if i not in (END, TURN)]
    shared[:, kept], shared[:, END] = logits[:, kept], logits[:, end]
    return (shared / temperature).log_softmax(-1)


def kl(p: torch.Tensor, q: torch.Tensor) -> np.ndarray:
    return torch.where(p.isfinite(), p.exp() * (p - q), 0).sum(-1).numpy()


# What is shared


def test_an_id_is_shared_where_both_call_it_the_same_and_the_ends_stand_against_each_other(pair):
    assert pair.shared.masked == (TURN,)
    assert pair.shared.end == (END, OTHER_END)
    assert pair.vocabulary == pair.shared.size == 261
    assert pair.shared.tokens == 260
    assert pair.student.left_out == [TURN, 261, 262]
    assert pair.teacher.left_out == [END, TURN, 262, 263]
    assert pair.student.eos_ids == pair.teacher.eos_ids == (END,)
    assert pair.student.end_of_turn == pair.teacher.end_of_turn == END


def test_a_shared_end_stays_as_it_is():
    same = Pair(student_model(), make(1, tokenizer_of("<tool>")), shared_vocabulary=True)
    assert same.shared.end is None
    assert same.student.eos_ids == (END,)
    assert same.shared.masked == ()
    assert same.vocabulary == 261, "what lies behind the last shared id is cut"


def test_equal_vocabularies_have_nothing_to_leave_out():
    models = make_model(0), make_model(1)
    plain = Pair(*models, shared_vocabulary=True)
    assert plain.shared is None
    assert (plain.student, plain.teacher) == models
    assert not plain.apart


def test_it_must_be_asked_for_and_the_refusal_says_that_it_can_be():
    models = student_model(), teacher_model()
    with pytest.raises(
        VocabularyMismatch, match=r"263 and 264 tokens, 9 of them.*259 the same.*--shared-voc"
    ):
        Pair(*models)
    unlike = tokenizer_of()
    unlike.get_vocab = lambda: {f"{i}": i for i in range(230)} | {"a": 230}
    for asked in (False, True):
        with pytest.raises(VocabularyMismatch, match="--cross-tokenizer"):
            Pair(student_model(), make(1, unlike), shared_vocabulary=asked)
    with pytest.raises(ValueError, match="Choose one of them"):
        Pair(*models, shared_vocabulary=True, cross_tokenizer=True)


def test_without_an_end_of_the_teachers_the_student_would_never_end():
    endless = teacher_model()
    endless.tokenizer.eos_token = None
    endless.causal_lm.generation_config.eos_token_id = endless.causal_lm.config.eos_token_id = None
    with pytest.raises(VocabularyMismatch, match="model-0 would never end"):
        Pair(student_model(), endless, shared_vocabulary=True)


# Grades


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_grades_are_those_of_the_distributions_over_what_is_shared(pair, temperature):
    for t in (done := opd.sample(pair, ["hi", "You?"], n=4, max_tokens=30, temperature=temperature)):
        assert not np.isin(t.completion_ids, [TURN, 261, 262]).any()
        np.testing.assert_array_equal(
            t.teacher_prompt_ids, pair.teacher.render("hi" if t.prompt_index == 0 else "You?")
        )
    assert any(t.finish_reason == "stop" for t in done)
    for t, g in zip(done, opd.grade(pair, done), strict=True):
        ids = t.completion_ids
        s = log_probs(pair.student, t.prompt_ids, ids, END, temperature)
        q = log_probs(pair.teacher, t.teacher_prompt_ids, ids, OTHER_END, temperature)
        taken = torch.from_numpy(ids)[:, None]
        m = torch.logaddexp(s, q) - np.log(2)
        expected = {
            "penalty": (s.gather(1, taken) - q.gather(1, taken))[:, 0].numpy(),
            "reverse_kl": kl(s, q),
            "forward_kl": kl(q, s),
            "jsd": (kl(s, m) + kl(q, m)) / 2,
        }
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(g, name), values, atol=2e-4, err_msg=name)
        np.testing.assert_allclose(g.student.logprobs, t.behaviour_logprobs, atol=1e-5)
        for scores, own in ((g.student, s), (g.teacher, q)):
            np.testing.assert_allclose(scores.entropy, -kl(own, torch.zeros_like(own)), atol=2e-4)
            assert not np.isin(scores.top_ids, [TURN]).any()
        assert "260 ids that both models share" in g.masked


def test_a_model_under_itself_gets_zero_whatever_is_left_out():
    student = student_model()
    other = LanguageModel("other", student.model, tokenizer_of("<a>", "<b>", user="human"))
    same = Pair(student, other, shared_vocabulary=True)
    assert same.shared.masked == (TURN,)
    done = opd.sample(same, ["hi"], n=4, max_tokens=20)
    for g in opd.grade(same, done):
        assert (g.penalty == 0).all()
        assert (g.reverse_kl == 0).all()
        np.testing.assert_allclose(g.jsd, 0, atol=1e-6)


def test_the_sampler_leaves_out_what_the_student_would_often_write(pair):
    alone = TransformersSampler(pair.student.whole).sample(
        requests(pair.student, ["hi"], n=16, max_tokens=20)
    )
    often = np.concatenate([t.completion_ids for t in alone])
    assert np.isin(often, [TURN, 261, 262]).any(), "else there is nothing to leave out"


def test_what_is_not_shared_is_refused_where_ids_come_in(pair):
    (t,) = opd.sample(pair, ["hi"], max_tokens=4)
    t.completion_ids[1] = TURN
    with pytest.raises(ValueError, match=r"this trajectory has '<\|user\|>', which the other model"):
        opd.grade(pair, [t])
    t.completion_ids[1] = 261
    with pytest.raises(ValueError, match="this trajectory has '<think>'"):
        opd.grade(pair, [t])


def test_a_text_that_spells_an_added_token_is_graded_as_text(pair):
    assert 261 in pair.student.whole.encode("<think>no")
    review = opd.review_text(pair, "hi", "<think>no</think>")
    ids = review.trajectory.completion_ids
    assert review.text == "<think>no</think><|end|>"
    assert not np.isin(ids, [261, 262]).any()
    assert ids[-1] == END
    (turn,) = opd.review_chat(
        pair, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}]
    )
    np.testing.assert_array_equal(turn.trajectory.teacher_prompt_ids, pair.teacher.render("hi"))


def test_a_teacher_elsewhere_cannot_leave_anything_out(folders):
    student, teacher = student_model(), teacher_model()
    with pytest.raises(VocabularyMismatch, match="cannot be renormalised"):
        Pair(student, teacher, Elsewhere(teacher), shared_vocabulary=True)
    for options in ({"teacher_url": "http://127.0.0.1:1"}, {"engine": "vllm"}):
        with pytest.raises(ValueError, match="shared_vocabulary masks logits on both sides"):
            opd.DistillConfig(shared_vocabulary=True, **options)
    plain = make_model(0)
    assert (
        Pair(plain, load_skeleton(folders["teacher"]), Elsewhere(plain), shared_vocabulary=True).shared
        is None
    )


# Reviews and branches


def test_reviews_say_it_are_saved_with_it_and_branch(pair, tmp_path):
    *_, (review,) = opd.stream_reviews(pair, "hi", n=1, max_tokens=12)
    assert any("renormalised" in note for note in notes(review))
    save_reviews(tmp_path / "r.json", ReviewSet.of([review]))
    (again,) = load_reviews(tmp_path / "r.json")
    assert again.grades.masked == review.grades.masked

    *_, line = branch(pair, again, 2, 65, max_tokens=12)
    assert line.grades.masked
    *_, same = branch(pair, again, 2, int(review.trajectory.completion_ids[2]), max_tokens=12)
    np.testing.assert_array_equal(same.trajectory.completion_ids, review.trajectory.completion_ids)
    for forced in (TURN, 261):
        with pytest.raises(ValueError, match="what is to be forced has"):
            next(branch(pair, again, 2, forced))

    *_, by_teacher = teacher_line(pair, again, 0, temperature=1.0, max_tokens=40)
    ids = by_teacher.trajectory.completion_ids
    assert not np.isin(ids, [TURN, 261, 262]).any()
    assert (by_teacher.trajectory.finish_reason == "stop") == (ids[-1] == END)

    example = Example("hi", "4")
    *_, value = fork_value(pair, again, 2, k=2, task=load_task("demo"), example=example, max_tokens=12)
    assert value.sentence


# Training


@pytest.mark.engine
@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_on_what_is_shared_alone(pair, objective, lora_rank, tmp_path):
    needs = {"samples_per_prompt": 2} if OBJECTIVES[objective].judge == "verifier" else {}
    config = small_config(objective=objective, lora_rank=lora_rank, shared_vocabulary=True, **needs)
    run = opd.distill(config, pair)
    if not lora_rank:
        rollouts = run.sample(1)
        assert not np.isin(
            np.concatenate([r.trajectory.completion_ids for r in rollouts]), [TURN, 261, 262]
        ).any()
        gradient(run.learner, rollouts, run.teachers)
        moved = run.parameters["lm_head.weight"].grad.abs().sum(1)
        assert (moved[[TURN, *range(261, 280)]] == 0).all()
        assert (moved[:256] > 0).all() or objective == "rl"
    reports = list(run)
    assert all(np.isfinite(r.metrics.get("loss", 0)) for r in reports)
    assert (
        reports[-1].metrics["sampler_mismatch"] < 1e-5 if "sampler_mismatch" in reports[-1].metrics else True
    )
    run.student.save(tmp_path / "saved")


@pytest.mark.engine
def test_lessons_share_one_vocabulary(monkeypatch):
    models = {"one": teacher_model(), "two": make(2, tokenizer_of("<tool>", pad="nothing"))}
    monkeypatch.setattr("opd.training.lessons.load_teacher", lambda name, *_: models[name])
    monkeypatch.setattr("opd.training.lessons.load_student", lambda _: student_model())
    monkeypatch.setattr("opd.training.lessons.check_models", lambda _: None)

    def config(second: str) -> opd.DistillConfig:
        further = {"teacher": second, "task": "demo", "share": 0.5}
        return small_config(teacher="one", shared_vocabulary=True, lessons=[further])

    assert len(load_lessons(config("one"))) == 2
    with pytest.raises(ValueError, match="share different ids with the student"):
        load_lessons(config("two"))


# The doctor


def test_the_doctor_says_what_is_left_out_and_what_it_was_worth(pair):
    models = pair.student.whole, pair.teacher.whole
    assert "--shared-vocabulary" in examine(models)[0].message
    findings = {f.check: f for f in examine(models, config=opd.DistillConfig(shared_vocabulary=True))}
    assert not [f for f in findings.values() if f.level == "fail"]
    said = findings["vocabulary"]
    assert said.level == "warn", "these models would often write what is left out"
    for words in (
        "260 ids are shared",
        "'<think>'",
        "'<tool>'",
        "ends with <|end|>",
        "<|eot|> of the teacher",
    ):
        assert words in said.message
    assert said == {f.check: f for f in examine(pair)}["vocabulary"]
