"""A race: the pair that is set up, trained with several methods, one after another, under one budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from opd.presets import RACERS, race_configs
from opd.runs.run import Race, Run, new_name
from opd.ui.errors import spoken_errors
from opd.ui.pairs import make_room
from opd.ui.setup_card import SetupCard
from opd.ui.working import Working

METHODS = {"full": "on-policy distillation", "lora": "the same with LoRA", "sft": "SFT", "rl": "RL"}
"""Presets that can take part, by what they are called in a race."""


class RaceCard:
    """The inputs of a race; :meth:`start` starts it."""

    def __init__(self, setup: SetupCard) -> None:
        """Lay out the card in the current Gradio context; what ``setup`` says is common to all methods."""
        self.setup = setup
        with gr.Accordion("Race several methods", open=False, elem_classes="fold", elem_id="race"):
            gr.Markdown(
                "The run that is set up above, with each of these methods, one after another; their curves "
                "are on the Runs tab. Each ends when it has spent the budget, wherever its learning rate is "
                "then: it decays over all the steps set above, so set about as many as the budget pays for.",
                elem_classes="caption",
            )
            self.methods = gr.CheckboxGroup(
                [(title, name) for name, title in METHODS.items()],
                value=list(RACERS),
                label="Methods",
                elem_id="race-methods",
            )
            with gr.Row(elem_classes="fields"):
                self.name = _text("Race name", "the date and the time", "race-name")
                self.tokens = _text("Budget in tokens", "no limit", "race-tokens")
                self.seconds = _text("Budget in seconds", "no limit", "race-seconds")
            self.button = gr.Button("Start the race", elem_id="start-race")
            self.starting = Working()
        self.own = [self.methods, self.name, self.tokens, self.seconds]
        self.inputs = [*self.own, *setup.inputs]

    def start(
        self,
        methods: Sequence[str],
        name: str,
        tokens: str,
        seconds: str,
        *values: Any,  # noqa: ANN401
    ) -> list[str]:
        """Start a race, from the values of ``inputs``, and return the names of its runs."""
        with spoken_errors():
            return [run.name for run in self._start(methods, name, tokens, seconds, values)]

    def _start(
        self, methods: Sequence[str], name: str, tokens: str, seconds: str, values: Sequence[Any]
    ) -> list[Run]:
        from opd.runs import jobs

        if not methods:
            raise ValueError("A race needs methods: choose some.")
        race = Race(
            name.strip() or new_name(), _budget(tokens, "tokens", int), _budget(seconds, "seconds", float)
        )
        configs = race_configs(methods, {}, self.setup.given(values))
        make_room()
        return jobs.start_race(configs, race)


def _text(label: str, placeholder: str, ident: str) -> gr.Textbox:
    return gr.Textbox("", label=label, placeholder=placeholder, min_width=130, elem_id=ident)


def _budget(text: str, unit: str, kind: type[int] | type[float]) -> Any:  # noqa: ANN401
    """Read a budget; empty is no limit.

    Raises:
        ValueError: it is no number.
    """
    if not text.strip():
        return None
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"The budget in {unit} must be a positive number, not {text!r}.") from None
