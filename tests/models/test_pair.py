"""A student and its teacher: one vocabulary, and a device and dtype each."""

import numpy as np
import pytest
import torch
from tiny import THINKING, make_model, make_tokenizer

import opd
from opd.models.pair import Pair, VocabularyMismatch, load_pair


def test_different_vocabularies_are_refused_and_padded_ones_are_not():
    teacher = make_model(1, rows=300)
    assert Pair(make_model(0), teacher).vocabulary == teacher.vocabulary == 261
    teacher.tokenizer = make_tokenizer(extra=("<|tool|>",))
    with pytest.raises(VocabularyMismatch, match=r"261 and 262 tokens.*'<\|tool\|>'"):
        Pair(make_model(0), teacher)
    swapped = make_model(1)
    vocabulary = swapped.tokenizer.get_vocab()
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    swapped.tokenizer.get_vocab = lambda: vocabulary
    with pytest.raises(VocabularyMismatch, match="2 of them mapped differently"):
        Pair(make_model(0), swapped)


def test_templates_are_told_what_the_user_says(folders, monkeypatch):
    """Both of them, unless the teacher has options of its own: then it reads its own rendering."""
    told = '{"enable_thinking": false}'

    def prompts(**options):
        pair = load_pair(folders["student"], folders["student"], **options)
        for model in (pair.student, pair.teacher):
            model.tokenizer.chat_template = THINKING
        (t,) = opd.sample(pair, ["hi"], max_tokens=4)
        (pasted,) = opd.review_chat(
            pair, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}]
        )
        for side in ("student", "teacher"):
            np.testing.assert_array_equal(pasted.trajectory.seen_by(side), t.seen_by(side))
        return [pair.student.text(ids) for ids in (t.prompt_ids, t.teacher_prompt_ids)]

    on, off = "hi", "hi<think>\n\n</think>\n\n"
    assert prompts() == prompts(teacher_template_options={}) == [on, on]
    assert prompts(template_options=told) == [off, off]
    assert prompts(teacher_template_options=told) == [on, off]
    assert prompts(template_options={"enable_thinking": False}, teacher_template_options={}) == [off, on]
    with pytest.raises(ValueError, match=r'are a JSON object such as {"enable_thinking": false}, not \[1\]'):
        load_pair("nowhere", template_options="[1]")


def test_load_pair_takes_a_device_and_dtype_per_model(folders):
    mixed = load_pair(folders["student"], folders["student"], dtype="float32", teacher_dtype="bfloat16")
    assert (mixed.student.model.dtype, mixed.teacher.model.dtype) == (torch.float32, torch.bfloat16)
    grades = opd.grade(mixed, opd.sample(mixed, ["hi"], n=4, max_tokens=20))
    assert 0 < np.abs(np.concatenate([g.penalty for g in grades])).mean() < 0.2
