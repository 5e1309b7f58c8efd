"""The transformers engine: any causal LM that takes a cache samples and is scored here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from opd.divergence import CHUNK_ELEMENTS, Distributions, sampled
from opd.engines import SampleRequest
from opd.engines.columns import ColumnsCache
from opd.models import LanguageModel
from opd.trajectory import Trajectory

# Free rows are filled once they are this share of the batch; with nothing to fill them, they are dropped.
FILL_FROM = 1 / 16
DROP_FROM = 1 / 4

# Prompt tokens, padding included, that are read at once.
PREFILL_TOKENS = 16384

# A batch is not continued with a row that would be padding for more than this share, once it is worth a
# forward of its own: this many tokens.
PADDING_SHARE = 0.2
SPLIT_FROM = 512


@dataclass
class TransformersSampler:
    """Samples from a model with its own key-value cache, many rows at a time.

    When a completion ends, the next request takes its row. A model that keeps more than keys and values (the
    state of a recurrence) is sampled batch after batch instead.

    Attributes:
        model: the model to sample from; it is read at every call, so training it is synchronising it.
        in_flight: how many completions grow together.
    """

    model: LanguageModel
    in_flight: int = 64

    @torch.inference_mode()
    def sample(
        self, requests: Sequence[SampleRequest], *, temperature: float = 1.0, snapshot_every: int = 0
    ) -> Iterator[Trajectory]:
        """Yield trajectories as they finish; see :class:`opd.engines.Sampler`.

        Behaviour log-probs are those of the distribution sampled from; at temperature 0 (greedy) they are
        the model's own at temperature 1.
        """
        # The longest prompts first: rows of like length waste the fewest columns.
        requests = sorted(requests, key=lambda request: -len(_with_prefix(request)))
        refills = ColumnsCache.serves(DynamicCache(config=self.model.causal_lm.config))
        size = len(requests) if refills else self.in_flight
        for start in range(0, len(requests), size or 1):
            stream = _Stream(self.model, requests[start : start + size], self.in_flight, temperature, refills)
            yield from stream.run(snapshot_every)

    def sync(self) -> None:
        """Do nothing: the model that trains is the one that samples."""


@dataclass
class _Prompts:
    """Prompts that have been read and wait for a row.

    Attributes:
        waiting: (request, line of the cache), the next one first; requests that begin alike share a line.
        cache: of all lines, padded on the left.
        hidden: ``[lines, H]``, predicts the first token.
    """

    waiting: list[tuple[int, int]]
    cache: DynamicCache
    hidden: Tensor


class _Stream:
    """Completions that grow side by side, each in a row of the batch.

    What belongs to a request lies in tensors over all requests, and a row only knows its owner's number: so a
    step is the same few operations however many rows there are. A free row grows on for nobody.
    """

    def __init__(
        self,
        model: LanguageModel,
        requests: Sequence[SampleRequest],
        in_flight: int,
        temperature: float,
        refills: bool,
    ) -> None:
        self.model, self.requests, self.temperature, self.refills = model, requests, temperature, refills
        self.begins = [_with_prefix(request) for request in requests]
        self.nobody, device = len(requests), model.device
        budgets = [len(request.uniforms) for request in requests]
        uniforms = np.zeros((len(requests) + 1, max(budgets)))
        for line, request in zip(uniforms, requests, strict=False):
            line[: len(request.uniforms)] = request.uniforms
        self.uniforms = torch.from_numpy(uniforms).to(device)
        self.budgets = torch.tensor([*budgets, 0], device=device)
        self.tokens = torch.zeros(uniforms.shape, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(uniforms.shape, device=device)
        self.eos = torch.tensor(model.eos_ids, device=device)

        rows = min(in_flight, len(requests))
        self.owner = torch.full((rows,), self.nobody, device=device)
        self.count = torch.zeros(rows, dtype=torch.long, device=device)  # completion tokens so far
        self.position = torch.zeros((rows, 1), dtype=torch.long, device=device)  # of the newest token
        self.mask = torch.zeros((rows, len(self.begins[0])), dtype=torch.long, device=device)
        self.free = list(range(rows))
        self.unread = 0  # the first request whose prompt has not been read
        self.prompts: _Prompts | None = None
        self.cache: Cache | None = None
        self.hidden: Tensor | None = None  # [rows, H], predicts the next token

    def run(self, snapshot_every: int) -> Iterator[Trajectory]:
        """Yield trajectories as they finish, and the unfinished ones as often as asked."""
        for step in itertools.count(1):
            self._fill()
            token, ended, stopped = self._draw()
            if ended.any():
                rows = ended.nonzero().squeeze(1)
                yield from self._trajectories(
                    rows, ["stop" if s else "length" for s in stopped[rows].tolist()]
                )
                self.owner[rows] = self.nobody
                self.free += rows.tolist()
            waiting, growing = self._waiting(), len(self.owner) - len(self.free)
            if not growing and not waiting:
                return
            if snapshot_every and step % snapshot_every == 0:
                rows = (self.owner != self.nobody).nonzero().squeeze(1)
                yield from self._trajectories(rows, [None] * growing)
            if not waiting and len(self.free) >= DROP_FROM * len(self.owner):
                token = self._drop_free(token)
            self._grow(token)

    def _waiting(self) -> bool:
        return self._next() < len(self.requests)

    def _next(self) -> int:
        """Return the request that is given a row next; with none left, their number."""
        return self.prompts.waiting[0][0] if self.prompts and self.prompts.waiting else self.unread

    def _fill(self) -> None:
        """Give free rows to requests that wait."""
        if len(self.free) < FILL_FROM * len(self.owner):
            return
        while self.free and self._waiting():
            if not (self.prompts and self.prompts.waiting):
                self.prompts = self._read()
            self._enter(self.prompts)

    def _read(self) -> _Prompts:
        """Read the prompts of the next requests, as many as there are rows."""
        begins = self.begins[self.unread : self.unread + len(self.owner)]
        if self.refills:
            begins = begins[: max(1, PREFILL_TOKENS // len(begins[0]))]
        place: dict[bytes, int] = {}
        lines = [place.setdefault(ids.tobytes(), len(place)) for ids in begins]
        inputs = [np.frombuffer(key, dtype=np.int64) for key in place]
        width = len(inputs[0])
        input_ids = torch.zeros((len(inputs), width), dtype=torch.long)
        mask = torch.zeros((len(inputs), width), dtype=torch.long)
        for i, ids in enumerate(inputs):  # padded on the left: every row's next token is the last column
            input_ids[i, width - len(ids) :] = torch.tensor(ids)
            mask[i, width - len(ids) :] = 1
        mask = mask.to(self.owner.device)
        cache = DynamicCache(config=self.model.causal_lm.config)
        hidden = self.model.hidden(
            input_ids.to(mask.device),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            past_key_values=cache,
            use_cache=True,
        )
        waiting = [(self.unread + i, line) for i, line in enumerate(lines)]
        self._score_prefixes(waiting, hidden)
        self.unread += len(lines)
        return _Prompts(waiting, cache, hidden[:, -1].clone())

    def _score_prefixes(self, waiting: Sequence[tuple[int, int]], hidden: Tensor) -> None:
        """Give forced tokens the log-prob the model assigned them, from the prompt's own forward."""
        chunk = max(1, CHUNK_ELEMENTS // self.model.vocabulary)
        known: dict[tuple[int, int], Tensor] = {}
        for request, line in waiting:
            prefix = self.requests[request].prefix_ids
            if prefix is None or not len(prefix):
                continue
            n, ids = len(prefix), torch.tensor(prefix, device=hidden.device)
            if (line, n) not in known:
                parts = zip(hidden[line, -n - 1 : -1].split(chunk), ids.split(chunk), strict=True)
                known[line, n] = torch.cat([sampled(self._logprobs(part), taken) for part, taken in parts])
            self.tokens[request, :n] = ids
            self.logprobs[request, :n] = known[line, n]

    def _enter(self, prompts: _Prompts) -> None:
        """Let as many of these requests grow as there are free rows."""
        taken = prompts.waiting[: len(self.free)]
        rows, self.free = self.free[: len(taken)], self.free[len(taken) :]
        prompts.waiting = prompts.waiting[len(taken) :]
        device = self.owner.device
        where = torch.tensor(rows, device=device)
        requests, lines = torch.tensor(taken, device=device).unbind(1)
        if self.cache is None and self.refills:
            self.cache = ColumnsCache.like(prompts.cache, len(self.owner), self.mask.shape[1])
            self.hidden = prompts.hidden.new_zeros(len(self.owner), prompts.hidden.shape[1])
        if self.refills:
            self.cache.enter(where, prompts.cache, lines)
            self.hidden[where] = prompts.hidden[lines]
        else:  # this happens once, and to all rows
            self.cache, self.hidden = prompts.cache, prompts.hidden[lines]
            self.cache.reorder_cache(lines)
        begun = [
            (len(self.begins[i]), self.begins[i].size - self.requests[i].prompt_ids.size) for i, _ in taken
        ]
        length, count = torch.tensor(begun, device=device).unbind(1)
        columns = self.mask.shape[1]
        self.mask[where] = (torch.arange(columns, device=device) >= columns - length[:, None]).long()
        self.owner[where], self.count[where], self.position[where, 0] = requests, count, length - 1
        self._drop_columns()

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Give every row its next token; return it, which completions end, and which by an eos token."""
        place = self.owner, self.count.clamp_max(self.uniforms.shape[1] - 1)
        logprobs = self._logprobs(self.hidden)
        token = logprobs.argmax(-1) if self.temperature == 0 else draw(logprobs, self.uniforms[place])
        self.tokens[place], self.logprobs[place] = token, sampled(logprobs, token)
        self.count += 1
        stopped = torch.isin(token, self.eos)
        ended = (stopped | (self.count >= self.budgets[self.owner])) & (self.owner != self.nobody)
        return token, ended, stopped

    def _logprobs(self, hidden: Tensor) -> Tensor:
        model = self.model
        return Distributions(hidden, model.head, model.vocabulary, self.temperature or 1.0).log_probs(hidden)

    def _grow(self, token: Tensor) -> None:
        """Let the model read the newest token of every row, ``[rows]``."""
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(self.mask), 1))], dim=1)
        self.position += 1
        self.hidden = self.model.hidden(
            token[:, None],
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )[:, -1]

    def _trajectories(
        self, rows: Tensor, reasons: Sequence[Literal["stop", "length"] | None]
    ) -> Iterator[Trajectory]:
        owners = self.owner[rows]
        columns = (x.cpu().numpy() for x in (self.tokens[owners], self.logprobs[owners]))
        for i, n, reason, ids, logprobs in zip(
            owners.tolist(), self.count[rows].tolist(), reasons, *columns, strict=True
        ):
            request = self.requests[i]
            teacher_prompt = request.teacher_prompt_ids
            yield Trajectory(
                prompt_ids=request.prompt_ids,
                completion_ids=ids[:n].copy(),
                behaviour_logprobs=logprobs[:n].copy(),
                finish_reason=reason,
                teacher_prompt_ids=request.prompt_ids if teacher_prompt is None else teacher_prompt,
                temperature=self.temperature,
                prompt_index=request.prompt_index,
                sample_index=request.sample_index,
            )

    def _drop_free(self, token: Tensor) -> Tensor:
        """Go on with the rows that grow."""
        kept = (self.owner != self.nobody).nonzero().squeeze(1)
        self.cache.reorder_cache(kept)
        self.owner, self.count, self.position = self.owner[kept], self.count[kept], self.position[kept]
        self.mask, self.free = self.mask[kept], []
        self._drop_columns()
        return token[kept]

    def _drop_columns(self) -> None:
        """Forget columns on the left, once many are of no use to a row or to the next prompt."""
        columns = self.mask.shape[1]
        longest = int(self.position[self.owner != self.nobody].max()) + 1
        widest = len(self.begins[self._next()]) if self._waiting() else 0
        idle = columns - max(longest, widest)
        if self.refills and idle >= DROP_FROM * columns:
            self.cache.drop_left(idle)
            self.mask = self.mask[:, idle:]


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Sample by inverting the cumulative distribution: ``[B, V]``, ``[B]`` in [0, 1) -> ids ``[B]``.

    One uniform a row decides, so the choice is a function of the random number and the distribution alone.
    The sum runs in float64: over 150,000 entries an fp32 sum would shift the boundaries by 1e-4.
    """
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
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
    predicts = torch.zeros((len(inputs), width), dtype=torch.bool)
    for i, (ids, prompt) in enumerate(zip(inputs, prompts, strict=True)):
        input_ids[i, : len(ids)] = torch.from_numpy(ids)
        predicts[i, len(prompt) - 1 : len(ids)] = True
    # Padding is behind what counts, where causal attention does not look: no mask is needed.
    hidden = model.hidden(input_ids.to(model.device), use_cache=False)
    return Distributions(hidden[predicts.to(model.device)], model.head, vocabulary, temperature)


def batches(trajectories: Sequence[Trajectory], tokens: int) -> list[list[int]]:
    """Group trajectories of similar length so that no padded batch exceeds ``tokens`` (one row may).

    Returns:
        Lists of indices into ``trajectories``, longest first; each index occurs once.
    """
    lengths = [max(len(t.prompt_ids), len(t.teacher_prompt_ids)) + len(t) for t in trajectories]
    order = sorted(range(len(trajectories)), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    for i in order:
        widest = lengths[groups[-1][0]] if groups else 0
        rows = len(groups[-1]) if groups else 0
        wasteful = lengths[i] < (1 - PADDING_SHARE) * widest and rows * widest >= SPLIT_FROM
        if groups and widest * (rows + 1) <= tokens and not wasteful:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _with_prefix(request: SampleRequest) -> np.ndarray:
    if request.prefix_ids is None:
        return request.prompt_ids
    return np.concatenate([request.prompt_ids, request.prefix_ids])
