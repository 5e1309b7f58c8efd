"""The transformers engine: any causal LM that takes a cache samples and is scored here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from opd.divergence import CHUNK_ELEMENTS, Distributions, sampled
from opd.engines import SampleRequest
from opd.models import LanguageModel
from opd.trajectory import Trajectory

# Below this share of rows still growing, the finished ones are dropped from the batch and its cache.
COMPACT_BELOW = 0.75


@dataclass
class _Row:
    """A completion while it grows; a forced prefix is already part of it."""

    request: SampleRequest
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass
class TransformersSampler:
    """Samples from a model with its own key-value cache, many rows at a time.

    Attributes:
        model: the model to sample from; it is read at every call, so training it is synchronising it.
        in_flight: how many completions grow together.
    """

    model: LanguageModel
    in_flight: int = 64

    def sample(
        self, requests: Sequence[SampleRequest], *, temperature: float = 1.0, snapshot_every: int = 0
    ) -> Iterator[Trajectory]:
        """Yield trajectories as they finish; see :class:`opd.engines.Sampler`.

        Behaviour log-probs are those of the distribution sampled from; at temperature 0 (greedy) they are
        the model's own at temperature 1.
        """
        for start in range(0, len(requests), self.in_flight):
            batch = requests[start : start + self.in_flight]
            yield from self._sample_batch(batch, temperature, snapshot_every)

    @torch.inference_mode()
    def _sample_batch(
        self, requests: Sequence[SampleRequest], temperature: float, snapshot_every: int
    ) -> Iterator[Trajectory]:
        model, device = self.model, self.model.device
        rows = [_Row(request) for request in requests]
        # Requests that begin alike are read once; their rows get copies of the cache.
        inputs: dict[bytes, np.ndarray] = {}
        begins = [_with_prefix(request) for request in requests]
        for ids in begins:
            inputs.setdefault(ids.tobytes(), ids)
        place = {key: i for i, key in enumerate(inputs)}
        source = torch.tensor([place[ids.tobytes()] for ids in begins], device=device)
        width = max(len(ids) for ids in begins)
        input_ids = torch.zeros((len(inputs), width), dtype=torch.long)
        mask = torch.zeros((len(inputs), width), dtype=torch.long)
        for i, ids in enumerate(
            inputs.values()
        ):  # padded on the left: every row's next token is the last column
            input_ids[i, width - len(ids) :] = torch.from_numpy(ids)
            mask[i, width - len(ids) :] = 1
        input_ids, mask = input_ids.to(device), mask.to(device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        cache = DynamicCache(config=model.causal_lm.config)
        hidden = model.hidden(
            input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        self._score_prefixes(rows, source.tolist(), hidden, temperature)
        if len(inputs) < len(rows):
            cache.batch_select_indices(source)
        mask, positions, hidden = mask[source], positions[source], hidden[source, -1]
        uniforms = _stack_uniforms(requests).to(device)
        counts = torch.tensor([len(row.ids) for row in rows], device=device)
        budget = torch.tensor([len(row.request.uniforms) for row in rows], device=device)
        eos = torch.tensor(model.eos_ids, device=device)
        position = positions[:, -1:]
        active = list(range(len(rows)))  # the row behind each line of the batch
        ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
        since_snapshot = 0
        while True:
            u = uniforms.gather(1, counts.clamp_max(uniforms.shape[1] - 1)[:, None]).squeeze(1)
            token, logprob = self._draw(hidden, u, temperature)
            counts = counts + 1
            stopped = torch.isin(token, eos)
            done = stopped | (counts >= budget)
            for line, (ident, lp, over, stop, was) in enumerate(
                zip(*(x.tolist() for x in (token, logprob, done, stopped, ended)), strict=True)
            ):
                if was:
                    continue
                row = rows[active[line]]
                row.ids.append(ident)
                row.logprobs.append(lp)
                if over:
                    yield self._finish(row, "stop" if stop else "length", temperature)
            ended = ended | done
            alive = ~ended
            growing = int(alive.sum())
            if not growing:
                return
            since_snapshot += 1
            if snapshot_every and since_snapshot >= snapshot_every:
                since_snapshot = 0
                for line, over in enumerate(ended.tolist()):
                    if not over:
                        yield self._finish(rows[active[line]], None, temperature)
            if growing < COMPACT_BELOW * len(active):
                keep = alive.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                active = [active[i] for i in keep.tolist()]
                token, mask, position, counts = token[keep], mask[keep], position[keep], counts[keep]
                uniforms, budget, ended = uniforms[keep], budget[keep], ended[keep]
            mask = torch.cat([mask, mask.new_ones((len(mask), 1))], dim=1)
            position = position + 1
            hidden = model.hidden(
                token[:, None],
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            )[:, -1]

    def _logprobs(self, hidden: Tensor, temperature: float) -> Tensor:
        model = self.model
        return Distributions(hidden, model.head, model.vocabulary, temperature or 1.0).log_probs(hidden)

    def _draw(self, hidden: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Pick a token a row, ``[B, H]``, ``[B]`` -> ids ``[B]``, log-probs ``[B]``."""
        logprobs = self._logprobs(hidden, temperature)
        token = logprobs.argmax(-1) if temperature == 0 else draw(logprobs, uniforms)
        return token, logprobs.gather(1, token[:, None]).squeeze(1)

    def _score_prefixes(
        self, rows: list[_Row], source: Sequence[int], hidden: Tensor, temperature: float
    ) -> None:
        """Give forced tokens the log-prob the model assigned them, from the prompt's own forward.

        Row i began as line ``source[i]`` of ``hidden``.
        """
        known: dict[tuple[int, int], list[float]] = {}
        chunk = max(1, CHUNK_ELEMENTS // self.model.vocabulary)
        for row, line in zip(rows, source, strict=True):
            prefix = row.request.prefix_ids
            if prefix is None or not len(prefix):
                continue
            row.ids = prefix.tolist()
            if (line, len(prefix)) not in known:
                ids = torch.from_numpy(prefix).to(hidden.device)
                predicting = hidden[line, -len(prefix) - 1 : -1]
                known[line, len(prefix)] = [
                    logprob
                    for part, taken in zip(predicting.split(chunk), ids.split(chunk), strict=True)
                    for logprob in sampled(self._logprobs(part, temperature), taken).tolist()
                ]
            row.logprobs = list(known[line, len(prefix)])

    @staticmethod
    def _finish(row: _Row, reason: Literal["stop", "length"] | None, temperature: float) -> Trajectory:
        request = row.request
        teacher_prompt = request.teacher_prompt_ids
        return Trajectory(
            prompt_ids=request.prompt_ids,
            completion_ids=np.array(row.ids, dtype=np.int64),
            behaviour_logprobs=np.array(row.logprobs, dtype=np.float32),
            finish_reason=reason,
            teacher_prompt_ids=request.prompt_ids if teacher_prompt is None else teacher_prompt,
            temperature=temperature,
            prompt_index=request.prompt_index,
            sample_index=request.sample_index,
        )


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Sample by inverting the cumulative distribution: ``[B, V]``, ``[B]`` in [0, 1) -> ids ``[B]``.

    One uniform a row decides, so the choice is a function of the random number and the distribution alone.
    The sum runs in float64: over 150,000 entries an fp32 sum would shift the boundaries by 1e-4.
    """
    cumulative = logprobs.double().exp().cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp_max(logprobs.shape[1] - 1)


def distributions(
    model: LanguageModel,
    trajectories: Sequence[Trajectory],
    *,
    side: Literal["student", "teacher"],
    temperature: float,
    vocabulary: int,
) -> Distributions:
    """Score given completions: the distribution that predicts each completion token, packed row by row.

    Row order is that of the trajectories, ``N = sum(len(t))``. Gradients flow if they are enabled.

    Args:
        model: who scores.
        trajectories: what is scored.
        side: whose prompt goes before the completion.
        temperature: divides the logits.
        vocabulary: number of token ids that count.
    """
    prompts = [t.prompt_ids if side == "student" else t.teacher_prompt_ids for t in trajectories]
    # The last token is predicted but predicts nothing that is graded: it stays out of the input.
    inputs = [np.concatenate([p, t.completion_ids[:-1]]) for p, t in zip(prompts, trajectories, strict=True)]
    width = max(len(ids) for ids in inputs)
    input_ids = torch.zeros((len(inputs), width), dtype=torch.long)
    mask = torch.zeros((len(inputs), width), dtype=torch.long)
    predicts = torch.zeros((len(inputs), width), dtype=torch.bool)
    for i, (ids, prompt) in enumerate(zip(inputs, prompts, strict=True)):
        input_ids[i, : len(ids)] = torch.from_numpy(ids)
        mask[i, : len(ids)] = 1
        predicts[i, len(prompt) - 1 : len(ids)] = True
    device = model.device
    hidden = model.hidden(input_ids.to(device), attention_mask=mask.to(device), use_cache=False)
    return Distributions(hidden[predicts.to(device)], model.head, vocabulary, temperature)


def batches(trajectories: Sequence[Trajectory], tokens: int) -> list[list[int]]:
    """Group trajectories of similar length so that no padded batch exceeds ``tokens`` (one row may).

    Returns:
        Lists of indices into ``trajectories``, longest first; each index occurs once.
    """
    lengths = [max(len(t.prompt_ids), len(t.teacher_prompt_ids)) + len(t) for t in trajectories]
    order = sorted(range(len(trajectories)), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    for i in order:
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _with_prefix(request: SampleRequest) -> np.ndarray:
    if request.prefix_ids is None:
        return request.prompt_ids
    return np.concatenate([request.prompt_ids, request.prefix_ids])


def _stack_uniforms(requests: Sequence[SampleRequest]) -> Tensor:
    width = max(len(r.uniforms) for r in requests)
    out = np.zeros((len(requests), width))
    for i, request in enumerate(requests):
        out[i, : len(request.uniforms)] = request.uniforms
    return torch.from_numpy(out)
