"""Text that nobody sampled becomes trajectories: a pasted answer, a whole chat, a file of prompts.

Pasted text is one of the two places where text becomes ids (once, here); everywhere else ids travel. It is
off-policy: without behaviour log-probs, so that its grades say that their mean estimates no KL.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opd.files import parse, read_text
from opd.reasoning import OPENS, REASONING, spelled_out
from opd.tasks import FILE_TYPES, TaskOptions, opens_reasoning
from opd.tasks.files import Malformed
from opd.tasks.formats import Row, read_table
from opd.tasks.shapes import REFERENCE, ROLES, message_of, plain_message, recognise, text_of
from opd.trajectory import Messages, Prompt, Trajectory

if TYPE_CHECKING:
    from opd.models.pair import Pair

PROMPT_FILES = (*FILE_TYPES, ".gz", ".txt")

COMPLETIONS = ("completion", "response", "output", REFERENCE)
"""Columns whose text is graded, the last one a chat's last assistant turn; the first that is there counts."""

NO_CHAT = 'A chat is a list of messages like {"role": "user", "content": "…"}.'

_TURN = re.compile(rf"^({'|'.join(ROLES)}):[ \t]*", re.IGNORECASE | re.MULTILINE)


def question(prompt: str, system: str | None = None) -> Messages:
    """Return the conversation of one question, behind a system prompt if that says anything."""
    messages = [{"role": "user", "content": prompt}]
    return [{"role": "system", "content": system}, *messages] if system and system.strip() else messages


def as_question(messages: Messages) -> tuple[str, str] | None:
    """Return the prompt and the system prompt of a conversation of one question; None of a longer one."""
    match messages:
        case [{"role": "user", "content": prompt}]:
            return prompt, ""
        case [{"role": "system", "content": system}, {"role": "user", "content": prompt}]:
            return prompt, system
    return None


def text_trajectory(pair: Pair, prompt: Prompt, completion: str, *, complete: bool = True) -> Trajectory:
    """Turn a text into the trajectory of a student that wrote it.

    Args:
        pair: whose student's chat template renders the prompt, and whose tokenizer encodes the text.
        prompt: what the text answers.
        completion: the text, taken as it is; a leading space is part of its first token.
        complete: the text is a whole answer: the token that ends a turn follows and is graded too. A text
            that spells that token out at its end is complete in any case; elsewhere control tokens are text.

    Raises:
        ValueError: prompt or text are empty, cannot be encoded, or are too long for one of the models.
    """
    if not completion.strip():
        raise ValueError("There is nothing to grade: the text is empty.")
    student = pair.student
    end = student.end_of_turn
    spelled = "" if end is None else student.tokenizer.convert_ids_to_tokens(end)
    if spelled and (ended := completion.rstrip()).endswith(spelled):
        complete, completion = True, ended.removesuffix(spelled)
    prompt_ids = student.render(prompt, side="student")
    if opens_reasoning(student, prompt_ids):  # what the prompt has begun is not begun again
        completion = completion.removeprefix(OPENS).removeprefix("\n")
    ids = student.encode(completion)
    if complete and end is not None:
        ids = np.append(ids, end)
    teacher_ids = pair.teacher_prompt(prompt, prompt_ids)
    reads = (
        [(student, prompt_ids)]
        if pair.cross_tokenizer
        else [(student, prompt_ids), (pair.teacher, teacher_ids)]
    )
    for model, before in reads:
        if len(before) + len(ids) > model.context:
            raise ValueError(
                f"The text is {len(ids)} tokens long and what goes before it {len(before)}; {model.name} "
                f"can read {model.context} together. Shorten it."
            )
    return Trajectory(
        prompt_ids=prompt_ids,
        completion_ids=ids,
        behaviour_logprobs=None,
        finish_reason="stop" if complete else "length",
        teacher_prompt_ids=teacher_ids,
    )


def chat_trajectories(pair: Pair, chat: Messages) -> list[tuple[Messages, Trajectory]]:
    """Turn every assistant turn of a chat into a trajectory, after the messages that precede it.

    The prompt of a turn is what the chat template renders of the messages before it, as the student would
    have seen it when it wrote the turn.

    Raises:
        ValueError: the chat is malformed or has no assistant turn; see also :func:`text_trajectory`.
    """
    chat = check_chat(chat)
    turns = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    if not turns:
        raise ValueError("The chat has no turn of the assistant, so there is nothing to grade.")
    if turns[0] == 0:
        raise ValueError("The chat begins with the assistant. Put what it answers before it.")
    return [(chat[:i], text_trajectory(pair, chat[:i], spelled_out(chat[i]))) for i in turns]


def read_chat(text: str) -> Messages:
    """Read a chat from lines or JSON, a list of messages or an object with ``messages`` or ``conversations``.

    In lines, a turn begins where a line begins with a role and a colon ("user: ...", "assistant: ...") and
    ends before the next one; the line breaks between turns belong to none.

    Raises:
        ValueError: it is neither.
    """
    if text.lstrip().startswith(("[", "{")):
        try:
            data = parse(text)
        except ValueError as error:
            raise ValueError(f"The chat is not valid JSON: {error}.") from error
        return check_chat(data.get("messages", data.get("conversations")) if isinstance(data, dict) else data)
    before, *turns = _TURN.split(text)
    if before.strip() or not turns:
        raise ValueError(
            'A chat is a list of messages as JSON, or lines that begin with a role, like "user: …" and '
            '"assistant: …".'
        )
    roles, contents = turns[::2], turns[1::2]
    return check_chat(
        [{"role": r.lower(), "content": c.strip("\r\n")} for r, c in zip(roles, contents, strict=True)]
    )


def check_chat(chat: Any) -> Messages:  # noqa: ANN401
    """Return a chat's messages, role and content alone.

    Raises:
        ValueError: it is no list of messages, a role is unknown, or a message is empty.
    """
    if not isinstance(chat, list):
        raise ValueError(NO_CHAT)
    return [_checked(number, message) for number, message in enumerate(chat, start=1)]


def _checked(number: int, message: Any) -> dict[str, str]:  # noqa: ANN401
    try:
        message = plain_message(message)
        if isinstance(message, dict) and {"role", "content"} <= message.keys():
            return message_of({key: message[key] for key in ("role", "content", REASONING) if key in message})
    except ValueError as error:
        raise ValueError(f"Message {number} cannot be used: {error}.") from error
    raise ValueError(NO_CHAT)


@dataclass(frozen=True)
class PromptFile:
    """What a file asks.

    Attributes:
        prompts: the prompts, in the order of the file.
        completions: the text to grade under each prompt; None where the student is to write.
        malformed: the rows that cannot be used, and why.
    """

    prompts: list[Prompt]
    completions: list[str | None]
    malformed: list[Malformed]


def read_prompts(path: str | Path) -> PromptFile:
    """Read prompts from a file of rows, as a task reads them, or from the lines of .txt.

    Where a row has a text in one of the columns :data:`COMPLETIONS`, or its chat ends with the assistant,
    that is graded instead of a sampled one.

    Raises:
        ValueError: the file cannot be read, or no row can be used; one sentence says why.
    """
    path = Path(path)
    rows = _lines(path) if path.suffix.lower() == ".txt" else read_table(path).rows
    shape = recognise(
        path.name, [row.columns for row in rows if isinstance(row.columns, Mapping)], TaskOptions()
    )
    shape = replace(shape, answer=None, key=None)
    found = PromptFile([], [], [])
    for row in rows:
        try:
            if isinstance(row.columns, str):
                raise ValueError(row.columns)
            example = shape.example(row.columns)
            texts = row.columns | {REFERENCE: example.columns.get(REFERENCE)}
            written = [name for name in COMPLETIONS if texts.get(name) not in (None, "")]
            text = text_of(texts[written[0]], f"the {written[0]}") if written else None
            found.completions.append(text)
            found.prompts.append(example.prompt)
        except ValueError as error:
            found.malformed.append(Malformed(row.line, str(error)))
    if not found.prompts:
        why = f" Row {found.malformed[0].line}: {found.malformed[0].reason}." if found.malformed else ""
        raise ValueError(f'{path.name} has no prompt that can be used; one is a row\'s "prompt".{why}')
    return found


def _lines(path: Path) -> list[Row]:
    try:
        text = read_text(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    lines = enumerate(io.StringIO(text, newline=None), start=1)
    return [Row(number, {"prompt": line.strip()}) for number, line in lines if line.strip()]
