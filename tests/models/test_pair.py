"""A student and its teacher: one vocabulary, and a device and dtype each."""

import numpy as np
import pytest
import torch
from tiny import make_model, make_tokenizer

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


def test_load_pair_takes_a_device_and_dtype_per_model(folders):
    mixed = load_pair(folders["student"], folders["student"], dtype="float32", teacher_dtype="bfloat16")
    assert (mixed.student.model.dtype, mixed.teacher.model.dtype) == (torch.float32, torch.bfloat16)
    grades = opd.grade(mixed, opd.sample(mixed, ["hi"], n=4, max_tokens=20))
    assert 0 < np.abs(np.concatenate([g.penalty for g in grades])).mean() < 0.2
