"""What visitors look at: the sets of reviews on their pages, for as long as a page may ask about them."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence, Set
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from gradio.context import LocalContext

from opd.grading.saved_reviews import ReviewSet, open_review
from opd.reviews import Review

if TYPE_CHECKING:
    from gradio.state_holder import StateHolder

MOST_SETS, MOST_BYTES = 8, 64 * 2**20
"""How many sets of a page stay at hand, and how many bytes of them, if it is more than one."""

GRACE = timedelta(hours=1)
"""For how long a closed page may come back; Gradio gives its own state as long."""

CLOSED_BYTES = 128 * 2**20
"""What all closed pages together may take."""

SESSION_BYTES = 2**19
"""About what Gradio holds of a page."""


class KeptSets:
    """The sets that one component shows, by visitor and key.

    Gradio builds a component anew, from its constructor's arguments, for each visitor whose event updates or
    skips it. So a component may hold nothing itself: it is given one of these.

    A visitor is a page: Gradio's session. What a page shows last is kept as long as the page is there,
    whatever its size; what it showed before only serves events that are still on their way.
    """

    def __init__(self) -> None:
        """Make an empty store."""
        self._visitors: defaultdict[str | None, dict[str, ReviewSet]] = defaultdict(dict)
        self._lock = threading.Lock()

    def keep(self, key: str, reviews: ReviewSet) -> None:
        """Keep a set for the visitor whose event is at work, in the place of its set of the same key."""
        with self._lock:
            mine = self._visitors[_visitor()]
            mine.pop(key, None)
            mine[key] = reviews
            while len(mine) > 1 and (len(mine) > MOST_SETS or _size(mine) > MOST_BYTES):
                del mine[next(iter(mine))]

    def find(self, key: str) -> ReviewSet:
        """Return the set last shown under ``key``.

        Whoever knows a key may ask: it is a secret of the page, or the name of what all may see.

        Raises:
            ValueError: it is no longer at hand.
        """
        with self._lock:
            visitors = [self._visitors.get(_visitor(), {}), *self._visitors.values()]
        for sets in visitors:
            if (found := sets.get(key)) is not None:
                return found
        raise ValueError("These trajectories are no longer at hand: please sample or open them anew.")

    def size(self, visitor: str) -> int:
        """Return about how many bytes a visitor's sets take."""
        with self._lock:
            return _size(self._visitors.get(visitor, {}))

    def forget_all_but(self, visitors: Set[str]) -> None:
        """Let go of what all others were shown."""
        with self._lock:
            for visitor in self._visitors.keys() - visitors:
                del self._visitors[visitor]


def forget_ended(sessions: StateHolder, kept: Sequence[KeptSets]) -> None:
    """Let go of closed pages, the oldest first: of what they were shown, and of what Gradio holds of them.

    Gradio holds some 0.4 MB of every page that was ever opened, and more where a large review was shown. A
    page that has only lost its connection counts as closed too, and may come back: it has :data:`GRACE`, as
    long as all closed pages together take no more than :data:`CLOSED_BYTES`.
    """
    taken, now = 0, datetime.now()
    for visitor, used in sorted(sessions.time_last_used.items(), key=lambda page: page[1], reverse=True):
        if visitor in sessions.session_data and not sessions.session_data[visitor].is_closed:
            continue
        taken += SESSION_BYTES + sum(sets.size(visitor) for sets in kept)
        if taken > CLOSED_BYTES or now - used > GRACE:
            sessions.session_data.pop(visitor, None)
            sessions.time_last_used.pop(visitor, None)
    for sets in kept:
        sets.forget_all_but(sessions.session_data.keys())


_opened: WeakValueDictionary[str, ReviewSet] = WeakValueDictionary()


def opened(ident: str) -> ReviewSet:
    """Return :func:`opd.grading.saved_reviews.open_review`'s set, read once for all who look at it.

    Raises:
        ValueError: see there.
    """
    if (found := _opened.get(ident)) is None:
        found = _opened[ident] = open_review(ident)
    return found


def _visitor() -> str | None:
    """Return Gradio's name of the page whose event is at work; None where there is none."""
    return getattr(LocalContext.request.get(None), "session_hash", None)


def _size(sets: dict[str, ReviewSet]) -> int:
    return sum(_review_size(review) for reviews in sets.values() for review in reviews)


def _review_size(review: Review) -> int:
    """Return about how many bytes a review takes: its alternatives, their texts, and its own columns."""
    scores = (review.grades.student, review.grades.teacher)
    alternatives = sum(side.top_ids.nbytes + side.top_logprobs.nbytes for side in scores)
    return alternatives + 150 * len(review.vocabulary) + 200 * len(review.pieces)
