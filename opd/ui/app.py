"""The page: a sentence of introduction and the tabs."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

import gradio as gr
from starlette.middleware import Middleware

from opd.ui.events import PLUMBING
from opd.ui.hosts import HOSTS_VARIABLE, OwnNames, is_loopback
from opd.ui.kept_sets import forget_ended
from opd.ui.pairs import warm_up
from opd.ui.review_tab import ReviewTab
from opd.ui.runs_tab import RunsTab
from opd.ui.theme import THEME
from opd.ui.train_tab import TrainTab

HOUR, DAY = 3600, 24 * 3600
"""Uploaded and downloaded files are looked through every hour, and go after a day."""

INTRODUCTION = """# OPD Studio
**The game review for language models.** A student writes, a teacher grades every token, and *on-policy
distillation* trains the student on exactly those grades."""


def build_app() -> gr.Blocks:
    """Lay out the page and connect its tabs."""
    with gr.Blocks(
        title="OPD Studio", fill_width=True, analytics_enabled=False, delete_cache=(HOUR, DAY)
    ) as app:
        gr.Markdown(INTRODUCTION, elem_id="introduction")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Review", id="review"):
                review = ReviewTab()
            with gr.Tab("Train", id="train"):
                train = TrainTab(tabs, review)
            with gr.Tab("Runs", id="runs"):
                runs = RunsTab()
        app.load(review.welcome, None, review.on_open, **PLUMBING)
        app.load(train.attach, None, train.attached, **PLUMBING)
        form, setup = train.form, train.setup
        app.load(None, form.fields, form.fields, js=form.recall, **PLUMBING).then(
            setup.explain, setup.fields["objective"], setup.explained, **PLUMBING
        )
        runs.table.open(train.open, None, [tabs, *train.followed], **PLUMBING)
        raced = gr.State([])
        started, _ = train.race.starting.around(
            [train.race.button.click],
            lambda *inputs: [gr.Tabs(selected="runs"), train.race.start(*inputs)],
            train.race.inputs,
            [tabs, raced],
            button=train.race.button,
        )
        # Once the tab is there: what is updated before it is on the page would come without its props.
        started.success(runs.choose, raced, [*runs.on_choice, *runs.details], **PLUMBING)
        kept = [review.sets, train.sets, train.dry_run_sets, runs.sets]
        app.unload(lambda: forget_ended(app.state_holder, kept))
    return app


def launch(host: str | None = None, port: int | None = None) -> None:
    """Serve the app until interrupted; while the first page loads, the embedded pair is loaded too.

    Args:
        host: address to listen on; None = ``GRADIO_SERVER_NAME``, else 127.0.0.1.
        port: port to listen on; None = ``GRADIO_SERVER_PORT``, else the first free one from 7860.
    """
    app = build_app()
    address = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    guarded = is_loopback(address) or HOSTS_VARIABLE in os.environ  # else its names are not known here
    app.launch(
        server_name=host,
        server_port=port,
        theme=THEME,
        css_paths=Path(__file__).with_name("app.css"),
        footer_links=["settings"],
        ssr_mode=False,
        enable_monitoring=False,  # who visits is nobody's to ask
        app_kwargs={"middleware": [Middleware(OwnNames, address=address)] if guarded else []},
        prevent_thread_lock=True,
    )
    Thread(target=warm_up, daemon=True).start()
    app.block_thread()
