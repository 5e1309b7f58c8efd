"""Data as people have it: every shape is read as what it is, or refused with what to do."""

import gzip
import json

import pytest

from opd.tasks import TaskOptions, load_task

WHOLE = {"heldout_share": 0}


def task_of(tmp_path, rows, name="rows.jsonl", **options):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_task(str(path), TaskOptions(**WHOLE, **options))


def read(task):
    return [(example.prompt, example.answer) for example in task.heldout(99, split="all")]


def asked(*turns, names=("user", "assistant"), keys=("role", "content")):
    return [dict(zip(keys, (names[i % 2], turn), strict=True)) for i, turn in enumerate(turns)]


# Formats: the same two rows, however they are written.

ROWS = [{"prompt": "One ä?", "answer": "1"}, {"prompt": "Two, or three?", "answer": "2"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'prompt{0}answer\n"One ä?"{0}1\n"Two, or three?"{0}2\n'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.jsonl", LINES.encode("utf-16"), ""),
        ("r.csv", CSV.format(",").encode("utf-16"), ""),
        ("r.json", json.dumps(ROWS).encode(), ""),
        ("r.json", json.dumps(ROWS, indent=2).encode(), ""),
        ("r.jsonl", json.dumps(ROWS, indent=2).encode(), ""),
        ("r.json", LINES.encode(), ""),
        ("r.csv", CSV.format(";").encode(), "separated by semicolons"),
        ("r.csv", CSV.format("\t").encode(), "separated by tabs"),
        ("r.tsv", CSV.format("\t").encode(), "separated by tabs"),
        ("r.jsonl.gz", gzip.compress(LINES.encode(), mtime=0), ""),
        ("R.CSV.GZ", gzip.compress(CSV.format(";").encode("utf-16"), mtime=0), "separated by semicolons"),
    ],
)
def test_formats(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    task = load_task(str(tmp_path / name), TaskOptions(**WHOLE))
    assert read(task) == [("One ä?", "1"), ("Two, or three?", "2")]
    assert said in task.summary()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("r.json", b'{\n"data": [\n{"prompt": "One?"}]}', "single JSON value: make it a list of rows"),
        ("r.json", b'[\n{"prompt": "One?"}\n{"prompt": "Two?"}]', r"begins like a list of rows.*line 3"),
        ("r.jsonl.gz", b"PK\3\4", "cannot be unpacked: Not a gzipped file"),
        ("r.jsonl.gz", gzip.compress(b"x" * 99, mtime=0)[:20], "cannot be unpacked"),
        ("r.xlsx", b"PK\3\4", r"r.xlsx is not a .jsonl, .json, .csv, .tsv or .parquet file"),
    ],
)
def test_formats_that_cannot_be_read_say_what_to_do(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        load_task(str(tmp_path / name))


def test_a_bad_item_of_a_list_is_counted(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps([*ROWS, 3]))
    assert "item 3: it is not a JSON object" in load_task(str(tmp_path / "r.json")).summary()


# Chats.


@pytest.mark.parametrize(
    ("column", "style"),
    [
        ("messages", {}),
        ("conversations", {"names": ("human", "gpt"), "keys": ("from", "value")}),
        ("prompt", {}),
    ],
)
def test_the_last_assistant_turn_of_a_chat_is_its_reference(tmp_path, column, style):
    rows = [{column: asked("One?", "1", f"And {i}?", f"It is {i}.", **style)} for i in range(3)]
    task = task_of(tmp_path, rows)
    assert read(task) == [(asked("One?", "1", f"And {i}?"), None) for i in range(3)]
    assert "the last assistant turn was cut off as the reference" in task.summary()
    assert "name a verifier to compare with that turn" in task.summary()
    assert task.columns() == ["reference"]
    assert [answer for _, answer in read(task_of(tmp_path, rows, verifier="numeric"))] == [
        f"It is {i}." for i in range(3)
    ]


def test_a_named_column_of_chats_gives_its_last_turn_as_the_answer(tmp_path):
    rows = [{"prompt": "One?", "chat": asked("One?", "1")}]
    assert read(task_of(tmp_path, rows, answer_column="chat")) == [("One?", "1")]


def test_content_in_parts_is_one_text(tmp_path):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "1 + 1?"}]
    assert read(task_of(tmp_path, [{"messages": asked(parts, parts)}])) == [(asked("What is 1 + 1?"), None)]


def test_a_last_turn_that_calls_a_tool_is_cut_off_and_is_no_reference(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    task = task_of(tmp_path, [{"messages": [*asked("Look it up."), call]}])
    assert read(task) == [(asked("Look it up."), None)]
    assert task.columns() == []


def test_a_last_turn_that_reasons_is_a_reference_whose_answer_is_what_comes_after(tmp_path):
    turn = {"role": "assistant", "content": "7", "reasoning_content": "Hm."}
    rows = [{"messages": [{"role": "user", "content": f"{i} + 4?"}, turn]} for i in range(9)]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    example = load_task(str(path), TaskOptions(verifier="exact", heldout_share=0)).batch(1, step=1, seed=0)[0]
    assert example.answer == "7"
    assert example.columns["reference"] == "<think>\nHm.\n</think>\n\n7"


def test_a_chat_in_csv_may_be_sharegpt(tmp_path):
    chat = json.dumps(asked("One?", "1", names=("human", "gpt"), keys=("from", "value")))
    (tmp_path / "c.csv").write_text('id,conversations\n7,"' + chat.replace('"', '""') + '"\n')
    assert read(load_task(str(tmp_path / "c.csv"), TaskOptions(**WHOLE))) == [(asked("One?"), None)]


# Columns by other names.


@pytest.mark.parametrize(
    ("row", "options", "expected", "said"),
    [
        ({"question": "One?", "answer": "1"}, {}, ("One?", "1"), "column question; answers from answer"),
        (
            {"problem": "One?", "solution": "It is \\boxed{1}."},
            {},
            ("One?", "It is \\boxed{1}."),
            "answers from solution, compared by math",
        ),
        (
            {"question": "One?", "response": "1"},
            {},
            ("One?", None),
            "name a verifier to compare with response",
        ),
        ({"question": "One?", "response": "1"}, {"verifier": "exact"}, ("One?", "1"), "by exact"),
        ({"query": "One?", "output": "1"}, {"answer_column": "output"}, ("One?", "1"), "answers from output"),
        (
            {"instruction": "Add.", "input": "1 and 1", "output": "2"},
            {},
            ("Add.\n\n1 and 1", None),
            "column instruction, input below them",
        ),
        ({"instruction": "Sing.", "input": "", "output": "la"}, {}, ("Sing.", None), "input below"),
        ({"input": "One?", "output": "1"}, {}, ("One?", None), "column input"),
        (
            {
                "prompt": asked("One?"),
                "reward_model": {"style": "rule", "ground_truth": 1},
                "data_source": "x",
            },
            {},
            (asked("One?"), "1"),
            "answers from reward_model.ground_truth, compared by exact. Not read: data_source.",
        ),
        ({"prompt": "One?", "answer": "1", "id": 7}, {}, ("One?", "1"), "Not read: id."),
        (
            {"prompt": "One?", "extra": {"gold": "1"}},
            {"answer_column": "extra.gold"},
            ("One?", "1"),
            "answers from extra.gold",
        ),
        (
            {"question": "One?", "response": "1", "solution": "1"},
            {},
            ("One?", None),
            "no answers, which response, solution could give",
        ),
        # Named, columns are read as named, as they were before anything was recognised.
        (
            {"prompt": "One?", "response": "1", "ground_truth": "1"},
            {"prompt_column": "prompt", "verifier": "exact"},
            ("One?", None),
            "Not read: response, ground_truth.",
        ),
        (
            {"instruction": "Add.", "input": "1", "output": "2"},
            {"prompt_column": "instruction"},
            ("Add.", None),
            "Not read: input, output.",
        ),
    ],
)
def test_columns(tmp_path, row, options, expected, said):
    task = task_of(tmp_path, [row], **options)
    assert read(task) == [expected]
    assert said in task.summary()


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"question": "1?", "messages": asked("1?")},
            "has messages, question, and each could be the prompts",
        ),
        ({"title": "1?", "text": "1"}, "no column 'prompt'; it has title, text. Set prompt_column"),
    ],
)
def test_columns_that_could_be_another_thing_are_not_guessed(tmp_path, row, sentence):
    with pytest.raises(ValueError, match=sentence):
        task_of(tmp_path, [row])


# Answers that state themselves.


def test_gsm8k_needs_no_flag(tmp_path):
    rows = [{"question": f"{i}?", "answer": f"He has {i}+1.\n#### {i + 1:,}"} for i in range(1200, 1210)]
    task = task_of(tmp_path, rows)
    example = task.heldout(1, split="all")[0]
    assert task.verifier == "numeric"
    assert task.verify(example, "So it is 1201.")
    assert not task.verify(example, "So it is 1202.")
    assert task_of(tmp_path, rows, verifier="exact").verifier == "exact"
    chats = [{"messages": asked(row["question"], row["answer"])} for row in rows]
    assert task_of(tmp_path, chats).verifier == "numeric"


def test_math_needs_no_flag_and_without_its_package_compares_the_box_exactly(tmp_path, monkeypatch):
    rows = [{"problem": f"{i}?", "solution": f"We get $\\boxed{{\\frac{{1}}{{{i}}}}}$."} for i in (2, 3)]
    task = task_of(tmp_path, rows)
    assert task.verifier == "math"
    monkeypatch.setattr("opd.tasks.shapes.find_spec", lambda name: None)
    task = task_of(tmp_path, rows)
    assert task.verifier == "exact"
    example = task.heldout(1, split="all")[0]
    assert task.verify(example, "The answer is $\\boxed{\\frac{1}{2}}$.")
    assert not task.verify(example, "The answer is $\\boxed{\\frac{1}{3}}$.")


def test_a_few_stray_boxes_or_headings_change_no_verifier(tmp_path):
    rows = [{"prompt": f"{i}?", "answer": "\\boxed{1}" if i < 3 else "#### Step 1\nyes"} for i in range(9)]
    assert task_of(tmp_path, rows).verifier == "exact"


TEXTS = ["red", "green", "blue"]
LETTERED = "Which?\n\nA. red\nB. green\nC. blue"


@pytest.mark.parametrize(
    ("choices", "answers"),
    [
        (TEXTS, [0, 2]),
        (TEXTS, [1, 3]),
        (TEXTS, ["A", "C"]),
        (TEXTS, ["red", "blue"]),
        ({"text": TEXTS, "label": ["A", "B", "C"]}, ["A", "C"]),
        ({"text": TEXTS, "label": ["1", "2", "3"]}, ["1", "3"]),
        (dict(zip("ABC", TEXTS, strict=True)), ["A", "C"]),
    ],
)
@pytest.mark.parametrize(("column", "key"), [("choices", "answer"), ("options", "answerKey")])
def test_choices_are_written_below_the_question_as_letters(tmp_path, choices, answers, column, key):
    rows = [{"question": f"{i} Which?", column: choices, key: answer} for i, answer in enumerate(answers)]
    task = task_of(tmp_path, rows)
    assert read(task) == [(f"0 {LETTERED}", "A"), (f"1 {LETTERED}", "C")]
    assert task.verifier == "choice"
    assert f"{column} below them as letters; answers from {key}, compared by choice" in task.summary()


def test_choices_that_the_prompt_shows_already_are_not_written_twice(tmp_path):
    rows = [{"prompt": "Which? (A) red (B) green (C) blue", "choices": TEXTS, "answer": "B"}]
    assert read(task_of(tmp_path, rows)) == [("Which? (A) red (B) green (C) blue", "B")]


def test_an_index_that_may_count_from_0_or_1_is_refused_and_one_of_no_choice_counted(tmp_path):
    rows = [{"question": f"{i}?", "choices": TEXTS, "answer": 1 + i % 2} for i in range(30)]
    with pytest.raises(ValueError, match="indices from 0 or indices from 1: write the letter"):
        task_of(tmp_path, rows)
    rows[0]["answer"], rows[7]["answer"] = 0, 3
    rows[7]["answer"] = 9
    task = task_of(tmp_path, rows)
    assert task.malformed == [(8, "its answer '9' is none of its choices")]


def test_a_text_among_numbers_that_could_be_an_index_is_refused(tmp_path):
    rows = [{"question": f"{i}?", "choices": ["0", "1", "2"], "answer": str(i % 3)} for i in range(9)]
    with pytest.raises(ValueError, match="text or index"):
        task_of(tmp_path, rows)


def test_exact_on_long_references_warns(tmp_path):
    rows = [{"prompt": f"{i}?", "answer": "Because " * 20 + str(i)} for i in range(4)]
    assert "longer than 80 characters, and the verifier exact" in task_of(tmp_path, rows).summary()
    assert "longer than" not in task_of(tmp_path, rows, verifier="numeric").summary()


# All of a file.


def test_all_rows_are_there_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "r.jsonl"
    rows = [{"prompt": f"{i}?", "answer": str(i)} for i in range(100)]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = load_task(str(path))
    assert read(task)[:99] == [(row["prompt"], row["answer"]) for row in rows[:99]]
    assert 0 < len(task.heldout(100)) < 100


def test_a_file_whose_rows_are_all_held_out_can_be_measured_and_not_trained_on(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(LINES)
    task = load_task(str(path), TaskOptions(heldout_share=0.999))
    assert len(task.heldout(9, split="all")) == 2
    with pytest.raises(ValueError, match="All are held out; lower heldout_share"):
        task.batch(1, step=1, seed=0)


def test_the_demo_has_no_whole():
    with pytest.raises(ValueError, match="without end: choose its test or tuning split"):
        load_task("demo").heldout(1, split="all")
