"""Teachers: the student itself, one that is told more, several bound to their prompts, one offloaded."""

import json

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from tiny import THINKING, make_model

import opd
from opd.config import LessonConfig, make_config
from opd.engines.sampling import requests
from opd.models.load import load_model
from opd.models.pair import Pair
from opd.runs.comparison import compare_checkpoints
from opd.runs.run import create_run
from opd.runs.worker import work
from opd.tasks import Example
from opd.training.distillation import distill
from opd.training.lessons import load_lessons
from opd.training.rollouts import divide
from opd.training.update import gradient

pytestmark = pytest.mark.engine


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
    for rollout in run.sample(1):
        student = run.student.text(rollout.trajectory.prompt_ids)
        teacher = run.student.text(rollout.trajectory.teacher_prompt_ids)
        assert f"Hint: {rollout.example.answer}." in teacher
        assert "You know it." in teacher
        assert "Hint" not in student
        assert rollout.example.prompt in student
        assert rollout.example.prompt in teacher
    *_, report = run
    for review in report.samples:  # and so it is kept
        assert "Hint" not in "".join(review.prompt.pieces)
        assert "You know it." in "".join(review.teacher_prompt.pieces)


def test_an_sft_teacher_writes_with_its_hint_and_the_student_learns_without(folders):
    run = distill(settings(folders, objective="sft", teacher_hint="Hint: {answer}."))
    teacher, scores = run.lessons[0].pair.teacher, {"prompt_ids": [], "teacher_prompt_ids": []}
    for rollout in run.sample(1):
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
    rollouts = run.sample(1)
    assert [sum(r.lesson is lesson for r in rollouts) for lesson in run.lessons] == [6, 2]
    updated = gradient(run.learner, rollouts, run.teachers)
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


def test_a_live_teacher_gets_no_gradient(folders):
    """Before the first update student and live teacher are the frozen pair: so is the gradient."""
    gradients = []
    for live in (False, True):
        run = distill(settings(folders, teacher="self", teacher_live=live, teacher_hint="It is {answer}."))
        gradient(run.learner, run.sample(1), run.teachers)
        gradients.append(torch.cat([p.grad.flatten() for p in run.parameters.values()]))
    torch.testing.assert_close(*gradients)


def test_every_update_of_a_step_hears_every_teacher(folders):
    further = (LessonConfig(teacher=folders["other"], task="demo", share=0.5),)
    run = distill(settings(folders, lessons=further))
    parts = divide(run.sample(1), 2)
    for part in parts:
        assert [sum(r.lesson is lesson for r in part) for lesson in run.lessons] == [2, 2]


def test_a_chain_stays_within_its_lesson(folders):
    further = (LessonConfig(teacher=folders["other"], task="demo", share=0.4),)
    with pytest.raises(ValueError, match="make 5, 3 prompts a step"):
        distill(settings(folders, objective="rl", chain=2, samples_per_prompt=2, lessons=further))


def test_an_earlier_checkpoint_teaches_a_later_student(folders, tmp_path):
    run = create_run("first", settings(folders))
    with run.hold():
        work(run)
    earlier, later = str(run.checkpoints[-1]), settings(folders, teacher=str(run.checkpoints[-1]))
    assert list(distill(later))[1].metrics["reverse_kl"] > 0
    assert list(distill(settings(folders, student=earlier, teacher=earlier)))[1].metrics["reverse_kl"] == 0
    with pytest.raises(ValueError, match=r"is a run, not a model.*checkpoints.step-000002"):
        distill(settings(folders, teacher=str(run.path)))


def test_an_adapter_trains_on_as_the_adapter_it_is(folders):
    """A second run on an adapter's checkpoint: what it saves must be the student that it trained."""
    first = create_run("first", settings(folders, lora_rank=4))
    with first.hold():
        work(first)
    again = {"student": str(first.model_dir), "lora_rank": 4}
    trained = distill(settings(folders, **again))
    last = list(trained)[-1]
    assert all("lora_" in name for name in trained.parameters)
    second = create_run("second", settings(folders, **again))
    with second.hold():
        work(second)
    assert second.rows()[-1]["reverse_kl"] == last.metrics["reverse_kl"]
    ids = torch.tensor(trained.student.render("hi"))[None]
    saved = AutoPeftModelForCausalLM.from_pretrained(second.model_dir)
    torch.testing.assert_close(saved(ids).logits, trained.student.model(ids).logits)
    with pytest.raises(ValueError, match=r"rank 4\. Set lora_rank to 4"):
        distill(settings(folders, **again | {"lora_rank": 8}))
    merged = distill(settings(folders, **again | {"lora_rank": 0}))
    assert not any("lora_" in name for name in merged.parameters)


@pytest.fixture
def questions(tmp_path):
    """A task without answers."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {i} twice."}) + "\n" for i in range(60)))
    return str(path)


def test_held_out_prompts_are_graded_by_the_teacher_that_trains(folders, questions):
    """With its hint: a student under itself is not at 0 from the start, and what it learns shows."""
    told = {"teacher": "self", "teacher_hint": "Answer in French.", "teacher_system": "You are polite."}
    report = next(run := distill(settings(folders, task=questions, **told)))
    assert report.metrics["heldout_kl"] > 0.01
    assert all(
        "Answer in French." in run.student.text(p.trajectory.teacher_prompt_ids) for p in report.probes
    )
    lesson, asked = run.lessons[0], [probe.messages for probe in report.probes]
    for probe, frozen, messages in zip(report.probes, report.frozen, asked, strict=True):
        seen = lesson.pair.teacher.render(lesson.teacher_messages(Example(messages)))
        assert np.array_equal(seen, probe.trajectory.teacher_prompt_ids)
        np.testing.assert_allclose(frozen.reverse_kl, probe.grades.reverse_kl, atol=1e-5)
    trained = list(run)[-1].metrics
    assert trained["heldout_kl"] != report.metrics["heldout_kl"]


def test_what_was_held_out_is_recorded_and_said(folders, questions, tmp_path):
    report = next(distill(settings(folders, task=questions)))
    sizes = [report.metrics[f"prompts_{split}"] for split in ("train", "tuning", "test")]
    assert sum(sizes) == 60
    assert report.metrics["heldout_prompts"] == sizes[2] == 8
    assert any("questions.jsonl holds out 8 prompts in its test split" in note for note in report.notes)
    run = create_run("few", settings(folders, task=questions, eval_split="tuning"))
    with run.hold():
        work(run)
    (event,) = (event for event in run.events() if event["event"] == "task")
    assert event["sizes"] == dict(zip(("train", "tuning", "test"), sizes, strict=True))
    assert sum("little more than chance" in note for note in run.notes()) == 1
    assert run.rows()[0]["heldout_prompts"] == sizes[1]
    assert not next(distill(settings(folders))).notes, "the embedded task has as many as are asked for"


def test_a_hint_that_names_an_answer_needs_a_task_with_answers(folders, questions):
    with pytest.raises(
        ValueError, match=r"names \{answer\}, and .*questions.jsonl has none\. Set answer_col"
    ):
        distill(settings(folders, task=questions, teacher_hint="It is {answer}."))


def test_a_hint_may_name_any_column_of_the_task(folders, tmp_path):
    path = tmp_path / "solved.jsonl"
    rows = [
        {"problem": f"{i}?", "solution": f"Count to {i}.", "my note": i, "odd": "o" * (i % 2)}
        for i in range(9)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"task": str(path), "heldout_share": 0.0, "eval_prompts": 0}
    hint = "It is {solution} ({my note}) \\boxed{}."
    (lesson,) = load_lessons(settings(folders, **own, teacher_hint=hint))
    example = lesson.task.batch(1, step=1, seed=0)[0]
    i = example.prompt.removesuffix("?")
    (message,) = lesson.teacher_messages(example)
    assert message["content"] == f"{i}?\nIt is Count to {i}. ({i}) \\boxed{{}}."
    for name in ("solutions", "odd"):
        with pytest.raises(
            ValueError, match=rf"names \{{{name}\}}, and not every .* has: problem, solution, my no"
        ):
            load_lessons(settings(folders, **own, teacher_hint=f"It is {{{name}}}."))


@pytest.mark.parametrize("live", [False, True])
def test_what_templates_are_told_reaches_the_student_and_its_teacher(folders, live, monkeypatch):
    """An adapter is put on the one and the other may be it: neither forgets."""
    told = {"template_options": {"enable_thinking": False}, "control_tokens": True, "lora_rank": 2}

    def read(**values):
        (lesson,) = load_lessons(settings(folders, teacher="self", teacher_live=live, **told, **values))
        monkeypatch.setattr(lesson.pair.tokenizer, "chat_template", THINKING)
        monkeypatch.setattr(lesson.pair.teacher.tokenizer, "chat_template", THINKING)
        asked = requests(lesson.pair, ["<|end|>hi"], max_tokens=4)
        (informed,) = lesson.informed(asked, [Example("<|end|>hi")], room=4)
        return [lesson.pair.student.text(ids) for ids in (informed.prompt_ids, informed.teacher_prompt_ids)]

    off = "hi<think>\n\n</think>\n\n"
    assert read() == [off, off]
    assert read(teacher_template_options={"enable_thinking": True}) == [off, "hi"]


def test_a_hint_may_tell_the_turn_that_a_chat_ended_with(folders, tmp_path):
    path = tmp_path / "chat.jsonl"
    chat = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "One."}]
    path.write_text(json.dumps({"messages": chat}))
    own = {"task": str(path), "heldout_share": 0.0, "eval_prompts": 0, "teacher_hint": "Say: {reference}"}
    (lesson,) = load_lessons(settings(folders, **own))
    (message,) = lesson.teacher_messages(lesson.task.batch(1, step=1, seed=0)[0])
    assert message["content"] == "1?\nSay: One."


def test_checkpoints_are_compared_under_the_teacher_that_trained_them(folders, questions):
    values = {"task": questions, "teacher": "self", "teacher_hint": "Answer in French.", "save_every": 1}
    run = create_run("hinted", settings(folders, **values))
    with run.hold():
        work(run)
    (pair,) = compare_checkpoints((run, 1), (run, 2), n=1)
    assert all(
        "Answer in French." in load_model(folders["student"]).text(r.trajectory.teacher_prompt_ids)
        for r in pair
    )
