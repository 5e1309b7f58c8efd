"""Rollouts against transformers' generate: a stream of prompts, and one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.measuring import Figure, Ratio, alternate
from benchmarks.peers.generate import generating
from opd.engines.sampling import requests
from opd.engines.transformers import TransformersSampler
from opd.files import assets_dir
from opd.models.load import DEMO_MODELS, load_model
from opd.models.network import LanguageModel
from opd.protocols import SampleRequest
from opd.tasks import load_task

IN_FLIGHT, STREAM, MAX_TOKENS = 64, 512, 192


def measure() -> list[Figure]:
    """Measure the stream and the single batch."""
    return [
        *_against_generate("rollout", STREAM, rounds=3, at_least=2.5),
        *_against_generate("rollout_batch", IN_FLIGHT, rounds=9, at_least=1.8),
    ]


def _against_generate(name: str, prompts: int, *, rounds: int, at_least: float) -> list[Figure]:
    """Let ``generate``, us with a compiled step, and us without sample in turn."""
    task = load_task("demo")
    plain, compiled = (load_model("demo-student") for _ in range(2))
    compiled.compiled = True

    def asked(k: int) -> Sequence[SampleRequest]:
        examples = task.batch(prompts, step=k, seed=0)
        return requests(plain, [e.prompt for e in examples], seed=k, max_tokens=MAX_TOKENS)

    batches = [asked(k) for k in range(rounds + 1)]

    def ours(model: LanguageModel) -> Callable[[int], int]:
        sampler = TransformersSampler(model, in_flight=IN_FLIGHT)
        return lambda k: sum(map(len, sampler.sample(batches[k])))

    folder = str(assets_dir() / DEMO_MODELS["demo-student"])
    ids = [[request.prompt_ids for request in batch] for batch in batches]
    with generating(folder, ids, max_tokens=MAX_TOKENS, batch=IN_FLIGHT) as generate:
        sides = {"": ours(compiled), "_plain": ours(plain), "generate": generate}
        costs = alternate(sides, rounds)
    theirs = costs.pop("generate")
    shape = f"{prompts} prompts, {IN_FLIGHT} in flight" if prompts > IN_FLIGHT else f"one batch of {prompts}"
    figures = []
    for suffix, spent in costs.items():
        ratio = Ratio.of(theirs, spent)
        rates = (median(c.tokens / c.wall for c in side) for side in (spent, theirs))
        detail = f"{shape}; {ratio}; {' against '.join(f'{rate:,.0f}' for rate in rates)} tokens/s"
        aim = None if suffix else at_least
        figures.append(Figure(f"{name}{suffix}_vs_generate", ratio.wall, at_least=aim, detail=detail))
    return figures
