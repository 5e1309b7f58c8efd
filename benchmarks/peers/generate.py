"""transformers' ``generate``: batches of prompts sorted by length, sampled until the last row has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from benchmarks.measuring import Cost, Stopwatch, partner

Prompts = Sequence[NDArray[np.int64]]


@contextmanager
def generating(folder: str, batches: Sequence[Prompts], **limits: int) -> Iterator[Callable[[int], Cost]]:
    """Give a function that has completions of the k-th prompts written, and says what that cost.

    ``folder`` is the model's, ``limits`` are those of :func:`tokens_generated`.
    """
    with partner(_generate, folder, batches, limits) as peer:

        def cost_of(k: int) -> Cost:
            peer.send(k)
            return peer.recv()

        yield cost_of
        peer.send(None)


def _generate(
    connection: Connection, folder: str, batches: Sequence[Prompts], limits: dict[str, int]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    while (k := connection.recv()) is not None:
        watch = Stopwatch()
        connection.send(watch.stop(tokens_generated(model, batches[k], **limits)))


def tokens_generated(
    model: PreTrainedModel,
    prompts: Prompts,
    *,
    max_tokens: int,
    batch: int = 64,
    **settings: Any,  # noqa: ANN401
) -> int:
    """Sample one completion a prompt at temperature 1 and return how many tokens they have, ends included.

    Args:
        model: who writes.
        prompts: rendered ids.
        max_tokens: bound on each completion.
        batch: prompts of one call.
        settings: further ones of ``GenerationConfig``.
    """
    eos = model.generation_config.eos_token_id
    eos = [eos] if isinstance(eos, int) else list(eos)
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings
    config = GenerationConfig(
        max_new_tokens=max_tokens, pad_token_id=eos[0], eos_token_id=eos, disable_compile=True, **sampling
    )
    ordered = sorted(prompts, key=len)
    total = 0
    for start in range(0, len(ordered), batch):
        rows = ordered[start : start + batch]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), eos[0])
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = torch.from_numpy(row)
            mask[i, width - len(row) :] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        ended = torch.isin(written[:, width:], torch.tensor(eos, device=model.device))
        after_the_end = ended.cumsum(1) - ended.long() > 0
        total += int((~after_the_end).sum())
    return total
