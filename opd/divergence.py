"""Divergences between two next-token distributions, and the driver that never holds a batch of them.

A batch of distributions is ``N`` rows of hidden states and the head that turns a row into ``V`` logits.
The driver :func:`over_chunks` walks the rows a few at a time, so that the largest tensor with a vocabulary
axis is one chunk; in training each chunk is differentiated before the next one is made, so nothing is
recomputed and no chunk outlives its turn.

All log-softmaxes are fp32 whatever the model's dtype: in bf16 two equal models seem to differ by 1e-2 nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

# Elements of one chunk of logits: 64 MiB in fp32, so the handful of chunk-sized temporaries of a divergence
# and its gradient stays well under 1 GiB at any vocabulary.
CHUNK_ELEMENTS = 2**24

# Rows of a chunk at most: of a small vocabulary these stay in a processor's cache (benchmarks/NOTES.md).
CHUNK_ROWS = 1024


def chunk_rows(vocabulary: int, chunk_elements: int = CHUNK_ELEMENTS) -> int:
    """Return how many rows of log-probs are looked at together, at least one."""
    return max(1, min(CHUNK_ROWS, chunk_elements // vocabulary))


@dataclass(frozen=True)
class Distributions:
    """``N`` next-token distributions of one model, not yet multiplied out.

    Attributes:
        hidden: ``[N, H]``, the last hidden states (or logits, where ``head`` is the identity).
        head: turns ``[n, H]`` into logits ``[n, V]``, soft-capping and scaling included.
        vocabulary: how many of the head's rows stand for tokens; rows beyond it are padding.
        temperature: divides the logits.
    """

    hidden: Tensor
    head: Callable[[Tensor], Tensor]
    vocabulary: int
    temperature: float = 1.0

    def __len__(self) -> int:
        """Return N."""
        return len(self.hidden)

    def log_probs(self, hidden: Tensor) -> Tensor:
        """Return fp32 log-probs ``[n, V]`` of some rows ``[n, H]``; padded vocabulary rows win no mass."""
        logits = self.head(hidden)[:, : self.vocabulary].float()
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return torch.log_softmax(logits, dim=-1)

    def rows(self, part: slice) -> Tensor:
        """Return fp32 log-probs ``[n, V]`` of some rows."""
        return self.log_probs(self.hidden[part])

    def __getitem__(self, part: slice) -> Distributions:
        """Return the distributions of some rows, a view."""
        return replace(self, hidden=self.hidden[part])

    @staticmethod
    def joined(parts: Sequence[Distributions]) -> Distributions:
        """Put distributions of one model behind one another."""
        return replace(parts[0], hidden=torch.cat([part.hidden for part in parts]))


@dataclass(frozen=True)
class TopK:
    """What an engine elsewhere says of ``N`` next-token distributions: exact, but not all of it.

    The fields are those of :class:`opd.trajectory.TokenScores`; there is no entropy.

    Attributes:
        logprobs: ``[N]``, log-prob of each token that was taken.
        ranks: int64 ``[N]``, how many tokens are strictly likelier than it.
        top_ids: int64 ``[N, K]``, the model's likeliest tokens.
        top_logprobs: ``[N, K]``, their log-probs.
    """

    logprobs: Tensor
    ranks: Tensor
    top_ids: Tensor
    top_logprobs: Tensor

    def __getitem__(self, part: slice) -> TopK:
        """Return what is known of some rows, a view."""
        return self._each(lambda column: column[part])

    rows = __getitem__

    def to(self, device: torch.device) -> TopK:
        """Return the same on a device."""
        return self._each(lambda column: column.to(device))

    @staticmethod
    def joined(parts: Sequence[TopK]) -> TopK:
        """Put what is known of several texts behind one another."""
        return TopK(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(TopK)))

    def _each(self, change: Callable[[Tensor], Tensor]) -> TopK:
        return TopK(*(change(getattr(self, f.name)) for f in fields(self)))


Predictions = Distributions | TopK
"""What a model says of ``N`` tokens, wherever it computes: looked at a few ``rows`` at a time, cut by texts
(:func:`opd.packed.cut`) and ``joined`` again."""

ChunkFn = Callable[..., tuple[Tensor | None, dict[str, Tensor]]]


def over_chunks(
    fn: ChunkFn,
    student: Distributions,
    teacher: Predictions,
    *columns: Tensor,
    backward: bool = False,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> dict[str, Tensor]:
    """Run ``fn`` over chunks of rows and join what it reports.

    Args:
        fn: ``fn(student_logprobs [n, V], teacher [n, V] or TopK, *columns [n, ...])`` returns the loss of
            each row ``[n]`` (already divided by whatever the step divides by; None where nothing is trained)
            and a dict of detached signals ``[n, ...]``.
        student: the student's distributions; its hidden states carry the graph when ``backward``.
        teacher: the teacher's, of the same rows, on any device; never differentiated.
        columns: tensors with ``N`` rows, cut alongside.
        backward: add the gradient of the summed loss to the student's parameters. One backward pass goes
            through the head per chunk, one through the body at the end.
        chunk_elements: upper bound on rows x vocabulary of a chunk (see :func:`chunk_rows`).

    Returns:
        The signals joined over all rows, ``[N, ...]``, plus ``"loss"`` ``[N]`` if ``fn`` gave one.
    """
    rows = chunk_rows(student.vocabulary, chunk_elements)
    leaf = student.hidden.detach().requires_grad_(backward)

    def signals_of(cut: slice) -> dict[str, Tensor]:  # whose tensors are gone before the next chunk's come
        with torch.no_grad():
            known = teacher.rows(cut).to(leaf.device)
        with torch.set_grad_enabled(backward):
            loss, signals = fn(student.log_probs(leaf[cut]), known, *(c[cut] for c in columns))
            if loss is not None:
                signals["loss"] = loss.detach()
                if backward:
                    loss.sum().backward()
        return signals

    out: dict[str, Tensor] = {}
    for start in range(0, len(student), rows):
        cut = slice(start, start + rows)
        for name, part in signals_of(cut).items():
            # Into one tensor at once: small tensors that outlive a chunk would lie between its large ones,
            # which the C allocator could then not give back.
            if name not in out:
                out[name] = part.new_empty((len(student), *part.shape[1:]))
            out[name][cut] = part
    if backward and leaf.grad is not None:
        student.hidden.backward(leaf.grad)
    return out


def sampled(logprobs: Tensor | TopK, ids: Tensor) -> Tensor:
    """Return the log-prob of each row's token: ``[n, V]``, ``[n]`` on any device -> ``[n]``."""
    if isinstance(logprobs, TopK):
        return logprobs.logprobs
    return logprobs.gather(1, ids.to(logprobs.device)[:, None]).squeeze(1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(student || teacher) of each row, ``[n, V]`` x 2 -> ``[n]``, nats.

    Its gradient is exact: the score-function part and the pathwise part are the same thing here.
    """
    return (student.exp() * (student - teacher)).sum(-1)


def jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Return beta KL(T || M) + (1 - beta) KL(S || M) with M = beta T + (1 - beta) S, ``[n]``.

    The mixture is formed in log space: log(mean of exp) underflows. For 0 < beta < 1; the ends are zero.
    """
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * reverse_kl(teacher, mixture) + (1 - beta) * reverse_kl(student, mixture)


def topk_reverse_kl(student: Tensor, teacher: Tensor | TopK, support: Tensor) -> Tensor:
    """Return the reverse KL over some tokens and one bucket for all others, nats.

    By the data-processing inequality it is a lower bound of the full reverse KL.

    Args:
        student: log-probs ``[n, V]``.
        teacher: log-probs ``[n, V]``, or what is known of them; then ``support`` are its first K tokens.
        support: the tokens kept, int64 ``[n, K]``.
    """
    kept_student = student.gather(1, support)
    if isinstance(teacher, TopK):
        kept_teacher = teacher.top_logprobs[:, : support.shape[1]]
    else:
        kept_teacher = teacher.gather(1, support)
    tail_student, tail_teacher = _tail(kept_student), _tail(kept_teacher)
    return reverse_kl(kept_student, kept_teacher) + tail_student.exp() * (tail_student - tail_teacher)


def topk_agreement(student: Tensor, teacher: TopK) -> Tensor:
    """Return the sum of min(p_student, p_teacher) over the teacher's tokens and one bucket for all others.

    What is put together can only agree more: it is an upper bound of the sum over all tokens.

    Args:
        student: log-probs ``[n, V]``.
        teacher: what is known of it.
    """
    kept_student, kept_teacher = student.gather(1, teacher.top_ids), teacher.top_logprobs
    tails = torch.minimum(_tail(kept_student), _tail(kept_teacher))
    return (torch.minimum(kept_student, kept_teacher).exp().sum(-1) + tails.exp()).clamp_max(1)


def _tail(kept: Tensor) -> Tensor:
    """Log-mass of everything outside ``kept`` ``[n, K]``; floored at fp32's resolution of 1."""
    return torch.log1p(-kept.exp().sum(-1).clamp_max(1 - 2**-24))


def token_signals(
    student: Tensor, teacher: Tensor | TopK, ids: Tensor, top_k: int, all_divergences: bool = False
) -> dict[str, Tensor]:
    """Return the signals of :class:`opd.trajectory.Grades` for a chunk of log-probs.

    Args:
        student: the student's log-probs ``[n, V]``.
        teacher: the teacher's log-probs ``[n, V]``; or what is known of them, and then the reverse KL is the
            lower bound by its tokens and the tail, the agreement an upper one, and the teacher has no
            entropy.
        ids: the tokens that were taken, int64 ``[n]``.
        top_k: how many alternatives of each model to keep.
        all_divergences: forward KL and JSD too. To look at, not to train on: they cost more passes over the
            vocabulary than all the other signals.
    """
    student = student.detach()
    p = student.exp()
    out = {
        "penalty": sampled(student, ids) - sampled(teacher, ids),
        **_of("student", scores(student, ids, top_k, p)),
    }
    if isinstance(teacher, TopK):
        bound = topk_reverse_kl(student, teacher, teacher.top_ids).clamp_min(0)
        agreement = topk_agreement(student, teacher)
        return out | {"reverse_kl": bound, "agreement": agreement, **_of("teacher", vars(teacher))}
    out["reverse_kl"] = (p * (student - teacher)).sum(-1).clamp_min(0)
    q = teacher.exp()
    out |= _of("teacher", scores(teacher, ids, top_k, q))
    out["agreement"] = torch.minimum(p, q, out=p).sum(-1).clamp_max(1)
    del p  # each is as large as the chunk
    if all_divergences:
        out["forward_kl"] = (q * (teacher - student)).sum(-1).clamp_min(0)
        del q
        out["jsd"] = jsd(student, teacher, 0.5).clamp_min(0)
    return out


def scores(logprobs: Tensor, ids: Tensor, top_k: int, probabilities: Tensor) -> dict[str, Tensor]:
    """Return what :class:`opd.trajectory.TokenScores` holds, by its fields, for a chunk.

    Args:
        logprobs: ``[n, V]``.
        ids: the tokens that were taken, int64 ``[n]``.
        top_k: how many alternatives to keep.
        probabilities: ``logprobs.exp()``, which whoever asks may have use for too.
    """
    taken = sampled(logprobs, ids)
    top = logprobs.topk(min(top_k, logprobs.shape[1]), dim=-1)
    # Counted in fp32, which is exact for any vocabulary there is: booleans would be widened to int64 first.
    likelier = torch.gt(logprobs, taken[:, None], out=torch.empty_like(logprobs))
    return {
        "logprobs": taken,
        "entropy": -(probabilities * logprobs).sum(-1),
        "ranks": likelier.sum(-1).long(),
        "top_ids": top.indices,
        "top_logprobs": top.values,
    }


def _of(side: str, columns: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{side}.{name}": column for name, column in columns.items()}
