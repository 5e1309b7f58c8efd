"""The problems, their split, the verifier and the oracle of the first error."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import pytest

from opd.tasks import Example, load_task
from opd.tasks.demo import FAMILIES, DemoTask, Draft, first_error, problems, split_of

TASK = DemoTask()
PROBLEMS = list(islice(problems("tests", "train"), 800))


def draft(problem, rng, sloppiness):
    written = Draft(rng, sloppiness)
    problem.solve(written)
    return written


def test_the_task_is_found_by_name():
    assert isinstance(load_task("demo"), DemoTask)
    assert len(TASK.families) == 8


def test_heldout_lists_are_disjoint_from_training_and_from_each_other():
    tuning = {e.prompt for e in TASK.heldout(200, split="tuning")}
    test = {e.prompt for e in TASK.heldout(400)}
    trained = {e.prompt for step in range(30) for e in TASK.batch(64, step=step, seed=0)}
    assert len(tuning) == 200
    assert len(test) == 400
    assert not tuning & test
    assert not (tuning | test) & trained


def test_the_split_has_the_promised_shares():
    rng = random.Random(0)
    prompts = {family(rng).prompt for family in FAMILIES.values() for _ in range(1500)}
    shares = Counter(split_of(prompt) for prompt in prompts)
    assert shares["tuning"] / len(prompts) == pytest.approx(1 / 12, abs=0.012)
    assert shares["test"] / len(prompts) == pytest.approx(2 / 12, abs=0.015)


def test_batches_and_heldout_lists_are_deterministic():
    assert TASK.batch(32, step=3, seed=1) == DemoTask().batch(32, step=3, seed=1)
    assert TASK.batch(32, step=3, seed=1) != TASK.batch(32, step=4, seed=1)
    assert TASK.batch(32, step=3, seed=1) != TASK.batch(32, step=3, seed=2)
    assert TASK.heldout(100)[:40] == DemoTask().heldout(40)


def test_heldout_problems_are_balanced_over_the_families():
    counts = Counter(e.family for e in TASK.heldout(400))
    assert set(counts) == set(FAMILIES)
    assert max(counts.values()) - min(counts.values()) <= 8


def test_careful_solutions_are_right_and_on_a_correct_path_at_every_prefix():
    rng = random.Random(1)
    for problem in PROBLEMS:
        text = draft(problem, rng, 0.0).text
        assert TASK.verify(problem, text), text
        assert first_error(problem.solve, text) is None, text
        cut = text[: text.rindex(" ", 0, rng.randrange(10, len(text)))]
        assert first_error(problem.solve, cut) == len(cut), "a text that stops too early errs where it stops"
        assert first_error(problem.solve, text + " Yes.") == len(text)


def test_the_oracle_finds_exactly_the_first_wrong_choice():
    rng = random.Random(2)
    kinds = Counter()
    for problem in PROBLEMS:
        written = draft(problem, rng, 1.5)
        expected = written.wrong[0] if written.wrong else None
        assert first_error(problem.solve, written.text) == expected, written.text
        kinds[problem.family, expected is None] += 1
    assert all(kinds[family, False] > 30 for family in FAMILIES), "every family has wrong choices"


def test_a_wrong_number_errs_at_its_first_differing_digit_and_a_wrong_word_at_its_start():
    problem = next(p for p in PROBLEMS if p.family == "units" and "hours and" in p.prompt)
    text = draft(problem, random.Random(3), 0.0).text
    at = text.index("60")
    assert first_error(problem.solve, text[:at] + "65" + text[at + 2 :]) == at + 1
    assert first_error(problem.solve, text[:at] + "6x" + text[at + 2 :]) == at + 1
    word = text.index(" has ") if " has " in text else text.index(" are ")
    assert first_error(problem.solve, text[: word + 2] + "zz" + text[word + 2 :]) in (word, word + 1)


def test_solutions_are_neither_trivial_nor_endless():
    rng = random.Random(4)
    words = [len(draft(problem, rng, 0.0).text.split()) for problem in PROBLEMS]
    assert min(words) >= 12
    assert max(words) <= 80
    assert len({problem.prompt for problem in PROBLEMS}) > 0.97 * len(PROBLEMS)


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("4 × 14 = 56. The answer is 56.", True),
        ("the ANSWER is 56", True),
        ("The answer is: 56.  \n", True),
        ("The answer is **56**. That was easy.", True),
        ("The answer is 5. No: the answer is 56.", True),
        ("The answer is 56. The answer is 5.", False),
        ("The answer is 560.", False),
        ("The answer is -56.", False),
        ("The answer is 5:60.", False),
        ("4 × 14 = 56.", False),
        ("The answer is", False),
        ("", False),
    ],
)
def test_the_verifier_reads_the_last_stated_answer(completion, right):
    assert TASK.verify(Example("How much?", "56"), completion) is right


def test_the_verifier_reads_times_and_words_for_nothing():
    assert TASK.verify(Example("When?", "9:05"), "The answer is 9:05.")
    assert not TASK.verify(Example("When?", "9:05"), "The answer is 9:50.")
    assert TASK.verify(Example("How many?", "0"), "The answer is none.")
