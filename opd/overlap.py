"""The teacher scores what is finished while the student still writes the rest, and each trajectory once.

For a teacher that computes elsewhere, on a server or on a device of its own. One thread takes whatever has
finished since it last looked and scores it as one batch; grading and the update then find the scores there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import torch

from opd.divergence import TopK
from opd.grading import Told
from opd.models import Pair
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
    ) -> None:
        """Prepare; nothing runs until something is finished.

        Args:
            score: returns what a pair's teacher says of some trajectories.
            precision: the run's autocast, which a thread does not inherit.
        """
        self._score, self._precision = score, precision
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
        """Score all that has finished, as one batch a pair; of several calls most find nothing left."""
        batch = [self._finished.popleft() for _ in range(len(self._finished))]
        for pair in {id(pair): pair for pair, _, _ in batch}.values():
            own = [(t, future) for asked, t, future in batch if asked is pair]
            try:
                with torch.inference_mode(), self._precision():
                    scores, told = self._score(pair, [t for t, _ in own])
            except Exception as error:  # it is for whoever asks for the scores
                for _, future in own:
                    future.set_exception(error)
                continue
            start = 0
            for i, (trajectory, future) in enumerate(own):
                cut = slice(start, start + len(trajectory))
                start = cut.stop
                part = scores.rows(cut) if isinstance(scores, TopK) else scores.of(scores.hidden[cut])
                future.set_result((part, told and [told[i]]))
