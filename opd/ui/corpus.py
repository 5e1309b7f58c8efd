"""Many trajectories at once: a table of them, their worst tokens, what the teacher would swap, and a map."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gradio.components.base import server

from opd.grading.saved_reviews import HEADING, ReviewGroup, ReviewSet
from opd.grading.summary import (
    DISAGREEMENTS,
    QUADRANT_ENTROPY,
    QUADRANT_KL,
    QUADRANTS,
    TokenInContext,
    report_card,
    sparkline,
    swaps,
    token_map,
    tokens_in_context,
    worst_tokens,
)
from opd.reviews import Review
from opd.trajectory import VERDICTS
from opd.ui.component import OwnHTML
from opd.ui.curves import plotly_address
from opd.verdicts import INACCURACY
from opd.view.payload import VERDICT_GLYPHS, visible

SPARKLINE_BINS = 48
"""Bars of the small picture of a trajectory's penalties."""

MOST_TOKENS = 100
"""Tokens in one list of tokens."""

MOST_SWAPS = 300
"""Rows of the table of swaps."""

MOST_POINTS = 20_000
"""Points of the map. Of more tokens every so-and-so-many-th is shown."""

CONTEXT_CHARACTERS, TOKEN_CHARACTERS = 60, 40
"""How much of the text on either side of a token is shown, and how much of the token."""

FAMILIES: dict[str, Collection[str]] = {
    "": VERDICTS,
    "blunder": ("blunder",),
    "disagreement": DISAGREEMENTS,
    "praise": ("brilliant", "great"),
}
"""The verdicts that can be asked for, by the name of the choice."""

Address = tuple[int, int]
"""Group and sample of a trajectory."""


@dataclass(frozen=True)
class Question:
    """Which trajectories and tokens the page asks for.

    Attributes:
        group: index of the group; None for all.
        correct: what the verifier says of the answer; None for whatever it says.
        verdicts: trajectories that hold one of these, and only these tokens of them.
        text: what prompt or completion hold, upper and lower case alike.
        blame: the least B of a swap.
    """

    group: int | None
    correct: bool | None
    verdicts: Collection[str]
    text: str
    blame: float

    @classmethod
    def of(cls, asked: Any) -> Question | None:  # noqa: ANN401
        """Read what the page sent, which anybody can send; None if it is no question."""
        match asked:
            case {
                "group": int() | None as group,
                "correct": bool() | None as correct,
                "verdicts": str(family),
                "text": str(text),
                "blame": int() | float() as least,
            } if family in FAMILIES:
                return cls(group, correct, FAMILIES[family], text.casefold(), least)
        return None

    def selects(self, group: int, review: Review) -> bool:
        """Whether a trajectory is one of those asked for."""
        return (
            self.group in (None, group)
            and self.correct in (None, review.correct)
            and (
                self.verdicts is VERDICTS
                or any((report_card(review).counts or {}).get(v) for v in self.verdicts)
            )
            and (not self.text or any(self.text in t.casefold() for t in (review.text, _asked(review))))
        )


@dataclass(frozen=True)
class Selection:
    """The trajectories that a question selects.

    Attributes:
        groups: the whole set.
        asked: the question.
        addresses: group and sample of each trajectory.
        reviews: the trajectories.
    """

    groups: Sequence[ReviewGroup]
    asked: Question
    addresses: list[Address]
    reviews: list[Review]

    @classmethod
    def of(cls, groups: Sequence[ReviewGroup], asked: Question) -> Selection:
        """Select from ``groups`` what is asked for."""
        selected = [
            ((number, sample), review)
            for number, group in enumerate(groups)
            for sample, review in enumerate(group.reviews)
            if asked.selects(number, review)
        ]
        return cls(groups, asked, [address for address, _ in selected], [review for _, review in selected])


class Corpus(OwnHTML):
    """Shows what all trajectories of a set say together, once somebody unfolds it.

    In the browser it follows the linked token review component of the page (the events ``opd-shown`` and
    ``opd-open`` of opd/ui/token_review.js) and asks the server for the open tab only.
    """

    def __init__(self, find: Callable[[str], ReviewSet], **kwargs: Any) -> None:  # noqa: ANN401
        """Make the component, which hides until more than one trajectory is shown.

        Args:
            find: returns the set shown under a key; raises ValueError where they are gone.
            kwargs: those of :class:`gradio.HTML`.
        """
        self._find = find
        super().__init__(
            legend={
                "plotly": plotly_address(),
                "listed": MOST_TOKENS,
                "glyphs": VERDICT_GLYPHS,
                "verdicts": VERDICTS,
                "minded": DISAGREEMENTS,
                "blame": INACCURACY,
                "quadrants": QUADRANTS,
                "borders": [QUADRANT_ENTROPY, QUADRANT_KL],
            },
            **kwargs,
        )

    @server
    def tab(self, question: Any) -> dict[str, Any] | None:  # noqa: ANN401
        """Serve ``[key, name of one of TABS, question]`` to the page; None if there is no such thing."""
        match question:
            case [str(key), str(name), request] if name in TABS and (asked := Question.of(request)):
                try:
                    return TABS[name](Selection.of(self._find(key).groups, asked))
                except ValueError:
                    return None
        return None

    @server
    def tokens(self, question: Any) -> list[dict[str, Any]] | None:  # noqa: ANN401
        """Serve ``[key, [[group, sample, index], ...]]`` to the page: these tokens with their contexts."""
        match question:
            case [str(key), list(places)] if len(places) <= MOST_TOKENS:
                try:
                    groups = self._find(key).groups
                    return [_token_at(groups, *map(int, place)) for place in places]
                except (ValueError, IndexError, TypeError):
                    return None
        return None


# What the tabs show


def _trajectories(chosen: Selection) -> dict[str, Any]:
    """A row of figures for each trajectory; ``prompts``: whether the whole set has several."""
    rows = [_row(*address, r) for address, r in zip(chosen.addresses, chosen.reviews, strict=True)]
    return {"rows": rows, "prompts": len({_asked(r) for group in chosen.groups for r in group.reviews}) > 1}


def _worst(chosen: Selection) -> dict[str, Any]:
    """The tokens with the largest penalties."""
    tokens = worst_tokens(chosen.reviews, MOST_TOKENS, verdicts=chosen.asked.verdicts)
    return {"rows": [_token(chosen.addresses[token.review], token) for token in tokens]}


def _swaps(chosen: Selection) -> dict[str, Any]:
    """What for what, how often, and where; ``found`` counts also those that are too many to show."""
    found = swaps(chosen.reviews, least_blame=chosen.asked.blame, verdicts=chosen.asked.verdicts)
    rows = [
        {
            "token": _shown(swap.token, TOKEN_CHARACTERS),
            "preferred": _shown(swap.preferred, TOKEN_CHARACTERS),
            "count": swap.count,
            "blame": swap.mean_blame,
            "penalty": swap.penalty,
            "share": swap.share,
            "places": [(*chosen.addresses[review], index) for review, index in swap.places[:MOST_TOKENS]],
        }
        for swap in found[:MOST_SWAPS]
    ]
    return {"rows": rows, "found": len(found)}


def _map(chosen: Selection) -> dict[str, Any]:
    """Entropy, KL, verdict and place of each token, as columns.

    ``counts`` and ``shares`` (of the reverse KL) of the quadrants are of all tokens, also of those that are
    too many to show.
    """
    tokens = token_map(chosen.reviews, verdicts=chosen.asked.verdicts)
    counts = np.bincount(tokens.quadrants, minlength=len(QUADRANTS))
    spent = np.bincount(tokens.quadrants, tokens.reverse_kl, minlength=len(QUADRANTS))
    shown = np.linspace(0, max(len(tokens) - 1, 0), min(len(tokens), MOST_POINTS)).astype(int)
    return {
        "addresses": chosen.addresses,
        "trajectory": tokens.review[shown].tolist(),
        "index": tokens.index[shown].tolist(),
        "entropy": _rounded(tokens.student_entropy[shown]),
        "kl": _rounded(tokens.reverse_kl[shown]),
        "verdict": tokens.verdicts[shown].tolist(),
        "quadrant": tokens.quadrants[shown].tolist(),
        "found": len(tokens),
        "counts": counts.tolist(),
        "shares": (spent / spent.sum() if spent.any() else spent).tolist(),
    }


TABS: dict[str, Callable[[Selection], dict[str, Any]]] = {
    "table": _trajectories,
    "worst": _worst,
    "swaps": _swaps,
    "map": _map,
}
"""What the page can ask for."""


def _row(group: int, sample: int, review: Review) -> dict[str, Any]:
    card, penalty, own = report_card(review), review.grades.penalty, review.own_tokens
    worst = own.start + int(np.nan_to_num(penalty[own], nan=-np.inf).argmax()) if card.graded else 0
    return {
        "group": group,
        "sample": sample,
        "parent": None if review.branch is None else review.branch.parent,
        "prompt": _shown(" ".join(_asked(review).split()), HEADING),
        "correct": review.correct,
        "finished": review.trajectory.finish_reason is not None,
        "spark": _rounded(sparkline(penalty, SPARKLINE_BINS), 1),
        "agreement": card.agreement,
        "tokens": len(penalty),
        "penalty": card.mean_penalty,
        "kl": card.mean_reverse_kl,
        "blunders": card.counts["blunder"] if card.counts is not None and card.tokens else None,
        "forks": card.forks if card.tokens else None,
        "worst": _token((group, sample), *tokens_in_context([review], [(0, worst)])) if card.graded else None,
    }


def _token_at(groups: Sequence[ReviewGroup], group: int, sample: int, index: int) -> dict[str, Any]:
    """Return one token for the page.

    Raises:
        IndexError: there is no such token.
    """
    if min(group, sample, index) < 0:
        raise IndexError
    return _token((group, sample), *tokens_in_context([groups[group].reviews[sample]], [(0, index)]))


def _token(address: Address, token: TokenInContext) -> dict[str, Any]:
    return {
        "group": address[0],
        "sample": address[1],
        "index": token.index,
        "left": visible(token.left)[-CONTEXT_CHARACTERS:],
        "token": _shown(token.token, TOKEN_CHARACTERS),
        "right": visible(token.right)[:CONTEXT_CHARACTERS],
        "penalty": None if np.isnan(token.penalty) else token.penalty,
        "kl": token.reverse_kl,
        "entropy": token.student_entropy,
        "blame": token.blame,
        "verdict": None if token.verdict is None else VERDICTS.index(token.verdict),
        "preferred": _shown(token.preferred, TOKEN_CHARACTERS),
        "probability": token.preferred_probability,
    }


def _asked(review: Review) -> str:
    """Return the last thing that the user said; empty where there is none."""
    said = [message["content"] for message in review.messages if message["role"] == "user"]
    return said[-1] if said else ""


def _shown(text: str, longest: int) -> str:
    text = visible(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _rounded(values: np.ndarray, digits: int = 4) -> list[float]:
    return np.round(values.astype(np.float64), digits).tolist()
