"""The Review tab: a prompt, a text, a file or a saved review becomes graded trajectories to look at."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

import opd
from opd.config import DistillConfig, as_template_options, written
from opd.grading.own_text import PROMPT_FILES, as_question, question, read_chat, read_prompts
from opd.grading.saved_reviews import ReviewGroup, ReviewSet, gallery, load_reviews, store
from opd.phases import announce
from opd.runs.run import open_run
from opd.tasks import load_task
from opd.tasks.demo import known_problem, known_problems
from opd.ui.branches import Branches
from opd.ui.corpus import Corpus
from opd.ui.errors import plain, spoken_errors, warn
from opd.ui.events import PLUMBING, field
from opd.ui.kept_sets import KeptSets, opened
from opd.ui.pairs import DIFFERING, PairNames, loaded_pair
from opd.ui.saved_list import SavedList
from opd.ui.shown import Shown
from opd.ui.token_review import ACTIONS, TokenReview
from opd.ui.working import Working

FINDING_SIGNS = {"pass": "✓", "warn": "⚠", "fail": "✗"}

SAMPLING_LABELS = ("Trajectories", "Temperature", "Longest answer", "Seed")
"""What the sampling settings are called on the page, in the order of :func:`_sampling_options`."""

TEMPLATE_LABELS = {
    "template_options": "Template options",
    "teacher_template_options": "The teacher’s template options",
}

BEFORE, AFTER, BOTH = "before", "after", "both"

MOST_TRAJECTORIES = 1000
"""What one file of prompts may ask of the app at once."""


class ReviewTab:
    """The tab's components and what happens between them."""

    def __init__(self) -> None:
        """Lay out the tab in the current Gradio context and connect it."""
        self.task = load_task("demo")
        self.sets = KeptSets()
        self.names = gr.State(PairNames())
        self.trained = gr.State(None)  # name of the run whose student stands beside the untrained one
        self.requested = gr.State(0)  # counts the samplings that other tabs ask for

        with gr.Row(elem_classes="setup"):
            with gr.Column(scale=5, min_width=300):
                with gr.Tabs(elem_id="source") as self.source:
                    with gr.Tab("Ask", id="ask"):
                        self._question()
                    with gr.Tab("Paste", id="paste"):
                        self._own_text()
                    with gr.Tab("File", id="file"):
                        self._prompt_file()
                    with gr.Tab("Open", id="open"):
                        self._saved()
                self._sampling_settings()
            with gr.Column(scale=2, min_width=260):
                self.pair_line = gr.Markdown(str(PairNames()), elem_id="pair-line")
                self.which = gr.Radio([BEFORE], value=BEFORE, label="Student", visible=False, elem_id="which")
                self._model_settings()
        self.shown = Shown(self._find, elem_id="shown")
        self.branches = Branches(self.sets)
        self.reviews = TokenReview(self.sets, ACTIONS, elem_id="review", linked=True)
        self.corpus = Corpus(self.sets.find, elem_id="corpus")
        self.on_request = [self.requested, self.source, self.prompt, self.system]
        self.in_use = [self.names, self.pair_line, self.trained, self.which]
        self.on_show = [self.reviews, self.shown, self.branches.grown]
        self.on_open = [*self.on_show, self.prompt, self.system, self.sampling_fold]
        self._connect()

    # Layout

    def _question(self) -> None:
        first = next(iter(next(iter(gallery().values()))))
        self.prompt = gr.Textbox(
            first.messages[-1]["content"],
            label="Prompt",
            show_label=False,
            placeholder="Ask the student something",
            lines=2,
            max_lines=12,
            elem_id="prompt",
        )
        with gr.Row(elem_classes="foot"):
            with gr.Row(elem_classes="chips"):
                gr.Markdown("Try one of", elem_classes="caption")
                self.families = [
                    gr.Button(family, size="sm", min_width=0)
                    for family in dict.fromkeys(e.family for e in known_problems().values())
                ]
            with gr.Row(elem_classes="actions"):
                self.sample_button = gr.Button("Sample", variant="primary", elem_id="sample")
                self.stop_button = gr.Button("Stop", interactive=False, elem_id="stop-sampling")
        self.sampling = Working()

    def _own_text(self) -> None:
        with gr.Row():
            self.text_prompt = gr.Textbox(
                "", label="Prompt", placeholder="What the text answers", lines=4, max_lines=12, scale=2,
                elem_id="text-prompt",
            )  # fmt: skip
            self.text = gr.Textbox(
                "", label="Text or chat", placeholder="The text to grade", lines=4, max_lines=16, scale=3,
                elem_id="text",
            )  # fmt: skip
        with gr.Row(elem_classes="foot"):
            gr.Markdown(
                "Nothing is sampled. Without a prompt, paste a whole chat (JSON, or lines that begin with "
                "user: and assistant:): every turn of the assistant is graded.",
                elem_classes="caption",
            )
            with gr.Row(elem_classes="actions"):
                self.complete = gr.Checkbox(True, label="it ends here", min_width=110, elem_id="complete")
                self.grade_button = gr.Button("Grade", variant="primary", elem_id="grade-text")
        self.grading = Working()

    def _prompt_file(self) -> None:
        self.prompt_file = gr.File(
            label="Prompts", file_types=list(PROMPT_FILES), height=112, elem_id="prompt-file"
        )
        with gr.Row(elem_classes="foot"):
            gr.Markdown(
                "The column `prompt` of a .jsonl, .csv or (with `pip install opd-studio[data]`) .parquet "
                "file, or one prompt a line in .txt. Where a row has a `completion` or a `response`, that is "
                "graded; otherwise the student answers.",
                elem_classes="caption",
            )
            with gr.Row(elem_classes="actions"):
                self.file_button = gr.Button("Grade all", variant="primary", elem_id="grade-file")
                self.stop_file_button = gr.Button("Stop", interactive=False, elem_id="stop-file")
        self.filing = Working()

    def _saved(self) -> None:
        with gr.Row():
            with gr.Column(scale=3, min_width=280), gr.Row(elem_classes="chips", elem_id="gallery"):
                self.gallery_buttons = {
                    ident: gr.Button(shown.title, size="sm", min_width=0)
                    for ident, shown in gallery().items()
                }
            with gr.Column(scale=2, min_width=280):
                self.review_file = gr.File(
                    label="A saved review", file_types=[".json"], height=112, elem_id="review-file"
                )
                self.opening = Working()
                self.saved = SavedList(elem_id="saved")

    def _sampling_settings(self) -> None:
        with gr.Accordion("Sampling and system prompt", open=False, elem_id="sampling") as self.sampling_fold:
            with gr.Row():
                trajectories, temperature, longest, seed = SAMPLING_LABELS
                self.n = gr.Number(4, label=trajectories, precision=0, min_width=90)
                self.temperature = gr.Number(1.0, label=temperature, step=0.1, min_width=90)
                self.max_tokens = gr.Number(192, label=longest, precision=0, min_width=90)
                self.seed = gr.Number(0, label=seed, precision=0, min_width=90)
            self.system = gr.Textbox("", label="System prompt", placeholder="none", max_lines=6)
        self.settings = [self.n, self.temperature, self.max_tokens, self.seed]

    def _model_settings(self) -> None:
        with gr.Accordion("Models", open=False, elem_id="models"):
            with gr.Row():
                self.student = gr.Textbox(PairNames().student, label="Student", min_width=140)
                self.teacher = gr.Textbox(PairNames().teacher, label="Teacher", min_width=140)
            gr.Markdown(
                "A folder, a LoRA adapter's folder, a .gguf file, a name on the Hugging Face Hub, or "
                "`smollm2` and `smollm2-pruned`, real models that are fetched once (93 MB). "
                "Both models must share a vocabulary; where they differ in a few tokens, what both share can "
                "be graded, and with any other tokenizer the teacher can grade spans of text.",
                elem_classes="caption",
            )
            choices = [(words, name) for name, (words, *_) in DIFFERING.items()]
            self.differing = gr.Radio(
                choices, value="refused", label="If their vocabularies differ", elem_id="differing"
            )
            with gr.Accordion("How prompts are read", open=False, elem_id="reading"):
                self.template_options, self.teacher_template_options = (
                    gr.Textbox("", label=label, info=_about(name), placeholder="none", elem_id=f"pair-{name}")
                    for name, label in TEMPLATE_LABELS.items()
                )
                self.control_tokens = gr.Checkbox(
                    False, label=_about("control_tokens"), elem_id="pair-control_tokens"
                )
            with gr.Row():
                self.load_button = gr.Button("Load this pair", size="sm", elem_id="load-pair")
                self.examine_button = gr.Button("Examine it", size="sm", elem_id="examine-pair")
            self.loading, self.examining = Working(), Working()
            self.findings = gr.Markdown("", visible=False, elem_id="findings")

    # Events

    def _connect(self) -> None:
        for button in self.families:
            button.click(self._another_example, [button, self.prompt], self.prompt, **PLUMBING)
        models = {"concurrency_id": "models"}
        named = [self.student, self.teacher, self.differing]
        named += [self.template_options, self.teacher_template_options, self.control_tokens]
        self.loading.around(
            [self.load_button.click],
            self.load,
            named,
            self.in_use,
            button=self.load_button,
            done="This pair is at work now.",
            **models,
        )
        self.examining.around(
            [self.examine_button.click],
            self._examine,
            named,
            self.findings,
            button=self.examine_button,
            **models,
        )
        session = [self.names, self.trained, self.which]
        _, sampling_ends = self.sampling.around(
            [self.sample_button.click, self.prompt.submit, self.requested.change],
            self.sample,
            [*session, self.prompt, self.system, *self.settings],
            self.on_show,
            button=self.sample_button,
            cancel=self.stop_button,
            **models,
        )
        _, filing_ends = self.filing.around(
            [self.file_button.click],
            self._grade_file,
            [*session, self.prompt_file, *self.settings],
            self.on_show,
            button=self.file_button,
            cancel=self.stop_file_button,
            **models,
        )
        for broken_off in (*sampling_ends, *filing_ends):
            broken_off.then(self.reviews.settle, self.shown, self.reviews, **PLUMBING)
        self.grading.around(
            [self.grade_button.click],
            self._grade_text,
            [*session, self.text_prompt, self.system, self.text, self.complete],
            self.on_show,
            button=self.grade_button,
            **models,
        )
        for ident, button in self.gallery_buttons.items():
            button.click(lambda ident=ident: self._open(ident), None, self.on_open, **PLUMBING)
        chosen = self.saved.open(self._open_saved, None, self.on_open, **PLUMBING)
        chosen.then(self.saved.settle, None, self.saved, **PLUMBING)
        self.opening.around([self.review_file.upload], self.open_file, [self.review_file], self.on_open)
        kept = self.shown.keep(self._keep, self.shown, self.shown, **PLUMBING)
        kept.failure(self.shown.unsaid, self.shown, self.shown, **PLUMBING)
        self.branches.connect(self.reviews, self.shown, [self.names, self.trained, self.max_tokens])

    # What is shown

    def welcome(self, request: gr.Request) -> list[Any]:
        """Return the updates of ``on_open`` for a new page: the review it asks for, or the gallery's first.

        No model is loaded for either.
        """
        ident = request.query_params.get("review")
        if ident:
            try:
                return self._opened(ident)
            except (ValueError, OSError) as unknown:
                warn(unknown)
        first = next(iter(gallery()))
        # Its prompt stands there, or a new one.
        return [*self._show(first, gallery()[first]), *[gr.skip()] * 3]

    def _show(
        self, key: str, reviews: ReviewSet, *, linked: bool = False, growing: bool = False
    ) -> list[Any]:
        """Return the updates of ``on_show`` for ``reviews``; the same ``key`` continues what is shown.

        What branches were added to what was shown before is forgotten: a set opens as it is.
        """
        return [
            self.reviews.show(key, reviews, growing=growing),
            self.shown.show(key, reviews, linked=linked),
            {},
        ]

    def _find(self, key: str) -> ReviewSet:
        """Return the set shown under ``key``; that of a saved one is its id."""
        try:
            return opened(key)
        except ValueError:
            return self.sets.find(key)

    def _open(self, ident: str) -> list[Any]:
        with spoken_errors():
            return self._opened(ident)

    def _opened(self, ident: str) -> list[Any]:
        reviews = opened(ident)
        return [*self._show(ident, reviews, linked=True), *_asked(reviews)]

    def _open_saved(self, event: gr.EventData) -> list[Any]:
        return self._open(str(field(event, "review")))

    def open_file(self, path: str) -> list[Any]:
        """Return the updates of ``on_open`` that show a file of reviews."""
        announce(f"Opening {Path(path).name}")
        with spoken_errors():
            reviews = load_reviews(path)
            return [*self._show(secrets.token_urlsafe(9), reviews), *_asked(reviews)]

    def _keep(self, shown: str) -> str:
        """Store what is shown; its link is in the address from now on."""
        with spoken_errors():
            key = json.loads(shown)["key"]
            reviews = self._find(key)
            store(reviews)
            return self.shown.show(key, reviews, linked=True)

    # The pair

    def use(self, names: PairNames, *, trained: str | None = None, which: str = BEFORE) -> list[Any]:
        """Return the updates of ``in_use`` that make ``names`` the pair of this session."""
        return [names, str(names), *self.offer_trained(trained, which)]

    def offer_trained(self, run: str | None, which: str = BEFORE) -> list[Any]:
        """Return the updates of ``trained`` and ``which`` that offer a run's student for comparison."""
        choices = [("before training", BEFORE), (f"after {run}", AFTER), ("both", BOTH)]
        return [run, gr.update(choices=choices, value=which, visible=run is not None)]

    def _another_example(self, family: str, prompt: str) -> str:
        """Return the family's example after the one in the prompt, or its first."""
        prompts = [e.prompt for e in known_problems().values() if e.family == family]
        return prompts[(prompts.index(prompt) + 1) % len(prompts)] if prompt in prompts else prompts[0]

    def load(self, *named: Any) -> list[Any]:  # noqa: ANN401
        """Load a pair, and return the updates of ``in_use`` that make it that of this session."""
        with spoken_errors():
            names = _names_of(named)
            loaded_pair(names)
        return self.use(names)

    def _examine(self, *named: Any) -> Any:  # noqa: ANN401
        """Return the doctor's findings on the named pair, what is wrong first."""
        with spoken_errors():
            findings = opd.examine(loaded_pair(_names_of(named)), task=self.task)
        lines = [
            f"- {FINDING_SIGNS[f.level]} **{plain(f.check)}** {plain(f.message)}"
            for f in sorted(findings, key=lambda f: f.order)
        ]
        return gr.update(value="\n".join(lines), visible=True)

    # Grading

    def sample(
        self,
        names: PairNames,
        trained: str | None,
        which: str,
        prompt: str,
        system: str,
        *settings: float | None,
    ) -> Iterator[list[str]]:
        """Show the trajectories of one prompt, of the student before training, after it, or of both."""
        with spoken_errors():
            options = _sampling_options(*settings)
            messages = question(prompt, system)
            example = known_problem(messages)
            key = secrets.token_urlsafe(9)
            finished: list[ReviewGroup] = []
            for label, student in students_to_grade(names, trained, which).items():
                reviews = []
                pair = loaded_pair(names._replace(student=student))
                stream = opd.stream_reviews(pair, messages, task=self.task, example=example, **options)
                for reviews in stream:
                    so_far = ReviewSet([*finished, ReviewGroup(label, reviews)])
                    yield self._show(key, so_far, growing=True)
                finished.append(ReviewGroup(label, reviews))

    def _grade_text(
        self,
        names: PairNames,
        trained: str | None,
        which: str,
        prompt: str,
        system: str,
        text: str,
        complete: bool,
    ) -> list[str]:
        """Show the grades of a pasted text, or of every turn of a pasted chat, as the students' writing."""
        with spoken_errors():
            chat = read_chat(text) if not prompt.strip() and text.strip() else None
            groups = []
            for label, student in students_to_grade(names, trained, which).items():
                pair = loaded_pair(names._replace(student=student))
                if chat:
                    reviews = opd.review_chat(pair, chat)
                else:
                    messages = question(prompt, system)
                    example = known_problem(messages)
                    reviews = [
                        opd.review_text(
                            pair, messages, text, complete=complete, task=self.task, example=example
                        )
                    ]
                groups.append(ReviewGroup(label, reviews))
            return self._show(secrets.token_urlsafe(9), ReviewSet(groups))

    def _grade_file(
        self, names: PairNames, trained: str | None, which: str, path: str | None, *settings: float | None
    ) -> Iterator[list[str]]:
        """Show the trajectories of every prompt of a file, as they are sampled or given."""
        with spoken_errors():
            options = _sampling_options(*settings)
            if path is None:
                raise ValueError("Choose a file of prompts first.")
            asked = read_prompts(path)
            students = students_to_grade(names, trained, which)
            total = len(students) * sum(options["n"] if text is None else 1 for text in asked.completions)
            if total > MOST_TRAJECTORIES:
                raise ValueError(
                    f"That would be {total} trajectories; the page shows {MOST_TRAJECTORIES} at most. Take "
                    "fewer prompts, or fewer trajectories of each."
                )
            if asked.malformed:
                row = asked.malformed[0]
                warn(f"Rows left out: {len(asked.malformed)}. Row {row.line}: {row.reason}.")
            examples = [known_problem(prompt) for prompt in asked.prompts]
            key = secrets.token_urlsafe(9)
            finished: list[ReviewGroup] = []
            for label, student in students.items():
                reviews = []
                pair = loaded_pair(names._replace(student=student))
                for reviews in opd.review_prompts(
                    pair, asked.prompts, asked.completions, task=self.task, examples=examples, **options
                ):
                    yield self._show(key, ReviewSet([*finished, ReviewGroup(label, reviews)]))
                finished.append(ReviewGroup(label, reviews))


def _about(setting: str) -> str:
    """Return what a setting does, as it is said wherever one can make it."""
    return DistillConfig.model_fields[setting].description


def _names_of(named: Iterable[Any]) -> PairNames:
    """Return the pair that the fields of the page name.

    Raises:
        ValueError: options of a template are no JSON object.
    """
    names = PairNames(*(field.strip() if isinstance(field, str) else field for field in named))
    told = {name: getattr(names, name) for name in TEMPLATE_LABELS}
    return names._replace(**{n: written(as_template_options(t)) if t else "" for n, t in told.items()})


def _asked(reviews: ReviewSet) -> list[Any]:
    """Return the updates of prompt, system prompt and its fold: what all these answer, if it is one."""
    first, *others = [review.messages for review in reviews]
    prompt, system = (as_question(first) if all(other == first for other in others) else None) or ("", "")
    return [prompt, system, gr.update(open=True) if system else gr.skip()]


def _sampling_options(
    n: int | None, temperature: float | None, max_tokens: int | None, seed: int | None
) -> dict[str, Any]:
    """Return the sampling settings by name.

    Raises:
        ValueError: one was left empty.
    """
    options = {"n": n, "temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    empty = [label for label, value in zip(SAMPLING_LABELS, options.values(), strict=True) if value is None]
    if empty:
        raise ValueError(f"Please fill in “{'”, “'.join(empty)}” under “Sampling and system prompt”.")
    return options


def students_to_grade(names: PairNames, trained: str | None, which: str) -> dict[str, str]:
    """Return the students to grade by the heading they stand under; one without a rival has none."""
    if trained is None:
        return {"": names.student}
    students = {}
    if which in (BEFORE, BOTH):
        students["before training"] = names.student
    if which in (AFTER, BOTH):
        students[f"after {trained}"] = str(open_run(trained).model_dir)
    return students
