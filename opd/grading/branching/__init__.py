"""What would have happened: force a token, let the student go on, and see what it was worth.

A branch is one other way the text could have gone, graded like the main line. *Fork value* and *point of no
return* are measurements: many rollouts, counted by a verifier, with intervals. Only ids travel: what stands
before a branch is the very ids of its parent.
"""

from dataclasses import replace

from opd.grading.branching.fork_values import (
    ForkValue,
    Option,
    fork_value,
    fork_value_cost,
    judge_fork,
    more_rollouts,
    teacher_choices,
)
from opd.grading.branching.lines import branch, teacher_line
from opd.grading.branching.no_return import NoReturn, no_return_cost, point_of_no_return
from opd.grading.branching.rolling import must_be_verified
from opd.reviews import Review

__all__ = [
    "ForkValue",
    "NoReturn",
    "Option",
    "branch",
    "fork_value",
    "fork_value_cost",
    "judge_fork",
    "more_rollouts",
    "must_be_verified",
    "no_return_cost",
    "point_of_no_return",
    "teacher_choices",
    "teacher_line",
    "with_evidence",
]


def with_evidence(review: Review, found: ForkValue | NoReturn) -> Review:
    """Return the review with a finding kept in its evidence, beside earlier ones."""
    evidence = dict(review.evidence or {})
    if isinstance(found, NoReturn):
        evidence["noReturn"] = found.to_dict()
    else:
        evidence["forkValue"] = {**evidence.get("forkValue", {}), str(found.at): found.to_dict()}
    return replace(review, evidence=evidence)
