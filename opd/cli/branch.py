"""Go another way at a token of a saved review, or measure what it is worth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd.cli.flags import add_pair, load_pair, open_reviews
from opd.cli.output import add_show_prompt, print_reviews, say

if TYPE_CHECKING:
    from opd.models.pair import Pair
    from opd.reviews import Review


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which token of which review, what to do there, and with which pair."""
    parser.add_argument("review", help="a saved review, by its file or its id")
    parser.add_argument("--which", type=int, default=1, help="number of the trajectory in it (default 1)")
    parser.add_argument("--at", type=int, help="number of the token (default: the strongest fork)")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--text", help="force this text (default: the teacher's choice); the student goes on")
    way.add_argument("--teacher-line", action="store_true", help="let the teacher go on instead")
    way.add_argument("--value", action="store_true", help="fork value: does the choice decide the answer?")
    way.add_argument("--no-return", action="store_true", help="where along the text was the answer lost?")
    parser.add_argument("-k", type=int, default=32, help="rollouts of each option or place (default 32)")
    parser.add_argument("--max-tokens", type=int, default=192, help="longest completion (default 192)")
    parser.add_argument(
        "--save", type=Path, metavar="FILE.json", help="write the review, with what was found"
    )
    parser.add_argument("--no-color", action="store_true", help="plain text")
    add_show_prompt(parser)
    add_pair(parser, usual="the one that the review names, if it is on this machine")


def run(options: argparse.Namespace) -> None:
    """Branch off or measure; print what came of it, and save it with the review."""
    from opd.grading import branching
    from opd.grading.saved_reviews import save_reviews
    from opd.tasks import load_task
    from opd.tasks.demo import known_problem
    from opd.verdicts import DEFAULT_FORKS, strongest_forks

    reviews = open_reviews(options.review)
    places = [(g, i) for g, group in enumerate(reviews.groups) for i in range(len(group.reviews))]
    if not 1 <= options.which <= len(places):
        raise ValueError(f"There is no trajectory {options.which}: {options.review} holds {len(places)}.")
    group, place = places[options.which - 1]
    review = reviews.groups[group].reviews[place]
    at = int(strongest_forks(review.grades, DEFAULT_FORKS, 1)[0]) if options.at is None else options.at - 1
    example = known_problem(review.messages)
    if options.no_return:
        branching.must_be_verified(example)
    pair = _pair_of(review, options)
    verified = {"task": load_task("demo"), "example": example, "max_tokens": options.max_tokens}
    if options.value or options.no_return:
        *_, found = _measured(pair, review, at, options, verified)
        say(found.sentence)
        reviews = reviews.with_review(group, place, branching.with_evidence(review, found))
    else:
        if options.teacher_line:
            states = branching.teacher_line(pair, review, at, parent=place, **verified)
        else:
            forced = branching.teacher_choices(review, at)[0] if options.text is None else options.text
            states = branching.branch(pair, review, at, forced, parent=place, **verified)
        *_, made = states
        reviews = reviews.with_review(group, len(reviews.groups[group].reviews), made)
        print_reviews([made], options)
    if options.save:
        save_reviews(options.save, reviews)
        print(f"Saved to {options.save}.")


def _measured(
    pair: Pair, review: Review, at: int, options: argparse.Namespace, verified: dict[str, Any]
) -> Iterator[Any]:
    """Say what a fork value or a point of no return costs, and measure it."""
    from opd.grading import branching

    if options.value:
        print(f"{branching.fork_value_cost(review, at, k=options.k)}.")
        return branching.fork_value(pair, review, at, k=options.k, **verified)
    print(f"{branching.no_return_cost(review, k=options.k)}.")
    return branching.point_of_no_return(pair, review, k=options.k, **verified)


def _pair_of(review: Review, options: argparse.Namespace) -> Pair:
    """Load the pair that made a review, or what the user names instead.

    A review may come from a stranger: what it names is not fetched.

    Raises:
        ValueError: it is not here, or cannot be loaded.
    """
    from opd.models.sources import absent

    named = {role: getattr(review, role) for role in ("student", "teacher") if not getattr(options, role)}
    shared = {"shared_vocabulary": review.grades.masked is not None}
    if not named:
        return load_pair(options, **shared)
    way_out = f"Say where that is with {' and '.join(f'--{role}' for role in named)}."
    if missing := absent(named.values()):
        raise ValueError(
            f"This review names {' and '.join(missing)}, not on this machine, and what a review names is not "
            f"downloaded. {way_out}"
        )
    vars(options).update(named)
    say(f"Loading {' and '.join(named.values())}, as the review names it.", sys.stderr)
    try:
        return load_pair(options, **shared)
    except (ValueError, OSError) as error:
        made = f"{review.student} and {review.teacher}"
        raise ValueError(f"This review was made with {made}. {error} {way_out}") from error
