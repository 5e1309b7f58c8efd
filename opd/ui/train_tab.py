"""The Train tab: on-policy distillation in a process of its own, watched live."""

from __future__ import annotations

import secrets
from typing import Any

import gradio as gr

from opd.config import anchor, written
from opd.grading.own_text import as_question
from opd.grading.saved_reviews import ReviewSet
from opd.runs.run import Run, list_runs, new_name, open_run
from opd.runs.samples import Kind
from opd.ui.dry_run import DryRun
from opd.ui.errors import spoken_errors, warn
from opd.ui.events import NOT_THERE, PLUMBING, field, number
from opd.ui.kept_sets import KeptSets
from opd.ui.pairs import PairNames, make_room, refuse_if_taken
from opd.ui.race_card import RaceCard
from opd.ui.remembered import Remembered
from opd.ui.review_tab import BOTH, ReviewTab
from opd.ui.run_view import RunView
from opd.ui.setup_card import SetupCard, words_of
from opd.ui.step_view import StepView
from opd.ui.time_machine import TimeMachine
from opd.ui.token_review import TokenReview
from opd.ui.working import Working


class TrainTab:
    """The tab's components and what happens between them."""

    def __init__(self, tabs: gr.Tabs, review: ReviewTab) -> None:
        """Lay out the tab in the current Gradio context and connect it.

        Args:
            tabs: those of the page.
            review: the tab that shows a run's student beside the untrained one.
        """
        self.tabs, self.review = tabs, review
        with gr.Row(elem_classes="setup"):
            with gr.Column(scale=2, min_width=320, elem_id="settings"):
                self.setup = SetupCard()
                self._start_card()
                self.race = RaceCard(self.setup)
            with gr.Column(scale=3, min_width=300, elem_id="run-column"):
                self.picker = gr.Dropdown(
                    [], label="Run", allow_custom_value=True, visible=False, elem_id="run-picker"
                )
                self.run = RunView(elem_id="run")
        self.dry_run = DryRun(elem_id="dry-run")
        self.time = TimeMachine(elem_id="time-machine")
        self.step = StepView(elem_id="step")
        self.sets, self.dry_run_sets = KeptSets(), KeptSets()  # below everything, and behind the preview
        self.trajectories = TokenReview(self.sets, elem_id="trajectories", visible="hidden")
        self.followed = [self.run, self.time, self.picker]
        self.looked_at = [self.step, self.trajectories]
        self.attached = [tabs, *self.followed, review.trained, review.which]
        self.filled = [self.setup.explanation, *self.setup.inputs]
        self.form = Remembered([*self.setup.inputs, self.name, *self.race.own])
        self._connect()

    def _start_card(self) -> None:
        with gr.Row(elem_classes="fields"):
            self.name = gr.Textbox(
                "", label="Run name", placeholder="the date and the time", elem_id="new-run-name"
            )
        with gr.Row(elem_classes="actions", elem_id="start-row"):
            self.start_button = gr.Button("Start", variant="primary", elem_id="start")
            self.dry_run_button = gr.Button("What will it punish?", elem_id="start-dry-run", min_width=0)
            self.code_button = gr.Button("Show as code", elem_id="show-code", min_width=0)
            self.starting, self.dry_running, self.coding = (Working() for _ in range(3))
        with gr.Column(visible=False, elem_id="code") as self.code:
            self.command = gr.Textbox(label="Command line", lines=2, buttons=["copy"], elem_id="command")
            self.python = gr.Textbox(label="Python", lines=8, buttons=["copy"], elem_id="python")

    def _connect(self) -> None:
        self.starting.around(
            [self.start_button.click],
            self._start,
            [self.name, *self.setup.inputs],
            self.followed,
            button=self.start_button,
            answer="#run",
        )
        self.dry_running.around(
            [self.dry_run_button.click],
            self._dry_run,
            self.setup.inputs,
            [self.dry_run, *self.looked_at],
            button=self.dry_run_button,
            done="The dry run stands below the settings.",
            answer="#dry-run",
            concurrency_id="models",
        )
        self.coding.around(
            [self.code_button.click],
            self._as_code,
            self.setup.inputs,
            [self.code, self.command, self.python],
            button=self.code_button,
            answer="#code",
        )
        self.dry_run.token(self._show_previewed, None, self.looked_at, **PLUMBING)
        self.picker.input(self.follow, self.picker, self.followed, trigger_mode="always_last", **PLUMBING)
        self.picker.focus(_choices_of, self.picker, self.picker, **PLUMBING)
        self.run.followed(_nothing_beside, None, [self.dry_run, *self.looked_at], **PLUMBING)
        asked = [
            self.run.control(self.control, None, self.followed, **PLUMBING),
            self.run.settings(self._fill, None, [self.run, *self.filled], **PLUMBING),
        ]
        for refused in asked:
            refused.failure(self.run.unsaid, self.run, self.run, **PLUMBING)
        self.run.review(
            self._open_in_review,
            self.review.requested,
            [self.tabs, *self.review.on_request, *self.review.in_use],
            **PLUMBING,
        )
        self.run.ended(self._offer, self.review.names, [self.review.trained, self.review.which], **PLUMBING)
        self.run.point(self._show_rollouts, None, self.looked_at, **PLUMBING)
        self.run.evidence(self._show_step, None, self.looked_at, **PLUMBING)
        self.step.step(self._show_step, None, self.looked_at, **PLUMBING)
        self.step.sample(self._show_sample, None, self.trajectories, **PLUMBING)
        self.time.look(self._show_answers, None, self.looked_at, **PLUMBING)

    # Which run

    def attach(self, request: gr.Request) -> list[Any]:
        """Return the updates of ``attached`` for a new page.

        It follows the run that its address asks for, else the one that trains, else the last.
        """
        wanted = request.query_params.get("run")
        runs = list_runs()
        run = next((run for run in runs if run.name == wanted), None)
        if wanted and not run:
            warn(f"There is no run called {wanted} any more.")
        run = run or next((run for run in runs if run.status().live), runs[0] if runs else None)
        if not run:
            # To skip an HTML component that is not on the page yet takes its props from it: it gets None.
            return [None if output in (self.run, self.time) else gr.skip() for output in self.attached]
        asks_for_review = "review" in request.query_params
        opens = gr.Tabs(selected="train") if run.name == wanted and not asks_for_review else gr.skip()
        return [opens, *self.follow(run.name), *self._offered(run, PairNames())]

    def follow(self, name: str) -> list[Any]:
        """Return the updates of ``followed`` that show the run called ``name``."""
        with spoken_errors():
            run = open_run(name)
        picked = gr.update(choices=_names(), value=run.name, visible=True)
        return [self.run.show(run.name), self.time.show(run.name), picked]

    def open(self, event: gr.EventData) -> list[Any]:
        """Return the updates of the page's tabs and of ``followed`` that watch the run of an event."""
        with spoken_errors():
            run = _run_of(event)
        return [gr.Tabs(selected="train"), *self.follow(run.name)]

    def _open_in_review(self, requested: int, event: gr.EventData) -> list[Any]:
        """Return the updates that put a run's student beside the untrained one and ask for a sampling.

        Both are asked the probe that changed most, if the run evaluated any that is a single question.
        """
        with spoken_errors():
            run = _run_of(event)
            names = pair_of(run)
            asked = next(
                filter(None, (as_question(p.messages) for p in run.samples.probes_by_change())), None
            )
        shown = self.review.use(names, trained=run.name, which=BOTH)
        in_sight = gr.Tabs(selected="review"), requested + 1, gr.Tabs(selected="ask")
        return [*in_sight, *(asked or [gr.skip(), gr.skip()]), *shown]

    # Before the start

    def _fill(self, event: gr.EventData) -> list[Any]:
        """Return the updates of ``run`` and ``filled`` that put a run's settings into the form."""
        with spoken_errors():
            run = _run_of(event)
            config = run.config
        shown = self.run.show(run.name, "The form holds its settings: change what you like, and press Start.")
        return [shown, words_of(config.objective), *self.setup.filled_like(config)]

    def _start(self, name: str, *values: Any) -> list[Any]:  # noqa: ANN401
        from opd.runs import jobs

        with spoken_errors():
            config = self.setup.config(values)
            make_room()
            run = jobs.start(config, name.strip() or new_name())
        return self.follow(run.name)

    def _dry_run(self, *values: Any) -> list[Any]:  # noqa: ANN401
        from opd.runs.worker import devices_of
        from opd.training.preview import dry_run

        with spoken_errors():
            config = self.setup.config(values)
            refuse_if_taken(devices_of(config))
            findings, preview = dry_run(config)
        key = secrets.token_urlsafe(9)
        shown = self.dry_run.show(key, findings, preview)
        if not (preview and preview.reviews):
            return [shown, *_nothing_beside()[1:]]
        self.dry_run_sets.keep(key, ReviewSet.of(preview.reviews))
        return [shown, *self._previewed(key)]

    def _show_previewed(self, event: gr.EventData) -> list[Any]:
        """Go to the completion that a token of the preview stands in."""
        with spoken_errors():
            return self._previewed(str(field(event, "key")), opens=number(event, "review"))

    def _previewed(self, key: str, *, opens: int | None = None) -> list[Any]:
        title = self.step.show_title("Dry run", "Completions that the tokens above stand in.")
        return [title, self._read(key, self.dry_run_sets.find(key), opens)]

    def _as_code(self, *values: Any) -> list[Any]:  # noqa: ANN401
        from opd.presets import as_command, as_python

        with spoken_errors():
            config = self.setup.config(values)
            return [gr.update(visible=True), as_command(config), as_python(config)]

    # While it trains

    def control(self, event: gr.EventData) -> list[Any]:
        """Ask of a run what the page asks for; it is done after the current step."""
        from opd.runs import jobs

        with spoken_errors():
            run = _run_of(event)
            match field(event, "request"):
                case "pause" | "stop" | "keep_best" as request:
                    run.ask(request)
                case "go_on":
                    run.ask(None)
                case "resume":
                    make_room()
                    jobs.resume(run)
                case "prolong":
                    make_room()
                    jobs.resume(run, run.config.steps + number(event, "steps"))
        return self.follow(run.name)

    def _offer(self, names: PairNames, event: gr.EventData) -> list[Any]:
        """Offer the student of a run that ended for comparison, if its pair is the one under review."""
        with spoken_errors():
            return self._offered(_run_of(event), names)

    def _offered(self, run: Run, names: PairNames) -> list[Any]:
        ended = run.model_dir is not None and not run.status().live
        return self.review.offer_trained(run.name if ended and pair_of(run) == anchored(names) else None)

    # Trajectories

    def _show_rollouts(self, event: gr.EventData) -> list[Any]:
        """Show the rollouts of the saved step nearest to a point of a curve."""
        with spoken_errors():
            return self._show(_run_of(event), "rollout", number(event, "step"))

    def _show_step(self, event: gr.EventData) -> list[Any]:
        """Show the trajectories of a step, or what gave rise to an alarm."""
        with spoken_errors():
            said = field(event, "kind") or field(event, "evidence")
            kind = "probe" if said == "probe" else "rollout"
            return self._show(_run_of(event), kind, number(event, "step"))

    def _show_answers(self, event: gr.EventData) -> list[Any]:
        """Show what the student answers to the probes at the scrubber's step."""
        with spoken_errors():
            return self._show(_run_of(event), "probe", number(event, "step"), opens=number(event, "probe"))

    def _show_sample(self, event: gr.EventData) -> str:
        """Go to the rollout of a point of the plot of pushes."""
        with spoken_errors():
            run, step = _run_of(event), number(event, "step")
            return self._show(run, "rollout", step, opens=number(event, "sample"))[1]

    def _read(self, key: str, reviews: ReviewSet, opens: int | None) -> Any:  # noqa: ANN401
        """Return the update of the component below everything, which is not there before it has a use."""
        return gr.update(value=self.trajectories.show(key, reviews, opens=opens), visible=True)

    def _show(self, run: Run, kind: Kind, wanted: int, *, opens: int | None = None) -> list[Any]:
        """Return the updates of ``looked_at`` for the saved step that is nearest to the wanted one."""
        steps = run.samples.steps(kind)
        if not steps:
            raise ValueError(f"The run {run.name} has kept no {kind}s yet.")
        step = min(steps, key=lambda step: abs(step - wanted))
        samples = run.samples.rollouts(step) if kind == "rollout" else []
        reviews = run.samples.probes(step) if kind == "probe" else [sample.review for sample in samples]
        key = f"{run.name}-{run.born}-{kind}-{step}"
        return [self.step.show_step(run, kind, step, samples), self._read(key, ReviewSet.of(reviews), opens)]


def _nothing_beside() -> list[Any]:
    """Return the updates that put away what was shown beside another run, or before any."""
    return [None, None, gr.update(value=None, visible="hidden")]


def _choices_of(picked: str | None) -> Any:  # noqa: ANN401
    """Return the update of the picker's choices: its own value stays one, or Gradio fails on the page."""
    return gr.update(choices=list(dict.fromkeys([*_names(), *([picked] if picked else [])])))


def _names() -> list[str]:
    return [run.name for run in list_runs()]


def _run_of(event: gr.EventData) -> Run:
    """Return the run that an event is about; anybody can send one.

    Raises:
        ValueError: there is no such run.
    """
    match field(event, "run"):
        case str(name):
            return open_run(name)
    raise ValueError(NOT_THERE)


def anchored(names: PairNames) -> PairNames:
    """Return a pair's names as a run writes them down."""
    return names._replace(student=anchor(names.student), teacher=anchor(names.teacher))


def pair_of(run: Run) -> PairNames:
    """Return the names of the pair that a run trains."""
    config = run.config
    told = (config.template_options, config.teacher_template_options)
    options = ("" if options is None else written(options) for options in told)
    differing = "shared" if config.shared_vocabulary else "refused"
    return PairNames(config.student, config.teacher, differing, *options, config.control_tokens)
