"""What rollouts have shown is kept in the review that they set out from."""

from __future__ import annotations

from dataclasses import replace

from opd.grading.branching.fork_values import ForkValue
from opd.grading.branching.no_return import NoReturn
from opd.reviews import Review


def with_evidence(review: Review, found: ForkValue | NoReturn) -> Review:
    """Return the review with a finding kept in its evidence, beside earlier ones."""
    evidence = dict(review.evidence or {})
    if isinstance(found, NoReturn):
        evidence["noReturn"] = found.to_dict()
    else:
        evidence["forkValue"] = {**evidence.get("forkValue", {}), str(found.at): found.to_dict()}
    return replace(review, evidence=evidence)
