"""Teachers: the student itself, one that is told more, several bound to their prompts, one offloaded."""

import numpy as np
import pytest
import torch
from tiny import make_model

import opd
from opd.config import LessonConfig, make_config
from opd.distillation import distill
from opd.models import Pair, load_model
from opd.rollouts import gather


@pytest.fixture
def folders(tmp_path):
    out = {}
    for seed, name in enumerate(("student", "teacher", "other")):
        model = make_model(seed)
        model.model.save_pretrained(tmp_path / name)
        model.tokenizer.save_pretrained(tmp_path / name)
        out[name] = str(tmp_path / name)
    return out


def settings(folders, **values):
    quick = {"steps": 2, "warmup_steps": 1, "prompts_per_step": 8, "substeps": 1}
    quick |= {"max_tokens": 16, "eval_prompts": 4}
    models = {"student": folders["student"], "teacher": folders["teacher"], "learning_rate": 1e-2}
    return make_config(quick | models | values)


def test_the_student_as_its_own_teacher_stays_at_step_0_unless_live(folders):
    frozen = list(distill(settings(folders, teacher="self", teacher_system="Be brief.")))
    assert frozen[1].metrics["reverse_kl"] > 0
    plain = list(distill(settings(folders, teacher="self")))
    assert plain[1].metrics["reverse_kl"] == 0
    run = distill(settings(folders, teacher="self", teacher_live=True, teacher_system="Be brief."))
    assert run.lessons[0].pair.teacher is run.student
    assert list(run)[2].metrics["reverse_kl"] != frozen[2].metrics["reverse_kl"]


def test_only_the_teacher_sees_the_hint_and_the_system_prompt(folders):
    run = distill(settings(folders, teacher_hint="Hint: {answer}.", teacher_system="You know it."))
    for rollout in gather(run.config, run.lessons, run.sampler, 1):
        student = run.student.text(rollout.trajectory.prompt_ids)
        teacher = run.student.text(rollout.trajectory.teacher_prompt_ids)
        assert f"Hint: {rollout.example.answer}." in teacher
        assert "You know it." in teacher
        assert "Hint" not in student
        assert rollout.example.prompt in student
        assert rollout.example.prompt in teacher


def test_an_sft_teacher_writes_with_its_hint_and_the_student_learns_without(folders):
    run = distill(settings(folders, objective="sft", teacher_hint="Hint: {answer}."))
    teacher, scores = run.lessons[0].pair.teacher, {"prompt_ids": [], "teacher_prompt_ids": []}
    for rollout in gather(run.config, run.lessons, run.sampler, 1):
        t = rollout.trajectory
        assert len(t.teacher_prompt_ids) > len(t.prompt_ids)
        for side, found in scores.items():
            prompt = getattr(t, side)
            ids = torch.tensor(np.concatenate([prompt, t.completion_ids]))[None]
            logprobs = torch.log_softmax(teacher.model(ids).logits[0, len(prompt) - 1 : -1], -1)
            found.append(float(logprobs.gather(1, torch.tensor(t.completion_ids)[:, None]).mean()))
    assert np.mean(scores["teacher_prompt_ids"]) > np.mean(scores["prompt_ids"]), "written under the hint"


def test_each_lesson_is_graded_by_its_own_teacher(folders):
    further = (LessonConfig(teacher=folders["other"], task="demo", share=0.25),)
    run = distill(settings(folders, lessons=further))
    rollouts = gather(run.config, run.lessons, run.sampler, 1)
    assert [sum(r.lesson is lesson for r in rollouts) for lesson in run.lessons] == [6, 2]
    updated = run._gradient(rollouts)
    for lesson, name in zip(run.lessons, ("teacher", "other"), strict=True):
        own = [i for i, r in enumerate(rollouts) if r.lesson is lesson]
        pair = Pair(make_model(0), load_model(folders[name]))
        for i, wanted in zip(own, opd.grade(pair, [rollouts[i].trajectory for i in own]), strict=True):
            np.testing.assert_allclose(updated.grades[i].penalty, wanted.penalty, atol=1e-4)
    metrics = next(distill(settings(folders, lessons=further))).metrics
    assert {"heldout_accuracy", "heldout_accuracy/demo", "teacher_accuracy/demo"} <= metrics.keys()


def test_shares_that_leave_no_prompt_are_refused(folders):
    tiny = (LessonConfig(teacher=folders["other"], task="demo", share=0.01),)
    with pytest.raises(ValueError, match="too few"):
        distill(settings(folders, lessons=tiny))
    with pytest.raises(ValueError, match="leave something"):
        settings(folders, lessons=(LessonConfig(teacher="x", task="demo", share=0.6),) * 2)


def test_quantised_weights_ask_for_their_library(folders):
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        load_model(folders["teacher"], dtype="4bit")


def test_an_offloaded_teacher_grades_the_same(folders):
    plain, offloaded = load_model(folders["teacher"]), load_model(folders["teacher"], device="offload")
    student = load_model(folders["student"])
    done = opd.sample(student, ["hi"], n=3, max_tokens=12)
    for a, b in zip(
        opd.grade(Pair(student, plain), done), opd.grade(Pair(student, offloaded), done), strict=True
    ):
        np.testing.assert_allclose(a.penalty, b.penalty, atol=1e-5)
