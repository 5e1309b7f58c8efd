"""The Train tab: on-policy distillation in a process of its own, watched live."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import gradio as gr

from opd import jobs
from opd.config import DistillConfig, make_config
from opd.objectives import OBJECTIVES
from opd.runs import list_runs, new_name, open_run
from opd.ui.errors import spoken_errors
from opd.ui.events import PLUMBING
from opd.ui.review_tab import BOTH, PairNames, ReviewTab
from opd.ui.run_view import RunView

MAIN_SETTINGS = ("objective", "steps", "prompts_per_step", "learning_rate", "lora_rank")
MORE_SETTINGS = (
    "samples_per_prompt",
    "max_tokens",
    "temperature",
    "warmup_steps",
    "eval_every",
    "eval_prompts",
    "seed",
)


class TrainTab:
    """The tab's components and what happens between them."""

    def __init__(self, review: ReviewTab) -> None:
        """Lay out the tab in the current Gradio context and connect it; it trains the pair of ``review``."""
        self.review = review
        self.watched = gr.State(None)  # name of the run on show
        with gr.Row(elem_classes="setup"):
            with gr.Column(scale=1, min_width=280, elem_id="settings"):
                self._controls()
            with gr.Column(scale=3, min_width=300, elem_id="run-column"):
                self.run = RunView(elem_id="run")
        self.standing = [
            *(self.start_button, self.stop_button, self.review_button),
            *(review.trained, review.which),
        ]
        self._connect()

    def _controls(self) -> None:
        gr.Markdown(
            "The student writes answers, the teacher grades every token, and each update makes the tokens "
            "that the teacher dislikes less likely.",
            elem_classes="caption",
        )
        self.settings = {name: _setting(name) for name in MAIN_SETTINGS}
        self.explanation = gr.Markdown(
            _explain(DistillConfig().objective), elem_id="objective-explained", elem_classes="caption"
        )
        with gr.Row(elem_classes="actions"):
            self.start_button = gr.Button("Start", variant="primary", elem_id="start")
            self.stop_button = gr.Button("Stop", interactive=False, elem_id="stop-training")
        self.review_button = gr.Button(
            "Review the trained student", interactive=False, elem_id="review-trained"
        )
        with gr.Accordion("More settings", open=False, elem_id="more-settings"):
            self.settings |= {name: _setting(name) for name in MORE_SETTINGS}
            self.name = gr.Textbox("", label="Run name", placeholder="the date and the time")

    def _connect(self) -> None:
        self.start_button.click(
            self._start,
            [self.review.names, self.name, *self.settings.values()],
            [self.watched, self.run, *self.standing],
            **PLUMBING,
        )
        self.settings["objective"].change(
            _explain, self.settings["objective"], self.explanation, trigger_mode="always_last", **PLUMBING
        )
        self.stop_button.click(self._stop, self.watched, self.stop_button, **PLUMBING)
        self.run.ended(self._standing, [self.watched, self.review.names], self.standing, **PLUMBING)

    def attach(self) -> list[Any]:
        """Return the updates that show a new page the run that is training, or else the last one."""
        with spoken_errors():
            runs = list_runs()
            run = next((run for run in runs if run.status().live), runs[0] if runs else None)
            name = run.name if run else None
            return [name, self.run.show(name) if name else None, *self._standing(name, PairNames())]

    def open_in_review(self, name: str, requested: int) -> list[Any]:
        """Return the updates that put a run's student beside the untrained one and ask for a sampling."""
        names = _pair_of(name)
        return [gr.Tabs(selected="review"), requested + 1, *self.review.use(names, trained=name, which=BOTH)]

    def _start(self, names: PairNames, name: str, *values: Any) -> list[Any]:  # noqa: ANN401
        with spoken_errors():
            busy = next((run.name for run in list_runs() if run.status().live), None)
            if busy:
                raise ValueError(f"The run {busy} is still training. Stop it first, or wait.")
            given = dict(zip(self.settings, values, strict=True))
            filled = {key: value for key, value in given.items() if value not in (None, "")}
            config = make_config({**names._asdict(), **filled})
            run = jobs.start(config, name.strip() or new_name())
        return [run.name, self.run.show(run.name), *self._standing(run.name, names)]

    def _stop(self, name: str) -> Any:  # noqa: ANN401
        with spoken_errors():
            open_run(name).request_stop()
        return gr.update(interactive=False)

    def _standing(self, name: str | None, names: PairNames) -> list[Any]:
        """Return the updates of ``standing``: what can be done now with the run called ``name``."""
        run = open_run(name) if name else None
        live = run is not None and run.status().live
        trained = run is not None and not live and run.model_dir is not None
        comparable = trained and _pair_of(name) == names
        return [
            gr.update(interactive=not live),
            gr.update(interactive=live),
            gr.update(interactive=trained),
            *self.review.offer_trained(name if comparable else None),
        ]


def _pair_of(name: str) -> PairNames:
    config = open_run(name).config
    return PairNames(config.student, config.teacher)


def _explain(objective: str) -> str:
    """Say what an objective does, with the loss of one token."""
    chosen = OBJECTIVES[objective]
    return f"{chosen.sentence}\n\nLoss of a token: `{chosen.formula}`"


def _setting(name: str) -> gr.components.Component:
    """Make the input of one setting of :class:`opd.DistillConfig`."""
    field = DistillConfig.model_fields[name]
    about = {
        "label": name.replace("_", " ").capitalize().replace("Lora", "LoRA"),
        "info": field.description,
        "elem_id": f"setting-{name}",
    }
    if get_origin(field.annotation) is Literal:
        return gr.Dropdown(get_args(field.annotation), value=field.default, filterable=False, **about)
    if field.default is None:  # an empty Number would come back as 0
        return gr.Textbox("", placeholder="default", **about)
    return gr.Number(field.default, precision=0 if field.annotation is int else None, **about)
