"""What many grades say together: the report card of one trajectory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from opd.trajectory import VERDICTS, Review

DISAGREEMENTS = ("blunder", "mistake", "inaccuracy")
"""The verdicts that count against agreement, worst first."""


@dataclass(frozen=True)
class ReportCard:
    """What the grades of one trajectory say together.

    Attributes:
        tokens: number of graded tokens.
        agreement: share of the tokens with a choice (not "forced") that the teacher finds good or better;
            None where no token had a choice.
        mean_penalty: nats per token.
        mean_reverse_kl: nats per token.
        forks: number of forking tokens.
        counts: tokens by verdict, every verdict named.
    """

    tokens: int
    agreement: float | None
    mean_penalty: float | None
    mean_reverse_kl: float | None
    forks: int
    counts: dict[str, int]


def report_card(review: Review) -> ReportCard:
    """Sum up the grades of ``review``."""
    grades = review.grades
    tokens = len(grades)
    seen = Counter(VERDICTS[verdict] for verdict in grades.verdicts.tolist())
    chosen = tokens - seen["forced"]
    disagreed = sum(seen[verdict] for verdict in DISAGREEMENTS)
    return ReportCard(
        tokens=tokens,
        agreement=1 - disagreed / chosen if chosen else None,
        mean_penalty=float(grades.penalty.mean()) if tokens else None,
        mean_reverse_kl=float(grades.reverse_kl.mean()) if tokens else None,
        forks=int(grades.forks.sum()),
        counts={verdict: seen[verdict] for verdict in VERDICTS},
    )
