"""Multiple choice: choices and the right one, in the shapes of MMLU, ARC and their kin, become letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

LETTERS = "ABCDEFGHIJ"
"""Letters that the verifier ``choice`` knows."""

MOST = 0.9
"""Share of the rows that must fit a reading of a column; the others are then malformed."""


class Choices(NamedTuple):
    """What one question lets choose from."""

    labels: Sequence[str]
    texts: Sequence[str]

    def __str__(self) -> str:
        """One choice a line, behind its letter."""
        return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, self.texts, strict=False))


class Key(NamedTuple):
    """How a column names the right choice: by label or letter, by text, or by an index from ``first``."""

    by: Literal["label", "text", "index"]
    first: int = 0

    def letter(self, answer: str, choices: Choices) -> str:
        """Return the letter of the right choice.

        Raises:
            ValueError: there is no such choice, or the letters do not suffice.
        """
        place = _place(answer, choices, self.by)
        place = None if place is None else place - self.first
        if place is None or not 0 <= place < len(choices.texts):
            raise ValueError(f"its answer {answer!r} is none of its choices")
        if len(choices.texts) > len(LETTERS):
            raise ValueError(f"it has {len(choices.texts)} choices, and letters go from A to {LETTERS[-1]}")
        return LETTERS[place]


def choices_of(value: Any) -> Choices | None:  # noqa: ANN401
    """Return the choices in a cell: texts, or texts with labels (``{"text", "label"}`` or ``{"A": …}``)."""
    if isinstance(value, Mapping) and {"text", "label"} <= value.keys():
        labels, texts = value["label"], value["text"]
    elif isinstance(value, Mapping):
        labels, texts = list(value), list(value.values())
        if any(label.strip() not in LETTERS for label in labels):
            return None
    else:
        labels, texts = (), value
    if not isinstance(texts, list) or len(texts) < 2 or (labels and len(labels) != len(texts)):
        return None
    if not all(isinstance(text, str | int | float) for text in texts):
        return None
    return Choices([str(label).strip() for label in labels], [str(text).strip() for text in texts])


def find_key(name: str, asked: Sequence[tuple[str, Choices]]) -> Key | None:
    """Return how most of some answers name one of their choices; None if they do not.

    Args:
        name: of the task, for the message.
        asked: answers and what they choose from.

    Raises:
        ValueError: they can be read in two ways.
    """
    fits = [
        by
        for by in ("label", "text", "index")
        if sum(_place(answer, choices, by) is not None for answer, choices in asked) >= MOST * len(asked)
    ]
    if not asked or not fits:
        return None
    if fits == ["index"]:
        counted = [(int(a), len(c.texts)) for a, c in asked if _place(a, c, "index") is not None]
        from_zero, from_one = any(i == 0 for i, _ in counted), any(i == n for i, n in counted)
        if from_zero != from_one:
            return Key("index", 0 if from_zero else 1)
        fits = ["indices from 0", "indices from 1"]
    elif len(fits) == 1 or fits[0] == "label":
        return Key(fits[0])
    raise ValueError(
        f"The answers of {name} can be {' or '.join(fits)}: write the letter of the right choice instead."
    )


def _place(answer: str, choices: Choices, by: str) -> int | None:
    """Return which choice an answer names, or the index as it stands, which may count from 0 or 1."""
    if by == "index":
        return int(answer) if answer.isdecimal() and int(answer) <= len(choices.texts) else None
    if by == "text":
        return choices.texts.index(answer) if answer in choices.texts else None
    labels = choices.labels if answer in choices.labels else LETTERS[: len(choices.texts)]
    return labels.index(answer) if len(answer) == 1 and answer in labels else None
