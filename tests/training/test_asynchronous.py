"""Rollouts that are written while the step before them trains."""

import copy

import pytest
import torch
from tiny import make_model

import opd
from opd.engines.transformers import TransformersSampler
from opd.models.network import LanguageModel
from opd.models.pair import Pair

pytestmark = pytest.mark.engine

SETTINGS = {
    "objective": "importance_sampling", "steps": 4, "prompts_per_step": 4, "substeps": 1, "max_tokens": 12,
    "eval_prompts": 0, "learning_rate": 3e-2, "warmup_steps": 0, "device": "cpu", "engine": "vllm",
}  # fmt: skip


class Apart(TransformersSampler):
    """A sampler with weights of its own, as one in another process has."""

    apart = True

    def __init__(self, student):
        self.trained = student
        super().__init__(LanguageModel(student.name, copy.deepcopy(student.model), student.tokenizer))

    def sync(self):
        self.model.model.load_state_dict(self.trained.model.state_dict())


@pytest.fixture
def reports(monkeypatch):
    """Run with such a sampler."""

    def run(**settings):
        monkeypatch.setattr("opd.training.distillation.load_sampler", lambda student, _: Apart(student))
        pair = Pair(make_model(0), make_model(1))
        return list(opd.distill(opd.DistillConfig(**SETTINGS | settings), pair))

    return run


def test_asynchronous_rollouts_are_one_update_old_and_say_so(reports):
    fresh, old = reports(), reports(asynchronous=True)
    for report in fresh[1:]:
        assert report.metrics["importance_ratio_max"] == pytest.approx(1, abs=1e-3)
    assert old[1].metrics["importance_ratio_max"] == pytest.approx(1, abs=1e-3), "nothing has moved yet"
    for report in old[2:]:
        assert report.metrics["importance_ratio_max"] > 1.01
    untrained, second = make_model(0), old[2].samples[0].trajectory
    ids = torch.tensor([*second.prompt_ids, *second.completion_ids])[None]
    logprobs = torch.log_softmax(untrained.model(input_ids=ids).logits[0, :, : untrained.vocabulary], -1)
    taken = logprobs[len(second.prompt_ids) - 1 : -1].gather(1, torch.tensor(second.completion_ids)[:, None])
    torch.testing.assert_close(torch.tensor(second.behaviour_logprobs), taken[:, 0], atol=1e-4, rtol=1e-4)


def test_the_ratio_of_old_rollouts_is_bounded_unless_asked_otherwise():
    assert opd.DistillConfig(**SETTINGS, asynchronous=True).clip == 0.2
    assert opd.DistillConfig(**SETTINGS, asynchronous=True, clip=0.1).clip == 0.1
    assert opd.DistillConfig(**SETTINGS).clip is None


@pytest.mark.parametrize("settings", [{"engine": "transformers"}, {"vllm_sleeps": True}])
def test_it_needs_a_sampler_that_runs_beside_the_update(settings):
    with pytest.raises(ValueError, match="asynchronous needs engine vllm"):
        opd.DistillConfig(**SETTINGS | settings, asynchronous=True)
