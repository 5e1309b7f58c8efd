"""Peak memory of the loss and of grading at a real vocabulary, each in a process of its own.

Counted is what comes on top of the weights, their gradients and the hidden states. The body is left out, as
its hidden states are all that the loss sees. On a GPU the heads are as wide as Qwen3-0.6B's; on a CPU they
are narrow, as most of the time goes into products with them, but few of the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.gradient import loss_and_grades
from benchmarks.measuring import Figure, Stopwatch, in_fresh_process, peak_memory
from benchmarks.random_models import QWEN3_0_6B, VOCABULARY
from opd.divergence import Distributions, over_chunks, token_signals

HIDDEN = QWEN3_0_6B["hidden_size"] if torch.cuda.is_available() else 128
FEW, MANY = 512, 8192
PEER_FEW, PEER_MANY = 1024, 4096  # a CPU has not the memory for more
TOP_K = 20
GIB = 2**30

Work = Callable[[Tensor, torch.nn.Linear, Tensor, torch.nn.Linear], object]


def measure() -> list[Figure]:
    """Measure ours at few and at many tokens, and TRL's loss beside it where TRL is installed."""
    figures = []
    for name, what, work in (
        ("loss", "forward and backward", our_loss),
        ("grading", "every signal", our_grading),
    ):
        (few, _), (many, seconds) = (in_fresh_process(peak_of, work, n) for n in (FEW, MANY))
        figures += [
            Figure(
                f"{name}_memory",
                many / GIB,
                "GiB",
                at_most=1.5,
                detail=f"{what}, {MANY:,} tokens x {VOCABULARY:,} entries; {seconds:.0f} s",
            ),
            Figure(
                f"{name}_memory_growth",
                many / few,
                at_most=1.1,
                detail=f"over {FEW:,} tokens: {few / GIB:.2f} GiB",
            ),
        ]
    if find_spec("trl") is None:
        return figures
    (few, _), (many, seconds) = (in_fresh_process(peak_of, trl_loss, n) for n in (PEER_FEW, PEER_MANY))
    return [
        *figures,
        Figure(
            "trl_loss_memory",
            many / GIB,
            "GiB",
            detail=f"its chunked loss, {PEER_MANY:,} tokens; {seconds:.0f} s; "
            f"at {PEER_FEW:,} tokens {few / GIB:.2f} GiB",
        ),
    ]


def peak_of(work: Work, tokens: int) -> tuple[int, float]:
    """Do ``work`` on random hidden states; return its peak in bytes and the seconds it took."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)

    def head() -> torch.nn.Linear:
        return torch.nn.Linear(HIDDEN, VOCABULARY, bias=False, device=device, dtype=dtype)

    student, teacher = head(), head().requires_grad_(False)
    hidden, theirs = (torch.randn(tokens, HIDDEN, device=device, dtype=dtype) for _ in range(2))
    for trained in (student.weight, hidden.requires_grad_()):
        trained.grad = torch.zeros_like(trained)
    work(hidden[:2], student, theirs[:2], teacher)  # libraries set up their buffers
    with peak_memory(device) as peak:
        watch = Stopwatch()
        work(hidden, student, theirs, teacher)
        seconds = watch.stop().wall
    return peak.extra, seconds


def our_loss(hidden: Tensor, student: torch.nn.Linear, theirs: Tensor, teacher: torch.nn.Linear) -> None:
    """The full reverse KL as a training step computes it, grades and gradient included."""
    ids = torch.arange(len(hidden), device=hidden.device)

    ours, other = (Distributions(h, head, VOCABULARY) for h, head in ((hidden, student), (theirs, teacher)))
    over_chunks(loss_and_grades(len(hidden)), ours, other, ids, backward=True)


@torch.inference_mode()
def our_grading(hidden: Tensor, student: torch.nn.Linear, theirs: Tensor, teacher: torch.nn.Linear) -> None:
    """All signals of a review."""
    ids = torch.arange(len(hidden), device=hidden.device)
    ours, other = (Distributions(h, head, VOCABULARY) for h, head in ((hidden, student), (theirs, teacher)))
    over_chunks(lambda s, t, i: (None, token_signals(s, t, i, TOP_K, True)), ours, other, ids)


def trl_loss(hidden: Tensor, student: torch.nn.Linear, theirs: Tensor, teacher: torch.nn.Linear) -> None:
    """TRL's chunked loss and its gradient."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    mask = torch.ones(1, len(hidden), device=hidden.device)
    loss, *_ = _chunked_divergence_loss(
        hidden[None], theirs[None], student.weight, teacher.weight, mask, beta=1.0
    )
    loss.backward()
