"""Rollouts against transformers' generate: a stream of prompts, and one batch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.measuring import Figure, Ratio, alternate
from benchmarks.peers import without_our_layers
from benchmarks.peers.generate import tokens_generated
from opd.engines import SampleRequest
from opd.engines.transformers import TransformersSampler
from opd.models import load_model
from opd.sampling import requests
from opd.tasks import load_task

IN_FLIGHT, STREAM, MAX_TOKENS = 64, 512, 192


def measure() -> list[Figure]:
    """Measure the stream and the single batch."""
    return [
        _against_generate("rollout_vs_generate", STREAM, rounds=3, at_least=2.5),
        _against_generate("rollout_batch_vs_generate", IN_FLIGHT, rounds=9, at_least=1.8),
    ]


def _against_generate(name: str, prompts: int, *, rounds: int, at_least: float) -> Figure:
    model, task = load_model("demo-student"), load_task("demo")
    peer = without_our_layers(load_model("demo-student"))
    sampler = TransformersSampler(model, in_flight=IN_FLIGHT)

    def asked(k: int) -> Sequence[SampleRequest]:
        examples = task.batch(prompts, step=k, seed=0)
        return requests(model, [e.prompt for e in examples], seed=k, max_tokens=MAX_TOKENS)

    batches = [asked(k) for k in range(rounds + 1)]
    costs = alternate(
        {
            "ours": lambda k: sum(map(len, sampler.sample(batches[k]))),
            "generate": lambda k: tokens_generated(
                peer, [r.prompt_ids for r in batches[k]], max_tokens=MAX_TOKENS, batch=IN_FLIGHT
            ),
        },
        rounds,
    )
    ratio = Ratio.of(costs["generate"], costs["ours"])
    ours, theirs = (median(c.tokens / c.wall for c in costs[side]) for side in ("ours", "generate"))
    shape = f"{prompts} prompts, {IN_FLIGHT} in flight" if prompts > IN_FLIGHT else f"one batch of {prompts}"
    return Figure(
        name,
        ratio.wall,
        at_least=at_least,
        detail=f"{shape}; {ratio}; {ours:,.0f} against {theirs:,.0f} tokens/s",
    )
