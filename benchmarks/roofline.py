"""Rollouts, scoring and update at real size against what memory and matrix units allow: the rooflines.

On a GPU: a student of the shape of Qwen3-0.6B and a teacher of that of Qwen3-8B, random weights, bf16.
Without one the same with two layers each, in fp32 and with fewer tokens. Needs torch and transformers alone:

    python -m benchmarks roofline

- A decode step must read the student's weights once: its roofline is their bytes over the copy rate.
- Scoring must make the multiplications of both forwards, heads included; an update three times the student's
  and once the teacher's (nothing recomputed; without the optimizer). Their roofline is these over the matmul
  rate.

Both rates are measured in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from benchmarks.gradient import make_gradient
from benchmarks.measuring import Figure, Stopwatch, peak_memory
from benchmarks.random_models import QWEN3_0_6B, QWEN3_8B, SMALL, VOCABULARY, random_model
from opd.engines.transformers import TransformersSampler
from opd.grading.grading import grade
from opd.models.kernels.linear import use_onednn
from opd.models.network import LanguageModel
from opd.models.pair import Pair
from opd.protocols import SampleRequest
from opd.trajectory import Trajectory


@dataclass(frozen=True)
class Scale:
    """What is run: shapes, tokens, and the sizes that the machine's rates are measured at."""

    student: dict[str, object]
    teacher: dict[str, object]
    vocabulary: int
    device: str
    dtype: torch.dtype
    batch: int
    prompt: int
    completion: int
    matmul: int
    copied_bytes: int


REAL = Scale(QWEN3_0_6B, QWEN3_8B, VOCABULARY, "cuda", torch.bfloat16, 64, 128, 512, 8192, 2**32)
TWO = {"num_hidden_layers": 2}
FEW_LAYERS = Scale(
    QWEN3_0_6B | TWO, QWEN3_8B | TWO, VOCABULARY, "cpu", torch.float32, 16, 32, 32, 2048, 2**30
)
TINY = Scale(SMALL, SMALL | {"hidden_size": 96}, 4096, "cpu", torch.float32, 8, 16, 32, 1024, 2**26)


def measure() -> list[Figure]:
    """Measure at real size where there is a GPU, else with few layers."""
    return measure_at(REAL if torch.cuda.is_available() else FEW_LAYERS)


def measure_at(scale: Scale) -> list[Figure]:
    """Measure the machine's two rates, then each phase against them."""
    torch.manual_seed(0)
    bandwidth, matmul = copy_rate(scale), matmul_rate(scale)
    student, teacher = (
        random_model(name, shape, vocabulary=scale.vocabulary, device=scale.device, dtype=scale.dtype)
        for name, shape in (("student", scale.student), ("teacher", scale.teacher))
    )
    student.model.requires_grad_(True)
    pair = Pair(student, teacher)
    rng = np.random.default_rng(0)
    asked = [
        SampleRequest(rng.integers(scale.vocabulary, size=scale.prompt), rng.random(scale.completion))
        for _ in range(scale.batch)
    ]
    sampler = TransformersSampler(student, in_flight=scale.batch)
    trajectories = list(sampler.sample(asked))
    tokens = sum(map(len, trajectories))

    seconds, extra = median_seconds(lambda: list(sampler.sample(asked)), scale.device)
    step = seconds / scale.completion
    read = weight_bytes(student)
    figures = [
        Figure("copy_rate", bandwidth / 1e9, "GB/s", detail="read and written"),
        Figure("matmul_rate", matmul / 1e12, "TFLOP/s", detail=f"{scale.matmul} x {scale.matmul} matrices"),
        Figure(
            "rollout_roofline",
            read / bandwidth / step,
            "of roofline",
            detail=f"{tokens / seconds:,.0f} tokens/s, {scale.batch} rows; {1e3 * step:.2f} ms a step "
            f"(prompts included) for {read / 1e9:.3g} GB of weights; "
            f"peak {extra / 2**30:.2f} GiB above the weights",
        ),
    ]
    ours, theirs = (forward_flops(model, trajectories) for model in (student, teacher))
    for name, flops, at_least, work in (
        ("scoring", ours + theirs, 0.5, lambda: grade(pair, trajectories)),
        ("update", 3 * ours + theirs, 0.3, lambda: make_gradient(pair, trajectories)),
    ):
        seconds, extra = median_seconds(work, scale.device)
        figures.append(
            Figure(
                f"{name}_roofline",
                flops / matmul / seconds,
                "of roofline",
                at_least=at_least,
                detail=f"{tokens / seconds:,.0f} tokens/s; {flops / 1e12:.3g} TFLOP in {seconds:.3g} s; "
                f"peak {extra / 2**30:.2f} GiB above the weights",
            )
        )
    return figures


def median_seconds(work: Callable[[], object], device: str, repeats: int = 3) -> tuple[float, int]:
    """Do ``work`` once to warm up, then measure it; return median seconds and peak bytes on top."""
    work()
    seconds = []
    with peak_memory(device) as peak:
        for _ in range(repeats):
            watch = Stopwatch()
            work()
            seconds.append(watch.stop().wall)
    return median(seconds), peak.extra


def copy_rate(scale: Scale) -> float:
    """Return the bytes a second that a copy of a large tensor moves, read and written."""
    source = torch.empty(scale.copied_bytes, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    seconds, _ = median_seconds(lambda: target.copy_(source), scale.device, repeats=10)
    return 2 * scale.copied_bytes / seconds


def matmul_rate(scale: Scale) -> float:
    """Return the floating-point operations a second of one large linear layer."""
    n = scale.matmul
    layer = torch.nn.Linear(n, n, bias=False, device=scale.device, dtype=scale.dtype)
    use_onednn(layer)
    x = torch.randn(n, n, device=scale.device, dtype=scale.dtype)
    with torch.no_grad():
        seconds, _ = median_seconds(lambda: layer(x), scale.device, repeats=10)
    return 2 * n**3 / seconds


def weight_bytes(model: LanguageModel) -> int:
    """Return the bytes that one decode step must read: all weights, but of an untied embedding only a row."""
    embedding = model.causal_lm.get_input_embeddings().weight
    total = sum(p.nbytes for p in model.causal_lm.parameters())
    tied = model.causal_lm.get_output_embeddings().weight is embedding
    return total if tied else total - embedding.nbytes


def forward_flops(model: LanguageModel, trajectories: Sequence[Trajectory]) -> float:
    """Return the operations that scoring needs: two a weight and token, the head for completion tokens alone.

    Attention counts each query against the keys up to its own place.
    """
    config = model.causal_lm.config
    head = model.causal_lm.get_output_embeddings().weight.numel()
    embedding = model.causal_lm.get_input_embeddings().weight
    tied = model.causal_lm.get_output_embeddings().weight is embedding
    body = sum(p.numel() for p in model.causal_lm.parameters()) - head - (0 if tied else embedding.numel())
    width = config.num_attention_heads * config.head_dim
    total = 0.0
    for t in trajectories:
        read = len(t.prompt_ids) + len(t) - 1
        pairs = read * (read + 1) / 2
        total += 2 * body * read + 4 * width * config.num_hidden_layers * pairs + 2 * head * len(t)
    return total
