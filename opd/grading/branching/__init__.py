"""What would have happened: force a token, let the student go on, and see what it was worth.

A branch is one other way the text could have gone, graded like the main line. *Fork value* and *point of no
return* are measurements: many rollouts, counted by a verifier, with intervals. Only ids travel: what stands
before a branch is the very ids of its parent.
"""

from opd.grading.branching.evidence import with_evidence
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
