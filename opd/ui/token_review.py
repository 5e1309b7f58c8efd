"""The token review component as a Gradio component."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.components.base import server

from opd.grading.saved_reviews import ReviewSet
from opd.reviews import Review
from opd.ui.component import OwnHTML
from opd.ui.kept_sets import KeptSets
from opd.view import HERE
from opd.view.payload import (
    COLUMNS,
    alternatives_payload,
    columns_payload,
    legend,
    prompt_payload,
    set_payload,
)

ACTIONS = ("branch", "typed", "teacher_line", "fork_value", "no_return")
"""What the pinned token's card can ask for."""


class TokenReview(OwnHTML):
    """Shows groups of graded trajectories.

    The value is a JSON string made by :meth:`show`. It never enters the template, which Gradio would
    evaluate; the component's script reads it and makes text nodes.

    Events, to be connected as methods (``component.branch(fn)``): those of :data:`ACTIONS`. Their
    ``gr.EventData`` holds in ``_data`` the address ``key, group, sample`` and what the user chose:
    ``index`` and ``token`` (branch), ``index`` and ``text`` (typed), ``index`` (teacher_line, fork_value).
    """

    def __init__(
        self,
        sets: KeptSets,
        actions: Sequence[str] = (),
        *,
        linked: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Make an empty component.

        Args:
            sets: where what it shows is kept.
            actions: those of :data:`ACTIONS` that the caller listens to; the others have no button.
            linked: the address's fragment follows what is looked at, and brings a new page there; so does the
                overview of all trajectories (opd/ui/corpus.py). One component of a page.
            kwargs: those of :class:`gradio.HTML`.
        """
        self._sets = sets
        super().__init__(
            looks=HERE / "review", legend=legend(), actions=list(actions), linked=linked, **kwargs
        )

    def show(
        self,
        key: str,
        reviews: ReviewSet,
        *,
        continues: str | None = None,
        opens: int | None = None,
        growing: bool = False,
    ) -> str:
        """Return the value that shows ``reviews``; the same ``key`` continues what is shown already.

        Args:
            key: of the set.
            reviews: the set.
            continues: key of a set that this one adds to; the page stays where it is.
            opens: the trajectory that the page goes to, once.
            growing: what is unfinished is still being written.
        """
        self._sets.keep(key, reviews)
        how = {"continues": continues, "opens": opens, "growing": growing}
        value = set_payload(key, reviews.groups) | how
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def settle(self, shown: str) -> Any:  # noqa: ANN401
        """Return the update that says of what is shown (opd/ui/shown.py) that nobody writes on."""
        key = json.loads(shown)["key"]
        try:
            return self.show(key, self._sets.find(key))
        except ValueError:  # no longer at hand: then nothing of it grows
            return gr.skip()

    @server
    def alternatives_at(self, address: Any) -> dict[str, Any] | None:  # noqa: ANN401
        """Serve ``[key, group, sample, chunk]`` to the page; None if there is no such thing."""
        match address:
            case [*place, int(chunk)] if chunk >= 0 and (review := self._review_at(place)):
                return alternatives_payload(review, chunk)
        return None

    @server
    def column_of(self, address: Any) -> dict[str, str] | None:  # noqa: ANN401
        """Serve ``[key, group, sample, name]`` to the page; None if there is no such thing."""
        match address:
            case [*place, str(name)] if name in COLUMNS and (review := self._review_at(place)):
                return columns_payload(review, name)
        return None

    @server
    def prompt_of(self, address: Any) -> dict[str, Any] | None:  # noqa: ANN401
        """Serve ``[key, group, sample]`` to the page; None if there is no such thing."""
        match address:
            case list() if review := self._review_at(address):
                return prompt_payload(review)
        return None

    def _review_at(self, place: list[Any]) -> Review | None:
        match place:
            case [str(key), int(group), int(sample)] if min(group, sample) >= 0:
                try:
                    return self._sets.find(key).groups[group].reviews[sample]
                except (ValueError, IndexError):
                    return None
        return None
