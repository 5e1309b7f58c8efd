"""What goes wrong in on-policy distillation, seen from the metrics alone: every rule and threshold is here.

A rule looks at the rows up to a step and says a sentence, or nothing. It compares the mean of the last
:data:`WINDOW` training steps with that of the run's first ones, since single steps are noise; or it judges
the last ones by themselves, since a run may be bad from its first step on, or over before there is a start to
compare with. An alarm is raised at the onset, when the rule has been silent for :data:`QUIET` steps; so
alarms are a function of the rows, and a resumed run raises those it would have raised. It stands while its
rule speaks.

The KL to the teacher shows nothing of a collapse: both models agree on how a loop goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Row = Mapping[str, float]
Evidence = Literal["rollout", "probe"]

WINDOW = 5
"""Steps of a mean. Of 128 completions each, so their standard error is a few per cent of the value."""

SHORTEST = 2
"""Steps of a mean in a run that is too short for longer ones."""

QUIET = 10
"""Steps (for held-out metrics: evaluations) a rule must have been silent before it speaks again."""

SHORTER, LONGER = 0.3, 2.5
"""Mean length against that of the first steps. Students that learn to be brief halve it; one that ends at
once, or rambles to the limit, leaves these bounds (length inflation is OPD's best known failure)."""

ENTROPY_OF_TEACHER, ENTROPY_OF_START = 0.3, 0.5
"""The student may become as sure as its teacher: the entropy has collapsed if it is below the first share of
the teacher's on the same tokens and below the second share of where it began."""

REPEATED, LOOPS = 0.3, 0.6
"""Rise of the share of 4-grams that a completion has had before, and the share that is bad by itself. The
embedded pair's solutions repeat below 1 % of theirs, long reasoning up to a third, loops nearly all."""

KL_EVALUATIONS, KL_RISE = 3, 0.1
"""Held-out KL: so many evaluations in a row higher than the one before, and in total by this share. All use
the same random numbers, so noise seldom does that."""

KL_FAR, KL_FAR_NATS = 1.5, 0.1
"""Held-out KL that is so many times and so many nats above that of step 0: one evaluation is enough."""

OVERLAP_LOST, STRANGERS = 0.1, 0.2
"""Fall of the share of likeliest tokens that both models have in common, and the share that is bad by itself:
it rises where distillation works and falls where it fails (thunlp/OPD). Pairs that learnt had 0.40 to 0.54
(the embedded one; SmolLM2 without four of its layers under the whole), runs that collapsed 0.06 to 0.32."""

CLIPPED_MORE, CLIPPED = 0.25, 0.9
"""Rise of the share of completions that the length limit cuts off, and the share that is bad by itself: who
learns from them hardly ever sees how an answer ends."""

DEGENERATE = 0.5
"""Share of a step's completions that are blank or one token over and over; healthy runs have none."""


@dataclass(frozen=True)
class Alarm:
    """Something has gone wrong with the student.

    Attributes:
        kind: name of the rule, a key of :data:`RULES`.
        step: when it began.
        message: a sentence for the user.
        metric: the curve that shows it.
        evidence: which saved trajectories of (or nearest before) ``step`` show it: "rollout" or "probe".
    """

    kind: str
    step: int
    message: str
    metric: str
    evidence: Evidence


def alarms_at(rows: Sequence[Row], *, rewarded: bool = False) -> list[Alarm]:
    """Return the alarms that begin at the last of some rows, which are a run's in order of their steps.

    Args:
        rows: what the run has measured.
        rewarded: a task's reward leads the student, which is free to leave its teacher.
    """
    out = []
    for kind, (metric, evidence, rule) in _rules(rewarded).items():
        known = _known(rows, metric, evidence)
        if not known or known[-1] is not rows[-1]:
            continue
        message = rule(known)
        before = (known[:-back] for back in range(1, min(QUIET, len(known) - 1) + 1))
        if message and not any(rule(earlier) for earlier in before):
            out.append(Alarm(kind, int(rows[-1]["step"]), message, metric, evidence))
    return out


def standing(rows: Sequence[Row], *, rewarded: bool = False) -> list[str]:
    """Return the kinds of the alarms that stand at the last of a run's rows, whenever they began."""
    rules = _rules(rewarded)
    known = {kind: _known(rows, metric, evidence) for kind, (metric, evidence, _) in rules.items()}
    return [kind for kind, (_, _, rule) in rules.items() if known[kind] and rule(known[kind])]


def is_collapsed(row: Row) -> bool:
    """Whether the answers of an evaluation loop or are blank, so that its KL means nothing."""
    degenerate, repeated = (row.get(f"heldout_{name}", 0.0) for name in ("degenerate_share", "repetition"))
    return degenerate >= DEGENERATE or repeated > LOOPS


def merit(row: Row) -> tuple[bool, float] | None:
    """Return how good a step is, to be compared with another one's; None if it was not measured.

    That is its held-out accuracy, else minus its held-out KL; but a student that has collapsed may be near to
    its teacher, and is never better than one that has not.
    """
    if "heldout_accuracy" in row:
        return True, row["heldout_accuracy"]
    return (not is_collapsed(row), -row["heldout_kl"]) if "heldout_kl" in row else None


def _known(rows: Sequence[Row], metric: str, evidence: Evidence) -> list[Row]:
    """Return the rows that a rule looks at: those of training steps, or of evaluations."""
    return [row for row in rows if metric in row and (row["step"] > 0 or evidence == "probe")]


def _start_and_now(rows: Sequence[Row], metric: str, shortest: int = SHORTEST) -> tuple[float, float] | None:
    """Return the mean of the first and of the last :data:`WINDOW` rows, fewer where they would share some.

    None where they would be fewer than ``shortest``.
    """
    window = min(WINDOW, len(rows) // 2)
    if window < shortest:
        return None
    return _mean(rows[:window], metric), _mean(rows[-window:], metric)


def _now(rows: Sequence[Row], metric: str) -> float | None:
    """Return the mean of the last rows by themselves; None where they are fewer than :data:`SHORTEST`."""
    window = max(SHORTEST, min(WINDOW, len(rows) // 2))
    return _mean(rows[-window:], metric) if len(rows) >= SHORTEST else None


def _mean(rows: Sequence[Row], metric: str) -> float:
    return sum(row[metric] for row in rows) / len(rows)


def _length_collapse(rows: Sequence[Row]) -> str | None:
    match _start_and_now(rows, "completion_tokens"):
        case (start, now) if now < SHORTER * start:
            return f"Completions have collapsed from {start:.0f} to {now:.0f} tokens."
    return None


def _length_explosion(rows: Sequence[Row]) -> str | None:
    match _start_and_now(rows, "completion_tokens"):
        case (start, now) if now > LONGER * start:
            return f"Completions have grown from {start:.0f} to {now:.0f} tokens."
    return None


def _entropy_collapse(rows: Sequence[Row]) -> str | None:
    if any("teacher_entropy" not in row for row in rows):  # a teacher that gives its likeliest tokens only
        return None
    student, teacher = (_start_and_now(rows, f"{side}_entropy") for side in ("student", "teacher"))
    if student is None or teacher is None:
        return None
    (start, now), (_, reference) = student, teacher
    if now < ENTROPY_OF_TEACHER * reference and now < ENTROPY_OF_START * start:
        return (
            f"The student's entropy has fallen from {start:.2f} to {now:.2f} nats, far below the teacher's "
            f"{reference:.2f} on the same tokens: it says one thing whatever it is asked."
        )
    return None


def _repetition(rows: Sequence[Row]) -> str | None:
    match _start_and_now(rows, "repetition"):
        case (start, now) if now > start + REPEATED:
            return f"Completions repeat themselves: {now:.0%} of their 4-grams, {start:.0%} at the start."
    match _now(rows, "repetition"):
        case float(now) if now > LOOPS:
            return f"Completions repeat themselves: {now:.0%} of their 4-grams have come before."
    return None


def _kl_rising(rows: Sequence[Row]) -> str | None:
    last = [row["heldout_kl"] for row in rows[-KL_EVALUATIONS - 1 :]]
    rising = all(a < b for a, b in itertools.pairwise(last))
    if len(last) > KL_EVALUATIONS and rising and last[-1] > (1 + KL_RISE) * last[0]:
        return (
            f"The held-out KL has risen {KL_EVALUATIONS} evaluations in a row, from {last[0]:.3f} to "
            f"{last[-1]:.3f} nats a token: the student moves away from its teacher."
        )
    start, now = rows[0]["heldout_kl"], last[-1]
    if now > KL_FAR * start and now > start + KL_FAR_NATS:
        return (
            f"The held-out KL is {now:.3f} nats a token, {start:.3f} at the start: the student has moved "
            "away from its teacher."
        )
    return None


def _overlap(rows: Sequence[Row]) -> str | None:
    match _start_and_now(rows, "topk_overlap", WINDOW):
        case (start, now) if now < start - OVERLAP_LOST:
            return f"The models' likeliest tokens have {now:.0%} in common, {start:.0%} at the start."
    match _now(rows, "topk_overlap"):
        case float(now) if now < STRANGERS:
            return (
                f"The models' likeliest tokens have {now:.0%} in common: the teacher would hardly ever say "
                "what the student writes. Begin with the teacher's own answers (sft), or choose a nearer one."
            )
    return None


def _clipping(rows: Sequence[Row]) -> str | None:
    match _start_and_now(rows, "clipped_share", WINDOW):
        case (start, now) if now > start + CLIPPED_MORE:
            return (
                f"The length limit cuts off {now:.0%} of the completions, {start:.0%} at the start. "
                "Raise max_tokens, or find out why the student does not end."
            )
    match _now(rows, "clipped_share"):
        case float(now) if now >= CLIPPED:
            return (
                f"The length limit cuts off {now:.0%} of the completions, so the student hardly ever sees "
                "how an answer ends. Raise max_tokens, or find out why it does not end."
            )
    return None


def _degenerate(rows: Sequence[Row]) -> str | None:
    share = rows[-1]["degenerate_share"]
    if share >= DEGENERATE:
        return f"{share:.0%} of the step's completions are blank or one token over and over."
    return None


RULES: dict[str, tuple[str, Evidence, Callable[[Sequence[Row]], str | None]]] = {
    "length collapse": ("completion_tokens", "rollout", _length_collapse),
    "length explosion": ("completion_tokens", "rollout", _length_explosion),
    "entropy collapse": ("student_entropy", "rollout", _entropy_collapse),
    "repetition": ("repetition", "rollout", _repetition),
    "held-out KL rising": ("heldout_kl", "probe", _kl_rising),
    "overlap": ("topk_overlap", "rollout", _overlap),
    "clipping": ("clipped_share", "rollout", _clipping),
    "degenerate": ("degenerate_share", "rollout", _degenerate),
}
"""Every rule by kind, with the metric it watches and the saved trajectories that show it."""

OF_TEACHER = {"held-out KL rising", "overlap"}
"""The rules that hold only while the student is to come nearer to its teacher."""


def _rules(rewarded: bool) -> Mapping[str, tuple[str, Evidence, Callable[[Sequence[Row]], str | None]]]:
    return {kind: rule for kind, rule in RULES.items() if not (rewarded and kind in OF_TEACHER)}
