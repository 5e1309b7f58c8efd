"""The loop with vLLM: it samples from the student that trains, or scores for the teacher."""

import numpy as np
import pytest

import opd
from opd.engines.vllm import VllmEngine
from opd.models.load import load_skeleton
from opd.models.pair import Pair, load_pair

STEPS = {
    "steps": 5, "prompts_per_step": 32, "substeps": 1, "max_tokens": 64, "eval_every": 5, "eval_prompts": 0,
    "device": "cpu", "seed": 0, "warmup_steps": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{}, {"asynchronous": True}, {"lora_rank": 32, "learning_rate": 1e-2, "vllm_hot_swap": True}],
    ids=["pushed", "asynchronous", "swapped"],
)
def test_five_steps_of_rollouts_by_vllm_lower_the_kl(options):
    run = opd.distill(opd.DistillConfig(engine="vllm", vllm_memory=0.15, **STEPS, **options))
    with run.sampler:
        reports = list(run)[1:]
    kl = [report.metrics["reverse_kl"] for report in reports]
    assert np.mean(kl[-2:]) < 0.85 * kl[0], kl
    mismatch = [abs(report.metrics["sampler_mismatch"]) for report in reports]
    late = options.get("asynchronous", False)
    assert max(mismatch[1:]) > 1e-3 if late else max(mismatch) < 1e-4, "of the weights that vLLM sampled from"


def test_a_teacher_on_vllm_trains_as_one_that_is_here():
    config = opd.DistillConfig(objective="importance_sampling", **STEPS | {"steps": 2, "eval_every": 2})
    here = [report.metrics for report in opd.distill(config, load_pair())]
    pair = load_pair()
    with VllmEngine(load_skeleton("demo-teacher"), memory_share=0.15) as engine:
        there = Pair(pair.student, load_skeleton("demo-teacher"), engine)
        told = [report.metrics for report in opd.distill(config, there)]
    for a, b in zip(here[1:], told[1:], strict=True):
        assert b["penalty"] == pytest.approx(a["penalty"], abs=1e-3)
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-3)
        assert "teacher_entropy" not in b
