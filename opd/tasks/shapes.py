"""What the columns of rows mean: prompts, answers and references, in the shapes that people's data has.

A shape is recognised by its structure, or by names that mean one thing; where two columns could be meant, the
user is asked. Who names the column of the prompts has the columns read as named, and nothing is recognised.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from opd.reasoning import REASONING, answer_in, spelled_out
from opd.tasks import Example, TaskOptions, VerifierName
from opd.tasks.choices import MOST, Key, choices_of, find_key
from opd.trajectory import Prompt, as_messages

ROLES = ("system", "developer", "user", "assistant", "tool")

SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
}
"""What ShareGPT's ``from`` calls our roles, where it has another name."""

PROMPTS = ("messages", "conversations", "question", "problem", "query", "instruction", "input")
"""Columns that hold the prompts where there is no column "prompt"; ``input`` only without ``instruction``."""

ANSWERS = ("answer", "reward_model.ground_truth", "ground_truth", "answerKey")
"""Columns of right answers; the first that is there counts."""

REFERENCES = ("response", "output", "completion", "solution")
"""Columns of texts that answer the prompt, and are right answers to compare with only where that is known."""

CHOICES = ("choices", "options")

STATED = {
    "numeric": re.compile(r"####\s*[-$€£]?\s*\.?\d[\d,.]*\s*%?\s*$"),
    "math": re.compile(r"\\boxed\s*\{"),
}
"""How references state their answer, by the verifier that reads it: GSM8K's ``#### 42``, MATH's box."""

REFERENCE = "reference"
"""What a teacher's hint calls the last assistant turn of a chat."""


@dataclass(frozen=True)
class Shape:
    """What the columns of some rows are taken for.

    Attributes:
        prompt: the column of the prompts.
        below: the column whose text is written below the prompt, as Alpaca's input is.
        choices: the column of the choices, which are written below the prompt too.
        key: how the answers name a choice.
        answer: the column of the right answers (of a chat: its last assistant turn), None without answers.
        verifier: what compares completions with them.
        said: all of this in words, and what was not read.
    """

    prompt: str
    below: str | None = None
    choices: str | None = None
    key: Key | None = None
    answer: str | None = None
    verifier: VerifierName = "exact"
    said: str = ""

    def example(self, columns: Mapping[str, Any]) -> Example:
        """Turn a row into an example, with the texts of its columns.

        Raises:
            ValueError: the row cannot be used; the message is the reason.
        """
        prompt, reference = split_chat(cell(columns, self.prompt))
        if self.below and columns.get(self.below):
            prompt = _with_below(prompt, text_of(columns[self.below], f"the {self.below}"))
        answer = answer_of(cell(columns, self.answer)) if self.answer else None
        if self.choices:
            choices = choices_of(columns.get(self.choices))
            if choices is None:
                raise ValueError("it has no choices")
            answer = self.key.letter(answer, choices) if self.key else answer
            if not all(text in as_messages(prompt)[-1]["content"] for text in choices.texts):
                prompt = _with_below(prompt, str(choices))
        return Example(prompt, answer, columns=_texts({REFERENCE: reference} | dict(columns)))


def recognise(name: str, rows: Sequence[Mapping[str, Any]], options: TaskOptions) -> Shape:
    """Find out what the columns of some rows mean.

    Raises:
        ValueError: a column that was asked for is in no row, or none or several could hold the prompts.
    """
    there = list(dict.fromkeys(column for row in rows for column in row))

    def has(column: str) -> bool:
        return column in there or any(cell(row, column) is not None for row in rows)

    for option in ("prompt_column", "answer_column"):
        asked = getattr(options, option)
        if there and asked is not None and not has(asked):
            raise ValueError(f"{name} has no column {asked!r}; it has {_listed(there)}. Set {option}.")
    named = options.prompt_column is not None
    prompt = options.prompt_column or _prompt_column(name, there)
    below = "input" if not named and prompt == "instruction" and "input" in there else None
    said = [f"Prompts from the column {prompt}" + f", {below} below them" * bool(below)]

    answer = options.answer_column or next(filter(has, ANSWERS[:1] if named else ANSWERS), None)
    references = [column for column in REFERENCES if column in there]
    if any(_ends_with_assistant(cell(row, prompt)) for row in rows):
        references.insert(0, prompt)
        said.append("the last assistant turn was cut off as the reference")
    if answer is None and references and not named:
        if len(references) > 1:
            said.append(f"no answers, which {_listed(references)} could give (set answer_column)")
        elif options.verifier or _stated_verifier(_answers(rows, references[0])):
            answer = references[0]
        else:
            compared = "that turn" if references[0] == prompt else references[0]
            said.append(f"no answers (name a verifier to compare with {compared})")

    choices, key = None, None
    if answer and not named and options.verifier in (None, "choice"):
        choices = next((column for column in CHOICES if column in there), None)
        key = _key(name, rows, answer, choices) if choices else None
        choices = choices if key else None
        said[0] += f", {choices} below them as letters" * bool(choices)
    verifier = options.verifier or ("choice" if key else None)
    if answer:
        verifier = verifier or _stated_verifier(_answers(rows, answer))
        source = "that turn" if answer == prompt else answer
        said.append(f"answers from {source}, compared by {verifier or 'exact'}")

    read = {str(column).partition(".")[0] for column in (prompt, below, choices, answer)}
    idle = [column for column in there if column not in read]
    words = "; ".join(said) + "." + f" Not read: {_listed(idle)}." * bool(idle)
    return Shape(prompt, below, choices, key, answer, verifier or "exact", words)


def _prompt_column(name: str, there: Sequence[str]) -> str:
    """Return the column that holds the prompts.

    Raises:
        ValueError: none, or more than one, could.
    """
    if "prompt" in there or not there:
        return "prompt"
    found = [c for c in PROMPTS if c in there and not (c == "input" and "instruction" in there)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name} has {_listed(found)}, and each could be the prompts. Set prompt_column.")
    raise ValueError(f"{name} has no column 'prompt'; it has {_listed(there)}. Set prompt_column.")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names))


def _stated_verifier(texts: Sequence[str]) -> VerifierName | None:
    """Return what reads the answers that most references state in a form of their own, None if few do."""
    for verifier, form in STATED.items():
        if texts and sum(bool(form.search(text)) for text in texts) >= MOST * len(texts):
            # Without its package, what stands in the box is compared exactly.
            return "exact" if verifier == "math" and find_spec("math_verify") is None else verifier
    return None


def _answers(rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    return [text for row in rows if (text := _answer_or_none(row, column)) is not None]


def _key(name: str, rows: Sequence[Mapping[str, Any]], answer: str, choices: str) -> Key | None:
    """Return how most rows' answers name one of their choices, None if they do not."""
    asked = [(_answer_or_none(row, answer), choices_of(row.get(choices))) for row in rows]
    return find_key(name, [(given, of) for given, of in asked if given is not None and of])


def _answer_or_none(row: Mapping[str, Any], column: str) -> str | None:
    try:
        return answer_of(cell(row, column))
    except ValueError:
        return None


def cell(columns: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401
    """Return what stands in a column, None if nothing does; ``a.b`` is the ``b`` inside of ``a``."""
    if name in columns:
        return columns[name]
    outer, _, inner = name.partition(".")
    held = columns.get(outer)
    return cell(held, inner) if inner and isinstance(held, Mapping) else None


def split_chat(value: Any) -> tuple[Prompt, str | None]:  # noqa: ANN401
    """Return the prompt that a cell holds, and the last assistant turn if it is a chat that ends with one.

    Raises:
        ValueError: it holds no prompt; the message is the reason.
    """
    if isinstance(value, ValueError):
        raise value
    if value is None or value == "" or value == []:
        raise ValueError("it has no prompt")
    if not isinstance(value, list):
        return text_of(value, "the prompt"), None
    reference = None
    if _ends_with_assistant(value):
        *value, last = value
        last = plain_message(last)
        reference = spelled_out(last) if isinstance(last.get("content"), str) else None
        if not value or _ends_with_assistant(value):
            raise ValueError("before its last turn, which is the assistant's, it asks nothing")
    return [message_of(plain_message(message)) for message in value], reference


def _ends_with_assistant(value: Any) -> bool:  # noqa: ANN401
    if not (isinstance(value, list) and value and isinstance(value[-1], dict)):
        return False
    return value[-1].get("role", _role(value[-1].get("from"))) == "assistant"


def _role(name: Any) -> Any:  # noqa: ANN401
    """Return the role that ShareGPT calls ``name``; what is no name stays what it is."""
    return SHAREGPT_ROLES.get(name, name) if isinstance(name, str) else name


def plain_message(message: Any) -> Any:  # noqa: ANN401
    """Return a message of ShareGPT, or one with content in parts, as ``{role, content}``; another as it is.

    Raises:
        ValueError: a part is no text; the message is the reason.
    """
    if isinstance(message, dict) and {"from", "value"} <= message.keys():
        message = {"role": _role(message["from"]), "content": message["value"]}
    if isinstance(message, dict) and isinstance(message.get("content"), list):
        message = message | {"content": "".join(map(_part, message["content"]))}
    return message


def _part(part: Any) -> str:  # noqa: ANN401
    if isinstance(part, dict) and part.get("type", "text") != "text":
        raise ValueError(f"a message has a part of type {part['type']}, and only text can be read")
    return text_of(part.get("text") if isinstance(part, dict) else part, "a part of a message")


def message_of(message: Any) -> dict[str, str]:  # noqa: ANN401
    """Return a message: role, text and, where it has some, its reasoning.

    Raises:
        ValueError: it is none, or calls a tool; the message is the reason.
    """
    if not (isinstance(message, dict) and {"role", "content"} <= message.keys()):
        raise ValueError("its messages are not all like {role, content}")
    if message["role"] not in ROLES:
        raise ValueError(
            f"a message has the role {message['role']!r}, which is not one of {', '.join(ROLES)}"
        )
    if message.get("tool_calls"):
        raise ValueError("a message calls a tool, which no model here is shown: write the call as text")
    plain = {"role": message["role"], "content": text_of(message["content"], "a message")}
    if reasoning := message.get(REASONING):
        plain[REASONING] = text_of(reasoning, "the reasoning of a message")
    return plain


def _with_below(prompt: Prompt, text: str) -> Prompt:
    if isinstance(prompt, str):
        return f"{prompt}\n\n{text}"
    *before, last = prompt
    return [*before, last | {"content": f"{last['content']}\n\n{text}"}]


def _texts(columns: Mapping[str, Any]) -> dict[str, str]:
    """Return what columns hold that is text, or a number."""
    texts = {}
    for name, value in columns.items():
        with suppress(ValueError):
            texts[name] = answer_of(value) if isinstance(value, int | float) else text_of(value, name)
    return texts


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


def answer_of(value: Any) -> str:  # noqa: ANN401
    """Return the answer that a cell holds; that of a chat is its last assistant turn.

    Raises:
        ValueError: it holds none; the message is the reason.
    """
    if _ends_with_assistant(value):
        reference = split_chat(value)[1]
        value = reference and answer_in(reference)
    if value is None or value == "":
        raise ValueError("it has no answer, though other rows have one")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return text_of(value, "the answer").strip()
