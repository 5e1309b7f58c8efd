"""The maths against float64 brute force, and the chunk driver against the plain computation."""

import numpy as np
import pytest
import torch

from opd import divergence
from opd.config import make_config
from opd.divergence import Distributions, TopK, over_chunks, token_signals
from opd.objectives import OBJECTIVES
from opd.training.losses import Chunk, token_loss


def random_logits(seed, n=7, v=11, scale=3.0):
    return torch.randn(n, v, generator=torch.Generator().manual_seed(seed)) * scale


def brute_log_softmax(logits):
    logits = logits.double().numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_signals_equal_float64_brute_force():
    s, t = random_logits(0), random_logits(1)
    ids = torch.arange(7)
    signals = token_signals(
        torch.log_softmax(s, -1), torch.log_softmax(t, -1), ids, top_k=4, all_divergences=True
    )
    ls, lt = brute_log_softmax(s), brute_log_softmax(t)
    ps, pt = np.exp(ls), np.exp(lt)
    lm = np.log((ps + pt) / 2)
    row = np.arange(7)
    expected = {
        "penalty": ls[row, row] - lt[row, row],
        "reverse_kl": (ps * (ls - lt)).sum(-1),
        "forward_kl": (pt * (lt - ls)).sum(-1),
        "jsd": 0.5 * (pt * (lt - lm)).sum(-1) + 0.5 * (ps * (ls - lm)).sum(-1),
        "student.entropy": -(ps * ls).sum(-1),
        "teacher.entropy": -(pt * lt).sum(-1),
        "teacher.ranks": (lt > lt[row, row][:, None]).sum(-1),
        "teacher.top_ids": np.argsort(-lt, axis=-1)[:, :4],
        "student.top_logprobs": -np.sort(-ls, axis=-1)[:, :4],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(signals[name].numpy(), value, atol=1e-5, err_msg=name)


def test_log_probs_are_fp32_for_a_bf16_model():
    logits = random_logits(2, v=5000).bfloat16()
    logprobs = Distributions(logits, torch.nn.Identity(), 5000).log_probs(logits)
    assert logprobs.dtype == torch.float32
    np.testing.assert_allclose(logprobs.numpy(), brute_log_softmax(logits.float()), atol=1e-5)


def test_padded_vocabulary_rows_win_no_mass():
    logits = random_logits(3)
    padded = torch.cat([logits, torch.full((7, 3), 50.0)], dim=1)
    plain = Distributions(logits, torch.nn.Identity(), 11).log_probs(logits)
    assert torch.equal(Distributions(padded, torch.nn.Identity(), 11).log_probs(padded), plain)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("chunk_elements", [1, 23, 10**6])
def test_chunked_gradient_equals_the_plain_one(objective, chunk_elements):
    torch.manual_seed(0)
    body, head, teacher_head = torch.nn.Linear(4, 5), torch.nn.Linear(5, 11), torch.nn.Linear(6, 11)
    inputs, teacher_hidden = torch.randn(9, 4), torch.randn(9, 6)
    ids, behaviour = torch.randint(0, 11, (9,)), -torch.rand(9) * 3
    settings = make_config({"objective": objective, "samples_per_prompt": 2})

    def loss_of(student, teacher, ids, behaviour):
        return token_loss(Chunk(student, teacher, ids, behaviour, None, behaviour + 1), settings)

    student = torch.log_softmax(head(body(inputs)), -1)
    teacher = torch.log_softmax(teacher_head(teacher_hidden), -1).detach()
    loss_of(student, teacher, ids, behaviour).sum().backward()
    expected = [p.grad.clone() for m in (body, head) for p in m.parameters()]
    body.zero_grad(), head.zero_grad()

    out = over_chunks(
        lambda s, t, i, b: (loss_of(s, t, i, b), {"rows": i}),
        Distributions(body(inputs), head, 11),
        Distributions(teacher_hidden, teacher_head, 11),
        ids,
        behaviour,
        backward=True,
        chunk_elements=chunk_elements,
    )
    for got, want in zip((p.grad for m in (body, head) for p in m.parameters()), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    assert torch.equal(out["rows"], ids)
    assert all(p.grad is None for p in teacher_head.parameters())


@pytest.mark.parametrize(
    ("rows", "vocabulary", "elements", "largest"), [(50, 100, 700, 7), (2500, 4, 2**24, 1024)]
)
def test_no_tensor_of_the_whole_batch_and_vocabulary_exists(rows, vocabulary, elements, largest):
    seen = []

    def head(hidden):
        seen.append(len(hidden))
        return hidden @ torch.ones(4, vocabulary)

    hidden = torch.randn(rows, 4)
    over_chunks(
        lambda s, t: (None, {"kl": divergence.reverse_kl(s, t)}),
        Distributions(hidden, head, vocabulary),
        Distributions(hidden, head, vocabulary),
        chunk_elements=elements,
    )
    assert max(seen) == largest
    assert sum(seen) == 2 * rows


def test_agreement_is_what_two_distributions_share_and_a_bound_where_only_the_top_is_known():
    rng = np.random.default_rng(3)
    logits = [torch.tensor(rng.normal(size=(40, 30)) * 3, dtype=torch.float32) for _ in range(2)]
    student, teacher = (torch.log_softmax(x, -1) for x in logits)
    ids = torch.zeros(40, dtype=torch.long)
    exact = token_signals(student, teacher, ids, 5)["agreement"]
    p, q = (np.exp(x.double().numpy()) for x in (student, teacher))
    np.testing.assert_allclose(exact, np.minimum(p, q).sum(1), atol=1e-6)
    np.testing.assert_allclose(exact, 1 - np.abs(p - q).sum(1) / 2, atol=1e-6)
    np.testing.assert_allclose(token_signals(student, student, ids, 5)["agreement"], 1, atol=1e-6)
    top = teacher.topk(5, dim=-1)
    known = TopK(teacher[:, 0], torch.zeros_like(ids), top.indices, top.values)
    bound = token_signals(student, known, ids, 5)["agreement"]
    assert (bound >= exact - 1e-6).all()
    assert (bound > exact + 0.01).any(), "a bucket for all others hides where they part"
    assert (bound < 1).all()
