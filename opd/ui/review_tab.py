"""The Review tab: a prompt becomes graded trajectories, painted while they grow."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import gradio as gr

import opd
from opd.runs import open_run
from opd.tasks import load_task
from opd.trajectory import Review
from opd.ui.errors import spoken_errors
from opd.ui.events import PLUMBING
from opd.ui.pairs import loaded_pair
from opd.ui.token_review import ReviewGroup, TokenReview

OFFERED_EXAMPLES = 400
"""Held-out problems of the demo task that the page offers."""

FIRST_FAMILY = "tricks"
"""Where a new page begins: the family whose problems show best how one word decides."""

FINDING_SIGNS = {"pass": "✓", "warn": "⚠", "fail": "✗"}

BEFORE, AFTER, BOTH = "before", "after", "both"


class PairNames(NamedTuple):
    """The pair that a session works with, by the names the user gave."""

    student: str = "demo-student"
    teacher: str = "demo-teacher"

    def __str__(self) -> str:
        """One line of Markdown."""
        return f"`{self.student}` writes, `{self.teacher}` grades."


class ReviewTab:
    """The tab's components and what happens between them."""

    def __init__(self) -> None:
        """Lay out the tab in the current Gradio context and connect it."""
        self.task = load_task("demo")
        self.examples = {e.prompt: e for e in self.task.heldout(OFFERED_EXAMPLES)}
        self.first = next(e for e in self.examples.values() if e.family == FIRST_FAMILY)
        self.names = gr.State(PairNames())
        self.trained = gr.State(None)  # name of the run whose student stands beside the untrained one
        self.requested = gr.State(0)  # counts the samplings that other tabs ask for

        with gr.Row(elem_classes="setup"):
            with gr.Column(scale=5, min_width=300):
                self._question()
                with gr.Row(elem_classes="folded"):
                    self._sampling_settings()
                    self._model_settings()
            with gr.Column(scale=2, min_width=260):
                self._actions()
        self.reviews = TokenReview(elem_id="review")
        self.in_use = [self.names, self.pair_line, self.trained, self.which]
        self._connect()

    def _question(self) -> None:
        self.prompt = gr.Textbox(
            self.first.prompt,
            label="Prompt",
            placeholder="Ask the student something",
            lines=2,
            max_lines=12,
            elem_id="prompt",
        )
        with gr.Row(elem_classes="chips"):
            gr.Markdown("Try one of", elem_classes="caption")
            self.families = [
                gr.Button(family, size="sm", min_width=0)
                for family in dict.fromkeys(e.family for e in self.examples.values())
            ]

    def _sampling_settings(self) -> None:
        with gr.Accordion("Sampling and system prompt", open=False, elem_id="sampling"):
            with gr.Row():
                self.n = gr.Number(4, label="Trajectories", precision=0, min_width=90)
                self.temperature = gr.Number(1.0, label="Temperature", step=0.1, min_width=90)
                self.max_tokens = gr.Number(192, label="Longest answer", precision=0, min_width=90)
                self.seed = gr.Number(0, label="Seed", precision=0, min_width=90)
            self.system = gr.Textbox("", label="System prompt", placeholder="none", max_lines=6)

    def _model_settings(self) -> None:
        with gr.Accordion("Models", open=False, elem_id="models"):
            with gr.Row():
                self.student = gr.Textbox(PairNames().student, label="Student", min_width=140)
                self.teacher = gr.Textbox(PairNames().teacher, label="Teacher", min_width=140)
            gr.Markdown(
                "A folder, a LoRA adapter's folder, or a name on the Hugging Face Hub. "
                "Both models must share a vocabulary.",
                elem_classes="caption",
            )
            with gr.Row():
                self.load_button = gr.Button("Load this pair", size="sm", elem_id="load-pair")
                self.examine_button = gr.Button("Examine it", size="sm", elem_id="examine-pair")
            self.findings = gr.Markdown("", visible=False, elem_id="findings")

    def _actions(self) -> None:
        self.pair_line = gr.Markdown(str(PairNames()), elem_id="pair-line")
        self.which = gr.Radio([BEFORE], value=BEFORE, label="Student", visible=False, elem_id="which")
        with gr.Row(elem_classes="actions"):
            self.sample_button = gr.Button("Sample", variant="primary", elem_id="sample")
            self.stop_button = gr.Button("Stop", interactive=False, elem_id="stop-sampling")

    def _connect(self) -> None:
        for button in self.families:
            button.click(self._another_example, [button, self.prompt], self.prompt, **PLUMBING)
        self.load_button.click(
            self._load,
            [self.student, self.teacher],
            self.in_use,
            concurrency_id="models",
            api_visibility="private",
        )
        self.examine_button.click(
            self._examine,
            [self.student, self.teacher],
            self.findings,
            concurrency_id="models",
            api_visibility="private",
        )
        buttons = [self.sample_button, self.stop_button]
        sampling = gr.on(
            [self.sample_button.click, self.prompt.submit, self.requested.change],
            lambda: _sampling(True),
            None,
            buttons,
            **PLUMBING,
        ).then(
            self._sample,
            [
                *(self.names, self.trained, self.which, self.prompt, self.system),
                *(self.n, self.temperature, self.max_tokens, self.seed),
            ],
            self.reviews,
            concurrency_id="models",
            **PLUMBING,
        )
        idle = [lambda: _sampling(False), None, buttons]
        for ended in (sampling.success, sampling.failure):
            ended(*idle, **PLUMBING)
        self.stop_button.click(*idle, cancels=sampling, **PLUMBING)

    def welcome(self) -> str:
        """Return what a new page shows: the first example, sampled once for everybody."""
        with spoken_errors():
            return self.reviews.show("welcome", [ReviewGroup("before training", self._first_reviews)])

    @cached_property
    def _first_reviews(self) -> list[Review]:
        pair = loaded_pair(*PairNames())
        *_, reviews = opd.stream_reviews(pair, self.first.prompt, task=self.task, example=self.first)
        return reviews

    def use(self, names: PairNames, *, trained: str | None = None, which: str = BEFORE) -> list[Any]:
        """Return the updates of ``in_use`` that make ``names`` the pair of this session."""
        return [names, str(names), *self.offer_trained(trained, which)]

    def offer_trained(self, run: str | None, which: str = BEFORE) -> list[Any]:
        """Return the updates of ``trained`` and ``which`` that offer a run's student for comparison."""
        choices = [("before training", BEFORE), (f"after {run}", AFTER), ("both", BOTH)]
        return [run, gr.update(choices=choices, value=which, visible=run is not None)]

    def _another_example(self, family: str, prompt: str) -> str:
        """Return the family's example after the one in the prompt, or its first."""
        prompts = [e.prompt for e in self.examples.values() if e.family == family]
        return prompts[(prompts.index(prompt) + 1) % len(prompts)] if prompt in prompts else prompts[0]

    def _load(self, student: str, teacher: str) -> list[Any]:
        names = PairNames(student.strip(), teacher.strip())
        with spoken_errors():
            loaded_pair(*names)
        return self.use(names)

    def _examine(self, student: str, teacher: str) -> Any:  # noqa: ANN401
        """Return the doctor's findings on the named pair, what is wrong first."""
        with spoken_errors():
            findings = opd.examine(loaded_pair(student.strip(), teacher.strip()), task=self.task)
        severity = ["fail", "warn", "pass"]
        lines = [
            f"- {FINDING_SIGNS[f.level]} **{f.check}** {f.message}"
            for f in sorted(findings, key=lambda f: severity.index(f.level))
        ]
        return gr.update(value="\n".join(lines), visible=True)

    def _sample(
        self,
        names: PairNames,
        trained: str | None,
        which: str,
        prompt: str,
        system: str,
        n: int | None,
        temperature: float | None,
        max_tokens: int | None,
        seed: int | None,
    ) -> Iterator[str]:
        """Paint the trajectories of one prompt, of the student before training, after it, or of both."""
        with spoken_errors():
            settings = {"n": n, "temperature": temperature, "max_tokens": max_tokens, "seed": seed}
            empty = [name.replace("_", " ") for name, value in settings.items() if value is None]
            if empty:
                raise ValueError(f"Please fill in: {', '.join(empty)}.")
            messages = [{"role": "user", "content": prompt}]
            if system.strip():
                messages.insert(0, {"role": "system", "content": system})
            example = self.examples.get(prompt.strip()) if not system.strip() else None
            key = secrets.token_urlsafe(9)
            finished: list[ReviewGroup] = []
            for label, student in _students(names, trained, which).items():
                reviews = []
                pair = loaded_pair(student, names.teacher)
                stream = opd.stream_reviews(pair, messages, task=self.task, example=example, **settings)
                for reviews in stream:
                    yield self.reviews.show(key, [*finished, ReviewGroup(label, reviews)])
                finished.append(ReviewGroup(label, reviews))


def _sampling(busy: bool) -> list[Any]:
    """Return the updates of the buttons Sample and Stop."""
    return [gr.update(interactive=not busy), gr.update(interactive=busy)]


def _students(names: PairNames, trained: str | None, which: str) -> dict[str, str]:
    """Return the students to sample from by the heading they stand under."""
    students = {}
    if trained is None or which in (BEFORE, BOTH):
        students["before training"] = names.student
    if trained is not None and which in (AFTER, BOTH):
        students[f"after {trained}"] = str(open_run(trained).model_dir)
    return students
