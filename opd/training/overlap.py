"""The teacher scores what is finished while the student still writes the rest, and each trajectory once.

For a teacher that computes elsewhere, on a server or on a device of its own. One thread takes whatever has
finished since it last looked and scores it in batches; grading and the update then find the scores there.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import torch

from opd.divergence import TopK
from opd.engines.transformers import batches
from opd.grading.grading import Told
from opd.models.pair import Pair
from opd.packed import places
from opd.trajectory import Trajectory


def computes_elsewhere(pair: Pair) -> bool:
    """Say whether a pair's teacher computes beside its student, on a server or on another device."""
    return pair.scorer is not None or pair.teacher.device != pair.student.device


class EarlyScores:
    """Scores of finished trajectories, begun before they are needed."""

    def __init__(
        self,
        score: Callable[[Pair, Sequence[Trajectory]], Told],
        precision: Callable[[], AbstractContextManager[object]],
        batch_tokens: Callable[[], int],
    ) -> None:
        """Prepare; nothing runs until something is finished.

        Args:
            score: returns what a pair's teacher says of some trajectories.
            precision: the run's autocast, which a thread does not inherit.
            batch_tokens: the most tokens that are scored at once.
        """
        self._score, self._precision, self._batch_tokens = score, precision, batch_tokens
        self._pool = ThreadPoolExecutor(1, "opd-teacher")
        self._finished: deque[tuple[Pair, Trajectory, Future[Told]]] = deque()
        self._begun: dict[int, tuple[Trajectory, Future[Told]]] = {}  # by identity, kept alive beside it

    def begin(self, pair: Pair, trajectories: Iterable[Trajectory]) -> None:
        """Let trajectories be scored as soon as the teacher is free, those that are not begun yet."""
        for trajectory in trajectories:
            if id(trajectory) not in self._begun:
                future: Future[Told] = Future()
                self._begun[id(trajectory)] = trajectory, future
                self._finished.append((pair, trajectory, future))
        self._pool.submit(self._work)

    def take(self, pair: Pair, trajectories: Sequence[Trajectory]) -> Told:
        """Return what the teacher says of some trajectories; one elsewhere is asked once, however often.

        What failed is asked anew by the next call: out of memory, that is a smaller one.

        Raises:
            EngineError: the teacher cannot go on.
        """
        if not computes_elsewhere(pair):
            return self._score(pair, trajectories)
        self.begin(pair, trajectories)
        try:
            parts = [self._begun[id(t)][1].result() for t in trajectories]
        except Exception:
            begun = list(self._begun.values())
            self.forget(t for t, future in begun if future.done() and future.exception())
            raise
        first = parts[0][0]
        if isinstance(first, TopK):
            columns = zip(*((part.taken, part.ids, part.logprobs) for part, _ in parts), strict=True)
            return TopK(*map(torch.cat, columns)), [scores for _, told in parts for scores in told]
        return first.of(torch.cat([part.hidden for part, _ in parts])), None

    def forget(self, trajectories: Iterable[Trajectory]) -> None:
        """Let go of the scores of a step that is over."""
        for trajectory in trajectories:
            self._begun.pop(id(trajectory), None)

    def _work(self) -> None:
        """Score all that has finished; of several calls most find nothing left."""
        finished = [self._finished.popleft() for _ in range(len(self._finished))]
        for pair in {id(pair): pair for pair, _, _ in finished}.values():
            own = [(t, future) for asked, t, future in finished if asked is pair]
            for group in batches([t for t, _ in own], self._batch_tokens(), packed=True):
                self._tell(pair, [own[i] for i in group])

    def _tell(self, pair: Pair, batch: Sequence[tuple[Trajectory, Future[Told]]]) -> None:
        """Score one batch and keep what each trajectory got, or why it got nothing."""
        try:
            with torch.inference_mode(), self._precision():
                scores, told = self._score(pair, [t for t, _ in batch])
        except Exception as error:  # it is for whoever asks for the scores
            traceback.clear_frames(error.__traceback__)  # which would keep the tensors that lie there
            for _, future in batch:
                future.set_exception(error)
            return
        for i, ((_, future), place) in enumerate(zip(batch, places(t for t, _ in batch), strict=True)):
            part = scores.rows(place) if isinstance(scores, TopK) else scores.of(scores.hidden[place])
            future.set_result((part, told and [told[i]]))
