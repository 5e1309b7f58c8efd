"""The Runs tab: all runs of this home, compared, annotated, taken along and thrown away."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from opd.grading.saved_reviews import ReviewGroup, ReviewSet
from opd.runs import collection
from opd.runs.checkpoints import holds_model, step_of
from opd.runs.export import export_zip, metrics_csv, publish
from opd.runs.run import Run, open_run
from opd.ui.errors import inform, plain, spoken_errors, warn
from opd.ui.events import PLUMBING, field
from opd.ui.kept_sets import KeptSets
from opd.ui.overlay import Overlay
from opd.ui.pairs import refuse_if_taken
from opd.ui.run_table import RunTable
from opd.ui.token_review import TokenReview
from opd.ui.working import Working
from opd.view.report import render_report

TAKE = Path(__file__).with_name("take.js").read_text(encoding="utf-8")
"""Takes a made file along without a second click."""

NOTHING_COMPARED = gr.update(value=None, visible="hidden")


class RunsTab:
    """The tab's components and what happens between them; below the table all is about the chosen runs."""

    def __init__(self) -> None:
        """Lay out the tab in the current Gradio context and connect it."""
        self.chosen = gr.State([])  # names
        self.table = RunTable(elem_id="runs")
        self.overlay = Overlay(elem_id="overlay")
        with gr.Row(visible=False, elem_classes="setup", elem_id="about-run") as self.about:
            with gr.Column(scale=1, min_width=300, elem_classes="card"):
                self._one_run()
            with gr.Column(scale=1, min_width=300, elem_classes="card"):
                self._two_checkpoints()
        self.sets = KeptSets()
        self.compared = TokenReview(self.sets, elem_id="compared", visible="hidden")
        self.on_choice = [self.chosen, self.table, self.overlay, self.about]
        self.details = [
            *(self.heading, self.note, self.pin, self.zip, self.confirm, self.published),
            *(self.first, self.second, self.compared),
        ]
        self._connect()

    def _one_run(self) -> None:
        self.heading = gr.Markdown("", elem_classes="card-head", elem_id="about-heading")
        self.note = gr.Textbox("", label="Note", lines=2, max_lines=8, elem_id="note")
        with gr.Row(elem_classes="chips"):
            self.keep_note = gr.Button("Keep the note", size="sm", elem_id="keep-note")
            self.pin = gr.Button("Pin as baseline", size="sm", elem_id="pin")
            self.report = gr.Button("Report", size="sm", elem_id="report")
            self.csv = gr.Button("Metrics as CSV", size="sm", elem_id="csv")
            self.make_zip = gr.Button("Weights as zip", size="sm", elem_id="make-zip")
            self.delete = gr.Button("Delete …", size="sm", elem_id="delete")
        self.reporting, self.tabling, self.zipping = Working(), Working(), Working()
        with gr.Row(visible=False, elem_classes="chips") as self.confirm:
            self.doomed = gr.Markdown("", elem_classes="caption", elem_id="doomed")
            self.really = gr.Button("Delete for good", size="sm", variant="stop", elem_id="really-delete")
            self.rather_not = gr.Button("Cancel", size="sm", elem_id="keep-run")
        self.zip = gr.File(label="Take along", visible=False, height=90, elem_id="zip")
        with gr.Accordion(
            "Publish on the Hugging Face Hub", open=False, elem_classes="fold", elem_id="publish"
        ):
            with gr.Row(elem_classes="fields"):
                self.repo = gr.Textbox("", label="Repository", placeholder="owner/name", elem_id="repo")
                self.token = gr.Textbox(
                    "", label="Token with write access", type="password", elem_id="hub-token"
                )
                self.private = gr.Checkbox(True, label="only you can see it")
            gr.Markdown("The token is used once and neither stored nor logged.", elem_classes="caption")
            self.publish = gr.Button("Publish", size="sm", elem_id="do-publish")
            self.publishing = Working()
            self.published = gr.Markdown("")

    def _two_checkpoints(self) -> None:
        gr.Markdown(
            "### Two checkpoints\n"
            "The same held-out prompts with the same random numbers, graded side by side.",
            elem_classes="card-head",
        )
        with gr.Row(elem_classes="fields"):
            self.first = gr.Dropdown([], label="First", elem_id="first-checkpoint")
            self.second = gr.Dropdown([], label="Second", elem_id="second-checkpoint")
            self.prompts = gr.Number(
                4, label="Prompts", precision=0, minimum=1, maximum=64, elem_id="compare-n"
            )
        with gr.Row(elem_classes="chips"):
            self.compare = gr.Button("Compare", size="sm", variant="primary", elem_id="compare")
            self.cancel = gr.Button("Cancel", size="sm", interactive=False, elem_id="cancel-comparing")
        self.comparing = Working()

    def _connect(self) -> None:
        shown = [*self.on_choice, *self.details]
        # Each is answered: what Gradio holds back for a last answer loses the data of its event.
        self.table.choose(self._choose, None, shown, trigger_mode="multiple", **PLUMBING)
        self.keep_note.click(self._keep_note, [self.chosen, self.note], self.table, **PLUMBING)
        # What is being written in the note stays as it is.
        self.pin.click(self._pin, self.chosen, [self.table, self.overlay, self.pin], **PLUMBING)
        for line, button, make in (
            (self.reporting, self.report, self._report),
            (self.tabling, self.csv, self._csv),
            (self.zipping, self.make_zip, self.zipped),
        ):
            made, _ = line.around([button.click], make, [self.chosen], self.zip, button=button)
            made.success(None, self.zip, None, js=TAKE, **PLUMBING)
        self.delete.click(self._ask_to_delete, self.chosen, [self.doomed, self.confirm], **PLUMBING)
        self.rather_not.click(lambda: gr.update(visible=False), None, self.confirm, **PLUMBING)
        self.really.click(self._delete, self.chosen, shown, **PLUMBING)
        self.publishing.around(
            [self.publish.click],
            self._publish,
            [self.chosen, self.repo, self.token, self.private],
            [self.published, self.token],
            button=self.publish,
        )
        self.comparing.around(
            [self.compare.click],
            self._compare,
            [self.first, self.second, self.prompts],
            self.compared,
            button=self.compare,
            cancel=self.cancel,
            answer="#compared",
            concurrency_id="models",
        )

    # What is chosen

    def choose(self, names: Sequence[str], choice: int | None = None) -> list[Any]:
        """Return the updates of ``on_choice`` and ``details`` for some runs; details of the last one."""
        runs = [run for name in names if (run := _open(name))]
        on_choice = [
            [run.name for run in runs],
            self.table.show([run.name for run in runs], choice),
            self.overlay.show(runs),
            gr.update(visible=bool(runs)),
        ]
        if not runs:
            return [*on_choice, *(gr.skip() for _ in self.details[:-1]), NOTHING_COMPARED]
        last = runs[-1]
        pinned = collection.baseline() == last
        models = ((run, path) for run in runs for path in run.checkpoints if holds_model(path))
        checkpoints = [_checkpoint_name(run, path) for run, path in models]
        ends = (checkpoints[0], checkpoints[-1]) if checkpoints else (None, None)
        return [
            *on_choice,
            f"### {plain(last.name)}" + (f"\nThe last of {len(runs)} chosen runs." if len(runs) > 1 else ""),
            collection.read_note(last),
            _pin_button(pinned=pinned),
            gr.update(value=None, visible=False),
            gr.update(visible=False),
            "",
            *(gr.update(choices=checkpoints, value=end) for end in ends),
            NOTHING_COMPARED,
        ]

    def _choose(self, event: gr.EventData) -> list[Any]:
        choice = field(event, "choice")
        match field(event, "runs"):
            case [*names]:
                return self.choose([name for name in names if isinstance(name, str)], choice)
        return self.choose([], choice)

    # One run

    def _keep_note(self, chosen: list[str], text: str) -> str:
        with spoken_errors():
            collection.write_note(open_run(chosen[-1]), text.strip())
        return self.table.show(chosen)

    def _pin(self, chosen: list[str]) -> list[Any]:
        with spoken_errors():
            run = open_run(chosen[-1])
            pinned = collection.baseline() == run
            collection.pin_baseline(None if pinned else run)
        runs = [run for name in chosen if (run := _open(name))]
        return [self.table.show(chosen), self.overlay.show(runs), _pin_button(pinned=not pinned)]

    def _report(self, chosen: list[str]) -> Any:  # noqa: ANN401
        with spoken_errors():
            run = open_run(chosen[-1])
            target = self._own_file(f"{run.name}-report.html")
            target.write_text(render_report(run, collection.read_note(run)), encoding="utf-8")
        return gr.update(value=str(target), visible=True)

    def _csv(self, chosen: list[str]) -> Any:  # noqa: ANN401
        with spoken_errors():
            run = open_run(chosen[-1])
            target = self._own_file(f"{run.name}-metrics.csv")
            target.write_text(metrics_csv(run), encoding="utf-8")
        return gr.update(value=str(target), visible=True)

    def zipped(self, chosen: list[str]) -> Any:  # noqa: ANN401
        """Return the update of ``zip``: the weights of the last chosen run, written once for all who ask."""
        with spoken_errors():
            run = open_run(chosen[-1])
            target = self._own_file(f"{run.name}.zip", f"{run.name}-{run.born}-{run.saved_step}")
            if target.exists():
                target.touch()  # by this time Gradio finds what nobody wants any more
            else:
                export_zip(run, self._own_file(target.name)).replace(target)
        return gr.update(value=str(target), visible=True)

    def _own_file(self, name: str, folder: str | None = None) -> Path:
        """Return a place in Gradio's cache, from where it serves files without another copy.

        Args:
            name: of the file.
            folder: where it is found again; None for a place of its own.
        """
        place = Path(self.zip.GRADIO_CACHE) / (folder or secrets.token_urlsafe(9))
        place.mkdir(parents=True, exist_ok=True)
        return place / name

    def _ask_to_delete(self, chosen: list[str]) -> list[Any]:
        names = " and ".join(f"`{name}`" for name in chosen)
        whose = "Its" if len(chosen) == 1 else "Their"
        return [
            f"Delete {names}? {whose} curves, texts and checkpoints will be gone.",
            gr.update(visible=True),
        ]

    def _delete(self, chosen: list[str]) -> list[Any]:
        """Delete every chosen run; one that is being trained stays, and those after it."""
        left = list(chosen)
        try:
            for name in chosen:
                collection.delete_run(open_run(name))
                left.remove(name)
        except (ValueError, OSError) as error:
            warn(error)
        if gone := [name for name in chosen if name not in left]:
            inform(f"Deleted: {', '.join(gone)}.")
        return self.choose(left)

    def _publish(self, chosen: list[str], repo: str, token: str, private: bool) -> list[str]:
        with spoken_errors():
            if not repo.strip() or not token.strip():
                raise ValueError("Fill in the repository, owner/name, and a token that may write there.")
            address = publish(open_run(chosen[-1]), repo.strip(), token.strip(), private=private)
        return [f"Published: <{address}>", ""]

    # Two checkpoints

    def _compare(self, first: str | None, second: str | None, n: int | None) -> Iterator[Any]:
        from opd.runs.comparison import compare_checkpoints
        from opd.runs.worker import devices_of

        with spoken_errors():
            if not first or not second:
                raise ValueError("Choose two checkpoints; a run has one from its first save on.")
            places = [_checkpoint(name) for name in (first, second)]
            refuse_if_taken(devices_of(places[0][0].config))
            key = secrets.token_urlsafe(9)
            pairs = []
            for pair in compare_checkpoints(*places, n=min(max(n or 1, 1), 64)):
                pairs.append(pair)
                groups = [
                    ReviewGroup(name, [both[side] for both in pairs])
                    for side, name in enumerate((first, second))
                ]
                yield gr.update(value=self.compared.show(key, ReviewSet(groups)), visible=True)


def _pin_button(*, pinned: bool) -> Any:  # noqa: ANN401
    return gr.update(value="Unpin the baseline" if pinned else "Pin as baseline")


def _open(name: str) -> Run | None:
    try:
        return open_run(name)
    except ValueError:
        return None


def _checkpoint_name(run: Run, folder: Path) -> str:
    return f"step {step_of(folder)} of {run.name}"


def _checkpoint(name: str) -> tuple[Run, int]:
    """Read :func:`_checkpoint_name` back.

    Raises:
        ValueError: there is no such run.
    """
    step, _, run = name.removeprefix("step ").partition(" of ")
    return open_run(run), int(step)
