"""Where a text reasons before it answers: between ``<think>`` and ``</think>``.

So do DeepSeek R1, Qwen3 and most models after them. In messages it stands apart, as ``reasoning_content``.
"""

from __future__ import annotations

from collections.abc import Mapping

OPENS, CLOSES = "<think>", "</think>"

REASONING = "reasoning_content"
"""Where a message holds its reasoning."""


def reasoning_in(text: str) -> tuple[int, int]:
    """Return where in a text its reasoning begins and ends, marks included; twice 0 where there is none.

    Up to the end where it is not closed. From the start where only its end is there: the prompt opened it.
    """
    opened, closed = text.find(OPENS), text.rfind(CLOSES)
    if text.rfind(OPENS) > closed:
        return opened, len(text)
    if closed < 0:
        return 0, 0
    return (opened if 0 <= opened < closed else 0), closed + len(CLOSES)


def answer_in(text: str) -> str:
    """Return what a text says after its reasoning; nothing if that was cut off."""
    return text[reasoning_in(text)[1] :]


def spelled_out(message: Mapping[str, str]) -> str:
    """Return all that a message says, its reasoning as a model writes it."""
    reasoning = message.get(REASONING)
    return f"{OPENS}\n{reasoning}\n{CLOSES}\n\n{message['content']}" if reasoning else message["content"]
