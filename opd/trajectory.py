"""The nouns of the program: what a rollout is, what a model says of it, what the grading concludes.

Everything here is numpy and plain Python, so that a saved review opens on a machine that has no torch.
``T`` is the number of completion tokens (the sampled end-of-sequence token is one of them), ``K`` the number
of alternatives kept per token. All logarithms are natural: log-probs, penalties, KL and entropy are in nats.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length"]
Messages = list[dict[str, str]]
Prompt = str | Messages

VERDICTS = ("forced", "brilliant", "great", "best", "good", "inaccuracy", "mistake", "blunder")
"""Names of the verdicts; :attr:`Grades.verdicts` holds indices into it. Their cut-offs: opd/grading.py."""

REVIEW_FORMAT = "opd-review"
REVIEW_VERSION = 1


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One completion of one prompt, as token ids.

    Attributes:
        prompt_ids: int64 ``[P]``, the rendered prompt that the student saw.
        completion_ids: int64 ``[T]``, with the end-of-sequence token where one was sampled.
        behaviour_logprobs: float32 ``[T]``, what the sampler assigned to each token at ``temperature``;
            None for text that nobody sampled (off-policy).
        finish_reason: "stop" (end-of-sequence sampled), "length" (cut off), None while still being sampled.
        teacher_prompt_ids: int64 ``[P']``, what the teacher sees before the completion; equal to
            ``prompt_ids`` unless the teacher is told more.
        temperature: the temperature the completion was sampled at.
        prompt_index: place of the prompt in the request.
        sample_index: which of the prompt's samples this is.
    """

    prompt_ids: NDArray[np.int64]
    completion_ids: NDArray[np.int64]
    behaviour_logprobs: NDArray[np.float32] | None
    finish_reason: FinishReason | None
    teacher_prompt_ids: NDArray[np.int64]
    temperature: float = 1.0
    prompt_index: int = 0
    sample_index: int = 0

    def __len__(self) -> int:
        """Return T, the number of completion tokens."""
        return len(self.completion_ids)


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What one model says of one completion.

    Attributes:
        logprobs: float32 ``[T]``, log-prob of each completion token.
        entropy: float32 ``[T]``, entropy of the model's distribution at each position.
        ranks: int32 ``[T]``, how many tokens the model finds strictly likelier (0 = its first choice).
        top_ids: int32 ``[T, K]``, the model's likeliest tokens, best first.
        top_logprobs: float32 ``[T, K]``, their log-probs.
    """

    logprobs: NDArray[np.float32]
    entropy: NDArray[np.float32]
    ranks: NDArray[np.int32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Grades:
    """The teacher's grade of every token of one trajectory.

    Attributes:
        penalty: float32 ``[T]``, log p_student - log p_teacher of the sampled token: the sampled reverse KL,
            signed; its negative is the advantage.
        reverse_kl: float32 ``[T]``, KL(student || teacher) over the whole vocabulary, >= 0.
        student: the student's own scores of the trajectory.
        teacher: the teacher's scores of the trajectory.
        verdicts: uint8 ``[T]``, index into :data:`VERDICTS`.
        forks: bool ``[T]``, the forking tokens.
        temperature: the one temperature both models were scored at.
        bias: why the sampled penalty is not an unbiased estimate of the reverse KL; None where it is one.
    """

    penalty: NDArray[np.float32]
    reverse_kl: NDArray[np.float32]
    student: TokenScores
    teacher: TokenScores
    verdicts: NDArray[np.uint8]
    forks: NDArray[np.bool_]
    temperature: float
    bias: str | None = None

    def __len__(self) -> int:
        """Return T, the number of graded tokens."""
        return len(self.penalty)

    @property
    def student_entropy(self) -> NDArray[np.float32]:
        """Entropy of the student at each position, float32 ``[T]``, nats."""
        return self.student.entropy

    @property
    def teacher_entropy(self) -> NDArray[np.float32]:
        """Entropy of the teacher at each position, float32 ``[T]``, nats."""
        return self.teacher.entropy

    @property
    def teacher_rank(self) -> NDArray[np.int32]:
        """The teacher's rank of each sampled token, int32 ``[T]``, 0 = its first choice."""
        return self.teacher.ranks


@dataclass(frozen=True, eq=False)
class Review:
    """A graded trajectory with everything needed to show it: no model and no tokenizer.

    Attributes:
        student: the student's name, as the user gave it.
        teacher: the teacher's name.
        messages: the conversation before the completion.
        trajectory: the graded trajectory.
        grades: its grades.
        pieces: the text of each completion token; joined they are the text. A character that spans
            several tokens belongs to the last of them, the others are empty.
        vocabulary: text of every token id among the alternatives.
        correct: what the verifier says of the answer; None where nobody can say.
        seed: the seed the trajectory was sampled with.
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

    @property
    def text(self) -> str:
        """The completion as text, special tokens included."""
        return "".join(self.pieces)

    def to_dict(self) -> dict[str, Any]:
        """Return the review as JSON-ready data (the schema of saved reviews)."""
        return {
            "student": self.student,
            "teacher": self.teacher,
            "messages": self.messages,
            "seed": self.seed,
            "correct": self.correct,
            "trajectory": _columns(self.trajectory),
            "grades": _columns(self.grades),
            "pieces": list(self.pieces),
            "vocabulary": {str(i): text for i, text in self.vocabulary.items()},
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
                messages=[{"role": str(m["role"]), "content": str(m["content"])} for m in data["messages"]],
                trajectory=_from_columns(Trajectory, data["trajectory"]),
                grades=_from_columns(Grades, grades),
                pieces=[str(piece) for piece in data["pieces"]],
                vocabulary={int(i): str(text) for i, text in data["vocabulary"].items()},
                correct=data["correct"],
                seed=data["seed"],
            )
        except KeyError as missing:
            raise ValueError(f"The review has no field {missing}.") from missing
        except (TypeError, AttributeError, OverflowError) as wrong:
            raise ValueError(f"The review is malformed: {wrong}.") from wrong
        tokens = len(review.trajectory)
        for name, column in _token_columns(review):
            if len(column) != tokens:
                raise ValueError(f"The review has {tokens} tokens but {len(column)} entries in {name!r}.")
        return review


@dataclass(frozen=True)
class StepReport:
    """What one training step did. Row 0 is an evaluation only; step k is the state after k updates.

    Attributes:
        step: number of updates made.
        metrics: the figures by name, as they stand in ``metrics.jsonl``; absent means not measured.
        samples: a few graded trajectories of the step.
        probes: at an evaluation, the student's graded answers to the first held-out prompts, always the same.
        notes: sentences for the user (a halved micro-batch, for instance).
        alarms: sentences on what has gone wrong with the student (collapsed rollouts, for instance).
    """

    step: int
    metrics: Mapping[str, float]
    samples: Sequence[Review] = ()
    probes: Sequence[Review] = ()
    notes: Sequence[str] = ()
    alarms: Sequence[str] = ()

    def row(self) -> dict[str, float]:
        """Return the line of ``metrics.jsonl``."""
        return {"step": self.step, **self.metrics}


def save_reviews(path: str | Path, reviews: Iterable[Review]) -> None:
    """Write reviews to one JSON file, whole or not at all.

    Raises:
        OSError: the file cannot be written (disk full, no permission); nothing is left behind.
    """
    path = Path(path)
    data = {"format": REVIEW_FORMAT, "version": REVIEW_VERSION, "reviews": [r.to_dict() for r in reviews]}
    write_atomically(path, json.dumps(data, ensure_ascii=False, separators=(",", ":")))


def load_reviews(path: str | Path) -> list[Review]:
    """Read the reviews of a file written by :func:`save_reviews`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a review file, or of a newer version, or damaged.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a review file: it is not text.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a review file: {error}.") from error
    if not isinstance(data, dict) or data.get("format") != REVIEW_FORMAT:
        raise ValueError(f"{path} is not a review file: it does not say format = {REVIEW_FORMAT!r}.")
    if data.get("version") != REVIEW_VERSION:
        raise ValueError(f"{path} is a review of version {data.get('version')}; this is {REVIEW_VERSION}.")
    return [Review.from_dict(review) for review in data["reviews"]]


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` through a temporary file beside it and a rename.

    Raises:
        OSError: the file cannot be written; the old content, if any, stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


_DTYPES: dict[str, type] = {
    **dict.fromkeys(("prompt_ids", "completion_ids", "teacher_prompt_ids"), np.int64),
    **dict.fromkeys(("behaviour_logprobs", "penalty", "reverse_kl"), np.float32),
    **dict.fromkeys(("logprobs", "entropy", "top_logprobs"), np.float32),
    **dict.fromkeys(("ranks", "top_ids"), np.int32),
    "verdicts": np.uint8,
    "forks": np.bool_,
}


def _columns(record: Any) -> dict[str, Any]:  # noqa: ANN401
    """Turn a dataclass of arrays into JSON-ready columns; floats keep six significant digits."""
    out: dict[str, Any] = {}
    for f in fields(record):
        value = getattr(record, f.name)
        if isinstance(value, TokenScores):
            value = _columns(value)
        elif isinstance(value, np.ndarray):
            if value.dtype == np.float32:
                flat = [float(f"{x:.6g}") for x in value.ravel().tolist()]
                value = np.array(flat).reshape(value.shape)
            value = value.tolist()
        out[f.name] = value
    return out


def _from_columns(kind: type, data: Mapping[str, Any]) -> Any:  # noqa: ANN401
    values = {f.name: data[f.name] for f in fields(kind)}
    for name, value in values.items():
        if name in _DTYPES and value is not None:
            values[name] = np.array(value, dtype=_DTYPES[name])
    return kind(**values)


def _token_columns(review: Review) -> Iterable[tuple[str, Sequence[Any] | NDArray[Any]]]:
    yield "pieces", review.pieces
    if review.trajectory.behaviour_logprobs is not None:
        yield "behaviour_logprobs", review.trajectory.behaviour_logprobs
    grades = review.grades
    for name in ("penalty", "reverse_kl", "verdicts", "forks"):
        yield name, getattr(grades, name)
    for side in ("student", "teacher"):
        for f in fields(TokenScores):
            yield f"{side}.{f.name}", getattr(getattr(grades, side), f.name)
