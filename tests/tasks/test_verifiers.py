"""Verifiers: tolerant of how a model words its answer, strict about what the answer is, never hanging."""

import random
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from opd.tasks import Example, verifiers, verify
from opd.tasks.conclusion import conclusion, statements
from opd.tasks.verifiers import Worker, make_verifier
from opd.trajectory import Trajectory

pytestmark = pytest.mark.engine


def right(name, answer, completion, cut=False):
    return make_verifier(name).right(answer, completion, cut)


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ("72", "48 / 2 = 24 clips in May. 48 + 24 = 72.\n#### 72"),
        ("Natalia sold 24 clips.\n#### 72", "The answer is 72."),
        ("72", "So the final answer is **72** clips."),
        ("72", "**Answer:** 72"),
        ("72", "**Final Answer**\n\\boxed{72}"),
        ("72", "The answer is:\n\n$$72$$"),
        ("72", "The answer is 48 + 24 = 72 clips. Check: 72 - 24 = 48."),
        ("72", "I found 72"),
        ("72", "The answer is 72.0"),
        ("25", "The answer is 25 m^2."),
        ("25", "The area is 25 cm^{2}"),
        ("25", "The answer is 25. I hope this answer is helpful!"),
        ("1234567.5", "It costs $1,234,567.50"),
        ("1234", "\\boxed{1{,}234}"),
        ("1234", "The answer is $1,234."),
        ("-5", "x = -5"),
        ("-5", "The answer is −5."),
        ("-5", "He loses -$5"),
        ("5", "It is on pages 3-5."),
        ("5", "(2)-5"),
        ("5", "10 - 5"),
        ("3/4", "The answer is \\frac{3}{4}."),
        ("0.75", "The answer is 3/4"),
        ("1.5", "The answer is 1 1/2 cups."),
        ("1/3", "about 0.3333"),
        ("-0.5", "The answer is -\\frac{1}{2}"),
        ("50", "The answer is 50%."),
        ("0.5", "The answer is 50%."),
        ("50%", "The answer is 0.5"),
        ("3e8", "The speed is 3 × 10^8 m/s"),
        ("300000000", "The answer is 3 \\times 10^{8}."),
        ("7", "<think>maybe the answer is 8</think>The answer is 7."),
        (".5", "0.5"),
        ("3.5", "The answer is 3,5."),
        ("3,5", "Die Antwort: 3,50 m"),
        ("-0.333", "-0,333"),
        ("1234.56", "1.234,56 Euro"),
        ("7", "The numbers are 3,5,7"),
        ("5", "(3,5)"),
    ],
)
def test_numeric_finds_the_number(answer, completion):
    assert right("numeric", answer, completion)


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ("72", "The answer is 7.2"),
        ("72", "The answer is 71.9999"),
        ("72", "The answer is 24, since 24 + 48 = 72 was not asked. So 72"),
        ("72", "The answer is 172."),
        ("5", "The answer is -5"),
        ("12.50", "It costs $12.51"),
        ("1000000", "1000001"),
        ("123456789012345678901", "123456789012345678902"),
        ("72", "<think>it is 72"),
        ("72", "<think>70?</think>72<think>or 72"),
        ("72", "no idea"),
        ("72", ""),
        ("1/3", "1/4"),
        ("2", "The answer is 25 m^2."),
        ("1", "1/0"),
        ("1", "1e9999"),
        ("3", "The answer is 3,5."),
        ("5", "The answer is 3,5."),
        ("333", "0,333"),
        ("1.234", "1.234,56"),
        ("3.5", "3,500"),
    ],
)
def test_numeric_refuses_another_number(answer, completion):
    assert not right("numeric", answer, completion)


def test_numeric_reads_every_spelling_of_random_numbers():
    rng = random.Random(0)
    spellings = ("{:.2f}", "{:,.2f}", "${:,.2f}", "{:.4e}", "**{:.2f}**", "\\boxed{{{:.2f}}}")
    sentences = ("{}", "The answer is {}.", "1 + 1 = 2.\nAnswer: {} apples", "so we get 3 and then {}")
    for _ in range(500):
        value = round(rng.uniform(-1, 1) * 10 ** rng.randint(0, 6), 2)
        written = rng.choice(spellings).format(value)
        completion = rng.choice(sentences).format(written)
        assert right("numeric", f"{value:.2f}", completion), (value, completion)
        assert not right("numeric", f"{value * 1.01 + 1:.2f}", completion), (value, completion)


@pytest.mark.parametrize(
    "completion",
    [
        "B", "b", "(B)", "B.", "b)", "**B**", "B. Paris", "B) Paris", "Answer: B", "answer is b.",
        "Answer: (b)",
        "The correct answer is B: Paris.", "The answer is option B", "The answer is (B) because A is wrong.",
        "\\boxed{B}", "\\boxed{\\text{B}}", "**Answer:** B", "A is tempting, but I choose (B)",
        "Neither A nor C hold.\nSo it must be B", "<think>A?</think>\n\nB",
        "The answer is A. No: the answer is B.", "The best answer to this question is **B**",
        "Option A fails, so option B", "The correct option is B, because A is wrong.",
        "The right choice is **B**. Option A is too small.", "Option B is correct because option A is not.",
        "B, because A is wrong", "If option A is correct, 1 = 2. So option B",
    ],
)  # fmt: skip
def test_choice_finds_the_letter(completion):
    assert right("choice", "B", completion)
    assert right("choice", "(b)", completion)
    assert not right("choice", "A", completion)
    assert not right("choice", "C", completion)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "Paris",
        "The answer is a dog",
        "A dog",
        "I think so",
        "It is A or B",
        "<think>A",
        "Because",
        "Don't",
        "The answer is not B.",
        "The correct option is not A",
        "The best choice is a bike",
        "The correct option is not known",
    ],
)
def test_choice_takes_no_word_for_a_letter(completion):
    assert not any(right("choice", letter, completion) for letter in "ABCDEFGHIJ")


def test_a_reason_behind_the_letter_a_makes_it_no_article():
    for completion in (
        "The answer is A because B is wrong.",
        "A since B is wrong",
        "The best option is A, as B",
    ):
        assert right("choice", "A", completion)
        assert not right("choice", "B", completion)


@pytest.mark.parametrize(
    ("answer", "completion", "expected"),
    [
        ("So \\boxed{Paris}.", "The answer is Paris.", True),
        ("So \\boxed{Paris}.", "So.", False),
        ("Paris", "paris", True),
        ("Paris", "  Paris.\n", True),
        ("Paris", "The capital of France:\n**Paris**", True),
        ("Paris", "The answer is Paris. It lies on the Seine.", True),
        ("Dr. No", "Answer: Dr. No", True),
        ("72", "The answer is \\(72\\).", True),
        ("New York", "The answer is \\boxed{\\text{New  York}}", True),
        ("Paris", "The answer is not Paris", False),
        ("Paris", "The answer is Paris. No, the answer is Lyon.\nParis", False),
        ("Paris", "Parisian", False),
        ("Paris", "", False),
        ("Paris", "<think>Paris", False),
        ("½", "1⁄2", True),
    ],
)
def test_exact(answer, completion, expected):
    assert right("exact", answer, completion) is expected


@pytest.mark.parametrize("name", ["exact", "numeric", "choice"])
@pytest.mark.parametrize(
    "piece",
    [
        "answer is ",
        "1",
        "1 ",
        "1,",
        "(",
        "{",
        "\\boxed{",
        "answer: 1 = ",
        "A ",
        "-",
        "$",
        "1/",
        "\\frac{1}",
        "=",
        "wait, ",
        "but ",
        "i think   i ",
        "no, ",
        "answer is 4. No, ",
    ],
)
def test_a_completion_that_repeats_itself_is_read_at_once(name, piece):
    completion = piece * (200_000 // len(piece))
    assert sum(map(len, statements(completion))) <= 20_000
    for cut in (False, True):
        right(name, "B" if name == "choice" else "17", completion, cut)


TAKEN_BACK = [
    "So the answer is 42. But wait",
    "The answer is 42, but wait",
    "The answer is 42. Wait...",
    "The answer is 42.\n\nWait, let me double-check that.",
    "The answer is 42. Hmm, is that right?",
    "\\boxed{42}\n\nHmm.",
    "\\boxed{42}. Hold on, let me recompute.",
    "The answer is 42. No, that is wrong.",
    "The answer is 42. No.",
    "The answer is 42. Scratch that.",
    "The answer is 42. Oops, I made a mistake.",
    "The answer is 42. That can't be right.",
    "The answer is 42. But that's not correct.",
    "Answer: 42\n\nActually, wait, I think I made an arithmetic error.",
    "#### 42\nI misread the question.",
    "Answer: 42\nThat's wrong.",
    "\\boxed{42}\nNo, this is not correct",
    "The answer is **42**. Let me verify.",
    "That makes 42. But wait",
    "6 × 7 = 42. Hmm...",
]
"""Nobody would say that these answer 42, whether they were cut off there or ended so."""

STANDS = [
    "The answer is 42. Let me know if you have other questions!",
    "The answer is 42. Note that wait times are not included.",
    "The answer is 42. Wait, let me check: 6 × 7 = 42. Yes, that's correct.",
    "The answer is 42. Hmm, is that right? 6 × 7 = 42, so it checks out.",
    "The answer is 41. No, wait: the answer is 42.",
    "The answer is 41. That's wrong, I forgot one. The answer is 42.",
    "\\boxed{42}\n\nVerification: 42 / 7 = 6.",
    "The answer is 42. No other number is divisible by 6 and 7.",
    "The answer is 42. This holds because 6 × 7 = 42. But 41 is not a multiple of 7.",
    "Wait, I must read this again. Is it 41? No. The answer is 42.",
    "Hmm, 6 × 7. Let me think. So the answer is 42.",
    "The answer is 42, not 41.",
    "The answer is 42. This is not possible with a fair die.",
    "The answer is 42. That is not correct for 41, because 41 is prime.",
    "The answer is 42. No, the other numbers do not fit.",
    "The answer is 42. It was not easy, but that is how it is done.",
    "#### 42",
    "42",
    "42 apples",
]
"""These answer 42, whether they ended there or were cut off."""

UNFINISHED = [
    "48 / 2 = 24 and 24 + 18 = 42",
    "First I compute 6 × 7, which is 42. Then I",
    "The product is 42",
    "So we get\n42",
    "The answer is 42. But the question asks for dozens, so",
    "The answer is 42. Alternatively, we could",
    "The answer is 42. Maybe it",
    "The answer is 42. However, the problem says",
    "The answer is 42. Let me verify: 42 / 7",
    "The answer is 42. But",
    "The answer is \\boxed{4",
    "= 42",
]
"""These were still thinking when they were cut off."""


@pytest.mark.parametrize("completion", TAKEN_BACK)
def test_an_answer_that_is_taken_back_is_none(completion):
    for cut in (False, True):
        assert not right("numeric", "42", completion, cut)
        assert not right("exact", "42", completion, cut)


@pytest.mark.parametrize("completion", STANDS)
def test_an_answer_stands_whatever_is_said_beside_it(completion):
    for cut in (False, True):
        assert right("numeric", "42", completion, cut), cut


@pytest.mark.parametrize("completion", UNFINISHED)
def test_a_thought_that_was_cut_off_is_no_answer(completion):
    assert not right("numeric", "42", completion, cut=True)
    assert not right("numeric", "4", completion, cut=True)
    assert not right("exact", "42", completion, cut=True)


@pytest.mark.parametrize(
    "completion",
    [
        "The answer is Paris. The answer is",
        "Paris",
        "The answer is Paris.\n\nParis lies on the",
        "\\boxed{Paris} \\boxed{Lo",
    ],
)
def test_what_was_cut_off_behind_its_answer_gives_it(completion):
    assert right("exact", "Paris", completion, cut=True)


@pytest.mark.parametrize(
    ("name", "answer", "completion"),
    [
        (
            "choice",
            "C",
            "Which statement is false? The answer is C. This is not true because water boils at 100.",
        ),
        ("exact", "False", "The answer is False. That is not correct because whales are mammals."),
        ("exact", "False", "The answer is **False**. That is not correct."),
        ("exact", "incorrect", "The answer is **incorrect**. This is wrong since 2+2=4."),
        ("choice", "B", "The answer is B. No, the other options do not fit."),
        ("numeric", "0", "The answer is 0. This is not possible with a fair die."),
    ],
)
def test_what_is_said_of_the_statement_in_question_takes_no_answer_back(name, answer, completion):
    for cut in (False, True):
        assert right(name, answer, completion, cut), cut


def test_a_no_behind_the_answer_no_takes_nothing_back():
    for completion in ("The answer is no. No, 51 is not prime.", "Answer: **No**. No, it is 3 × 17."):
        assert right("exact", "no", completion)


def test_a_new_answer_without_a_marker_counts_once_the_old_one_is_taken_back():
    assert right("numeric", "43", "The answer is 42. No, that is wrong: it should be 43.")
    assert right("choice", "B", "The answer is A. No, wait. It must be B")
    assert not right("numeric", "43", "The answer is 42. No, that is wrong: it should be 43", cut=True)


@pytest.mark.parametrize(
    ("completion", "cut", "letter"),
    [
        ("B", True, "B"),
        ("(B)", True, "B"),
        ("B. Paris is the capital of France and", True, "B"),
        ("The answer is B. Option A says that the sky is green, and that is wrong.", False, "B"),
        ("The answer is (B). A is incorrect because it is not blue. C is wrong too.", False, "B"),
        ("The answer is B: it cannot be A, since that is not", True, "B"),
        ("The answer is B. It is blue. Option A says that it is green, and that is wrong. C", True, "B"),
        ("A is tempting, but option B", True, None),
        ("The answer is B. Hmm, but option A", True, None),
        ("The answer is B. Wait", False, None),
        ("B. Wait, no, let me think about", True, None),
    ],
)
def test_the_letter_of_a_completion_that_was_cut_off_or_doubts(completion, cut, letter):
    assert verifiers.stated_choice(completion, cut) == letter


def test_a_task_is_told_what_was_cut_off_and_where_the_prompt_opens_the_reasoning():
    tokens = {1: "<think>\n", 2: "The answer is 42.", 3: " But wait", 4: "</think>\n", 9: "What is 6 × 7?"}
    model = SimpleNamespace(text=lambda ids: "".join(tokens[int(i)] for i in ids))
    task = SimpleNamespace(verify=lambda example, text, *, cut: (text, cut))

    def told(prompt, completion, reason):
        ids = np.array(prompt), np.array(completion)
        return verify(task, Example("?", "42"), model, Trajectory(*ids, None, reason, ids[0]))

    assert told([9], [2], "stop") == ("The answer is 42.", False)
    assert told([9], [2, 3], "length") == ("The answer is 42. But wait", True)
    assert told([9, 1], [2], "length") == ("<think>The answer is 42.", True)
    assert conclusion("<think>The answer is 42.") == ""
    assert conclusion(told([9, 1], [3, 4, 2], "stop")[0]).strip() == "The answer is 42."


def test_regex_finds_its_pattern():
    assert right("regex", r"(?i)\bparis\b", "It is PARIS.")
    assert not right("regex", r"^paris$", "It is paris.")
    assert not right("regex", "Paris", "<think>Paris</think>Lyon")
    assert make_verifier("regex").fault("(") is not None


def test_a_pattern_that_hangs_is_wrong_after_its_deadline_and_the_next_check_works():
    worker = Worker("regex", deadline=0.5)
    with pytest.warns(RuntimeWarning, match=r"more than 0\.5 s"):  # it would have taken years
        assert worker.check("(a+)+$", "a" * 40 + "b") is False
    assert worker.check("a", "a") is True
    hung = worker.process
    hung.kill()
    hung.wait()
    with pytest.warns(RuntimeWarning):
        worker.check("a", "a")
    assert worker.check("a", "a") is True
    worker.close()


def test_an_interrupted_check_does_not_answer_the_next_one(monkeypatch):
    worker = Worker("regex")
    assert worker.check("a", "a") is True
    monkeypatch.setattr(
        worker.process.stdin, "flush", lambda flush=worker.process.stdin.flush: (flush(), interrupt())
    )
    with pytest.raises(KeyboardInterrupt):
        worker.check("a", "b")
    assert worker.check("a", "a") is True
    worker.close()


def interrupt():
    raise KeyboardInterrupt


def test_the_worker_ends_with_the_one_who_asks():
    code = (
        "from opd.tasks.verifiers import Worker; w = Worker('regex'); print(w.check('a', 'a'), w.process.pid)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("True ")
    pid = int(said.split()[1])
    for _ in range(200):
        if not verifiers_alive(pid):
            return
        time.sleep(0.05)
    pytest.fail("the worker outlives the process that started it")


def verifiers_alive(pid):
    done = subprocess.run(["ps", "-o", "stat=,args=", "-p", str(pid)], capture_output=True, text=True).stdout
    return "opd.tasks.verifiers" in done and not done.startswith("Z")


def test_an_unknown_verifier_is_named():
    with pytest.raises(ValueError, match=r"no verifier called 'maths'.*exact, numeric"):
        make_verifier("maths")


def test_math_without_its_package_names_the_way_out(monkeypatch):
    monkeypatch.setattr(verifiers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install opd-studio\[math\]"):
        make_verifier("math")


@pytest.mark.parametrize(
    ("answer", "completion", "expected"),
    [
        ("\\frac{1}{2}", "so the answer is $\\boxed{0.5}$", True),
        ("$x^2 + 2x + 1$", "The answer is $(x+1)^2$.", True),
        ("\\{1, 2\\}", "$\\{2, 1\\}$", True),
        ("x^2", "The answer is $x^3$.", False),
        ("7", "no idea", False),
        ("7", "<think>$\\boxed{7}$", False),
    ],
)
def test_math_compares_expressions(answer, completion, expected):
    pytest.importorskip("math_verify")
    assert right("math", answer, completion) is expected


def test_math_is_stopped_at_its_deadline():
    pytest.importorskip("math_verify")
    worker = Worker("math", deadline=1.0)
    assert worker.check("7", "$\\boxed{7}$") is True
    with pytest.warns(RuntimeWarning, match="more than 1 s"):
        assert worker.check("7", "$\\boxed{9^{9^{9^{9}}}}$") is False
    worker.close()
