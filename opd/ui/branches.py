"""Other ways a trajectory could have gone: what a token's card asks for, and the bar that says the cost."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from opd.grading.saved_reviews import ReviewSet
from opd.reviews import Review
from opd.runs.run import open_run
from opd.tasks import load_task
from opd.tasks.demo import known_problem
from opd.ui.errors import spoken_errors
from opd.ui.events import NOT_THERE, PLUMBING
from opd.ui.kept_sets import KeptSets
from opd.ui.pairs import PairNames, loaded_pair
from opd.ui.shown import Shown
from opd.ui.token_review import TokenReview

if TYPE_CHECKING:
    from opd.models.pair import Pair


@dataclass(frozen=True)
class Place:
    """What an event of the component is about: a review of a set, a token of it, and what to force there."""

    key: str
    group: int
    sample: int
    index: int = 0
    forced: int | str | None = None

    @classmethod
    def of(cls, event: gr.EventData) -> Place:
        """Read an event's data, which anybody can send.

        Raises:
            ValueError: it is no such data.
        """
        match event._data:
            case {"key": str(key), "group": int(group), "sample": int(sample), **rest}:
                match rest:
                    case {"index": int(index), "token": int(forced)} | {
                        "index": int(index),
                        "text": str(forced),
                    }:
                        return cls(key, group, sample, index, forced)
                    case {"index": int(index)}:
                        return cls(key, group, sample, index)
                    case {}:
                        return cls(key, group, sample)
        raise ValueError(NOT_THERE)


class Branches:
    """The bar and the events behind it.

    A fork value and a point of no return take many rollouts: the bar first says how many and waits for Run.
    """

    def __init__(self, sets: KeptSets) -> None:
        """Lay out the bar in the current Gradio context; :meth:`connect` brings it to life.

        Args:
            sets: what the component shows.
        """
        self.sets = sets
        self.task = load_task("demo")
        self.asked = gr.State(None)  # what Run starts: (name of the measurement, Place)
        self.grown = gr.State({})  # what this session added to last: the set's own key, by the keys it had
        with gr.Row(visible=False, elem_id="branching", elem_classes="foot") as self.bar:
            self.line = gr.Markdown("", elem_id="branching-line")
            with gr.Row(elem_classes="actions"):
                self.run_button = gr.Button("Run", variant="primary", elem_id="run-branching")
                self.stop_button = gr.Button("Stop", elem_id="stop-branching")

    def connect(self, reviews: TokenReview, shown: Shown, session: list[Any]) -> None:
        """Connect the component's events.

        Args:
            reviews: the component.
            shown: what names the set that it shows.
            session: the components that hold the session's pair names, its trained run, the longest answer.
        """
        self.reviews, self.shown = reviews, shown
        bar = [self.bar, self.line, self.run_button, self.stop_button]
        models = {"concurrency_id": "models", **PLUMBING}
        outputs = [reviews, shown, self.grown, *bar]
        working = [
            event(self.branch, [*session, self.grown], outputs, **models)
            for event in (reviews.branch, reviews.typed, reviews.teacher_line)
        ]
        for event, cost in (
            (reviews.fork_value, self._value_cost),
            (reviews.no_return, self._no_return_cost),
        ):
            event(cost, None, [self.asked, *bar], **PLUMBING)
        working.append(
            self.run_button.click(self.measure, [self.asked, shown, *session, self.grown], outputs, **models)
        )
        for broken_off in (
            *(work.failure(_hidden, None, bar, **PLUMBING) for work in working),
            self.stop_button.click(_hidden, None, bar, cancels=working, **PLUMBING),
        ):
            broken_off.then(reviews.settle, shown, reviews, **PLUMBING)

    # What the card asks for

    def branch(
        self,
        names: PairNames,
        trained: str | None,
        max_tokens: int | None,
        grown: dict[str, str],
        event: gr.EventData,
    ) -> Iterator[list[Any]]:
        """Let the student go on from a forced token or text; where nothing is forced, the teacher."""
        from opd.grading import branching

        with spoken_errors():
            place = Place.of(event)
            key, reviews = self._latest(place, grown)
            review = _review_at(place, reviews)
            pair = pair_of(review, names, trained)
            options = {"parent": place.sample, **self._verified(review, max_tokens)}
            if place.forced is None:
                writer, states = "teacher", branching.teacher_line(pair, review, place.index, **options)
            else:
                writer = "student"
                states = branching.branch(pair, review, place.index, place.forced, **options)
            # It hangs under its trajectory, and the page opens it.
            number = len(reviews.groups[place.group].reviews)
            for state in states:
                changed = reviews.with_review(place.group, number, state)
                shown = self._show(place, key, changed, opens=number, growing=True)
                yield [*shown, *_bar(f"The {writer} goes on from token {place.index + 1}.", run=False)]
            yield [*shown, *_hidden()]

    def _value_cost(self, event: gr.EventData) -> list[Any]:
        from opd.grading import branching

        with spoken_errors():
            place = Place.of(event)
            cost = branching.fork_value_cost(self._review(place), place.index)
            return [("fork_value", place), *_bar(f"Fork value of token {place.index + 1}: {cost}.", run=True)]

    def _no_return_cost(self, event: gr.EventData) -> list[Any]:
        from opd.grading import branching

        with spoken_errors():
            place = Place.of(event)
            review = self._review(place)
            branching.must_be_verified(known_problem(review.messages))
            return [
                ("no_return", place),
                *_bar(f"Point of no return: {branching.no_return_cost(review)}.", run=True),
            ]

    def measure(
        self,
        asked: tuple[str, Place] | None,
        shown: str,
        names: PairNames,
        trained: str | None,
        max_tokens: int | None,
        grown: dict[str, str],
    ) -> Iterator[list[Any]]:
        """Run what the bar has said the cost of; findings appear as they firm up."""
        from opd.grading import branching

        with spoken_errors():
            if asked is None:
                raise ValueError("There is nothing to run: choose a token first.")
            kind, place = asked
            key, reviews = self._latest(place, grown)
            if json.loads(shown)["key"] not in (place.key, key):
                raise ValueError(
                    "This was asked about a review that is no longer shown: choose a token anew."
                )
            review = _review_at(place, reviews)
            pair, options = pair_of(review, names, trained), self._verified(review, max_tokens)
            if kind == "fork_value":
                states = branching.fork_value(pair, review, place.index, **options)
            else:
                states = branching.point_of_no_return(pair, review, **options)
            counting = _bar("Counting rollouts.", run=False)
            yield [*self._show(place, key, reviews), *counting]
            for state in states:
                found = branching.with_evidence(review, state)
                changed = self._show(place, key, reviews.with_review(place.group, place.sample, found))
                yield [*changed, *counting]
            yield [*changed, *_hidden()]

    def _latest(self, place: Place, grown: dict[str, str]) -> tuple[str, ReviewSet]:
        """Return this session's own key for the set of a place, and what that set holds by now.

        The page may have asked before it saw what another button added.
        """
        key = grown.get(place.key)
        return key or secrets.token_urlsafe(9), self.sets.find(key or place.key)

    def _show(self, place: Place, key: str, reviews: ReviewSet, **how: Any) -> list[Any]:  # noqa: ANN401
        """Return the updates of the component, of what names its set, and of ``grown``."""
        reviews = ReviewSet(reviews.groups)  # what a title and a note said of it is no longer all
        value = self.reviews.show(key, reviews, continues=place.key, **how)
        return [value, self.shown.show(key, reviews), {place.key: key, key: key}]

    def _review(self, place: Place) -> Review:
        return _review_at(place, self.sets.find(place.key))

    def _verified(self, review: Review, max_tokens: int | None) -> dict[str, Any]:
        """Return who verifies, and a bound that the text itself does not exceed."""
        if max_tokens is None:
            raise ValueError("Please fill in “Longest answer” under “Sampling and system prompt”.")
        room = max(max_tokens, len(review.trajectory) + 1)
        return {"task": self.task, "example": known_problem(review.messages), "max_tokens": room}


def pair_of(review: Review, names: PairNames, trained: str | None) -> Pair:
    """Return the pair that a review was made with, if it is one of the session's or the embedded one.

    A review may come from a file: that must not make the app load what the file names.

    Raises:
        ValueError: it is not.
    """
    from opd.models.load import DEMO_MODELS

    student, teacher = names.student, names.teacher
    students = [student, *DEMO_MODELS]
    if trained is not None:
        students.append(str(open_run(trained).model_dir))
    if review.student not in students or review.teacher not in (teacher, *DEMO_MODELS):
        raise ValueError(
            f"This review was made with {review.student} and {review.teacher}; {student} and {teacher} are "
            "loaded. Load its pair under Models to go on from here."
        )
    differing = "shared" if review.grades.masked else "refused"
    return loaded_pair(names._replace(student=review.student, teacher=review.teacher, differing=differing))


def _review_at(place: Place, reviews: ReviewSet) -> Review:
    """Return the review that an event is about.

    Raises:
        ValueError: there is none.
    """
    groups = reviews.groups
    if not 0 <= place.group < len(groups) or not 0 <= place.sample < len(groups[place.group].reviews):
        raise ValueError("This trajectory is no longer there. Please load the page anew.")
    return groups[place.group].reviews[place.sample]


def _bar(words: str, *, run: bool) -> list[Any]:
    """Return the updates of the bar: what it says, and whether it waits for Run."""
    return [gr.update(visible=True), words, gr.update(visible=run), "Cancel" if run else "Stop"]


def _hidden() -> list[Any]:
    return [gr.update(visible=False), "", gr.update(visible=False), "Stop"]
