"""The memory of a run: the estimate is near what it takes, and its peak is its own."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_model, small_config

import opd
from opd.divergence import CHUNK_ROWS
from opd.models.pair import Pair
from opd.models.scoring import distributions
from opd.training.distillation import distill
from opd.training.memory import estimate_memory, forget_peak, free_memory, peak_memory

pytestmark = pytest.mark.engine

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


def test_the_estimate_is_what_the_weights_and_the_optimizer_take(pair):
    run = distill(small_config(), pair)
    list(run)
    need = estimate_memory(run.student.causal_lm, pair.teacher.model, run.config)
    parameters = list(run.parameters.values())
    assert need.student == sum(p.numel() * 4 for p in parameters)
    state = [v for p in parameters for v in run.learner.optimizer.state[p].values() if v.dim()]
    assert need.moments == sum(v.numel() * 4 for v in state)
    assert need.gradients == need.student


def test_the_estimate_counts_the_adapter_that_training_makes(pair):
    need = estimate_memory(pair.student.model, pair.teacher.model, small_config(lora_rank=4))
    run = distill(small_config(lora_rank=4), pair)
    assert need.gradients == sum(p.numel() * 4 for p in run.parameters.values())


@pytest.mark.parametrize("shape", [{}, {"num_hidden_layers": 6, "intermediate_size": 256}])
def test_the_estimate_of_an_update_is_near_what_autograd_keeps(shape):
    pair = Pair(make_model(0, **shape), make_model(1))
    prompts = ["What is 3 + 4?"] * 16
    trajectories = opd.sample(pair, prompts, max_tokens=48, seed=1)
    run = distill(small_config(), pair)
    kept = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        distributions(run.student, trajectories, side="student", temperature=1.0, vocabulary=261)
    weights = {p.untyped_storage().data_ptr() for p in run.student.model.parameters()}
    measured = sum(size for pointer, (size, _) in kept.items() if pointer not in weights)
    longest = max(len(t.prompt_ids) + len(t) - 1 for t in trajectories)
    settings = small_config(prompts_per_step=16, max_tokens=1)
    need = estimate_memory(pair.student.model, pair.teacher.model, settings, prompt_tokens=longest - 1)
    chunk = 8 * 4 * min(16 * longest, CHUNK_ROWS) * 264
    assert 0.5 < (need.update - chunk) / measured < 2


def test_options_that_save_memory_lower_the_estimate():
    pair = Pair(make_model(0, num_hidden_layers=8), make_model(1))

    def need(**changes):
        return estimate_memory(pair.student.model, pair.teacher.model, small_config(**changes))

    plain = need()
    assert need(gradient_checkpointing=True).update < plain.update
    assert need(lora_rank=1).moments < plain.moments
    assert need(micro_batch_tokens=8).update < plain.update
    assert need(dtype="bfloat16").teacher == plain.teacher / 2
    assert need(dtype="bfloat16").student == plain.student  # trained weights stay fp32


def test_free_memory_of_this_machine_is_plausible():
    free = free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
