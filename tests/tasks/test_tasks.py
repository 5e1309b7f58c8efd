"""Prompts from files: what is read, what is refused and said, who trains and who is held out."""

import csv
import json
import sys

import pytest

from opd.grading.evaluation import evaluate
from opd.tasks import Example, Task, TaskOptions, load_task
from opd.tasks.demo import DemoTask

ROWS = [{"prompt": f"What is {i} + 1?", "answer": i + 1} for i in range(300)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def splits(task):
    """All that a task holds: what trains, what tunes, what tests."""
    sizes = task.sizes()
    return [
        task.batch(sizes["train"], step=1, seed=0) if sizes["train"] else [],
        *(task.heldout(sizes[split], split=split) if sizes[split] else [] for split in ("tuning", "test")),
    ]


def everything(task):
    return [example for split in splits(task) for example in split]


@pytest.fixture
def jsonl(tmp_path):
    return write(tmp_path / "sums.jsonl", ROWS)


def test_every_row_of_a_file_becomes_an_example(jsonl):
    task = load_task(jsonl, TaskOptions(verifier="numeric"))
    found = {e.prompt: e.answer for e in everything(task)}
    assert found == {row["prompt"]: str(row["answer"]) for row in ROWS}
    assert not task.malformed
    example = Example("What is 6 + 1?", "7")
    assert task.verify(example, "The answer is 7.") is True
    assert task.verify(example, "The answer is 8.") is False


def test_train_and_held_out_share_no_prompt_however_often_one_draws(jsonl):
    task = load_task(jsonl)
    tuning = {e.prompt for e in task.heldout(10**6, split="tuning")}
    test = {e.prompt for e in task.heldout(10**6)}
    trained = {e.prompt for step in range(1, 60) for e in task.batch(16, step=step, seed=3)}
    assert len(trained) + len(tuning) + len(test) == 300
    assert not trained & (tuning | test)
    assert not tuning & test
    assert 40 <= len(tuning) + len(test) <= 80  # a fifth of 300
    assert len(tuning) < len(test)


def test_more_rows_move_no_prompt_to_the_other_side(tmp_path, jsonl):
    few, all_rows = load_task(write(tmp_path / "few.jsonl", ROWS[::3])), load_task(jsonl)
    assert {e.prompt for e in few.heldout(10**6)} < {e.prompt for e in all_rows.heldout(10**6)}


def test_the_same_question_in_another_guise_is_on_the_same_side(tmp_path):
    plain = [{"prompt": row["prompt"]} for row in ROWS]
    chats = [
        {
            "prompt": [
                {"role": "system", "content": f"You are number {i}."},
                {"role": "user", "content": " " + row["prompt"].upper()},
            ]
        }
        for i, row in enumerate(ROWS)
    ]
    task = load_task(write(tmp_path / "guises.jsonl", plain + chats))
    asked = [
        {
            (p if isinstance(p, str) else p[-1]["content"]).strip().lower()
            for p in (e.prompt for e in examples)
        }
        for examples in splits(task)
    ]
    assert sum(len(prompts) for prompts in asked) == 300


def test_an_epoch_shows_each_prompt_once_and_the_next_one_in_another_order(jsonl):
    task = load_task(jsonl, TaskOptions(heldout_share=0))
    epochs = [
        [e.prompt for step in range(first, first + 30) for e in task.batch(10, step=step, seed=1)]
        for first in (1, 31)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == 300
    assert epochs[0] != epochs[1]
    other_seed = [e.prompt for step in range(1, 31) for e in task.batch(10, step=step, seed=2)]
    assert other_seed != epochs[0]


def test_a_batch_depends_on_seed_and_step_alone(jsonl):
    task = load_task(jsonl)
    walked = [task.batch(7, step=step, seed=5) for step in range(1, 50)]
    resumed = load_task(jsonl)
    assert [resumed.batch(7, step=step, seed=5) for step in range(40, 50)] == walked[39:]


def test_a_batch_may_be_larger_than_the_file(tmp_path):
    task = load_task(write(tmp_path / "one.jsonl", ROWS[:3]), TaskOptions(heldout_share=0))
    assert len(task.batch(8, step=1, seed=0)) == 8
    assert len({e.prompt for e in task.batch(3, step=1, seed=0)}) == 3


BAD_LINES = [
    ("{not json", "not valid JSON"),
    ("[1, 2]", "not a JSON object"),
    ('{"answer": "1"}', "no prompt"),
    ('{"prompt": "", "answer": "1"}', "no prompt"),
    ('{"prompt": "  ", "answer": "1"}', "empty"),
    ('{"prompt": 5, "answer": "1"}', "not text but int"),
    ('{"prompt": [], "answer": "1"}', "no prompt"),
    ('{"prompt": ["hi"], "answer": "1"}', "role, content"),
    ('{"prompt": [{"role": "human", "content": "hi"}], "answer": "1"}', "'human'"),
    ('{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "1"}', "of type image"),
    ('{"prompt": [{"role": "assistant", "content": "2"}], "answer": 1}', "assistant's, it asks nothing"),
    ('{"prompt": [{"role": "user", "content": null}], "answer": 1}', "not text but NoneType"),
    (
        '{"prompt": [{"role": "assistant", "content": null, "tool_calls": [{"id": 1}]}, '
        '{"role": "tool", "content": "3"}], "answer": 1}',
        "calls a tool",
    ),
    ('{"prompt": "hi"}', "no answer"),
    ('{"prompt": "hi", "answer": null}', "no answer"),
    ('{"prompt": "hi", "answer": [1]}', "not text but list"),
    ('{"prompt": "hi", "answer": "none at all"}', "no number"),
    ('{"prompt": "\\ud800", "answer": "1"}', "UTF-8"),
    ('{"prompt": "What is 2 + 1?", "answer": "4"}', "another answer"),
    ("[" * 100_000, "not valid JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_a_malformed_row_is_counted_with_its_line_and_reason(tmp_path, line, reason):
    path = tmp_path / "bad.jsonl"
    good = [json.dumps(row) for row in ROWS[:20]]
    path.write_text("\n".join([*good, "", line, json.dumps(ROWS[20])]), encoding="utf-8")
    task = load_task(str(path), TaskOptions(verifier="numeric"))
    assert len(everything(task)) == 21
    assert [number for number, _ in task.malformed] == [22]
    assert reason in task.malformed[0].reason
    assert "21 prompts" in task.summary()
    assert "line 22: " + task.malformed[0].reason in task.summary()
    with pytest.raises(ValueError, match=r"1 malformed rows: line 22: .* on_malformed to skip"):
        load_task(str(path), TaskOptions(verifier="numeric", on_malformed="fail"))


def test_bytes_that_are_no_text_spoil_their_own_line_only(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(
        "".join(json.dumps(row) + "\n" for row in ROWS[:20]).encode()
        + b'{"prompt": "caf\xe9", "answer": "x"}\n'
    )
    task = load_task(str(path))
    assert len(everything(task)) == 20
    assert task.malformed == [(21, "the prompt is not valid UTF-8")]


def test_repeated_rows_are_counted_and_left_out(tmp_path):
    chat = {"prompt": [{"role": "user", "content": ROWS[0]["prompt"]}], "answer": ROWS[0]["answer"]}
    task = load_task(write(tmp_path / "twice.jsonl", [*ROWS, *ROWS, chat]))
    assert len(everything(task)) == 300
    assert task.duplicates == 301
    assert "301 repeated rows" in task.summary()


def test_csv_with_quotes_line_breaks_and_chat_messages(tmp_path):
    path = tmp_path / "sums.csv"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "[1, 2] has how many?"}]
    rows = [
        ('Say "hi",\nplease', "hi"),
        (json.dumps(chat), "2"),
        ("[x] marks the spot?", "yes"),
        ("only one field",),
        ('[{"role": broken', "1"),
        ("last", "end"),
    ]
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("question", "gold"), *rows])
    options = TaskOptions(prompt_column="question", answer_column="gold", heldout_share=0)
    task = load_task(str(path), options)
    found = {json.dumps(e.prompt): e.answer for e in everything(task)}
    assert found == {
        json.dumps('Say "hi",\nplease'): "hi",
        json.dumps(chat): "2",
        json.dumps("[x] marks the spot?"): "yes",
        json.dumps("last"): "end",
    }
    assert [line for line, _ in task.malformed] == [6, 7]
    assert "1 fields where the header has 2" in task.malformed[0].reason
    assert "chat messages are not valid JSON" in task.malformed[1].reason


def test_an_open_quote_in_a_csv_is_said(tmp_path):
    path = tmp_path / "open.csv"
    path.write_text('prompt\nfirst\n"second\nthird\n')
    task = load_task(str(path), TaskOptions(heldout_share=0))
    assert [e.prompt for e in everything(task)] == ["first"]
    assert task.malformed[0].line == 3


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    chat = [{"role": "user", "content": "hi"}]
    table = pyarrow.table(
        {"prompt": [chat, None, [{"role": "user", "content": "there"}]], "answer": [1, 2, 3]}
    )
    parquet.write_table(table, tmp_path / "rows.parquet")
    task = load_task(str(tmp_path / "rows.parquet"), TaskOptions(heldout_share=0))
    assert {(e.prompt[0]["content"], e.answer) for e in everything(task)} == {("hi", "1"), ("there", "3")}
    assert "row 2: it has no prompt" in task.summary()
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        load_task(str(tmp_path / "torn.parquet"))


@pytest.mark.parametrize(
    ("spec", "package"), [("rows.parquet", "pyarrow"), ("openai/gsm8k:main", "datasets")]
)
def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch, tmp_path, spec, package):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.parquet").touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"install the {package} package: pip install opd-studio\[data\]"):
        load_task(spec)


def test_a_data_set_of_the_hub(monkeypatch):
    asked = []

    class FakeDatasets:
        @staticmethod
        def load_dataset(name, config, *, split):
            asked.append((name, config, split))
            if split != "train":
                raise ValueError(f"Unknown split {split!r}.")
            return [{"question": row["prompt"], "answer": f"so\n#### {row['answer']}"} for row in ROWS]

    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets)
    options = TaskOptions(prompt_column="question", verifier="numeric")
    task = load_task("openai/gsm8k:main", options)
    assert asked == [("openai/gsm8k", "main", "train")]
    example = task.heldout(1)[0]
    assert task.verify(example, f"The answer is {int(example.prompt.split()[2]) + 1}.")
    with pytest.raises(ValueError, match="The data set a/b cannot be loaded: Unknown split 'dev'"):
        load_task("a/b", TaskOptions(task_split="dev"))


def test_without_answers_nobody_can_say(tmp_path):
    task = load_task(write(tmp_path / "open.jsonl", [{"prompt": row["prompt"]} for row in ROWS]))
    assert not task.malformed
    assert task.verify(task.heldout(1)[0], "7") is None


def test_a_wrong_column_names_those_there_are(jsonl):
    with pytest.raises(ValueError, match=r"no column 'question'; it has prompt, answer. Set prompt_column"):
        load_task(jsonl, TaskOptions(prompt_column="question"))
    with pytest.raises(ValueError, match=r"no column 'gold'; it has prompt, answer. Set answer_column"):
        load_task(jsonl, TaskOptions(answer_column="gold"))


def test_a_file_without_usable_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no row to train on. It is empty"):
        load_task(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(ValueError, match=r"no row to train on. 1 malformed rows: line 1"):
        load_task(write(tmp_path / "bad.jsonl", [{"prompt": None}]))


def test_no_held_out_rows_names_the_way_out(jsonl):
    task = load_task(jsonl, TaskOptions(heldout_share=0))
    assert task.heldout(0) == []
    with pytest.raises(ValueError, match=r"no held-out rows in its test split.*heldout_share.*eval_prompts"):
        task.heldout(1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing.jsonl", "nothing.jsonl cannot be read: No such file"),
        ("word", "no task called 'word'. Known tasks: demo"),
        (
            "./a/b",
            r"no task called .* with pip install opd-studio\[data\], a .parquet file or a hub data set",
        ),
    ],
)
def test_an_unknown_task_is_refused_with_those_there_are(spec, message):
    with pytest.raises(ValueError, match=message):
        load_task(spec)


def test_everyday_requests_are_shipped_whole_and_of_all_kinds(monkeypatch, tmp_path):
    (tmp_path / "everyday").write_text("a file of that name changes nothing")
    monkeypatch.chdir(tmp_path)
    task = load_task("everyday")
    assert sum(task.sizes().values()) == 340
    assert (task.malformed, task.duplicates) == ([], 0)
    train, tuning, test = ([e.prompt for e in split] for split in splits(task))
    assert len(test) >= 32, "a KL over fewer prompts says little"
    assert len(tuning) >= 12
    assert len({prompt.split()[0] for prompt in test}) >= 12
    for split in (train, test):
        said = " ".join(split)
        assert "🎉" in said or "🌞" in said or "🙃" in said
        assert all(kind in said for kind in ("table", "letter", "Python", "emoji", "Plan"))
    example = Example(test[0])
    assert task.verify(example, "Anything.") is None
    assert load_task("everyday", TaskOptions(heldout_share=0.5)).sizes()["test"] > 2 * len(test)


def test_the_demo_task_takes_no_options():
    assert isinstance(load_task("demo", TaskOptions()), DemoTask)
    with pytest.raises(ValueError, match="demo has a verifier of its own and does not take verifier"):
        load_task("demo", TaskOptions(verifier="math"))


class Own(Task):
    """As little of a task as evaluates."""

    name = "own"

    def heldout(self, n, *, split="test"):
        return [Example("One?", "1")] * n


def test_a_task_of_one_s_own_is_refused_before_anything_is_sampled(pair):
    assert (Own().sizes(), Own().fingerprint()) == ({}, "")
    Own.verify = lambda self, example, completion: True
    for task in (Own(), object()):
        with pytest.raises(ValueError, match=r"needs a method verify\(example, completion, \*, cut=False\)"):
            evaluate(pair.student, task, n=1)
