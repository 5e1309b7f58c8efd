"""What is packed of trajectories comes back to each of them."""

import numpy as np
import torch

from opd.packed import cut, pack, places

COLUMNS = [np.arange(6).reshape(3, 2), np.arange(2).reshape(1, 2), np.arange(8).reshape(4, 2)]


def test_cut_gives_back_what_was_packed():
    packed = pack(COLUMNS)
    assert packed.shape == (8, 2)
    for part, column in zip(cut(packed, COLUMNS), COLUMNS, strict=True):
        assert np.array_equal(part, column)
    assert places(COLUMNS) == [slice(0, 3), slice(3, 4), slice(4, 8)]


def test_arrays_and_tensors_are_cut_alike_and_stay_what_they_are():
    texts = ["abc", "", "d"]
    assert [part.tolist() for part in cut(torch.arange(4), texts)] == [[0, 1, 2], [], [3]]
    arrays = cut(np.arange(4), texts)
    assert all(isinstance(part, np.ndarray) for part in arrays)
    assert [part.tolist() for part in arrays] == [[0, 1, 2], [], [3]]
