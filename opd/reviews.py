"""A review: a graded trajectory with all that is needed to show it, and the one schema of its JSON.

What a file may hold is said here alone, and checked where it is read: it may have been written by anything.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate
from math import isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from opd.reasoning import OPENS, REASONING, reasoning_in
from opd.trajectory import VERDICTS, Grades, Messages, TokenScores, Trajectory
from opd.verdicts import find_forks, verdicts


@dataclass(frozen=True)
class BranchPoint:
    """Where a review leaves another one.

    Attributes:
        parent: index of the review it leaves, in the list of reviews that both are kept in; a parent comes
            before its branches.
        at: index of the first token that was not taken from the parent.
        by: who wrote what follows, "student" (after what was forced) or "teacher".
        forced: how many tokens from ``at`` on were forced; 0 where the teacher went on.
    """

    parent: int
    at: int
    by: Literal["student", "teacher"]
    forced: int = 1


@dataclass(frozen=True)
class PromptText:
    """What a model read before the completion, as text: the template, its control tokens and all.

    Attributes:
        pieces: the text of each of its ``P`` tokens; joined they are the rendered prompt.
        control: places of the control tokens, which mark turns and ends.
        spelled: places of tokens that together spell a control token, but were read as text.
        templated: a chat template rendered it; a model without one reads the messages as plain text.
    """

    pieces: Sequence[str]
    control: Sequence[int]
    spelled: Sequence[int]
    templated: bool


@dataclass(frozen=True, eq=False)
class Review:
    """A graded trajectory with everything needed to show it: no model and no tokenizer.

    Attributes:
        student: the student's name, as the user gave it.
        teacher: the teacher's name.
        messages: the conversation before the completion.
        prompt: what the student read of it; None where that was not recorded.
        teacher_prompt: what the teacher read; None where that is the same (:attr:`read_alike`), too.
        trajectory: the graded trajectory.
        grades: its grades.
        pieces: the text of each completion token; joined they are the text. A character that spans
            several tokens belongs to the last of them, the others are empty.
        vocabulary: text of every token id among the alternatives.
        teacher_vocabulary: the same for the teacher's alternatives where its ids are others; None where they
            are the student's.
        correct: what the verifier says of the answer; None where nobody can say.
        seed: the seed the trajectory was sampled with.
        branch: where it leaves another review; None for a main line. A branch holds the whole text.
        evidence: what rollouts from this trajectory have shown, JSON-ready: "forkValue" holds
            :meth:`opd.grading.branching.ForkValue.to_dict` by token index (as text), "noReturn"
            :meth:`opd.grading.branching.NoReturn.to_dict`; None where nothing was asked.
    """

    student: str
    teacher: str
    messages: Messages
    trajectory: Trajectory
    grades: Grades
    pieces: Sequence[str]
    vocabulary: Mapping[int, str]
    correct: bool | None = None
    seed: int | None = None
    branch: BranchPoint | None = None
    evidence: Mapping[str, Any] | None = None
    teacher_vocabulary: Mapping[int, str] | None = None
    prompt: PromptText | None = None
    teacher_prompt: PromptText | None = None

    @property
    def read_alike(self) -> bool:
        """Whether student and teacher read the same tokens before the completion."""
        ours, theirs = (self.trajectory.seen_by(side) for side in ("student", "teacher"))
        own = self.teacher_vocabulary is not None or self.teacher_prompt is not None
        return not own and np.array_equal(ours, theirs)

    @property
    def reasoning(self) -> slice:
        """Which tokens reason, before the answer, as a slice of the completion; its marks are among them."""
        begun = OPENS if self.prompt and "".join(self.prompt.pieces).rstrip().endswith(OPENS) else ""
        first, end = (max(0, place - len(begun)) for place in reasoning_in(begun + self.text))
        starts = list(accumulate(map(len, self.pieces), initial=0))
        return slice(bisect_right(starts, first) - 1, bisect_left(starts, end)) if end else slice(0, 0)

    @property
    def text(self) -> str:
        """The completion as text, special tokens included."""
        return "".join(self.pieces)

    @property
    def own_tokens(self) -> slice:
        """Which tokens the student chose here, as a slice of the completion, and so what counts as its own.

        Of a main line these are all; of a branch those after what was forced, for what stands before that
        counts where it was written; none where the teacher went on.
        """
        tokens, branch = len(self.trajectory), self.branch
        if branch is None:
            return slice(0, tokens)
        return slice(branch.at + branch.forced if branch.by == "student" else tokens, tokens)

    def teacher_choice(self, index: int) -> tuple[str, float] | None:
        """Return the teacher's likeliest token at a place and its log-prob; None within a span."""
        best = int(self.grades.teacher.top_ids[index, 0])
        if best < 0:
            return None
        texts = self.vocabulary if self.teacher_vocabulary is None else self.teacher_vocabulary
        return texts[best], float(self.grades.teacher.top_logprobs[index, 0])

    def to_dict(self) -> dict[str, Any]:
        """Return the review as JSON-ready data (the schema of saved reviews)."""
        return {
            "student": self.student,
            "teacher": self.teacher,
            "messages": self.messages,
            "seed": self.seed,
            "correct": self.correct,
            **_branch_fields(self.branch),
            "evidence": self.evidence,
            "trajectory": _columns(self.trajectory),
            "grades": _columns(self.grades, gaps=self.grades.spans is not None),
            "prompt": None if self.prompt is None else asdict(self.prompt),
            "teacher_prompt": None if self.teacher_prompt is None else asdict(self.teacher_prompt),
            "pieces": list(self.pieces),
            "vocabulary": {str(i): text for i, text in self.vocabulary.items()},
            "teacher_vocabulary": None
            if self.teacher_vocabulary is None
            else {str(i): text for i, text in self.teacher_vocabulary.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Review:
        """Rebuild a review from :meth:`to_dict`'s data.

        Raises:
            ValueError: something is missing or of the wrong shape; the message names it.
        """
        try:
            grades = dict(data["grades"])
            for side in ("student", "teacher"):
                grades[side] = _from_columns(TokenScores, grades[side])
            review = cls(
                student=str(data["student"]),
                teacher=str(data["teacher"]),
                messages=[
                    {"role": str(m["role"]), "content": str(m["content"])}
                    | ({REASONING: str(m[REASONING])} if m.get(REASONING) else {})
                    for m in data["messages"]
                ],
                prompt=_prompt_text(data.get("prompt")),
                teacher_prompt=_prompt_text(data.get("teacher_prompt")),
                trajectory=_from_columns(Trajectory, data["trajectory"]),
                grades=_from_columns(Grades, grades),
                pieces=[str(piece) for piece in data["pieces"]],
                vocabulary=_texts(data["vocabulary"]),
                teacher_vocabulary=None
                if data.get("teacher_vocabulary") is None
                else _texts(data["teacher_vocabulary"]),
                correct=data["correct"],
                seed=data["seed"],
                branch=_branch(data),
                evidence=data.get("evidence"),
            )
        except KeyError as missing:
            raise ValueError(f"The review has no field {missing}.") from missing
        except (TypeError, AttributeError, OverflowError) as wrong:
            raise ValueError(f"The review is malformed: {wrong}.") from wrong
        tokens = len(review.trajectory)
        for name, column in _token_columns(review):
            if column is None:
                raise ValueError(f"The review is malformed: it has no {name}.")
            if len(column) != tokens:
                raise ValueError(f"The review has {tokens} tokens but {len(column)} entries in {name!r}.")
        _check_values(review)
        _check_branch(review)
        _check_evidence(review.evidence)
        return review if "agreement" in grades else replace(review, grades=_judged(review.grades))


_DTYPES: dict[str, type] = {
    **dict.fromkeys(("prompt_ids", "completion_ids", "teacher_prompt_ids"), np.int64),
    **dict.fromkeys(
        ("behaviour_logprobs", "penalty", "reverse_kl", "forward_kl", "jsd", "agreement"), np.float32
    ),
    **dict.fromkeys(("logprobs", "entropy", "top_logprobs"), np.float32),
    **dict.fromkeys(("ranks", "top_ids", "spans"), np.int32),
    "verdicts": np.uint8,
    "forks": np.bool_,
}


_ADDED_LATER = ("forward_kl", "jsd", "bound", "agreement", "masked", "spans")
"""Fields that files of version 1 need not have."""

_MAY_BE_ABSENT = (
    *("behaviour_logprobs", "reverse_kl", "forward_kl", "jsd", "agreement", "verdicts", "spans"),
    *("teacher.entropy", "teacher.ranks"),
)
"""Columns of tokens that may be None; _check_values says when."""


def _columns(record: Any, *, gaps: bool = False) -> dict[str, Any]:  # noqa: ANN401
    """Turn a dataclass of arrays into JSON-ready columns; floats keep six significant digits.

    With ``gaps`` NaN says that a value is absent and becomes None; elsewhere it is a fault and stays.
    """
    out: dict[str, Any] = {}
    for f in fields(record):
        value = getattr(record, f.name)
        if isinstance(value, TokenScores):
            value = _columns(value, gaps=gaps)
        elif isinstance(value, np.ndarray):
            if value.dtype == np.float32:
                value = _six_digits(value)
                value = np.where(np.isnan(value), None, value) if gaps else value
            value = value.tolist()
        elif f.name == "temperature":
            value = float(value)
        out[f.name] = value
    return out


def _six_digits(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Round to six significant digits, to the doubles that print that short; infinity is the largest float32.

    An integer times or over a power of ten is correctly rounded while the power is exact: up to 10**22.
    """
    exact = np.nan_to_num(values, nan=np.nan).astype(np.float64)
    size = np.abs(exact)
    exponent = np.floor(np.log10(size, where=size > 0, out=np.zeros_like(size)))
    up, down = 10.0 ** np.clip(5 - exponent, 0, 22), 10.0 ** np.clip(exponent - 5, 0, None)
    rounded = np.rint(exact / down * up) / up * down
    extreme = np.abs(exponent) > 17
    rounded[extreme] = [float(f"{x:.6g}") for x in exact[extreme].tolist()]
    return rounded


def _from_columns(kind: type, data: Mapping[str, Any]) -> Any:  # noqa: ANN401
    absent = [name for name in _ADDED_LATER if name not in data]
    values = {f.name: data[f.name] for f in fields(kind) if f.name not in absent}
    for name, value in values.items():
        if name in _DTYPES and value is not None:
            values[name] = np.array(value, dtype=_DTYPES[name])
        elif name == "temperature":
            values[name] = float(value)
    return kind(**values)


_USUALLY_FORCED = {"student": 1, "teacher": 0}
"""Tokens that a branch forces where its file does not say, by who went on."""


def _branch_fields(branch: BranchPoint | None) -> dict[str, Any]:
    """Return a branch as the file holds it: the unusual number of forced tokens stands beside it.

    Within it, programs from before it was known would refuse the file.
    """
    if branch is None:
        return {"branch": None}
    place = asdict(branch)
    forced = place.pop("forced")
    return {"branch": place, "forced": None if forced == _USUALLY_FORCED[branch.by] else forced}


def _branch(data: Mapping[str, Any]) -> BranchPoint | None:
    """Read a branch from a review's data."""
    if data.get("branch") is None:
        return None
    forced = data.get("forced")
    usual = _USUALLY_FORCED.get(data["branch"].get("by"), 1)
    return BranchPoint(**data["branch"], forced=usual if forced is None else forced)


def _judged(grades: Grades) -> Grades:
    """Judge grades of a file from before verdicts knew luck from belief: its indices mean other names."""
    if grades.verdicts is None:
        return grades
    return replace(grades, verdicts=verdicts(grades.student, grades.teacher), forks=find_forks([grades])[0])


def _prompt_text(data: Mapping[str, Any] | None) -> PromptText | None:
    """Read what a model read from a review's data."""
    if data is None:
        return None
    control, spelled = ([int(i) for i in data[name]] for name in ("control", "spelled"))
    return PromptText([str(piece) for piece in data["pieces"]], control, spelled, bool(data["templated"]))


def _texts(data: Mapping[str, Any]) -> dict[int, str]:
    return {int(i): str(text) for i, text in data.items()}


def _token_columns(review: Review) -> Iterable[tuple[str, Any]]:
    """Everything that has one entry a token, by name; what is absent and may be is left out."""
    grades = review.grades
    columns = {"pieces": review.pieces, "behaviour_logprobs": review.trajectory.behaviour_logprobs}
    for name in ("penalty", "reverse_kl", "forward_kl", "jsd", "agreement", "verdicts", "forks", "spans"):
        columns[name] = getattr(grades, name)
    for side in ("student", "teacher"):
        for f in fields(TokenScores):
            columns[f"{side}.{f.name}"] = getattr(getattr(grades, side), f.name)
    return [(name, c) for name, c in columns.items() if c is not None or name not in _MAY_BE_ABSENT]


def _check_values(review: Review) -> None:
    """Refuse values that could not be shown: a saved file may have been written by anything."""

    def check(good: Any, name: str) -> None:  # noqa: ANN401
        if not good:
            raise ValueError(f"The review is malformed: {name} holds a value that it cannot have.")

    trajectory, grades = review.trajectory, review.grades
    check(review.messages, "messages")
    check(review.correct in (True, False, None), "correct")
    check(review.seed is None or _is_whole(review.seed), "seed")
    for name in ("prompt_index", "sample_index"):
        check(_is_whole(getattr(trajectory, name)), name)
    check(trajectory.finish_reason in ("stop", "length", None), "finish_reason")
    for name in ("bias", "bound", "masked"):
        check(getattr(grades, name) is None or isinstance(getattr(grades, name), str), name)
    for temperature in (trajectory.temperature, grades.temperature):
        check(0 <= temperature < float("inf"), "temperature")
    for side, text in (("student", review.prompt), ("teacher", review.teacher_prompt)):
        ids = trajectory.seen_by(side)
        check(ids is not None and ids.ndim == 1, f"the {side}'s prompt")
        if text is not None:
            places = {*text.control, *text.spelled}
            check(len(text.pieces) == len(ids) and places <= set(range(len(ids))), f"the {side}'s prompt")
    spans = grades.spans
    there = {} if spans is None else _there(spans)
    for name, column in _token_columns(review):
        if name != "pieces":
            where = there.get(name, np.ones(len(column), dtype=bool))
            known = column[where]
            check(column.ndim == (2 if ".top_" in name else 1) and np.isfinite(known).all(), name)
            check(name not in there or np.isnan(column[~where]).all(), name)
            check(not name.endswith("logprobs") or (known <= ROUNDING).all(), name)
    absent = (grades.reverse_kl, grades.verdicts, grades.teacher.ranks)
    check(all((column is None) == (spans is not None) for column in absent), "spans")
    check((review.teacher_vocabulary is None) == (spans is None), "teacher_vocabulary")
    if spans is None:
        check((grades.verdicts < len(VERDICTS)).all(), "verdicts")
    else:
        goes_on = np.append(-1, spans[:-1])
        check(((spans == np.arange(len(spans))) | (spans == goes_on) | (spans == -1)).all(), "spans")
    teacher_texts = review.vocabulary if spans is None else {-1: "", **review.teacher_vocabulary}
    for name, scores, texts in (
        ("student", grades.student, review.vocabulary),
        ("teacher", grades.teacher, teacher_texts),
    ):
        check(scores.top_ids.shape == scores.top_logprobs.shape, f"{name}.top_ids")
        check(scores.top_ids.shape[1] > 0, f"{name}.top_ids")
        missing = set(scores.top_ids.ravel().tolist()) - texts.keys()
        if missing:
            raise ValueError(f"The review has no text for the token {min(missing)} in its vocabulary.")


def _is_whole(value: Any) -> bool:  # noqa: ANN401
    return type(value) is int and abs(value) < 2**63


def _there(spans: NDArray[np.int32]) -> dict[str, NDArray[np.bool_]]:
    """Return where a teacher that grades by spans has something to say, bool ``[T]`` by column."""
    begins = spans == np.arange(len(spans))
    return {
        "penalty": spans >= 0,
        "teacher.logprobs": begins & ~np.append(spans[1:] == spans[:-1], False),
        "teacher.top_logprobs": begins,
    }


def _check_branch(review: Review) -> None:
    branch = review.branch
    if branch is None:
        return
    tokens = len(review.trajectory)
    whole = all(map(_is_whole, (branch.parent, branch.at, branch.forced)))
    if (
        not whole
        or branch.by not in _USUALLY_FORCED
        or not 0 <= branch.at < tokens
        or not 0 <= branch.forced <= tokens - branch.at
    ):
        raise ValueError(f"The review's branch is malformed: {branch}.")


ROUNDING = 0.1
"""Nats by which the log-prob of a certain token may exceed 0 in a file."""

DEEPEST = 16
"""Levels of lists and tables that evidence may have."""

_FORK_VALUE = {
    "options": [
        {"token": int, "text": str, "by": str, "n": int, "right": (int, None), "kl": (float, None)},
    ],
    "verdict": str,
    "points": (float, None),
    "low": (float, None),
    "high": (float, None),
    "more": (int, None),
    "sentence": str,
}
_NO_RETURN = {
    "at": (int, None),
    "points": [{"index": int, "n": int, "right": int, "low": float, "high": float}],
    "sentence": str,
}


def _check_evidence(evidence: Any) -> None:  # noqa: ANN401
    """Refuse evidence that could not be shown: a saved file may have been written by anything."""
    if evidence is None:
        return
    _check_plain(evidence)
    _check_shape(evidence, {}, "evidence")
    values = evidence.get("forkValue", {})
    _check_shape(values, {}, "evidence.forkValue")
    for index, value in values.items():
        _check_shape(value, _FORK_VALUE, f"evidence.forkValue.{index}")
    if evidence.get("noReturn") is not None:
        _check_shape(evidence["noReturn"], _NO_RETURN, "evidence.noReturn")


def _check_plain(evidence: Any) -> None:  # noqa: ANN401
    """Refuse what no other program could read, or show, at any place of JSON data."""
    level = [evidence]
    for _ in range(DEEPEST):
        tables = [
            one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)
        ]
        level = [one for table in tables for one in table]
        wild = [
            x
            for x in level
            if (type(x) is int and not _is_whole(x)) or (type(x) is float and not isfinite(x))
        ]
        if wild:
            raise ValueError("The review is malformed: its evidence holds a number that is none.")
    if level:
        raise ValueError(f"The review is malformed: its evidence is nested deeper than {DEEPEST} levels.")


def _check_shape(value: Any, shape: Any, where: str) -> None:  # noqa: ANN401
    """Compare JSON data with a shape: a type, a tuple of alternatives, a list of one shape, or keys."""
    match shape:
        case dict():
            fits = isinstance(value, dict) and shape.keys() <= value.keys()
            parts = [(value[key], inner, f"{where}.{key}") for key, inner in shape.items()] if fits else []
        case [inner]:
            fits = isinstance(value, list)
            parts = [(one, inner, f"{where}[{i}]") for i, one in enumerate(value)] if fits else []
        case _:
            kinds = shape if isinstance(shape, tuple) else (shape,)
            accepted = {int: (int,), float: (int, float), str: (str,), None: (type(None),)}
            fits = type(value) in [kind for name in kinds for kind in accepted[name]]
            parts = []
    if not fits:
        raise ValueError(f"The review is malformed at {where}: {json.dumps(value)[:60]}.")
    for part in parts:
        _check_shape(*part)
