"""Prompts from a file or from the hub.

Every row becomes an example, or is counted with its line number and the reason why it cannot be one; none
goes silently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from opd.models.hub import data_set_problem
from opd.tasks import Example, Split, TaskOptions
from opd.tasks.formats import Row, Table
from opd.tasks.shapes import Shape, recognise
from opd.tasks.verifiers import Verifier, long_for_exact, make_verifier
from opd.trajectory import Prompt, as_messages

SHOWN = 5  # malformed rows spelled out in a message


class Malformed(NamedTuple):
    """A row that cannot be used: its first line in the file (or its number, without lines), and why."""

    line: int
    reason: str


class RowsTask:
    """Prompts that were read from rows, and the verifier that the options name or the rows show.

    Attributes:
        name: what the user called it.
        verifier: the name of the verifier.
        malformed: the rows that cannot be used.
        duplicates: how many rows repeated the prompt (and answer) of an earlier one; they are left out.
    """

    def __init__(self, name: str, table: Table, options: TaskOptions) -> None:
        """Turn rows into examples.

        Raises:
            ValueError: no row can be used, a column is missing, or rows are malformed and may not be.
        """
        if not 0 <= options.heldout_share < 1:
            raise ValueError(f"heldout_share must be at least 0 and below 1, not {options.heldout_share}.")
        self.name = name
        self.unit = table.unit
        self.malformed: list[Malformed] = []
        self.duplicates = 0
        self._shape = recognise(
            name, [r.columns for r in table.rows if isinstance(r.columns, Mapping)], options
        )
        self._said = " ".join(filter(None, (table.said, self._shape.said)))
        self.verifier = self._shape.verifier
        self._verifier = make_verifier(self.verifier)
        self._examples: list[Example] = []
        self._splits: dict[str, list[Example]] = {"train": [], "tuning": [], "test": []}
        first: dict[str, tuple[int, str | None]] = {}
        for row in table.rows:
            try:
                example = replace(_example(row, self._shape, self._verifier), place=f"{self.unit} {row.line}")
            except ValueError as error:
                self.malformed.append(Malformed(row.line, str(error)))
                continue
            key = json.dumps(as_messages(example.prompt))
            line, answer = first.setdefault(key, (row.line, example.answer))
            if line == row.line:
                self._examples.append(example)
                self._splits[split_of(example.prompt, options.heldout_share)].append(example)
            elif answer == example.answer:
                self.duplicates += 1
            else:
                self.malformed.append(
                    Malformed(row.line, f"it has the prompt of {self.unit} {line} with another answer")
                )
        if self.malformed and options.on_malformed == "fail":
            raise ValueError(f"{self._malformed_rows()} Mend them, or set on_malformed to skip.")
        if not self._examples:
            problem = self._malformed_rows() if self.malformed else "It is empty."
            raise ValueError(f"{name} has no row to train on. {problem}")

    def batch(self, n: int, *, step: int, seed: int) -> list[Example]:
        """Return the ``n`` training examples of one step (from 1).

        The steps walk through one shuffled epoch after the other, so each prompt comes once an epoch.

        Raises:
            ValueError: all prompts are held out.
        """
        train = self._splits["train"]
        if not train:
            raise ValueError(f"{self.name} has no row to train on. All are held out; lower heldout_share.")
        orders: dict[int, np.ndarray] = {}
        picked = []
        for position in range((step - 1) * n, step * n):
            epoch, place = divmod(position, len(train))
            if epoch not in orders:
                key = np.random.SeedSequence((seed, epoch))
                orders[epoch] = np.random.Generator(np.random.Philox(key)).permutation(len(train))
            picked.append(train[orders[epoch][place]])
        return picked

    def heldout(self, n: int, *, split: Split = "test") -> list[Example]:
        """Return the first ``n`` held-out examples of a split, fewer if there are fewer; "all": of all rows.

        Raises:
            ValueError: the split is empty.
        """
        if split == "all":
            return self._examples[:n]
        if n and not self._splits[split]:
            raise ValueError(
                f"{self.name} has no held-out rows in its {split} split; {len(self._splits['train'])} rows "
                "train. Raise heldout_share, add rows, or set eval_prompts to 0 (opd eval: --split all)."
            )
        return self._splits[split][:n]

    def columns(self) -> list[str]:
        """Return the columns that have a text in every row, "answer" where the answers are known."""
        every = set.intersection(*(set(example.columns) for example in self._examples))
        named = [name for name in self._examples[0].columns if name in every]
        return named if self._shape.answer is None else list(dict.fromkeys(["answer", *named]))

    def verify(self, example: Example, completion: str, *, cut: bool = False) -> bool | None:
        """Say whether a completion gives the example's answer; None where the example has none."""
        return None if example.answer is None else self._verifier.right(example.answer, completion, cut)

    def fingerprint(self) -> str:
        """Return a hash of all examples in their order, and of their splits."""
        digest = hashlib.sha256()
        for split, examples in self._splits.items():
            for example in examples:
                digest.update(json.dumps([split, example.prompt, example.answer]).encode())
        return digest.hexdigest()[:16]

    def sizes(self) -> dict[str, int]:
        """Return how many prompts "train", are for "tuning" and for the "test"."""
        return {split: len(examples) for split, examples in self._splits.items()}

    def summary(self) -> str:
        """Say in words what was read: usable rows by split, duplicates, malformed rows."""
        counts = self.sizes()
        said = (
            f"{self.name}: {sum(counts.values())} prompts ({counts['train']} to train, "
            f"{counts['tuning']} for tuning, {counts['test']} for the test). {self._said}"
        )
        if self.verifier == "exact" and (
            long := long_for_exact([e.answer for e in self._examples if e.answer])
        ):
            said += f" {long}"
        if self.duplicates:
            said += f" {self.duplicates} repeated rows left out."
        if self.malformed:
            said += f" {self._malformed_rows()}"
        return said

    def _malformed_rows(self) -> str:
        shown = "; ".join(f"{self.unit} {line}: {reason}" for line, reason in self.malformed[:SHOWN])
        more = f"; and {len(self.malformed) - SHOWN} more" if len(self.malformed) > SHOWN else ""
        return f"{len(self.malformed)} malformed rows: {shown}{more}."


def split_of(prompt: Prompt, heldout_share: float) -> Literal["train", "tuning", "test"]:
    """Return the split of a prompt, by a hash of what is asked.

    Case, spacing and system prompts do not count: two wordings that differ only there share a split.
    """
    asked = "\n".join(m["content"] for m in as_messages(prompt) if m["role"] not in ("system", "developer"))
    digest = hashlib.sha256(" ".join(asked.casefold().split()).encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    return "tuning" if place < heldout_share / 3 else "test" if place < heldout_share else "train"


def read_hub(spec: str, options: TaskOptions) -> RowsTask:
    """Read a data set of the hub, ``owner/name`` or ``owner/name:config``.

    Raises:
        ValueError: the data set is missing or unreachable, has no such split, or nothing to train on.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(
            f"To read {spec} from the hub, install the datasets package: pip install opd-studio[data]."
        ) from None
    name, _, config = spec.partition(":")
    try:
        # A data set brings no code that is run: scripts are refused by the library itself.
        loaded = load_dataset(name, config or None, split=options.task_split)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(data_set_problem(name, error)) from error
    rows = [Row(number, columns) for number, columns in enumerate(loaded, start=1)]
    return RowsTask(spec, Table(rows, "row"), options)


def _example(row: Row, shape: Shape, verifier: Verifier) -> Example:
    """Turn a row into an example.

    Raises:
        ValueError: the row cannot be used; the message is the reason.
    """
    if isinstance(row.columns, str):
        raise ValueError(row.columns)
    example = shape.example(row.columns)
    if example.answer is not None and (fault := verifier.fault(example.answer)):
        raise ValueError(fault)
    return example
