"""Sampling and scoring with transformers: the truths that every engine must keep."""

from collections import Counter

import numpy as np
import pytest
import torch
from elsewhere import Elsewhere
from tiny import make_model, make_tokenizer, model_of
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    Lfm2Config,
    MambaConfig,
    Qwen3Config,
    RwkvConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import opd
from opd.engines.columns import ColumnsCache
from opd.engines.sampling import requests, uniforms
from opd.engines.transformers import TransformersSampler, batches, draw
from opd.models.kernels.attention import grouped_attention
from opd.models.pair import Pair
from opd.models.scoring import distributions
from opd.protocols import NotFiniteError
from opd.trajectory import Trajectory

pytestmark = pytest.mark.engine

PROMPTS = ["hi", "What is 7 + 3?", "A somewhat longer question, so that the rows differ in length?"]


def plain_logits(model, trajectory):
    """One unpadded forward through the model's own logits: ``[T, V]``."""
    ids = torch.tensor(np.concatenate([trajectory.prompt_ids, trajectory.completion_ids]))[None]
    with torch.no_grad():
        logits = model.model(input_ids=ids).logits[0].double()
    return logits[len(trajectory.prompt_ids) - 1 : -1, : model.vocabulary]


def test_behaviour_logprobs_are_those_of_a_plain_forward(pair):
    for temperature in (1.0, 0.7):
        for t in opd.sample(pair, PROMPTS, n=2, max_tokens=24, temperature=temperature):
            logprobs = torch.log_softmax(plain_logits(pair.student, t) / temperature, -1)
            taken = logprobs.gather(1, torch.tensor(t.completion_ids)[:, None])[:, 0]
            np.testing.assert_allclose(t.behaviour_logprobs, taken, atol=2e-4)


def test_trajectories_do_not_depend_on_batching_or_compaction(pair):
    def texts(in_flight, order):
        asked = requests(pair.student, PROMPTS, n=4, seed=3, max_tokens=40)
        done = TransformersSampler(pair.student, in_flight).sample([asked[i] for i in order])
        return {(t.prompt_index, t.sample_index): t.completion_ids.tolist() for t in done}

    forward, backward = list(range(12)), list(range(11, -1, -1))
    together = texts(64, forward)
    assert together == texts(1, forward) == texts(5, backward)
    assert len({len(ids) for ids in together.values()}) > 1, "no row ended early, so nothing was compacted"


def test_random_numbers_depend_on_each_coordinate_alone():
    base = {"seed": 1, "step": 2, "prompt_index": 3, "sample_index": 4}
    first = uniforms(8, **base)
    assert np.array_equal(first, uniforms(16, **base)[:8])
    for key in base:
        assert not np.array_equal(first, uniforms(8, **base | {key: 9})), key


def test_draw_inverts_the_cumulative_distribution():
    probs = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).expand(5, -1)
    u = torch.tensor([0.0, 0.199, 0.2, 0.699, 0.9999999], dtype=torch.float64)
    assert draw(probs.log(), u).tolist() == [0, 0, 2, 2, 3]


def test_draw_follows_the_distribution():
    """Chi-square over 20,000 draws, fixed seed, alpha = 1e-4 (11 degrees of freedom: 37.4)."""
    logprobs = torch.log_softmax(torch.randn(12, generator=torch.Generator().manual_seed(0)), -1)
    u = torch.from_numpy(uniforms(20_000, seed=0, step=0, prompt_index=0, sample_index=0))
    counts = torch.bincount(draw(logprobs.expand(20_000, -1), u), minlength=12).double()
    expected = 20_000 * logprobs.double().exp()
    assert ((counts - expected) ** 2 / expected).sum() < 37.4


def test_a_model_against_itself_gets_exactly_zero_and_a_shift_does_not(pair):
    same = Pair(pair.student, pair.student)
    trajectories = opd.sample(same, PROMPTS, n=3, max_tokens=30)
    for grades in opd.grade(same, trajectories):
        assert not grades.penalty.any()
        assert not grades.reverse_kl.any()
        assert not grades.forward_kl.any()
        assert np.abs(grades.jsd).max() < 1e-6
        assert not grades.forks.any()
    shifted = [
        Trajectory(t.prompt_ids, t.completion_ids, t.behaviour_logprobs, "stop", t.prompt_ids[:-1])
        for t in trajectories
    ]
    assert max(np.abs(g.penalty).max() for g in opd.grade(same, shifted)) > 0.01


def test_grades_equal_float64_brute_force(pair):
    trajectories = opd.sample(pair, PROMPTS, n=2, max_tokens=20, temperature=0.8)
    for t, g in zip(trajectories, opd.grade(pair, trajectories), strict=True):
        s, r = (torch.log_softmax(plain_logits(m, t) / 0.8, -1).numpy() for m in (pair.student, pair.teacher))
        row, ids = np.arange(len(t)), t.completion_ids
        np.testing.assert_allclose(g.penalty, s[row, ids] - r[row, ids], atol=2e-4)
        np.testing.assert_allclose(g.reverse_kl, (np.exp(s) * (s - r)).sum(-1), atol=2e-4)
        np.testing.assert_allclose(g.forward_kl, (np.exp(r) * (r - s)).sum(-1), atol=2e-4)
        m = np.log((np.exp(s) + np.exp(r)) / 2)
        jsd = (np.exp(s) * (s - m) + np.exp(r) * (r - m)).sum(-1) / 2
        np.testing.assert_allclose(g.jsd, jsd, atol=2e-4)
        np.testing.assert_allclose(g.student_entropy, -(np.exp(s) * s).sum(-1), atol=2e-4)
        np.testing.assert_allclose(g.teacher_entropy, -(np.exp(r) * r).sum(-1), atol=2e-4)
        np.testing.assert_array_equal(g.teacher_rank, (r > r[row, ids][:, None]).sum(-1))


def test_mean_penalty_estimates_the_reverse_kl(pair):
    trajectories = opd.sample(pair, ["hi"], n=400, max_tokens=8)
    grades = opd.grade(pair, trajectories)
    difference = np.concatenate([g.penalty - g.reverse_kl for g in grades])
    error = difference.std() / np.sqrt(len(difference))
    assert abs(difference.mean()) < 4 * error
    assert all(g.bias is None for g in grades)


def test_bias_is_said_in_words(pair):
    hot = opd.sample(pair, ["hi"], max_tokens=8, temperature=1.5)
    greedy = opd.sample(pair, ["hi"], max_tokens=8, temperature=0)
    pasted = Trajectory(hot[0].prompt_ids, hot[0].completion_ids, None, "stop", hot[0].prompt_ids)
    assert opd.grade(pair, hot)[0].bias is None
    assert "1.5 but scored at 1" in opd.grade(pair, hot, temperature=1.0)[0].bias
    assert "greedily" in opd.grade(pair, greedy)[0].bias
    assert "did not sample" in opd.grade(pair, [pasted])[0].bias


def test_the_sampled_end_is_graded_and_nothing_after_it(pair):
    done = opd.sample(pair, PROMPTS, n=20, max_tokens=60)
    stopped = [t for t in done if t.finish_reason == "stop"]
    assert stopped
    for t in stopped:
        assert t.completion_ids[-1] in pair.student.eos_ids
        assert not np.isin(t.completion_ids[:-1], pair.student.eos_ids).any()
    for t, g in zip(stopped, opd.grade(pair, stopped), strict=True):
        assert len(g) == len(t)
        eos = torch.log_softmax(plain_logits(pair.student, t), -1)[-1, t.completion_ids[-1]]
        assert g.student.logprobs[-1] == pytest.approx(float(eos), abs=2e-4)


def break_one_matrix(model):
    model.causal_lm.model.layers[1].mlp.down_proj.weight.data[3, 4] = float("nan")


def overflow(model):
    """Weights that are finite in float16 and what is computed with them is not."""
    model.model.half()
    model.causal_lm.model.norm.weight.data.fill_(6e4)


@pytest.mark.parametrize("fault", [break_one_matrix, overflow])
def test_a_model_that_says_no_numbers_is_named_and_nothing_is_made_of_it(pair, fault):
    done = opd.sample(pair, PROMPTS, n=2, max_tokens=8)
    broken = make_model(1, name="broken")
    fault(broken)
    named = r"^broken gives tokens log-probs that are not finite .* dtype .* weights"
    apart = Pair(pair.student, broken, cross_tokenizer=True)
    apart.cross_tokenizer = True  # as if the tokenizers were two
    for asked in (Pair(pair.student, broken), apart, Pair(pair.student, broken, Elsewhere(broken, "broken"))):
        with pytest.raises(NotFiniteError, match=named):
            opd.grade(asked, done)
    with pytest.raises(NotFiniteError, match=named):
        opd.grade(Pair(broken, pair.teacher), done)
    for temperature in (1.0, 0.0):
        with pytest.raises(NotFiniteError, match=named):
            opd.sample(broken, PROMPTS, max_tokens=8, temperature=temperature)


def test_a_pad_id_equal_to_the_eos_id_masks_nothing():
    model, teacher = make_model(0), make_model(1)
    with_pad = opd.sample(Pair(model, teacher), PROMPTS, n=8, max_tokens=40)
    graded = opd.grade(Pair(model, teacher), with_pad)
    for m in (model, teacher):
        m.tokenizer = make_tokenizer(pad="<|end|>")
    again = opd.sample(Pair(model, teacher), PROMPTS, n=8, max_tokens=40)
    for a, b, g, h in zip(with_pad, again, graded, opd.grade(Pair(model, teacher), again), strict=True):
        assert np.array_equal(a.completion_ids, b.completion_ids)
        assert np.array_equal(g.penalty, h.penalty)


def test_padded_rows_are_never_sampled_nor_graded():
    """The matrix has 304 rows, the vocabulary 261 tokens; the padding rows would win every draw."""
    wide = make_model(0, rows=304)
    with torch.no_grad():
        wide.model.get_output_embeddings().weight[wide.vocabulary :] = 5.0
    narrow = make_model(1)
    pair = Pair(wide, narrow)
    for t, g in zip(
        done := opd.sample(pair, PROMPTS, n=4, max_tokens=20), opd.grade(pair, done), strict=True
    ):
        assert t.completion_ids.max() < pair.vocabulary
        assert g.student.top_ids.max() < pair.vocabulary


def test_a_forced_prefix_is_kept_and_scored(pair):
    (first,) = opd.sample(pair, ["hi"], max_tokens=20, seed=5)
    (forced,) = opd.sample(pair, ["hi"], max_tokens=20, seed=5, prefixes=[first.completion_ids[:7]])
    assert np.array_equal(forced.completion_ids, first.completion_ids)
    np.testing.assert_allclose(forced.behaviour_logprobs, first.behaviour_logprobs, atol=1e-5)


def test_greedy_takes_the_likeliest_token(pair):
    (t,) = opd.sample(pair, ["hi"], max_tokens=12, temperature=0)
    assert np.array_equal(plain_logits(pair.student, t).argmax(-1).numpy(), t.completion_ids)


def test_snapshots_are_prefixes_of_what_is_finished(pair):
    asked = requests(pair.student, ["hi"], n=3, seed=0, max_tokens=30)
    seen = list(TransformersSampler(pair.student).sample(asked, snapshot_every=7))
    final = {t.sample_index: t.completion_ids for t in seen if t.finish_reason}
    growing = [t for t in seen if not t.finish_reason]
    assert len(final) == 3
    assert growing
    for t in growing:
        assert np.array_equal(t.completion_ids, final[t.sample_index][: len(t)])


def test_batches_hold_every_index_once_within_the_budget(pair):
    done = opd.sample(pair, PROMPTS, n=5, max_tokens=40)
    lengths = [len(t.prompt_ids) + len(t) for t in done]
    for packed in (True, False):
        groups = batches(done, 200, packed=packed)
        assert sorted(i for group in groups for i in group) == list(range(15))
        for g in groups:
            read = [lengths[i] for i in g]
            assert len(g) == 1 or (sum(read) if packed else max(read) * len(g)) <= 200


def test_what_is_padded_is_read_in_groups_of_like_length():
    lengths = [30] * 20 + [400] * 3 + [300] * 4
    done = [Trajectory(np.arange(2), np.zeros(n - 2, int), None, None, np.arange(2)) for n in lengths]
    assert [len(group) for group in batches(done, 8192, packed=False)] == [3, 4, 20]
    assert [len(group) for group in batches(done, 1000, packed=False)] == [2, 1, 3, 1, 20]
    assert [len(group) for group in batches(done, 8192, packed=True)] == [27]


FAMILIES = {
    "gemma2 (soft-capped)": Gemma2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, vocab_size=264, final_logit_softcapping=5.0,
        query_pre_attn_scalar=16,
    ),
    "cohere (logit scale)": CohereConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=264,
        logit_scale=0.25, pad_token_id=0,
    ),
    "granite (logits scaling)": GraniteConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=264,
        logits_scaling=4.0,
    ),
    "gpt2 (learned positions)": GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=264, n_positions=256),
}  # fmt: skip


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_family_is_scored_as_its_own_forward_scores(config):
    model = model_of(config, sharpness=3)
    done = opd.sample(model, PROMPTS, n=2, max_tokens=16)
    with torch.no_grad():
        d = distributions(model, done, side="student", temperature=1.0, vocabulary=model.vocabulary)
        packed = d.log_probs(d.hidden)
    wanted = torch.cat([torch.log_softmax(plain_logits(model, t), -1) for t in done])
    torch.testing.assert_close(packed.double(), wanted, atol=2e-4, rtol=1e-4)


def test_a_model_with_an_unknown_head_falls_back_to_its_own_logits():
    model = make_model(0)
    inner = model.model.forward
    model.model.forward = lambda *a, **k: _scaled(inner(*a, **k))
    assert isinstance(model.head, torch.nn.Identity)
    (t,) = opd.sample(model, ["hi"], max_tokens=12)
    taken = torch.log_softmax(plain_logits(model, t), -1).gather(1, torch.tensor(t.completion_ids)[:, None])
    np.testing.assert_allclose(t.behaviour_logprobs, taken[:, 0], atol=2e-4)


def _scaled(output):
    output.logits = output.logits * 0.5
    return output


KEEPS = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 264, "head_dim": 16,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
CACHES = {
    "keys and values, grouped heads": Qwen3Config(**KEEPS),
    "windows of 12 tokens": Gemma2Config(**KEEPS, sliding_window=12, query_pre_attn_scalar=16),
    "learned positions": GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=264, n_positions=256),
    "attention without sdpa": Qwen3Config(**KEEPS, attn_implementation="eager"),
    "convolutions": Lfm2Config(**KEEPS, layer_types=["conv", "full_attention"]),
    "a recurrence alone": MambaConfig(hidden_size=32, state_size=8, num_hidden_layers=2, vocab_size=264),
}


@pytest.mark.parametrize("kind", CACHES)
def test_rows_that_come_and_go_are_sampled_as_if_each_were_alone(kind, monkeypatch):
    """40 requests through 6 rows: refilled, with the cache widened and cut, against one row at a time."""
    recurrence = kind == "a recurrence alone"
    model = model_of(CACHES[kind], sharpness=2 if recurrence else 3)  # round-off adds up in its state
    prompts = ["hi", "What is 7 + 3?", "A somewhat longer question, so that rows differ.", "ok"]
    asked = requests(model, prompts, n=2 if recurrence else 10, seed=2, max_tokens=30 if recurrence else 90)
    happened = Counter()
    for name in ("enter", "drop_left"):
        watch(monkeypatch, ColumnsCache, name, happened)

    together = {(t.prompt_index, t.sample_index): t for t in TransformersSampler(model, 6).sample(asked)}
    refills = kind != "convolutions" and not recurrence
    assert bool(happened["enter"] > 10) == refills
    assert bool(happened["drop_left"]) == refills
    for request in asked:
        (alone,) = TransformersSampler(model, 1).sample([request])
        t = together[request.prompt_index, request.sample_index]
        assert t.completion_ids.tolist() == alone.completion_ids.tolist()
        logprobs = torch.log_softmax(plain_logits(model, t), -1)
        taken = logprobs.gather(1, torch.tensor(t.completion_ids)[:, None])[:, 0]
        np.testing.assert_allclose(t.behaviour_logprobs, taken, atol=1e-4)


def test_a_model_that_does_not_go_on_from_its_cache_is_refused():
    model = model_of(RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=264), sharpness=3)
    with pytest.raises(ValueError, match="tiny cannot be sampled from: RwkvForCausalLM does not go on"):
        opd.sample(model, ["hi"], max_tokens=4)


def watch(monkeypatch, owner, name, happened):
    inner = getattr(owner, name)

    def spy(*args):
        happened[name] += 1
        return inner(*args)

    monkeypatch.setattr(owner, name, spy)


def test_the_sampler_follows_the_models_distribution_of_two_tokens():
    """Chi-square over 6,000 completions of two tokens, rare pairs pooled; fixed seed, alpha = 1e-4."""
    model = make_model(0, initializer_range=0.6)
    done = opd.sample(model, ["hi"], n=6_000, max_tokens=2, seed=1)
    prompt = torch.tensor(done[0].prompt_ids)
    v = model.vocabulary
    with torch.no_grad():
        first = torch.softmax(model.model(input_ids=prompt[None]).logits[0, -1, :v].double(), -1)
        likely = (first * 6_000 >= 1).nonzero()[:, 0]
        rows = torch.cat([prompt.expand(len(likely), -1), likely[:, None]], 1)
        second = torch.softmax(model.model(input_ids=rows).logits[:, -1, :v].double(), -1)
    expected = {}
    for token, after in zip(likely.tolist(), second, strict=True):
        if token in model.eos_ids:
            expected[token, None] = 6_000 * float(first[token])
        else:
            expected |= {(token, i): 6_000 * float(first[token] * p) for i, p in enumerate(after)}
    seen = Counter((t.completion_ids[0], t.completion_ids[1] if len(t) > 1 else None) for t in done)
    cells = [key for key, count in expected.items() if count >= 5]
    observed = np.array([seen[key] for key in cells] + [6_000 - sum(seen[key] for key in cells)])
    wanted = np.array([expected[key] for key in cells])
    wanted = np.append(wanted, 6_000 - wanted.sum())
    assert len(cells) > 20
    statistic, freedom = ((observed - wanted) ** 2 / wanted).sum(), len(cells)
    assert torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2)) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_attention_equals_that_of_transformers(groups, dtype):
    generator = torch.Generator().manual_seed(groups)
    query = torch.randn(3, 8, 1, 16, generator=generator).to(dtype)
    key, value = (torch.randn(3, 8 // groups, 9, 16, generator=generator).to(dtype) for _ in range(2))
    mask = torch.rand(3, 1, 1, 9, generator=generator) < 0.6
    mask[..., -1] = True
    module = torch.nn.Module()
    module.num_key_value_groups = groups
    additive = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
    ours, _ = grouped_attention(module, query, key, value, additive, scaling=0.2)
    theirs, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.2)
    torch.testing.assert_close(ours, theirs)
