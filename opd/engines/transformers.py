"""The transformers engine: any causal LM that takes a cache samples and is scored here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd.divergence import Distributions, chunk_rows, sampled
from opd.engines.columns import ColumnsCache
from opd.models.hf import Cache, DynamicCache
from opd.models.kernels.packing import alike
from opd.models.network import LanguageModel
from opd.protocols import Sampler, SampleRequest, must_be_finite
from opd.trajectory import FinishReason, Trajectory

# Free rows are filled once they are this share of the batch; with nothing to fill them, they are dropped.
FILL_FROM = 1 / 16
DROP_FROM = 1 / 8

# Prompt tokens, padding included, that are read at once.
PREFILL_TOKENS = 16384


@dataclass
class TransformersSampler(Sampler):
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
        """Yield trajectories as they finish; see :class:`opd.protocols.Sampler`.

        Behaviour log-probs are those of the distribution sampled from; at temperature 0 (greedy) they are
        the model's own at temperature 1.

        Raises:
            ValueError: the model cannot go on from its own cache.
            NotFiniteError: it says what is no number.
        """
        if not self.model.keeps_state:
            kind = type(self.model.causal_lm).__name__
            raise ValueError(
                f"{self.model.name} cannot be sampled from: {kind} does not go on from the cache it is "
                "given. Choose a student of another architecture. (It can grade as a teacher.)"
            )
        # The longest prompts first: rows of like length waste the fewest columns.
        requests = sorted(requests, key=lambda request: -len(request.begin_ids))
        refills = ColumnsCache.serves(DynamicCache(config=self.model.causal_lm.config))
        size = len(requests) if refills else self.in_flight
        for start in range(0, len(requests), size or 1):
            stream = _Stream(self.model, requests[start : start + size], self.in_flight, temperature, refills)
            yield from stream.run(snapshot_every)


@dataclass
class _Prompts:
    """Prompts that have been read and wait for a row.

    Attributes:
        waiting: (request, prompt), the next one first; requests that begin alike share a prompt.
        cache: of all prompts, in one row each, padded on the left, or packed into one.
        line: int64 ``[prompts]``, the row of each in the cache.
        behind: int64 ``[prompts]``, how many columns of the row are behind it.
        hidden: ``[prompts, H]``, predicts the first token.
    """

    waiting: list[tuple[int, int]]
    cache: DynamicCache
    line: Tensor
    behind: Tensor
    hidden: Tensor


class _Stream:
    """Completions that grow side by side, each in a row of the batch.

    What belongs to a request lies in tensors over all requests, and a row only knows its owner's number: so a
    step is the same few operations however many rows there are. A free row is computed too, and dropped.
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
        self.begins = [request.begin_ids for request in requests]
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
        self.position = torch.zeros((rows, 1), dtype=torch.long, device=device)  # of the last token read
        self.columns = len(self.begins[0])  # of the cache
        self.free = list(range(rows))
        self.unread = 0  # the first request whose prompt has not been read
        self.prompts: _Prompts | None = None
        self.cache: Cache | None = None
        self.token = torch.zeros(rows, dtype=torch.long, device=device)  # the newest
        compiled = model.compiled and refills
        self.next_tokens = model.compile(next_tokens) if compiled else next_tokens

    def run(self, snapshot_every: int) -> Iterator[Trajectory]:
        """Yield trajectories as they finish, and the unfinished ones as often as asked."""
        for step in itertools.count(1):
            self._fill()
            stopped = torch.isin(self.token, self.eos)
            ended = (stopped | (self.count >= self.budgets[self.owner])) & (self.owner != self.nobody)
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
                self._drop_free()
            self._grow()

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
        prompt = [place.setdefault(ids.tobytes(), len(place)) for ids in begins]
        inputs = [np.frombuffer(key, dtype=np.int64) for key in place]
        cache = DynamicCache(config=self.model.causal_lm.config)
        states, ends, line, behind = self._read_into(cache, inputs)
        waiting = [(self.unread + i, which) for i, which in enumerate(prompt)]
        self._score_prefixes(waiting, states, ends)
        self.unread += len(prompt)
        line, behind, last = torch.tensor([line, behind, [end - 1 for end in ends]], device=states.device)
        return _Prompts(waiting, cache, line, behind, states[last])

    def _read_into(
        self, cache: DynamicCache, inputs: Sequence[np.ndarray]
    ) -> tuple[Tensor, list[int], list[int], list[int]]:
        """Fill a cache; return all hidden states, where each prompt ends in them, and its line and place."""
        if self.refills and self.model.packs:
            states, starts = self.model.read(inputs, past_key_values=cache, use_cache=True)
            ends = [start + len(ids) for start, ids in zip(starts, inputs, strict=True)]
            return states, ends, [0] * len(inputs), [len(states) - end for end in ends]
        width = len(inputs[0])
        input_ids = torch.zeros((len(inputs), width), dtype=torch.long)
        mask = torch.zeros((len(inputs), width), dtype=torch.long)
        for i, ids in enumerate(inputs):  # padded on the left: every row's next token is the last column
            input_ids[i, width - len(ids) :] = torch.tensor(ids)
            mask[i, width - len(ids) :] = 1
        mask = mask.to(self.owner.device)
        states = self.model.hidden(
            input_ids.to(mask.device),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            past_key_values=cache,
            use_cache=True,
        )
        lines = list(range(len(inputs)))
        return states.flatten(0, 1), [width * (i + 1) for i in lines], lines, [0] * len(inputs)

    def _score_prefixes(
        self, waiting: Sequence[tuple[int, int]], states: Tensor, ends: Sequence[int]
    ) -> None:
        """Give forced tokens the log-prob the model assigned them, from the prompt's own forward."""
        chunk = chunk_rows(self.model.vocabulary)
        known: dict[tuple[int, int], Tensor] = {}
        for request, prompt in waiting:
            prefix = self.requests[request].prefix_ids
            if prefix is None or not len(prefix):
                continue
            n, ids = len(prefix), torch.tensor(prefix, device=states.device)
            if (prompt, n) not in known:
                predicts = states[ends[prompt] - n - 1 : ends[prompt] - 1]
                parts = zip(predicts.split(chunk), ids.split(chunk), strict=True)
                known[prompt, n] = torch.cat(
                    [sampled(_logprobs(self.model, part, self.temperature), taken) for part, taken in parts]
                )
            self.tokens[request, :n] = ids
            self.logprobs[request, :n] = known[prompt, n]

    def _enter(self, prompts: _Prompts) -> None:
        """Let as many of these requests grow as there are free rows."""
        taken = prompts.waiting[: len(self.free)]
        rows, self.free = self.free[: len(taken)], self.free[len(taken) :]
        prompts.waiting = prompts.waiting[len(taken) :]
        device = self.owner.device
        where = torch.tensor(rows, device=device)
        requests, which = torch.tensor(taken, device=device).unbind(1)
        begun = [
            (len(self.begins[i]), self.begins[i].size - self.requests[i].prompt_ids.size) for i, _ in taken
        ]
        length, count = torch.tensor(begun, device=device).unbind(1)
        if self.cache is None and self.refills:
            self.cache = ColumnsCache.like(prompts.cache, len(self.owner), self.columns)
        if self.refills:
            width = max(size for size, _ in begun)
            self.cache.enter(where, prompts.cache, prompts.line[which], prompts.behind[which], width)
        else:  # this happens once, and to all rows
            self.cache = prompts.cache
            self.cache.reorder_cache(prompts.line[which])
        self.owner[where], self.position[where, 0] = requests, length - 1
        token, logprob = choose(
            self.model, prompts.hidden[which], self.uniforms[requests, count], self.temperature
        )
        self.tokens[requests, count], self.logprobs[requests, count] = token, logprob
        self.token[where], self.count[where] = token, count + 1
        self._drop_columns()

    def _grow(self) -> None:
        """Let the model read the newest token of every row and give it the next one."""
        self.columns += 1
        self.position += 1
        # A row's tokens are the last columns, as many as it has.
        column = torch.arange(self.columns, device=self.position.device)
        visible = column >= self.columns - 1 - self.position
        if self.refills:
            self.cache.make_room()
        place = self.owner, self.count.clamp_max(self.uniforms.shape[1] - 1)
        # A single row would be a case of its own to the compiler, and gains little.
        step = self.next_tokens if len(self.token) > 1 else next_tokens
        self.token, logprob = step(
            self.model,
            self.token,
            self.uniforms[place],
            self.temperature,
            attention_mask=self.model.step_mask(visible),
            position_ids=self.position,
            past_key_values=self.cache,
        )
        self.tokens[place], self.logprobs[place] = self.token, logprob
        self.count += 1

    def _trajectories(self, rows: Tensor, reasons: Sequence[FinishReason | None]) -> Iterator[Trajectory]:
        owners = self.owner[rows]
        columns = (x.cpu().numpy() for x in (self.tokens[owners], self.logprobs[owners]))
        for i, n, reason, ids, logprobs in zip(
            owners.tolist(), self.count[rows].tolist(), reasons, *columns, strict=True
        ):
            request = self.requests[i]
            must_be_finite(self.model.name, logprobs[:n])
            yield request.answered(ids[:n].copy(), logprobs[:n].copy(), reason, self.temperature)

    def _drop_free(self) -> None:
        """Go on with the rows that grow."""
        kept = (self.owner != self.nobody).nonzero().squeeze(1)
        self.cache.reorder_cache(kept)
        self.owner, self.count, self.position = self.owner[kept], self.count[kept], self.position[kept]
        self.token, self.free = self.token[kept], []
        self._drop_columns()

    def _drop_columns(self) -> None:
        """Forget columns on the left, once many are of no use to a row or to the next prompt."""
        longest = int(self.position[self.owner != self.nobody].max()) + 1
        widest = len(self.begins[self._next()]) if self._waiting() else 0
        idle = self.columns - max(longest, widest)
        if self.refills and idle >= DROP_FROM * self.columns:
            self.cache.drop_left(idle)
            self.columns -= idle


def next_tokens(
    model: LanguageModel,
    token: Tensor,
    uniforms: Tensor,
    temperature: float,
    **inputs: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor]:
    """Let the model read one token a row, ``[B]``, and choose the next ones as :func:`choose` does."""
    hidden = model.hidden(token[:, None], use_cache=True, **inputs)[:, -1]
    return choose(model, hidden, uniforms, temperature)


def choose(
    model: LanguageModel, hidden: Tensor, uniforms: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Choose a token for each row of hidden states ``[B, H]``; return them and their log-probs, ``[B]``."""
    logprobs = _logprobs(model, hidden, temperature)
    token = logprobs.argmax(-1) if temperature == 0 else draw(logprobs, uniforms)
    return token, sampled(logprobs, token)


def _logprobs(model: LanguageModel, hidden: Tensor, temperature: float) -> Tensor:
    """Log-probs at the temperature; of greedy sampling those at temperature 1."""
    return Distributions(hidden, model.head, model.vocabulary, temperature or 1.0).log_probs(hidden)


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Sample by inverting the cumulative distribution: ``[B, V]``, ``[B]`` in [0, 1) -> ids ``[B]``.

    One uniform a row decides, so the choice is a function of the random number and the distribution alone.
    The sum runs in float64: over 150,000 entries an fp32 sum would shift the boundaries by 1e-4.
    """
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
    target = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp_max(logprobs.shape[1] - 1)


def batches(trajectories: Sequence[Trajectory], tokens: int, *, packed: bool) -> list[list[int]]:
    """Group trajectories so that no group has more than ``tokens`` to read (one trajectory may).

    Args:
        trajectories: what is to be read.
        tokens: prompt and completion tokens of a group; with padding where there is any.
        packed: whoever reads them needs no padding. Else those of like length are put together.

    Returns:
        Lists of indices into ``trajectories``, longest first; each index occurs once.
    """
    lengths = [max(len(t.prompt_ids), len(t.teacher_prompt_ids)) + len(t) for t in trajectories]
    if not packed:
        return [
            group[start : start + rows]
            for group in alike(lengths)
            for rows in [max(1, tokens // lengths[group[0]])]
            for start in range(0, len(group), rows)
        ]
    groups: list[list[int]] = []
    room = 0
    for i in sorted(range(len(trajectories)), key=lambda i: -lengths[i]):
        if lengths[i] > room:
            groups.append([])
            room = tokens
        groups[-1].append(i)
        room -= lengths[i]
    return groups
