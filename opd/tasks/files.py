"""Prompts from a file or from the hub.

Every row becomes an example, or is counted with its line number and the reason why it cannot be one; none
goes silently.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from opd.files import parse, read_text
from opd.models.hub import data_set_problem
from opd.tasks import FILE_TYPES, Example, Split, TaskOptions
from opd.tasks.verifiers import Verifier, make_verifier
from opd.trajectory import Messages, Prompt

ROLES = ("system", "developer", "user", "assistant", "tool")
SHOWN = 5  # malformed rows spelled out in a message


class Malformed(NamedTuple):
    """A row that cannot be used: its first line in the file (or its number, without lines), and why."""

    line: int
    reason: str


class Row(NamedTuple):
    """A row as it was read: its columns, or the reason why there are none."""

    line: int
    columns: Mapping[str, Any] | str


class RowsTask:
    """Prompts that were read from rows, and the verifier that the options name.

    Attributes:
        name: what the user called it.
        malformed: the rows that cannot be used.
        duplicates: how many rows repeated the prompt (and answer) of an earlier one; they are left out.
    """

    def __init__(self, name: str, rows: Iterable[Row], options: TaskOptions, *, unit: str = "line") -> None:
        """Turn rows into examples; ``unit`` is what their numbers count.

        Raises:
            ValueError: no row can be used, a column is missing, or rows are malformed and may not be.
        """
        if not 0 <= options.heldout_share < 1:
            raise ValueError(f"heldout_share must be at least 0 and below 1, not {options.heldout_share}.")
        self.name = name
        self.unit = unit
        self.malformed: list[Malformed] = []
        self.duplicates = 0
        self._verifier = make_verifier(options.verifier)
        self._splits: dict[str, list[Example]] = {"train": [], "tuning": [], "test": []}
        rows = list(rows)
        answer_column = self._find_columns(rows, options)
        first: dict[str, tuple[int, str | None]] = {}
        for row in rows:
            try:
                example = _example(row, options.prompt_column, answer_column, self._verifier)
                example = replace(example, place=f"{unit} {row.line}")
            except ValueError as error:
                self.malformed.append(Malformed(row.line, str(error)))
                continue
            key = json.dumps(_as_chat(example.prompt))
            line, answer = first.setdefault(key, (row.line, example.answer))
            if line == row.line:
                self._splits[split_of(example.prompt, options.heldout_share)].append(example)
            elif answer == example.answer:
                self.duplicates += 1
            else:
                self.malformed.append(
                    Malformed(row.line, f"it has the prompt of {unit} {line} with another answer")
                )
        if self.malformed and options.on_malformed == "fail":
            raise ValueError(f"{self._malformed_rows()} Mend them, or set on_malformed to skip.")
        if not self._splits["train"]:
            if self.malformed:
                problem = self._malformed_rows()
            else:
                problem = "All its rows are held out; lower heldout_share." if first else "It is empty."
            raise ValueError(f"{name} has no row to train on. {problem}")

    def _find_columns(self, rows: list[Row], options: TaskOptions) -> str | None:
        """Return the column of the answers, None if there are none.

        Raises:
            ValueError: a column that was asked for is in no row.
        """
        there = list(
            dict.fromkeys(name for row in rows if isinstance(row.columns, Mapping) for name in row.columns)
        )
        for option in ("prompt_column", "answer_column"):
            asked = getattr(options, option)
            if there and asked is not None and asked not in there:
                raise ValueError(
                    f"{self.name} has no column {asked!r}; it has {', '.join(map(str, there))}. Set {option}."
                )
        return options.answer_column or ("answer" if "answer" in there else None)

    def batch(self, n: int, *, step: int, seed: int) -> list[Example]:
        """Return the ``n`` training examples of one step (from 1).

        The steps walk through one shuffled epoch after the other, so each prompt comes once an epoch.
        """
        train = self._splits["train"]
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
        """Return the first ``n`` held-out examples of a split, fewer if there are fewer.

        Raises:
            ValueError: the split is empty.
        """
        if n and not self._splits[split]:
            raise ValueError(
                f"{self.name} has no held-out rows in its {split} split; {len(self._splits['train'])} rows "
                "train. Raise heldout_share, add rows, or set eval_prompts to 0."
            )
        return self._splits[split][:n]

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
            f"{counts['tuning']} for tuning, {counts['test']} for the test)."
        )
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
    asked = "\n".join(m["content"] for m in _as_chat(prompt) if m["role"] not in ("system", "developer"))
    digest = hashlib.sha256(" ".join(asked.casefold().split()).encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    return "tuning" if place < heldout_share / 3 else "test" if place < heldout_share else "train"


def _as_chat(prompt: Prompt) -> Messages:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def read_file(path: Path, options: TaskOptions) -> RowsTask:
    """Read a .jsonl, .csv or .parquet file.

    Raises:
        ValueError: the file is missing, unreadable or has nothing to train on.
    """
    unit = "row" if path.suffix.lower() == ".parquet" else "line"
    return RowsTask(str(path), read_rows(path), options, unit=unit)


def read_rows(path: Path) -> list[Row]:
    """Read every row of a .jsonl, .csv or .parquet file.

    Raises:
        ValueError: the file is missing, unreadable or of another type.
    """
    readers = dict(zip(FILE_TYPES, (_jsonl_rows, _csv_rows, _parquet_rows), strict=True))
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path.name} is not a {', '.join(FILE_TYPES[:-1])} or {FILE_TYPES[-1]} file.")
    try:
        return list(reader(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error


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
    return RowsTask(spec, (Row(i, columns) for i, columns in enumerate(loaded, start=1)), options, unit="row")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    # What text_of refuses, such as bytes that are no UTF-8, it refuses in the row where they stand.
    for number, line in enumerate(io.StringIO(read_text(path), newline=None), start=1):
        if not line.strip():
            continue
        try:
            columns = parse(line)
        except ValueError as error:
            yield Row(number, f"it is not valid JSON ({error})")
            continue
        yield Row(number, columns if isinstance(columns, dict) else "it is not a JSON object")


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(number, f"it is not valid CSV ({error})")
            continue
        if not cells:
            continue
        if header is None:
            header = [name.strip() for name in cells]
        elif len(cells) != len(header):
            yield Row(number, f"it has {len(cells)} fields where the header has {len(header)}")
        else:
            columns = dict(zip(header, cells, strict=True))
            yield Row(number, {name: _chat_cell(cell) for name, cell in columns.items()})


def _chat_cell(cell: str) -> Any:  # noqa: ANN401
    """Chat messages in a CSV cell are JSON; any other text is itself."""
    if not (cell.lstrip().startswith("[") and '"role"' in cell):
        return cell
    try:
        return parse(cell)
    except ValueError as error:
        return ValueError(f"its chat messages are not valid JSON ({error})")


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(
            f"To read {path}, install the pyarrow package: pip install opd-studio[data]."
        ) from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    return (Row(number, columns) for number, columns in enumerate(rows, start=1))


def _example(row: Row, prompt_column: str, answer_column: str | None, verifier: Verifier) -> Example:
    """Turn a row into an example.

    Raises:
        ValueError: the row cannot be used; the message is the reason.
    """
    if isinstance(row.columns, str):
        raise ValueError(row.columns)
    prompt = prompt_of(row.columns.get(prompt_column))
    if answer_column is None:
        return Example(prompt)
    answer = _answer(row.columns.get(answer_column))
    if fault := verifier.fault(answer):
        raise ValueError(fault)
    return Example(prompt, answer)


def prompt_of(value: Any) -> Prompt:  # noqa: ANN401
    """Return the prompt that a cell holds.

    Raises:
        ValueError: it holds none; the message is the reason.
    """
    if isinstance(value, ValueError):
        raise value
    if value is None or value == "" or value == []:
        raise ValueError("it has no prompt")
    return _messages(value) if isinstance(value, list) else text_of(value, "the prompt")


def _messages(value: list[Any]) -> Messages:
    messages = []
    for message in value:
        if not (isinstance(message, dict) and {"role", "content"} <= message.keys()):
            raise ValueError("its messages are not all like {role, content}")
        if message["role"] not in ROLES:
            raise ValueError(
                f"a message has the role {message['role']!r}, which is not one of {', '.join(ROLES)}"
            )
        messages.append({"role": message["role"], "content": text_of(message["content"], "a message")})
    if messages[-1]["role"] == "assistant":
        raise ValueError("its last message is the assistant's, so there is nothing left to answer")
    return messages


def text_of(value: Any, what: str) -> str:  # noqa: ANN401
    """Return the text that a cell holds; ``what`` names it.

    Raises:
        ValueError: it holds none; the message is the reason.
    """
    if not isinstance(value, str):
        raise ValueError(f"{what} is not text but {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not valid UTF-8") from None
    return value


def _answer(value: Any) -> str:  # noqa: ANN401
    if value is None or value == "":
        raise ValueError("it has no answer, though other rows have one")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return text_of(value, "the answer").strip()
