"""The update: the gradient of a step's rollouts, micro-batch by micro-batch, and the optimizer's step.

The grades fall out of the same forward: nothing is computed twice.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from opd.divergence import TopK, over_chunks, token_signals
from opd.engines.transformers import batches
from opd.grading.grading import to_grades
from opd.models.network import LanguageModel
from opd.models.parallel import exchange, rank, share, sum_gradients, whole, world
from opd.packed import completions, cut, pack
from opd.phases import announce, count
from opd.training.learner import Learner
from opd.training.losses import TOP_K, Chunk, token_loss
from opd.training.rollouts import Rollout
from opd.training.teacher_scores import TeacherScores
from opd.trajectory import Grades


@dataclass(frozen=True)
class Updated:
    """What an update found out.

    Attributes:
        grades: of every rollout, from the update's own forward.
        loss: mean over the tokens that count.
        gradient_norm: before clipping.
        stop_mass: the student's probability of ending at the last token of each rollout.
        notes: what this process had to do differently, a sentence or two each.
    """

    grades: list[Grades]
    loss: float
    gradient_norm: float
    stop_mass: list[float]
    notes: Sequence[str] = ()


def update(learner: Learner, rollouts: Sequence[Rollout], teachers: TeacherScores, rate: float) -> Updated:
    """Make one optimizer step at a learning rate; out of memory, repeat it with smaller micro-batches.

    Raises:
        NotFiniteError: the student or a teacher says what is no number; the message says which.
        RuntimeError: the loss or the gradient is not finite; the weights are those before the update.
        OutOfMemoryError: the longest rollout alone does not fit.
    """
    notes: list[str] = []
    while True:
        try:
            updated = gradient(learner, rollouts, teachers)
            break
        except torch.OutOfMemoryError:
            longest = max(len(r.trajectory.prompt_ids) + len(r.trajectory) for r in rollouts)
            alone = world() > 1 and learner.config.shard  # the others wait inside the step that failed
            if learner.micro_batch_tokens <= longest or alone:
                raise
            learner.micro_batch_tokens = max(longest, learner.micro_batch_tokens // 2)
            notes.append(
                f"Out of memory: the micro-batch was halved to {learner.micro_batch_tokens} tokens and the "
                "step repeated. The gradient is the same."
            )
        # Outside the except clause: inside it the traceback keeps the failed step's tensors alive.
        torch.cuda.empty_cache()
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    return replace(updated, notes=notes)


def gradient(learner: Learner, rollouts: Sequence[Rollout], teachers: TeacherScores) -> Updated:
    """Accumulate the clipped gradient of the mean loss per token, and grade every token on the way.

    Raises:
        NotFiniteError: the student or a teacher says what is no number; the message says which.
        RuntimeError: the loss or the gradient is not finite.
    """
    config, student = learner.config, learner.student
    # Of the step's chosen tokens none may fall into this part: then there is nothing to learn from it.
    total = max(1, sum(r.trained_tokens for r in rollouts))
    settled = any(r.advantages is not None for r in rollouts)

    def loss_and_grades(
        ours: Tensor, theirs: Tensor | TopK, ids: Tensor, columns: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        behaviour, weights, rewards, advantages = columns.unbind(1)
        chunk = Chunk(ours, theirs, ids, behaviour, advantages if settled else None, rewards)
        loss = token_loss(chunk, config) * weights / total
        signals = token_signals(ours, theirs, ids, TOP_K)
        signals["stop_mass"] = ours.detach()[:, student.eos_ids].exp().sum(-1)
        return loss, signals

    announce("Grading and taking the gradient")
    learner.optimizer.zero_grad(set_to_none=True)
    found: dict[int, tuple[Grades, float]] = {}  # of each rollout, its grades and stop mass
    loss = 0.0
    with learner.precision():
        for indices, batch in _micro_batches(learner, rollouts):
            pair, trajectories = batch[0].lesson.pair, [r.trajectory for r in batch]
            ids = completions(trajectories, student.device)
            columns = pack(map(_columns, batch), student.device)
            with torch.no_grad():
                theirs = teachers.ask(pair, trajectories)
            with train_mode(student):
                ours = learner.score(pair, trajectories)
                signals = over_chunks(loss_and_grades, ours, theirs, ids, columns, backward=True)
            loss += float(signals.pop("loss").sum())
            stop_mass = [float(part[-1]) for part in cut(signals.pop("stop_mass").cpu(), trajectories)]
            graded = to_grades(pair, signals, trajectories, config.temperature)
            # A rollout that only makes up the number of forwards has no index.
            found |= zip(indices, zip(graded, stop_mass, strict=True), strict=False)
            count(len(found), len(rollouts))
    losses, parts = zip(*exchange((loss, found)), strict=True)
    sum_gradients(learner.parameters.values())
    loss, found = sum(losses), {i: known for part in parts for i, known in part.items()}
    grades, stop_mass = zip(*(found[i] for i in range(len(rollouts))), strict=True)
    norm = float(whole(torch.nn.utils.clip_grad_norm_(learner.parameters.values(), config.max_grad_norm)))
    if not np.isfinite(loss) or not np.isfinite(norm):
        learner.optimizer.zero_grad(set_to_none=True)
        raise RuntimeError(
            f"The loss ({loss}) or the gradient norm ({norm}) is not finite, although what both models "
            "say is; the step was not made. Lower the learning rate, or use float32."
        )
    return Updated(list(grades), loss, norm, list(stop_mass))


def _micro_batches(
    learner: Learner, rollouts: Sequence[Rollout]
) -> Iterator[tuple[list[int], list[Rollout]]]:
    """Cut this process's share of some rollouts, lesson by lesson: their indices, and they themselves."""
    for _, own in itertools.groupby(range(len(rollouts)), key=lambda i: rollouts[i].lesson):
        yield from _of_lesson(learner, rollouts, list(own))


def _of_lesson(
    learner: Learner, rollouts: Sequence[Rollout], own: Sequence[int]
) -> Iterator[tuple[list[int], list[Rollout]]]:
    """Cut this process's share of the rollouts of one lesson, which ``own`` are.

    Sharded weights want as many forwards of every process. Whoever has fewer repeats a rollout, with weights
    of 0 and no index: one of its own if it has any, which no teacher elsewhere is asked about again.
    """
    packed = rollouts[own[0]].lesson.pair.packs
    lengths = [len(rollouts[i].trajectory) for i in own]

    def dealt(process: int) -> list[list[int]]:
        mine = [own[i] for i in share(lengths, process)]
        trajectories = [rollouts[i].trajectory for i in mine]
        groups = batches(trajectories, learner.micro_batch_tokens, packed=packed)
        return [[mine[i] for i in group] for group in groups]

    mine = dealt(rank())
    for group in mine:
        yield group, [rollouts[i] for i in group]
    if learner.config.shard:
        for _ in range(max(len(dealt(process)) for process in range(world())) - len(mine)):
            known = [i for group in mine for i in group] or own
            shortest = min((rollouts[i] for i in known), key=lambda r: len(r.trajectory))
            yield [], [replace(shortest, weights=np.zeros(len(shortest.trajectory), np.float32))]


@contextlib.contextmanager
def train_mode(model: LanguageModel) -> Iterator[None]:
    """Train mode while the gradient is made: gradient checkpointing is off outside of it."""
    model.model.train()
    try:
        yield
    finally:
        model.model.eval()


def _columns(rollout: Rollout) -> np.ndarray:
    """Per token: behaviour log-prob, weight, reward, settled advantage; float32 ``[T, 4]``."""
    t = rollout.trajectory
    columns = np.zeros((len(t), 4), np.float32)
    columns[:, 0] = 0 if t.behaviour_logprobs is None else t.behaviour_logprobs
    columns[:, 1] = 1 if rollout.weights is None else rollout.weights
    columns[:, 2] = rollout.reward
    columns[:, 3] = 0 if rollout.advantages is None else rollout.advantages
    return columns
