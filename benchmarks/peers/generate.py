"""transformers' ``generate``: batches of prompts sorted by length, sampled until the last row has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from opd.models import LanguageModel


def tokens_generated(
    model: LanguageModel,
    prompts: Sequence[NDArray[np.int64]],
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
    pad = model.tokenizer.pad_token_id
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings
    config = GenerationConfig(
        max_new_tokens=max_tokens,
        pad_token_id=pad,
        eos_token_id=list(model.eos_ids),
        disable_compile=True,
        **sampling,
    )
    ordered = sorted(prompts, key=len)
    total = 0
    for start in range(0, len(ordered), batch):
        rows = ordered[start : start + batch]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = torch.from_numpy(row)
            mask[i, width - len(row) :] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        written = model.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        ended = torch.isin(written[:, width:], torch.tensor(model.eos_ids, device=model.device))
        after_the_end = ended.cumsum(1) - ended.long() > 0
        total += int((~after_the_end).sum())
    return total
