"""Print the teacher's grade of every token of sampled or given text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from opd.cli.flags import add_pair, load_pair, open_reviews, refuse_what_is_not_offered
from opd.cli.output import add_show_prompt, print_reviews, say

if TYPE_CHECKING:
    from opd.models.pair import Pair
    from opd.reviews import Review


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What is graded, how it is sampled, where the grades go, and the pair."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="the question; - reads it from standard input")
    source.add_argument(
        "--file",
        type=Path,
        help="prompts, and in a column completion, response or output, or as a chat's last turn, what is "
        "graded: .jsonl, .json, .csv, .tsv, .parquet (with pip install opd-studio[data]); or prompts alone, "
        "one a line in .txt",
    )
    source.add_argument(
        "--chat",
        type=Path,
        metavar="FILE",
        help="a chat, every assistant turn graded: JSON, or user: … lines",
    )
    source.add_argument("--open", metavar="REVIEW", help="a saved review, by its file or its id")
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="grade this text as the answer to --prompt, without sampling",
    )
    parser.add_argument("--system", help="a system prompt before --prompt")
    parser.add_argument("-n", type=int, default=1, help="trajectories a prompt (default 1)")
    parser.add_argument("--temperature", type=float, default=1.0, help="sampling temperature (default 1)")
    parser.add_argument("--max-tokens", type=int, default=192, help="longest completion (default 192)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default 0)")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="write the review to a file")
    parser.add_argument("--csv", type=Path, metavar="FILE.csv", help="write a table, one row a token")
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="write a page that works offline")
    parser.add_argument("--no-color", action="store_true", help="plain text")
    add_show_prompt(parser)
    refuse_what_is_not_offered(parser)
    add_pair(parser)
    differing = parser.add_mutually_exclusive_group()
    differing.add_argument(
        "--shared-vocabulary",
        action="store_true",
        help="where the vocabularies differ in a few ids: grade over those that both share",
    )
    differing.add_argument(
        "--cross-tokenizer",
        action="store_true",
        help="let a teacher with another tokenizer grade aligned spans of text",
    )


def run(options: argparse.Namespace) -> None:
    """Grade what the options name, or open it; print and save it."""
    from opd.files import write_atomically
    from opd.grading.saved_reviews import ReviewSet, save_reviews, to_csv

    if (options.text or options.system) and not options.prompt:
        raise ValueError("--text and --system go with --prompt.")
    reviews = open_reviews(options.open) if options.open else ReviewSet.of(_graded(options))
    print_reviews(reviews, options)
    if options.save:
        save_reviews(options.save, reviews)
    if options.csv:
        write_atomically(options.csv, to_csv(reviews))
    if options.html:
        from opd.view.page import render_page

        write_atomically(options.html, render_page(reviews))
    for path in filter(None, (options.save, options.csv, options.html)):
        print(f"Saved to {path}.")


def _graded(options: argparse.Namespace) -> list[Review]:
    """Grade what the options name: given text, or what the student samples."""
    import opd
    from opd.grading.own_text import question, read_chat, read_prompts
    from opd.tasks.demo import known_problem

    if options.chat:
        chat = read_chat(_read_text(options.chat))
        return opd.review_chat(_pair(options), chat)
    if options.file:
        asked = read_prompts(options.file)
        for row in asked.malformed:
            say(f"opd: row {row.line} of {options.file} is left out: {row.reason}.", sys.stderr)
        prompts, texts = asked.prompts, asked.completions
    else:
        prompt = sys.stdin.read().removeprefix("\ufeff") if options.prompt == "-" else options.prompt
        prompts = [question(prompt, options.system)]
        texts = [_read_text(options.text) if options.text else None]
    *_, reviews = opd.review_prompts(
        _pair(options),
        prompts,
        texts,
        n=options.n,
        seed=options.seed,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        task=opd.load_task("demo"),
        examples=[known_problem(prompt) for prompt in prompts],
    )
    return reviews


def _pair(options: argparse.Namespace) -> Pair:
    """Load the pair, whose vocabularies may differ as the options say."""
    differing = {name: getattr(options, name) for name in ("cross_tokenizer", "shared_vocabulary")}
    return load_pair(options, **differing)


def _read_text(path: Path) -> str:
    """Read a text as it is, but for the line break that ends a file."""
    from opd.files import read_text

    return read_text(path).removesuffix("\n").removesuffix("\r")
