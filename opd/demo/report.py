"""What the pair is worth, measured: accuracies, where the penalty points, and what repairing that place does.

Every figure is over held-out problems at temperature 1, one trajectory a problem, with a 95 % interval:
Wilson for shares, percentile bootstrap over trajectories for means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd.engines.sampling import sample
from opd.grading.evaluation import wilson
from opd.grading.grading import grade
from opd.models.network import LanguageModel
from opd.models.pair import Pair, load_pair
from opd.tasks import Split, verify
from opd.tasks.demo import DemoTask, Problem, first_error
from opd.trajectory import VERDICTS, Grades, Trajectory
from opd.verdicts import FORK_DEFINITIONS, strongest_forks

MAX_TOKENS = 160
NEAR = 1  # tokens between a mark and the first error that still count as found
BUDGETS = (1, 2, 3)  # marks a trajectory
BOOTSTRAP = 2000  # resamples

LABELS = {
    "teacher_accuracy": "teacher, right",
    "student_accuracy": "student, right",
    "first_error_top1": "highest penalty within one token of the first error",
    "first_error_top1_chance": "the same for a token at random",
    "first_error_top3": "first error among the three highest penalties",
    "first_error_top3_chance": "the same for three tokens at random",
    "first_error_minded": "first error judged an inaccuracy or worse",
    "first_error_mistake": "first error judged a mistake or worse",
    "first_error_blunder": "first error judged a blunder",
    "first_error_penalty": "mean penalty at the first error (nats)",
    "answer_penalty": "mean penalty on the answer after an error (nats)",
    "token_penalty": "mean penalty on all tokens (nats)",
    "fixed_at_first_error": "right after the teacher's choice at the first error",
    "fixed_by_resampling": "right after the student resamples there",
    "fixed_at_random": "right after the teacher's choice at another token",
}
IN_NATS = {"first_error_penalty", "answer_penalty", "token_penalty"}


@dataclass(frozen=True)
class _Failure:
    """A wrong trajectory of the student, its grades, and the index of its first wrong token if any."""

    problem: Problem
    trajectory: Trajectory
    grades: Grades
    error: int | None
    answer: tuple[int, ...]  # indices of the tokens of the answer it gives


def first_wrong_token(problem: Problem, pieces: Sequence[str], stopped: bool) -> int | None:
    """Return the index of the first token that lies on no correct path.

    Args:
        problem: what was to be solved.
        pieces: text of each completion token, special tokens as empty text.
        stopped: whether the last token ends the sequence; a text that stops too early errs there.

    Returns:
        None when there is no such token: the text is right as far as it goes.
    """
    at = first_error(problem.solve, "".join(pieces))
    if at is None:
        return None
    end = 0
    for index, piece in enumerate(pieces):
        end += len(piece)
        if at < end:
            return index
    return len(pieces) - 1 if stopped else None


def _pieces(model: LanguageModel, trajectory: Trajectory) -> list[str]:
    pieces = model.pieces(trajectory.completion_ids)
    return [*pieces[:-1], ""] if trajectory.finish_reason == "stop" else pieces


def _answer_tokens(pieces: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of the tokens of X in the last "The answer is X."."""
    text = "".join(pieces)
    marker = " answer is "
    start = text.rfind(marker)
    if start < 0:
        return ()
    start += len(marker)
    stop = text.find(".", start)
    stop = len(text) if stop < 0 else stop
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = ends - [len(piece) for piece in pieces]
    return tuple(int(i) for i in np.flatnonzero((ends > start) & (starts < stop) & (ends > starts)))


def _failure(model: LanguageModel, problem: Problem, trajectory: Trajectory, grades: Grades) -> _Failure:
    pieces = _pieces(model, trajectory)
    error = first_wrong_token(problem, pieces, trajectory.finish_reason == "stop")
    return _Failure(problem, trajectory, grades, error, _answer_tokens(pieces))


Figure = dict[str, Any]
"""``value``, ``interval`` (both None where there was nothing to measure) and sample size ``n``."""


def _share(hits: Sequence[bool]) -> Figure:
    if not hits:
        return {"value": None, "interval": None, "n": 0}
    return {"value": sum(hits) / len(hits), "interval": list(wilson(sum(hits), len(hits))), "n": len(hits)}


def _mean(values: Sequence[float], rng: np.random.Generator) -> Figure:
    if not values:
        return {"value": None, "interval": None, "n": 0}
    draws = rng.choice(np.asarray(values), size=(BOOTSTRAP, len(values))).mean(axis=1)
    interval = [float(bound) for bound in np.quantile(draws, (0.025, 0.975))]
    return {"value": float(np.mean(values)), "interval": interval, "n": len(values)}


def _fixed(
    pair: Pair, failures: Sequence[_Failure], prefixes: Sequence[NDArray[np.int64] | None], seed: int
) -> list[bool]:
    """Let the student go on from each prefix; a failure without one (None) stays wrong."""
    task, eos = DemoTask(), pair.student.eos_ids
    texts = ["" if prefix is None else pair.student.text(prefix) for prefix in prefixes]
    going_on = [
        i for i, prefix in enumerate(prefixes) if prefix is not None and not np.isin(prefix, eos).any()
    ]
    trajectories = sample(
        pair,
        [failures[i].problem.prompt for i in going_on],
        prefixes=[prefixes[i] for i in going_on],
        seed=seed,
        max_tokens=MAX_TOKENS + 1,  # a prefix may be as long as an unfinished trajectory
    )
    for i, trajectory in zip(going_on, trajectories, strict=True):
        texts[i] = pair.student.text(trajectory.completion_ids)
    return [task.verify(failure.problem, text) for failure, text in zip(failures, texts, strict=True)]


def _replaced(failure: _Failure, index: int | None) -> NDArray[np.int64] | None:
    """Return the completion up to ``index``, with the teacher's first choice there."""
    if index is None:
        return None
    choice = failure.grades.teacher.top_ids[index, 0]
    return np.append(failure.trajectory.completion_ids[:index], choice)


def fork_figures(
    failures: Sequence[_Failure], rng: np.random.Generator
) -> dict[str, dict[str, dict[str, Figure]]]:
    """Measure how often the forks of each definition find the first error of wrong trajectories.

    Every definition marks its strongest 1, 2, 3 tokens of each trajectory, whatever their score.

    Returns:
        By definition (and "chance", any tokens), number of marks (as text) and "exact" or "near" (within one
        token): the share of trajectories. One without a first error counts as missed.
    """
    out: dict[str, dict[str, dict[str, Figure]]] = {}
    for definition in FORK_DEFINITIONS:
        ranked = [strongest_forks(f.grades, definition, max(BUDGETS)) for f in failures]
        out[definition] = {}
        for marks in BUDGETS:
            away = [
                np.inf if f.error is None else np.abs(found[:marks] - f.error).min()
                for f, found in zip(failures, ranked, strict=True)
            ]
            out[definition][str(marks)] = {
                "exact": _share([bool(d == 0) for d in away]),
                "near": _share([bool(d <= NEAR) for d in away]),
            }
    out["chance"] = {
        str(marks): {
            "exact": _mean([chance(f, marks, 0) for f in failures], rng),
            "near": _mean([chance(f, marks, NEAR) for f in failures], rng),
        }
        for marks in BUDGETS
    }
    return out


def chance(failure: _Failure, marks: int, near: int) -> float:
    """Return the probability that one of ``marks`` different tokens at random is near the first error."""
    tokens = len(failure.grades)
    if failure.error is None:
        return 0.0
    targets = sum(abs(i - failure.error) <= near for i in range(tokens))
    return 1 - math.comb(tokens - targets, marks) / math.comb(tokens, marks) if marks < tokens else 1.0


def pair_report(
    pair: Pair | None = None, *, n: int = 1000, seed: int = 0, split: Split = "test"
) -> dict[str, Any]:
    """Measure a pair on the demo's held-out problems.

    Args:
        pair: the pair; the embedded one when not given.
        n: held-out problems, one trajectory each of teacher and student.
        seed: of sampling, of the random tokens and of the bootstrap.
        split: which held-out problems; learning rates and recipes are chosen on "tuning".

    Returns:
        A JSON-able dictionary. The figures stand under their names (:data:`LABELS`), besides ``n``,
        ``n_wrong`` (wrong student trajectories, which all figures but the accuracies are over),
        ``n_unlocated`` (of them, without a first error: these count as misses) and ``seed``, ``split``.
        ``details`` has for each figure ``value``, ``interval`` (95 %) and ``n``; ``families`` the accuracies
        of each family in the same form; ``forks`` what :func:`fork_figures` returns.
    """
    pair = pair or load_pair()
    task = DemoTask()
    rng = np.random.default_rng(seed)
    examples = task.heldout(n, split=split)
    prompts = [example.prompt for example in examples]
    answers = sample(pair.teacher, prompts, seed=seed, max_tokens=MAX_TOKENS)
    attempts = sample(pair, prompts, seed=seed, max_tokens=MAX_TOKENS)
    right = {
        name: [verify(task, example, model, t) for example, t in zip(examples, written, strict=True)]
        for name, model, written in (("teacher", pair.teacher, answers), ("student", pair.student, attempts))
    }
    wrong = [i for i, ok in enumerate(right["student"]) if not ok]
    graded = grade(pair, [attempts[i] for i in wrong])
    failures = [
        _failure(pair.student, examples[i], attempts[i], grades)
        for i, grades in zip(wrong, graded, strict=True)
    ]
    located = [f for f in failures if f.error is not None]

    def others(failure: _Failure) -> int | None:
        places = [i for i in range(len(failure.trajectory)) if i != failure.error]
        return int(rng.choice(places)) if places else None

    details = {
        "teacher_accuracy": _share(right["teacher"]),
        "student_accuracy": _share(right["student"]),
        "first_error_top1": _share(
            [f.error is not None and abs(int(f.grades.penalty.argmax()) - f.error) <= NEAR for f in failures]
        ),
        "first_error_top1_chance": _mean([chance(f, 1, NEAR) for f in failures], rng),
        "first_error_top3": _share(
            [f.error is not None and f.error in np.argsort(-f.grades.penalty)[:3] for f in failures]
        ),
        "first_error_top3_chance": _mean([chance(f, 3, 0) for f in failures], rng),
        **{
            f"first_error_{name}": _share(
                [f.grades.verdicts[f.error] >= VERDICTS.index(least) for f in located]
            )
            for name, least in (("minded", "inaccuracy"), ("mistake", "mistake"), ("blunder", "blunder"))
        },
        "first_error_penalty": _mean([float(f.grades.penalty[f.error]) for f in located], rng),
        "answer_penalty": _mean(
            [
                float(f.grades.penalty[list(f.answer)].mean())
                for f in located
                if f.answer and f.error < f.answer[0]
            ],
            rng,
        ),
        "token_penalty": _mean([float(f.grades.penalty.mean()) for f in failures], rng),
        "fixed_at_first_error": _share(
            _fixed(pair, failures, [_replaced(f, f.error) for f in failures], seed + 1)
        ),
        "fixed_by_resampling": _share(
            _fixed(
                pair,
                failures,
                [None if f.error is None else f.trajectory.completion_ids[: f.error] for f in failures],
                seed + 2,
            )
        ),
        "fixed_at_random": _share(
            _fixed(pair, failures, [_replaced(f, others(f)) for f in failures], seed + 3)
        ),
    }
    families = {
        family: {
            name: _share([ok for ok, example in zip(oks, examples, strict=True) if example.family == family])
            for name, oks in right.items()
        }
        for family in task.families
    }
    return {
        "n": len(examples),
        "n_wrong": len(failures),
        "n_unlocated": len(failures) - len(located),
        "seed": seed,
        "split": split,
        **{name: figure["value"] for name, figure in details.items()},
        "details": details,
        "families": families,
        "forks": fork_figures(failures, rng),
    }


def _cell(figure: Figure, nats: bool = False) -> str:
    if figure["value"] is None:
        return "nothing to measure"
    form = "{:.3f} [{:.3f}, {:.3f}]" if nats else "{:.1%} [{:.1%}, {:.1%}]"
    return form.format(figure["value"], *figure["interval"])


def report_table(report: dict[str, Any]) -> str:
    """Return a report as Markdown: the figures, then the accuracies by family."""
    lines = ["| measured | value [95 % interval] | n |", "| --- | --- | --- |"]
    for name, label in LABELS.items():
        figure = report["details"][name]
        lines.append(f"| {label} | {_cell(figure, name in IN_NATS)} | {figure['n']} |")
    lines += ["", "| family | teacher, right | student, right | n |", "| --- | --- | --- | --- |"]
    for family, by in report["families"].items():
        cells = (family, _cell(by["teacher"]), _cell(by["student"]), str(by["teacher"]["n"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def forks_table(report: dict[str, Any]) -> str:
    """Return how often the forks of each definition find the first error, as Markdown."""
    lines = [
        "| forks by | marks | on the first error | within one token of it | n |",
        "| --- | --- | --- | --- | --- |",
    ]
    for definition, by_marks in report["forks"].items():
        for marks, figures in by_marks.items():
            cells = (definition, marks, _cell(figures["exact"]), _cell(figures["near"]))
            lines.append(f"| {' | '.join(cells)} | {figures['near']['n']} |")
    return "\n".join(lines)
