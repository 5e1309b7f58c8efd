"""Sequences are put together with those of like length."""

from itertools import pairwise

from opd.models.kernels.packing import alike


def test_sequences_of_like_length_are_grouped():
    lengths = [30] * 20 + [400] * 3 + [300] * 4
    groups = alike(lengths)
    assert sorted(i for group in groups for i in group) == list(range(27))
    assert all(lengths[a] >= lengths[b] for group in groups for a, b in pairwise(group))
    assert alike([]) == []
