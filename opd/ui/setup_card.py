"""The cards on which a run is set up, one for each group of the config's fields, and all from these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import gradio as gr

from opd.config import GROUPS, DistillConfig, grouped_settings, make_config, written
from opd.models.sources import absent, source_of
from opd.objectives import OBJECTIVES, OPTIONS
from opd.presets import PAIRS, PRESETS, Preset, combine, differences, preset
from opd.ui.errors import code, spoken_errors, warn
from opd.ui.events import PLUMBING

PAIR = ("student", "teacher")
SHOWN = {
    *(*PAIR, "task", "objective", "prompts_per_step", "samples_per_prompt", "steps", "learning_rate"),
    *("lora_rank", "eval_every", "eval_prompts", "eval_split"),
}  # fmt: skip
"""Settings that are looked at before a start; the others are folded."""

NO_FIELD = {"lessons", "shard"}
"""Settings without an input: one is a table, one is for torchrun, which starts no page."""


class SetupCard:
    """The inputs of a run. ``fields`` holds them by the name of their setting, ``inputs`` in that order."""

    def __init__(self) -> None:
        """Lay out the cards in the current Gradio context and connect them."""
        self.fields: dict[str, gr.components.Component] = {}
        self._folds: list[tuple[gr.Accordion, Sequence[str]]] = []
        with self._card("Models"):
            with gr.Row(elem_classes="chips", elem_id="pairs"):
                pairs = _chips(PAIRS)
            pair_reason = gr.Markdown("", visible=False, elem_id="pair-reason", elem_classes="caption")
            self._inputs("Models")
            self.absent = gr.Markdown("", visible=False, elem_id="absent", elem_classes="caption")
        with self._card("Task"):
            self._inputs("Task")
        with self._card("Objective"):
            gr.Markdown("A starting point sets what it names and leaves the rest:", elem_classes="caption")
            with gr.Row(elem_classes="chips", elem_id="presets"):
                presets = _chips(PRESETS)
            reason = gr.Markdown("", visible=False, elem_id="preset-reason", elem_classes="caption")
            self._inputs("Objective")
            self.explanation = gr.Markdown("", elem_id="objective-explained", elem_classes="caption")
        for group in ("Sampling", "Optimiser", "Evaluation", "Engine", "Run"):
            with self._card(group):
                self._inputs(group)
        self.inputs = list(self.fields.values())
        self._connect({pair_reason: pairs, reason: presets})

    def _card(self, group: str) -> gr.Column:
        card = gr.Column(elem_classes="card", elem_id=f"card-{group.lower()}")
        with card:
            gr.Markdown(f"### {group}\n{GROUPS[group]}", elem_classes="card-head")
        return card

    def _inputs(self, group: str) -> None:
        """Lay out the inputs of a group: those that are looked at before a start, and the others folded."""
        names = [name for name in grouped_settings()[group] if name not in NO_FIELD]
        if shown := [name for name in names if name in SHOWN]:
            with gr.Row(elem_classes="fields"):
                self.fields |= {name: _input(name) for name in shown}
        if folded := [name for name in names if name not in SHOWN]:
            with (
                gr.Accordion(_summary(folded, _usual()), open=False, elem_classes="fold") as fold,
                gr.Row(elem_classes="fields"),
            ):
                self.fields |= {name: _input(name) for name in folded}
            self._folds.append((fold, folded))

    def _connect(self, chips: Mapping[gr.Markdown, Mapping[str, gr.Button]]) -> None:
        """Connect the inputs, and the buttons of starting points under the line that takes their reasons.

        Of two lines one shows: the reason of what was chosen last.
        """
        quick = {"trigger_mode": "always_last", "queue": False, **PLUMBING}
        for reason, buttons in chips.items():
            for name, button in buttons.items():
                button.click(
                    lambda *values, name=name: [gr.update(visible=False), *self.start_from(name, values)],
                    self.inputs,
                    [*(other for other in chips if other is not reason), reason, *self.inputs],
                    **PLUMBING,
                )
        self.explained = [self.explanation, *(f for name, f in self.fields.items() if name in OPTIONS)]
        self.fields["objective"].change(self.explain, self.fields["objective"], self.explained, **quick)
        pair = [self.fields[name] for name in PAIR]
        gr.on([field.change for field in pair], _absent, pair, self.absent, **quick)
        for fold, names in self._folds:
            watched = [self.fields[name] for name in dict.fromkeys((*names, "objective"))]
            gr.on(
                [field.change for field in watched],
                lambda *values, names=names: gr.update(label=self._relabel(names, values)),
                self.inputs,
                fold,
                **quick,
            )

    def config(self, values: Sequence[Any]) -> DistillConfig:
        """Build the config from the values of ``inputs``.

        Raises:
            ValueError: one sentence that names each setting that is wrong.
        """
        return make_config(self.given(values))

    def explain(self, objective: str) -> list[Any]:
        """Return the updates of ``explained``: what an objective does, and the options it has."""
        own = OBJECTIVES[objective].options
        return [
            words_of(objective),
            *(gr.update(visible=name in own) for name in self.fields if name in OPTIONS),
        ]

    def given(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the settings that are no defaults; options of other objectives are hidden and do not count.

        What is a default is left to the config: some defaults follow from other settings.

        Raises:
            ValueError: a field was emptied that has to hold something; the message names it.
        """
        usual = _usual()
        named = zip(self.fields, map(_bare, values), strict=True)
        empty = [str(self.fields[name].label) for name, value in named if value is None and name in usual]
        if empty:
            raise ValueError(f"Fill in {' and '.join(empty)}: nothing stands there.")
        return self._filled_in(values)

    def _filled_in(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return what :meth:`given` does, of a form in which somebody may be typing."""
        named = dict(zip(self.fields, map(_bare, values), strict=True))
        foreign = OPTIONS - OBJECTIVES[named["objective"]].options.keys()
        usual = {name: DistillConfig.model_fields[name].default for name in named}
        return {n: v for n, v in named.items() if v not in (None, usual[n]) and n not in foreign}

    def filled(self, settings: Mapping[str, Any]) -> list[Any]:
        """Return what shows some settings in ``inputs``; those that are not named have their defaults."""
        every = {**_usual(), **settings}
        own = OBJECTIVES[every["objective"]].options
        shown = {name: _shown(field, every.get(name)) for name, field in self.fields.items()}
        options = {
            name: gr.update(value=shown[name], visible=name in own) for name in shown if name in OPTIONS
        }
        return [*{**shown, **options}.values()]

    def filled_like(self, config: DistillConfig) -> list[Any]:
        """Return what shows a config in ``inputs``, but for what the form has no field for."""
        missing = [name for name, value in differences(config).items() if value and name not in self.fields]
        if missing:
            warn(f"The form has no field for {' and '.join(missing)}: opd train --config takes it.")
        return self.filled(differences(config))

    def start_from(self, name: str, values: Sequence[Any]) -> list[Any]:
        """Return the updates of the reason and of all inputs for a starting point."""
        start = preset(name)
        with spoken_errors():
            settings = combine(self._filled_in(values), name)
        changes = ", ".join(
            f"{_in_words(key)} {'default' if value is None else written(value)}"
            for key, value in start.changes.items()
        )
        words = f"**{start.title}.** {start.reason} It sets {changes.rstrip('.')}."
        return [gr.update(value=words, visible=True), *self.filled(settings)]

    def _relabel(self, names: Sequence[str], values: Sequence[Any]) -> str:
        return _summary(names, {**_usual(), **self._filled_in(values)})


SPELT = {"kl": "KL", "lora": "LoRA", "sft": "SFT", "url": "URL", "vllm": "vLLM"}
"""Words of settings that are no plain words."""

EMPTY = ("default", "")
"""What a list of choices shows where nothing need be chosen."""


def _bare(value: Any) -> Any:  # noqa: ANN401
    """Return a field's value without the blanks around it; None if it is empty."""
    return (value.strip() or None) if isinstance(value, str) else value


def _shown(field: gr.components.Component, value: Any) -> Any:  # noqa: ANN401
    """Return a setting as a field holds it."""
    if value is None and isinstance(field, gr.Dropdown) and EMPTY in field.choices:
        return ""
    return ("" if value is None else written(value)) if isinstance(field, gr.Textbox) else value


def _chips(starts: Mapping[str, Preset]) -> dict[str, gr.Button]:
    return {name: gr.Button(start.title, size="sm", min_width=0) for name, start in starts.items()}


def _absent(*names: str) -> Any:  # noqa: ANN401
    """Return the update of the line that says which models a start would download; nobody is asked."""
    missing = absent(name.strip() for name in names)
    them = "them" if len(missing) > 1 else "it"
    requests: dict[str, list[str]] = {}
    for name in missing:
        requests.setdefault(source_of(name).request(name), []).append(code(name))
    shown = "; ".join(f"{' and '.join(names)} ({request})" for request, names in requests.items())
    return gr.update(
        value=f"Not on this machine: {shown}. Start downloads {them} first.",
        visible=bool(missing),
    )


def words_of(objective: str) -> str:
    """Say what an objective does, with the loss of one token."""
    return f"{OBJECTIVES[objective].sentence}\n\nLoss of a token: `{OBJECTIVES[objective].formula}`"


def _usual() -> dict[str, Any]:
    return {
        name: field.default for name, field in DistillConfig.model_fields.items() if field.default is not None
    }


def _summary(names: Sequence[str], values: dict[str, Any]) -> str:
    """Return one line of values, those that are not the default first; of names where there are none."""
    usual = {name: DistillConfig.model_fields[name].default for name in names}
    there = [name for name in names if name in values and values[name] is not False]
    there.sort(key=lambda name: values[name] == usual[name])
    return "More: " + ", ".join([_phrase(name, values[name]) for name in there] or map(_in_words, names))


def _phrase(name: str, value: Any) -> str:  # noqa: ANN401
    if value is True:
        return _in_words(name)
    return f"{_in_words(name)} {f'{value:g}' if isinstance(value, float) else written(value)}"


def _in_words(name: str) -> str:
    return " ".join(SPELT.get(word, word) for word in name.split("_"))


def _label(name: str) -> str:
    first, *others = name.split("_")
    return " ".join([SPELT.get(first, first.capitalize()), *(SPELT.get(word, word) for word in others)])


def _input(name: str) -> gr.components.Component:
    """Make the input of one setting of :class:`opd.DistillConfig`."""
    field = DistillConfig.model_fields[name]
    about = {
        "label": _label(name),
        "info": field.description,
        "elem_id": f"setting-{name}",
        "min_width": 130,
    }
    if name in OPTIONS:
        about["visible"] = name in OBJECTIVES[DistillConfig.model_fields["objective"].default].options
    if field.annotation is bool:
        return gr.Checkbox(field.default, **about)
    if choices := _choices(field.annotation):
        if field.default is None and name not in OPTIONS:
            return gr.Dropdown([EMPTY, *choices], value="", filterable=False, **about)
        return gr.Dropdown(choices, value=field.default, filterable=False, **about)
    if field.annotation in (int, float):
        return gr.Number(field.default, precision=0 if field.annotation is int else None, **about)
    # An empty Number would come back as 0, so what may be empty is text.
    return gr.Textbox(field.default or "", placeholder="default", max_lines=4, **about)


def _choices(annotation: Any) -> list[str]:  # noqa: ANN401
    """Return what a setting may be, if that is a short list."""
    kinds = [annotation, *get_args(annotation)]
    return next((list(get_args(kind)) for kind in kinds if get_origin(kind) is Literal), [])
