"""Verifiers: tolerant of how a model words its answer, strict about what the answer is, never hanging."""

import random
import subprocess
import sys
import time

import pytest

from opd.tasks import verifiers
from opd.tasks.verifiers import Worker, make_verifier, statements

pytestmark = pytest.mark.engine


def right(name, answer, completion):
    return make_verifier(name).right(answer, completion)


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
        ("72", "no idea"),
        ("72", ""),
        ("1/3", "1/4"),
        ("2", "The answer is 25 m^2."),
        ("1", "1/0"),
        ("1", "1e9999"),
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
        "Option A fails, so option B",
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
    ],
)
def test_choice_takes_no_word_for_a_letter(completion):
    assert not any(right("choice", letter, completion) for letter in "ABCDEFGHIJ")


@pytest.mark.parametrize(
    ("answer", "completion", "expected"),
    [
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
    ],
)
def test_a_completion_that_repeats_itself_is_read_at_once(name, piece):
    completion = piece * (200_000 // len(piece))
    assert sum(map(len, statements(completion))) <= 20_000
    right(name, "B" if name == "choice" else "17", completion)


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
