"""The vLLM engine keeps the truths of every engine. A start takes 20 seconds, so tests share engines."""

import os
import resource
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_model

import opd
from opd.engines.sampling import requests
from opd.engines.vllm import VllmEngine
from opd.models.load import load_model, load_skeleton
from opd.models.network import LanguageModel
from opd.models.scoring import distributions
from opd.packed import cut
from opd.protocols import EngineError
from opd.training.doctor import check_sampler

PROMPTS = ["hi", "What is 7 + 3?", "A somewhat longer question, so that the rows differ in length?"]
LONG_PROMPT = "Why? " * 60
"""300 tokens: vLLM keeps what it computed of a prompt in blocks of 128, so only long prompts can go stale."""

FP32 = 1e-4
"""Largest difference (nats) from transformers; measured: 1e-5."""

BF16_MEAN, BF16_LARGEST = 0.05, 0.5
"""The same for bfloat16, whose round-off is a few hundredths of a nat and now and then a tenth."""

SMALL = {"memory_share": 0.15}


def make_student(seed=0, **config):
    """A tiny student with room for long prompts, whose padded rows would win every draw."""
    model = make_model(seed, rows=304, **{"max_position_embeddings": 512} | config)
    with torch.no_grad():
        model.model.get_output_embeddings().weight[model.vocabulary :] = 5.0
    return model


def move(model, seed, size=0.05):
    """Change the weights, or those of the adapter, as a large update would."""
    generator = torch.Generator().manual_seed(seed)
    adapted = hasattr(model.model, "peft_config")
    with torch.no_grad():
        for name, p in model.model.named_parameters():
            if not adapted or ".lora_" in name:
                p.add_(torch.randn(p.shape, generator=generator) * size)


def full_logprobs(model, trajectories, side="student", temperature=1.0):
    """Transformers' log-probs of every token at every position, one ``[T, V]`` a trajectory."""
    with torch.inference_mode():
        d = distributions(
            model, trajectories, side=side, temperature=temperature, vocabulary=model.vocabulary
        )
        rows = d.log_probs(d.hidden).float().cpu().numpy()
    return cut(rows, trajectories)


def own_logprobs(model, trajectories, **options):
    rows = full_logprobs(model, trajectories, **options)
    return [r[np.arange(len(t)), t.completion_ids] for r, t in zip(rows, trajectories, strict=True)]


def assert_close(found, wanted, bound):
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(wanted), rtol=0, atol=bound)


def take(engine, model, prompts=PROMPTS, n=2, max_tokens=24, temperature=1.0, **options):
    asked = requests(model, prompts, n=n, max_tokens=max_tokens, **options)
    done = engine.sample(asked, temperature=temperature)
    return sorted(done, key=lambda t: (t.prompt_index, t.sample_index))


@pytest.fixture(scope="module")
def student():
    return make_student()


@pytest.fixture(scope="module")
def engine(student):
    with VllmEngine(student, **SMALL) as engine:
        yield engine


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_behaviour_logprobs_are_those_of_the_temperature_sampled_with(engine, student, temperature):
    done = take(engine, student, n=4, temperature=temperature)
    assert [(t.prompt_index, t.sample_index) for t in done] == [(i, j) for i in range(3) for j in range(4)]
    assert max(t.completion_ids.max() for t in done) < student.vocabulary, "a padded row was sampled"
    own = own_logprobs(student, done, temperature=temperature or 1.0)
    assert_close([t.behaviour_logprobs for t in done], own, FP32)


def test_greedy_is_what_transformers_takes(engine, student):
    ours = opd.sample(student, PROMPTS, max_tokens=20, temperature=0)
    for a, b in zip(take(engine, student, n=1, max_tokens=20, temperature=0.0), ours, strict=True):
        assert a.completion_ids.tolist() == b.completion_ids.tolist()


def test_a_completion_ends_with_its_end_token_or_at_its_length(engine, student):
    done = take(engine, student, n=20, max_tokens=60)
    assert {t.finish_reason for t in done} == {"stop", "length"}
    for t in done:
        ended = np.isin(t.completion_ids, student.eos_ids)
        assert not ended[:-1].any()
        assert (t.finish_reason == "stop") == bool(ended[-1])
        assert t.finish_reason == "stop" or len(t) == 60
        assert len(t.behaviour_logprobs) == len(t)


def test_a_completion_depends_on_its_own_random_numbers_alone(engine, student):
    asked = requests(student, PROMPTS, n=4, seed=3, max_tokens=30)

    def ids(chosen):
        done = engine.sample([asked[i] for i in chosen])
        return {(t.prompt_index, t.sample_index): t.completion_ids.tolist() for t in done}

    together = ids(range(12))
    assert together == ids(reversed(range(12)))
    assert together | ids([5]) == together
    assert len({tuple(t) for t in together.values()}) == 12
    other = take(engine, student, n=4, seed=4, max_tokens=30)
    assert [t.completion_ids.tolist() for t in other] != list(together.values())


def test_sampling_follows_the_distribution(engine, student):
    """Chi-square of 1,000 first tokens over the 12 likeliest and the rest, fixed seeds: 39.1 at 1e-4."""
    done = take(engine, student, ["hi"], n=1000, max_tokens=1)
    probs = np.exp(full_logprobs(student, done[:1])[0][0].astype(np.float64))
    likely = np.argsort(-probs)[:12]
    counts = np.array([sum(t.completion_ids[0] == i for t in done) for i in likely])
    counts, expected = np.append(counts, 1000 - counts.sum()), 1000 * np.append(probs[likely], 0)
    expected[-1] = 1000 - expected.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 39.1


def test_more_prompt_tokens_than_one_step_of_the_engine_takes(engine, student):
    done = take(engine, student, [f"{i} {LONG_PROMPT}" for i in range(40)], n=2, max_tokens=4)
    assert len(done) == 80
    assert_close([t.behaviour_logprobs for t in done], own_logprobs(student, done), FP32)
    assert_close([engine.score(done, side="student").logprobs], own_logprobs(student, done), FP32)


def test_a_forced_prefix_is_kept_and_scored(engine, student):
    (first,) = take(engine, student, ["hi"], n=1, max_tokens=20, seed=5)
    forced = take(engine, student, ["hi"], n=3, max_tokens=20, prefixes=[first.completion_ids[:7]])
    for t in forced:
        assert t.completion_ids[:7].tolist() == first.completion_ids[:7].tolist()
        assert 7 < len(t) <= 20
    assert_close([t.behaviour_logprobs for t in forced], own_logprobs(student, forced), FP32)
    with pytest.raises(ValueError, match=r"forced prefix at temperature 0\.7"):
        take(engine, student, ["hi"], temperature=0.7, prefixes=[first.completion_ids[:7]])


def test_snapshots_are_prefixes_of_what_is_finished(engine, student):
    asked = requests(student, ["hi"], n=3, max_tokens=30, prefixes=[[65, 66]])
    seen = list(engine.sample(asked, snapshot_every=7))
    final = {t.sample_index: t.completion_ids for t in seen if t.finish_reason}
    growing = [t for t in seen if not t.finish_reason]
    assert len(final) == 3
    assert growing
    assert_close([t.behaviour_logprobs for t in seen], own_logprobs(student, seen), FP32)
    for t in growing:
        assert t.completion_ids.tolist() == final[t.sample_index][: len(t)].tolist()


def test_who_stops_listening_stops_the_sampling(engine, student):
    asked = requests(student, PROMPTS, n=20, max_tokens=200)
    sampling = engine.sample(asked)
    next(sampling)
    with pytest.raises(RuntimeError, match="still sampling"):
        engine.sync()
    sampling.close()
    assert len(take(engine, student, n=2)) == 6


@pytest.mark.parametrize("top_k", [0, 1, 30, 261])
def test_scores_are_transformers(engine, student, top_k):
    done = opd.sample(student, [*PROMPTS, LONG_PROMPT], n=2, max_tokens=20)
    told = [replace(t, teacher_prompt_ids=np.append(t.prompt_ids, 65)) for t in done]
    for side in ("student", "teacher"):
        rows = full_logprobs(student, told, side=side)
        scores = engine.score(told, side=side, top_k=top_k)
        if top_k == student.vocabulary:
            np.testing.assert_allclose(scores.rows(slice(None)), np.concatenate(rows), rtol=0, atol=2e-4)
            continue
        assert_close([scores.logprobs], own_logprobs(student, told, side=side), FP32)
        for s, r, t in zip(cut(scores, told), rows, told, strict=True):
            taken = r[np.arange(len(t)), t.completion_ids]
            best = -np.sort(-r, axis=1)[:, :top_k]
            np.testing.assert_array_equal(s.ranks, (r > taken[:, None]).sum(1))
            np.testing.assert_allclose(s.top_logprobs, best, rtol=0, atol=FP32)
            np.testing.assert_allclose(np.take_along_axis(r, s.top_ids.numpy(), 1), best, rtol=0, atol=FP32)


def test_a_model_against_itself_gets_zero_and_a_shift_does_not(engine, student):
    done = take(engine, student, n=3, max_tokens=30)
    own = own_logprobs(student, done)
    assert_close([engine.score(done, side="teacher").logprobs], own, FP32)
    shifted = [replace(t, teacher_prompt_ids=t.prompt_ids[:-1]) for t in done]
    penalty = np.concatenate(own) - engine.score(shifted, side="teacher").logprobs.numpy()
    assert np.abs(penalty).max() > 0.01


def test_a_completion_may_fill_the_context(engine, student):
    (t,) = opd.sample(student, ["x" * (512 - 3 - 20)], max_tokens=20, temperature=0)
    t = replace(t, completion_ids=np.resize(t.completion_ids, 512 - len(t.prompt_ids)))
    assert_close([engine.score([t], side="student").logprobs], own_logprobs(student, [t]), FP32)
    with pytest.raises(ValueError, match="exceed the 512 tokens that tiny can take"):
        engine.score([replace(t, completion_ids=np.append(t.completion_ids, 65))], side="student")
    (asked,) = requests(student, ["hi"], max_tokens=500)
    with pytest.raises(ValueError, match="exceed the 512 tokens that tiny can take"):
        list(engine.sample([replace(asked, prompt_ids=t.prompt_ids)]))


def test_what_prompt_logprobs_cannot_tell_is_refused(engine, student):
    done = take(engine, student, n=1)
    with pytest.raises(ValueError, match="temperature to 1"):
        engine.score(done, side="teacher", temperature=0.7)
    assert "top_k_from" in engine.refusal("chosen")
    assert "2,000,000" in engine.refusal("full", tokens=10_000)


def test_new_weights_reach_a_tied_head_and_a_cached_prompt(engine, student):
    """A reload leaves a packed head as it was, and vLLM goes on with the prompt that it remembers."""
    assert student.causal_lm.config.tie_word_embeddings
    prompts = [LONG_PROMPT, "hi"]
    before = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    try:
        for seed in (1, 2):
            assert check_sampler(student, engine, prompts=prompts).level == "pass"
            move(student, seed)
            assert check_sampler(student, engine, prompts=prompts).level == "fail", "the move is too small"
            engine.sync()
            done = take(engine, student, prompts, n=4)
            assert_close([t.behaviour_logprobs for t in done], own_logprobs(student, done), FP32)
            scored = [engine.score(done, side="student").logprobs]
            assert_close(scored, own_logprobs(student, done), FP32)
    finally:
        with torch.no_grad():
            for name, p in student.model.named_parameters():
                p.copy_(before[name])
        engine.sync()


def with_adapter(model, **options):
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    adapted = LanguageModel(model.name, get_peft_model(model.model, config).eval(), model.tokenizer)
    move(adapted, 5, 0.3)
    return adapted


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_a_merged_adapter_reaches_vllm_and_leaves_the_trainers_weights(engine, options):
    adapted = with_adapter(make_student(), **options)
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    plain, engine.model = engine.model, adapted
    try:
        assert check_sampler(adapted, engine).level == "fail", "the adapter does nothing"
        engine.sync()
        done = take(engine, adapted, [LONG_PROMPT, "hi"], n=4)
        assert_close([t.behaviour_logprobs for t in done], own_logprobs(adapted, done), FP32)
    finally:
        engine.model = plain
        engine.sync()
    after = adapted.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_adapter_is_swapped_while_vllm_runs():
    adapted = with_adapter(make_student())
    with VllmEngine(adapted, hot_swap=True, **SMALL) as engine:
        for seed in (6, 7):
            done = take(engine, adapted, [LONG_PROMPT, "hi"], n=4)
            assert_close([t.behaviour_logprobs for t in done], own_logprobs(adapted, done), FP32)
            scored = [engine.score(done, side="student", top_k=3).logprobs]
            assert_close(scored, own_logprobs(adapted, done), FP32)
            move(adapted, seed, 0.3)
            assert check_sampler(adapted, engine, prompts=[LONG_PROMPT]).level == "fail"
            engine.sync()
        assert check_sampler(adapted, engine, prompts=[LONG_PROMPT]).level == "pass"


def test_bfloat16_and_untied_weights():
    model = make_student(tie_word_embeddings=False)
    model.model.to(torch.bfloat16)
    with VllmEngine(model, dtype="bfloat16", **SMALL) as engine:
        for seed in (1, 2):
            done = take(engine, model, n=8)
            own = np.concatenate(own_logprobs(model, done))
            behaviour = np.concatenate([t.behaviour_logprobs for t in done])
            scored = engine.score(done, side="student").logprobs.numpy()
            for found in (behaviour, scored):
                assert np.abs(found - own).mean() < BF16_MEAN
                assert np.abs(found - own).max() < BF16_LARGEST
            move(model, seed, 0.3)
            assert check_sampler(model, engine).level == "fail"
            engine.sync()
        assert check_sampler(model, engine).level == "pass"


def test_a_teacher_that_only_vllm_loads_and_that_dies():
    """The embedded teacher from its folder; then its process is killed while the run waits for it."""
    teacher, student = load_model("demo-teacher"), load_model("demo-student")
    done = opd.sample(student, PROMPTS, n=4, max_tokens=40)
    with VllmEngine(load_skeleton("demo-teacher"), **SMALL) as engine:
        scores = engine.score(done, side="teacher", top_k=16)
        own = own_logprobs(teacher, done, side="teacher")
        assert_close([scores.logprobs], own, FP32)
        sampling = engine.sample(requests(student, PROMPTS, n=40, max_tokens=192))
        next(sampling)
        os.kill(engine.process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"process of demo-teacher was ended by SIGKILL.*memory_share"):
            list(sampling)
        with pytest.raises(EngineError, match="SIGKILL"):
            engine.score(done, side="teacher")


def test_out_of_memory_is_said_in_words():
    model = make_student()
    asked = requests(model, [LONG_PROMPT], n=5000, max_tokens=2)
    with VllmEngine(model, **SMALL) as engine:
        pid = engine.process.pid
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2**24
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        with pytest.raises(EngineError, match="memory_share"):
            list(engine.sample(asked))
    with pytest.raises(EngineError, match=r"memory_share \(now 0\.002\)"):
        VllmEngine(model, memory_share=0.002)


def test_what_cannot_work_is_refused_before_anything_starts(student):
    with pytest.raises(ValueError, match="CUDA"):
        VllmEngine(student, sleeps=True)
    with pytest.raises(ValueError, match="hot_swap needs an adapter"):
        VllmEngine(student, hot_swap=True)
    with pytest.raises(ValueError, match="plain LoRA"):
        VllmEngine(with_adapter(make_student(), use_dora=True), hot_swap=True)
    with pytest.raises(ValueError, match="memory_share"):
        VllmEngine(student, memory_share=1.5)
