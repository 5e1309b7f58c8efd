"""Make the embedded pair's part of the gallery: reviews worth a look, each with a title and a sentence.

    python -m opd.demo.gallery              # writes assets/gallery, about four minutes with one thread

The student's answers to held-out problems are graded and searched by what the grades say of them, so a newly
trained pair gets a gallery of its own. Whether a sentence still fits its picture is for a person to see.
:mod:`opd.demo.real_gallery` makes the part of real models.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

from opd.config import DistillConfig
from opd.demo.report import first_wrong_token
from opd.engines.sampling import sample
from opd.grading.branching import branch, fork_value, point_of_no_return, teacher_line, with_evidence
from opd.grading.grading import grade
from opd.grading.own_text import chat_trajectories, text_trajectory
from opd.grading.reviewing import review
from opd.grading.saved_reviews import ReviewGroup, ReviewSet, save_reviews
from opd.models.pair import Pair, load_pair
from opd.reviews import Review
from opd.tasks import verify
from opd.tasks.demo import DemoTask, Draft, Problem, known_problems
from opd.training.distillation import distill
from opd.trajectory import VERDICTS, Prompt, Trajectory

TOP_K = 10
"""Alternatives kept; a card shows seven."""

MAX_TOKENS = 192
STEPS = 20
"""Updates of the student that is shown before and after."""

HOT = 2.6
"""The temperature of a student that finds no end."""

SHORT_ANSWER = "They all collapse there, so none is left. The answer is 0."
"""A person's answer to the first riddle."""

HOSTILE = (
    "<script>alert('1')</script><img src=x onerror=alert(2)> ${3} {{4}} `${5}` &lt;b&gt;\n"
    "\x1b[31mred\x1b[0m, \x00\x07, \u202eright to left\u202c, zero\u200bwidth, 👩‍👩‍👧, e\u0323\u0301"
)

Titled = tuple[str, str, str, list[ReviewGroup]]
"""Name of the file, title, note, groups."""


@dataclass(frozen=True)
class Answer:
    """The student's answer to a problem: graded, verified, and its first wrong token, if there is one."""

    problem: Problem
    review: Review
    error: int | None

    @property
    def penalty(self) -> np.ndarray:
        """The penalties, float32 ``[T]``."""
        return self.review.grades.penalty

    @property
    def rest(self) -> np.ndarray:
        """The penalties after the first wrong token."""
        return self.penalty[self.error + 1 :]

    def is_right(self) -> bool:
        """Whether the answer is right and so is every step to it."""
        return bool(self.review.correct) and self.error is None

    def errs_in_a_digit(self) -> bool:
        """Whether the first wrong token is a digit."""
        return self.review.pieces[self.error].strip().isdigit()

    def ends_cheaply(self) -> bool:
        """Whether the first wrong token costs something, and nothing after it does."""
        return self.penalty[self.error] > 1 and self.rest.max() < 0.3

    def gain(self) -> float:
        """How much likelier its one brilliant token is to the teacher than to the student; 0 without one.

        It counts where the teacher would have written it first.
        """
        grades = self.review.grades
        brilliant = np.flatnonzero(grades.verdicts == VERDICTS.index("brilliant"))
        if len(brilliant) != 1 or grades.teacher_rank[brilliant[0]]:
            return 0.0
        student, teacher = (np.exp(s.logprobs[brilliant[0]]) for s in (grades.student, grades.teacher))
        return float(teacher - student)


def write_sets(folder: Path, sets: Iterable[Titled], *, part: str = "") -> None:
    """Write the sets of one part of the gallery in the place of those there, numbered as they are offered.

    Args:
        folder: of the gallery.
        sets: what to write.
        part: how the names of this part's files begin, before their numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{part}[0-9]*.json"):
        old.unlink()
    for number, (name, title, note, groups) in enumerate(sets, start=1):
        path = folder / f"{part}{number:02}-{name}.json"
        save_reviews(path, ReviewSet(groups, title=title, note=note))
        print(f"{path}: {title}, {path.stat().st_size / 1000:.0f} kB")


def _sets(pair: Pair) -> Iterator[Titled]:
    answers = _search(pair)
    right = [a for a in answers if a.is_right()]
    wrong = [a for a in answers if not a.review.correct and a.error is not None]
    riddle = next(p for p in known_problems().values() if p.family == "tricks")

    yield (
        *("one-word", "One word decides"),
        "Four answers to one riddle, right and wrong. Point at a coloured token to see what both models "
        "wanted there; click it to keep that.",
        alone(*_riddle_answers(pair, riddle)),
    )
    yield (
        *("wrong-digit", "One wrong digit"),
        "The digit marked ?? is wrong. All that follows is correct arithmetic on it and costs nothing.",
        alone(
            _best(
                wrong, lambda a: a.penalty[a.error], where=lambda a: a.errs_in_a_digit() and a.ends_cheaply()
            )
        ),
    )
    yield (
        *("cheap-ending", "A wrong answer that costs nothing"),
        "One word goes astray, and from there the teacher agrees with every step, the wrong answer included. "
        "A low penalty at the end says that a text is consistent, not that it is right.",
        alone(
            _best(wrong, lambda a: len(a.rest), where=lambda a: not a.errs_in_a_digit() and a.ends_cheaply())
        ),
    )
    yield "fork-value", *_what_a_token_is_worth(pair, wrong)
    yield "before-after", *_before_and_after(pair)
    yield (
        *("brilliant", "A brilliant token"),
        "The token marked !! was a long shot for the student and just what the teacher would have written.",
        # Long shots are rare: of the embedded pair's 3,200 answers two in right ones.
        alone(_best(_search(pair, n=8), Answer.gain, where=Answer.is_right)),
    )
    yield (
        *("style", "Right, but not the teacher's way"),
        "The answer is right and so is every step; the teacher would have put it differently. A penalty can "
        "be a matter of taste.",
        alone(_best(right, lambda a: a.penalty.max())),
    )
    yield (
        *("pasted", "A text that nobody sampled"),
        "Right, but put as neither model would put it. What the teacher thinks of it says nothing about the "
        "student's own writing: the text is off-policy.",
        alone(*_pasted(pair, riddle.prompt, SHORT_ANSWER, riddle)),
    )
    yield "chat", *_chat(pair)
    yield (
        *("hot", "Too hot"),
        f"Sampled at temperature {HOT:g} and graded at the same: after the first odd word nothing holds, and "
        "no end is found.",
        alone(_hot(pair, riddle)),
    )
    yield (
        *("hostile", "Text that would bite"),
        "Markup, template braces, control characters, and a family of emoji spread over many tokens: all of "
        "it is shown, none of it obeyed.",
        alone(*_pasted(pair, "<b>What</b> is ${question} in {{this}}?", HOSTILE)),
    )


def alone(*reviews: Review) -> list[ReviewGroup]:
    """Return reviews as one group without a heading."""
    return [ReviewGroup("", reviews)]


def _search(pair: Pair, *, n: int = 1) -> list[Answer]:
    """Return ``n`` answers to each known problem."""
    problems = list(known_problems().values())
    found = []
    for made in _sampled(pair, problems, n=n):
        problem, stopped = problems[made.trajectory.prompt_index], made.trajectory.finish_reason == "stop"
        pieces = [*made.pieces[:-1], ""] if stopped else made.pieces
        found.append(Answer(problem, made, first_wrong_token(problem, pieces, stopped)))
    return found


def _best(
    answers: Sequence[Answer],
    figure: Callable[[Answer], float],
    *,
    where: Callable[[Answer], bool] = lambda answer: True,
) -> Review:
    """Return the review with the largest figure of those that qualify."""
    return max(filter(where, answers), key=figure).review


def _sampled(pair: Pair, problems: Sequence[Problem], *, n: int = 1, seed: int = 0) -> list[Review]:
    prompts = [problem.prompt for problem in problems]
    sampled = sample(pair, prompts, n=n, seed=seed, max_tokens=MAX_TOKENS)
    return graded(pair, prompts, sampled, problems, seed=seed)


def graded(
    pair: Pair,
    prompts: Sequence[Prompt],
    trajectories: Sequence[Trajectory],
    problems: Sequence[Problem] = (),
    *,
    seed: int | None = None,
) -> list[Review]:
    """Grade trajectories, verified where the problems are known."""
    task, out = DemoTask(), []
    for t, g in zip(trajectories, grade(pair, trajectories, top_k=TOP_K), strict=True):
        correct = None
        if problems:
            correct = verify(task, problems[t.prompt_index], pair.student, t)
        out.append(review(pair, prompts[t.prompt_index], t, g, seed=seed, correct=correct))
    return out


def _riddle_answers(pair: Pair, riddle: Problem) -> list[Review]:
    """Four answers of the first seed with which the first is wrong and another right."""
    for seed in count():
        reviews = _sampled(pair, [riddle], n=4, seed=seed)
        if not reviews[0].correct and sum(bool(r.correct) for r in reviews) == 2:
            return reviews
    raise AssertionError


def _pasted(pair: Pair, prompt: str, text: str, problem: Problem | None = None) -> list[Review]:
    return graded(pair, [prompt], [text_trajectory(pair, prompt, text)], [problem] if problem else ())


def _hot(pair: Pair, problem: Problem) -> Review:
    hot = sample(pair, [problem.prompt], n=16, temperature=HOT, max_tokens=320)
    return graded(pair, [problem.prompt], [max(hot, key=len)], [problem], seed=0)[0]


def _what_a_token_is_worth(pair: Pair, wrong: Sequence[Answer]) -> tuple[str, str, list[ReviewGroup]]:
    """A main line with evidence at its first wrong token, the teacher's choice there, the teacher's line."""
    found = max(
        (a for a in wrong if a.problem.family == "order" and a.error > 3), key=lambda a: a.penalty[a.error]
    )
    main, at = found.review, found.error
    verified = {"task": DemoTask(), "example": found.problem}
    *_, value = fork_value(pair, main, at, **verified)
    *_, lost = point_of_no_return(pair, main, **verified)
    *_, saved = branch(pair, main, at, int(main.grades.teacher.top_ids[at, 0]), **verified)
    *_, line = teacher_line(pair, main, at, **verified)
    reviews = [with_evidence(with_evidence(main, value), lost), *map(_narrowed, (saved, line))]
    note = (
        "At the fork, the student's token and the teacher's choices were tried 32 times each. Beside the "
        "main line hang two branches: the student after the teacher's choice, and the teacher's own line."
    )
    return "What one token is worth", note, alone(*reviews)


def _narrowed(made: Review) -> Review:
    """Keep as few alternatives as the rest of the gallery."""
    sides = {
        side: replace(scores, top_ids=scores.top_ids[:, :TOP_K], top_logprobs=scores.top_logprobs[:, :TOP_K])
        for side, scores in (("student", made.grades.student), ("teacher", made.grades.teacher))
    }
    shown = {int(i) for scores in sides.values() for i in scores.top_ids.ravel()}
    vocabulary = {i: text for i, text in made.vocabulary.items() if i in shown}
    return replace(made, grades=replace(made.grades, **sides), vocabulary=vocabulary)


def _before_and_after(pair: Pair) -> tuple[str, str, list[ReviewGroup]]:
    """The same prompt before and after a short distillation: the one of forty that mends most."""
    trained = load_pair()
    trained.student.name = f"demo-student after {STEPS} steps"
    for _ in distill(DistillConfig(steps=STEPS, eval_prompts=0), trained):
        pass
    problems = DemoTask().heldout(40)
    before, after = _sampled(pair, problems, n=4), _sampled(trained, problems, n=4)

    def right(reviews: Sequence[Review], i: int) -> int:
        return sum(r.correct for r in reviews[4 * i : 4 * i + 4])

    best = max(range(len(problems)), key=lambda i: right(after, i) - right(before, i))
    groups = [
        ReviewGroup(label, reviews[4 * best : 4 * best + 4])
        for label, reviews in (("before training", before), (f"after {STEPS} steps", after))
    ]
    note = (
        "One held-out prompt with the same random numbers, before and after a few minutes of on-policy "
        "distillation on a laptop."
    )
    return f"Before and after {STEPS} steps", note, groups


def _chat(pair: Pair) -> tuple[str, str, list[ReviewGroup]]:
    """A chat of careful solutions, one a family: every turn of the assistant graded in its context."""
    chat = []
    for family in DemoTask.families[:4]:
        problem = next(p for p in known_problems().values() if p.family == family)
        draft = Draft(random.Random(0))
        problem.solve(draft)
        chat += [{"role": "user", "content": problem.prompt}, {"role": "assistant", "content": draft.text}]
    turns = chat_trajectories(pair, chat)
    trajectories = [replace(t, prompt_index=i) for i, (_, t) in enumerate(turns)]
    note = (
        "Four right answers, one after another, each graded in its context. Both models have read single "
        "questions only: from turn to turn their opinions are worth less."
    )
    return "A chat, turn by turn", note, alone(*graded(pair, [before for before, _ in turns], trajectories))


def main() -> None:
    """Parse the command line and make the gallery."""
    parser = argparse.ArgumentParser(description="Make the embedded pair's part of the gallery.")
    parser.add_argument(
        "--out", type=Path, default=Path("assets/gallery"), help="folder (default assets/gallery)"
    )
    write_sets(parser.parse_args().out, _sets(load_pair()))


if __name__ == "__main__":
    main()
