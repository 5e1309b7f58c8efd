"""What a step's teachers say, each trajectory asked about once.

A teacher that computes elsewhere, on a server or on a device of its own, scores what is finished while the
student still writes the rest: one thread takes whatever has finished since it last looked and scores it in
batches; grading and the update then find the scores there.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from opd.divergence import Predictions
from opd.engines.transformers import batches
from opd.models.pair import Pair
from opd.models.parallel import world
from opd.packed import cut
from opd.training.learner import Learner
from opd.training.losses import alternatives
from opd.training.step_metrics import Clock
from opd.trajectory import Trajectory


class TeacherScores:
    """What teachers say of the trajectories of a run.

    Attributes:
        kept: the scores, or the promise of them, that teachers elsewhere have given of the step under way.
    """

    def __init__(self, learner: Learner, clock: Clock) -> None:
        """Prepare; nothing runs until something is finished.

        Args:
            learner: says in which precision teachers compute, and how many tokens they score at once.
            clock: counts the time that is spent waiting for them.
        """
        self.learner, self.clock = learner, clock
        self.kept: dict[int, tuple[Trajectory, Future[Predictions]]] = {}  # by identity, kept alive beside it
        self._pool = ThreadPoolExecutor(1, "opd-teacher")
        self._finished: deque[tuple[Pair, Trajectory, Future[Predictions]]] = deque()

    def finished(self, pair: Pair, trajectory: Trajectory) -> None:
        """Let a teacher that computes elsewhere score a trajectory while the student writes the rest."""
        if pair.concurrent and world() == 1:  # of several processes another one may train on it
            self._begin(pair, [trajectory])

    def ask(self, pair: Pair, trajectories: Sequence[Trajectory]) -> Predictions:
        """Return what the teacher says of some trajectories; one elsewhere is asked once, however often.

        What failed is asked anew by the next call: out of memory, that is a smaller one.

        Raises:
            EngineError: the teacher cannot go on.
        """
        with self.clock("teacher"):
            if not pair.concurrent:
                return self.ask_anew(pair, trajectories)
            self._begin(pair, trajectories)
            try:
                parts = [self.kept[id(t)][1].result() for t in trajectories]
            except Exception:
                kept = list(self.kept.values())
                self.forget(t for t, future in kept if future.done() and future.exception())
                raise
            return parts[0].joined(parts)

    def ask_anew(self, pair: Pair, trajectories: Sequence[Trajectory]) -> Predictions:
        """Return what the teacher says of some trajectories, which nobody keeps."""
        top_k = alternatives(self.learner.config, pair.vocabulary)
        temperature = self.learner.config.temperature
        return pair.scorer.score(trajectories, side="teacher", temperature=temperature, top_k=top_k)

    def forget(self, trajectories: Iterable[Trajectory]) -> None:
        """Let go of the scores of a step that is over."""
        for trajectory in trajectories:
            self.kept.pop(id(trajectory), None)

    def _begin(self, pair: Pair, trajectories: Iterable[Trajectory]) -> None:
        """Let trajectories be scored as soon as the teacher is free, those that are not begun yet."""
        for trajectory in trajectories:
            if id(trajectory) not in self.kept:
                future: Future[Predictions] = Future()
                self.kept[id(trajectory)] = trajectory, future
                self._finished.append((pair, trajectory, future))
        self._pool.submit(self._work)

    def _work(self) -> None:
        """Score all that has finished; of several calls most find nothing left."""
        finished = [self._finished.popleft() for _ in range(len(self._finished))]
        for pair in {id(pair): pair for pair, _, _ in finished}.values():
            own = [(t, future) for asked, t, future in finished if asked is pair]
            for group in batches([t for t, _ in own], self.learner.micro_batch_tokens, packed=True):
                self._score(pair, [own[i] for i in group])

    def _score(self, pair: Pair, batch: Sequence[tuple[Trajectory, Future[Predictions]]]) -> None:
        """Score one batch and keep what each trajectory got, or why it got nothing."""
        try:
            with torch.inference_mode(), self.learner.precision():  # which a thread does not inherit
                scores = self.ask_anew(pair, [t for t, _ in batch])
        except Exception as error:  # it is for whoever asks for the scores
            traceback.clear_frames(error.__traceback__)  # which would keep the tensors that lie there
            for _, future in batch:
                future.set_exception(error)
            return
        for part, (_, future) in zip(cut(scores, (t for t, _ in batch)), batch, strict=True):
            future.set_result(part)
