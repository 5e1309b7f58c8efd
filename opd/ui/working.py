"""The line beside a button: that its work is under way, in which phase, and where its answer is."""

from __future__ import annotations

import inspect
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
from gradio.components.base import server

from opd.phases import listening
from opd.ui.component import OwnHTML
from opd.ui.events import PLUMBING
from opd.view.payload import visible

WAITING = "Waiting for its turn"

KEPT_PHASES = 256

_phases: dict[str, str] = {}
"""What the work that is under way does, by its ticket; at most :data:`KEPT_PHASES`, as pages may go away."""


class Working(OwnHTML):
    """Says what is being done while it is done. The page asks for the phase, so the work need not yield."""

    def __init__(self, elem_classes: str = "working-line", **kwargs: Any) -> None:  # noqa: ANN401
        """Make a line that says nothing yet; ``kwargs`` are those of :class:`gradio.HTML`."""
        super().__init__(elem_classes=elem_classes, **kwargs)

    def around(
        self,
        triggers: Sequence[Any],
        work: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Any,  # noqa: ANN401
        *,
        button: gr.Button | None = None,
        cancel: gr.Button | None = None,
        done: str = "",
        answer: str | None = None,
        **event: Any,  # noqa: ANN401
    ) -> tuple[Any, list[Any]]:
        """Let ``triggers`` start some work, and say how it goes until it is done, fails or is cancelled.

        Args:
            triggers: events, such as ``button.click``.
            work: a function or generator function of ``inputs``; what it announces is heard.
            inputs: components whose values it takes.
            outputs: components that it updates.
            button: rests meanwhile; work that none starts, such as of an upload, has none.
            cancel: can be pressed meanwhile, and at no other time.
            done: what is said at the end.
            answer: selector of where the answer is: the page goes there.
            event: more arguments of the event that works.

        Returns:
            That event, and those that break it off: failure, and ``cancel``.
        """
        line = [self, *filter(None, [button, cancel])]

        def state(value: Any, *, busy: bool) -> dict[Any, Any]:  # noqa: ANN401
            buttons = {each: gr.update(interactive=busy == (each is cancel)) for each in line[1:]}
            return {self: json.dumps(value), **buttons}

        def begin() -> dict[Any, Any]:
            ticket = secrets.token_urlsafe(9)
            _phases[ticket] = WAITING
            for gone in list(_phases)[:-KEPT_PHASES]:
                _phases.pop(gone, None)
            return state({"ticket": ticket}, busy=True)

        began = gr.on(triggers, begin, None, line, queue=False, **PLUMBING)
        working = began.then(_heard(work), [self, *inputs], outputs, **{**PLUMBING, **event})
        working.success(lambda: state({"done": done, "answer": answer}, busy=False), None, line, **PLUMBING)
        idle = [lambda: state(None, busy=False), None, line]
        broken_off = [working.failure(*idle, **PLUMBING)]
        if cancel:
            broken_off.append(cancel.click(*idle, cancels=working, **PLUMBING))
        return working, broken_off

    @server
    def phase(self, ticket: Any) -> str | None:  # noqa: ANN401
        """Serve a ticket: what the work behind it does, None where it has ended."""
        return visible(_phases[ticket]) if isinstance(ticket, str) and ticket in _phases else None


def _ticket(value: str | None) -> str:
    return (json.loads(value or "null") or {}).get("ticket", "")


def _heard(work: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap some work so that the phases that it announces are known by the ticket in its first argument."""

    def hearing(ticket: str) -> Any:  # noqa: ANN401
        if _phases.get(ticket) in (None, WAITING):
            _phases[ticket] = "Working"
        return listening(lambda phase: _phases.__setitem__(ticket, phase))

    def function(value: str, *inputs: Any) -> Any:  # noqa: ANN401
        ticket = _ticket(value)
        try:
            with hearing(ticket):
                return work(*inputs)
        finally:
            _phases.pop(ticket, None)

    def generator(value: str, *inputs: Any) -> Iterator[Any]:  # noqa: ANN401
        ticket, states = _ticket(value), work(*inputs)
        try:
            while True:
                with hearing(ticket):  # for each state anew: Gradio asks for it in a context of its own
                    state = next(states, states)
                if state is states:
                    return
                yield state
        finally:
            states.close()
            _phases.pop(ticket, None)

    return generator if inspect.isgeneratorfunction(work) else function
