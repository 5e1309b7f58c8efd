"""The peak of a run is its own: not what its process held before, nor that of whoever started it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from opd.training.memory import forget_peak, peak_memory

CPU = torch.device("cpu")
BALLAST = 2**29


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system keeps the peak")
def test_what_was_held_before_is_none_of_the_run_and_what_it_holds_is():
    ballast = np.ones(BALLAST, np.uint8)
    del ballast
    before = peak_memory(CPU)
    forget_peak()
    assert peak_memory(CPU) < before - BALLAST / 2
    ballast = np.ones(BALLAST, np.uint8)
    del ballast
    assert peak_memory(CPU) > before - BALLAST / 4


def test_where_there_is_no_proc_the_peak_is_that_of_the_process(monkeypatch):
    def missing(self, *args, **kwargs):
        raise FileNotFoundError(self)

    measured = peak_memory(CPU)
    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(Path, "write_text", missing)
    forget_peak()
    assert peak_memory(CPU) >= measured / 2
