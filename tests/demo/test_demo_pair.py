"""The tokenizer, the packing and masking of training documents, the embedded models, and the report."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd.demo import make_pair, report
from opd.demo.documents import documents, pack
from opd.demo.make_pair import write_cards
from opd.demo.recipes import RECIPES, ROW_LENGTH, ROWS, Recipe
from opd.demo.tokenizer import build_tokenizer
from opd.files import assets_dir
from opd.models.pair import load_pair
from opd.tasks.demo import DemoTask, Draft, first_error, problems
from opd.trajectory import Grades, TokenScores
from opd.verdicts import DEFAULT_FORKS, FORK_DEFINITIONS

pytestmark = pytest.mark.engine

PAIR = assets_dir() / "pair"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def pair():
    return load_pair()


def test_any_text_survives_the_tokenizer(tokenizer):
    rng = random.Random(0)
    ranges = [(32, 127), (0xA0, 0x2FF), (0x4E00, 0x4F00), (0x1F300, 0x1F600), (0, 32)]
    for _ in range(300):
        text = "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 40)))
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_words_and_digits_are_single_tokens(tokenizer):
    rng = random.Random(1)
    for problem in islice(problems("tokenizer", "test"), 200):
        draft = Draft(rng, 1.0)
        problem.solve(draft)
        ids = tokenizer(problem.prompt).input_ids + tokenizer(draft.text).input_ids
        pieces = [tokenizer.decode([i]) for i in ids]
        assert all(piece.strip().isalpha() or len(piece.strip()) == 1 for piece in pieces), pieces
    assert [tokenizer.decode([i]) for i in tokenizer("It is 142.").input_ids] == [
        "It",
        " is",
        " 1",
        "4",
        "2",
        ".",
    ]


def test_the_chat_template_renders_every_role_and_refuses_others(tokenizer):
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "V"},
    ]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|system|>S<|user|>U<|assistant|>A<|end|><|user|>V<|assistant|>"
    with pytest.raises(Exception, match="Unknown role"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])


def test_packed_documents_do_not_see_each_other(tokenizer):
    batch = pack(documents(tokenizer, RECIPES["student"], False, "t"))
    assert batch["ids"].shape == (ROWS, ROW_LENGTH)
    starts = torch.argwhere(
        (batch["positions"][0, 1:] == 0) & (batch["ids"][0, 1:] != tokenizer.pad_token_id)
    )
    start = int(starts[0]) + 1
    assert not batch["mask"][0, 0, start:, :start].any()
    assert batch["mask"][0, 0, start - 1, :start].all()
    assert batch["weights"][0, start] == 0, "a prompt carries no loss"


def test_only_the_teacher_is_spared_wrong_choices(tokenizer):
    sloppy = {name: next_sloppy(tokenizer, name) for name in RECIPES}
    for name, (ids, weights, wrong) in sloppy.items():
        lossless = [i for i in wrong if weights[i] == 0]
        assert lossless == (wrong if name == "teacher" else []), tokenizer.decode(ids)


def next_sloppy(tokenizer, name):
    """Ids and weights of the first training document with a mistake, and the indices of its wrong tokens."""
    for document in documents(tokenizer, RECIPES[name], False, "sloppy"):
        text = tokenizer.decode(document.ids)
        prompt = text.split("<|user|>")[1].split("<|assistant|>")[0]
        problem = next((p for p in islice(problems("sloppy", "train"), 400) if p.prompt == prompt), None)
        if problem is None:
            continue
        start = document.ids.index(tokenizer.convert_tokens_to_ids("<|assistant|>")) + 1
        pieces = [tokenizer.decode([i]) for i in document.ids[start:-1]]
        wrong = report.first_wrong_token(problem, [*pieces, ""], stopped=True)
        if wrong is not None:
            return document.ids, document.weights, [start + wrong]
    raise AssertionError("no sloppy document")


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(tmp_path: Path, monkeypatch, tokenizer):
    monkeypatch.setattr(make_pair, "build_tokenizer", lambda: tokenizer)
    tiny = Recipe(hidden=64, intermediate=64, layers=1, steps=4, careful=0.5, sloppiness=1.0)
    monkeypatch.setattr(make_pair, "RECIPES", {"student": tiny})
    monkeypatch.setattr(make_pair, "CHECKPOINT_EVERY", 2)
    (tmp_path / "work").mkdir()
    (tmp_path / "other").mkdir()
    make_pair.train("student", tmp_path / "whole", tmp_path / "other", seed=3)

    loss_of, calls = make_pair.loss_of, []

    def power_cut(model, batch):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss_of(model, batch)

    monkeypatch.setattr(make_pair, "loss_of", power_cut)
    with pytest.raises(KeyboardInterrupt):
        make_pair.train("student", tmp_path / "resumed", tmp_path / "work", seed=3)
    assert not (tmp_path / "resumed").exists()
    make_pair.train("student", tmp_path / "resumed", tmp_path / "work", seed=3)
    assert len(calls) == 6, "the first two steps are not repeated"
    files = [(tmp_path / run / "student" / "model.safetensors").read_bytes() for run in ("whole", "resumed")]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_plain_transformers_loads_the_pair(name):
    model = AutoModelForCausalLM.from_pretrained(PAIR / name)
    tokenizer = AutoTokenizer.from_pretrained(PAIR / name)
    assert model.config.model_type == "qwen3"
    assert model.config.head_dim in (32, 64)
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab(), (
        "the families use words the pair has not seen"
    )
    assert len(tokenizer) == model.config.vocab_size
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2 + 3 × 4?"}], add_generation_prompt=True, return_tensors="pt"
    )
    out = model.generate(**ids, do_sample=False, max_new_tokens=60)
    assert "The answer is" in tokenizer.decode(out[0])


def test_the_pair_is_small_and_has_cards():
    assert sum(file.stat().st_size for file in PAIR.rglob("*") if file.is_file()) < 25e6
    tokenizers = {(PAIR / name / "tokenizer.json").read_bytes() for name in RECIPES}
    assert len(tokenizers) == 1
    for name in RECIPES:
        assert "95 %" in (PAIR / name / "README.md").read_text()


def test_the_first_wrong_token_is_that_of_the_oracle_in_the_tokens_of_the_pair(pair):
    rng = random.Random(5)
    tokenizer = pair.tokenizer
    for problem in islice(problems("pieces", "test"), 100):
        draft = Draft(rng, 1.5)
        problem.solve(draft)
        pieces = pair.student.pieces(tokenizer(draft.text).input_ids)
        index = report.first_wrong_token(problem, [*pieces, ""], stopped=True)
        if not draft.wrong:
            assert index is None
            continue
        assert len("".join(pieces[:index])) <= draft.wrong[0] < len("".join(pieces[: index + 1]))
        assert first_error(problem.solve, "".join(pieces[:index])) == len("".join(pieces[:index]))


def test_a_text_that_stops_early_errs_at_its_end_and_a_cut_one_nowhere():
    problem = DemoTask().heldout(1)[0]
    draft = Draft(random.Random(0))
    problem.solve(draft)
    words = draft.text.split(" ")
    pieces = [words[0], *(" " + word for word in words[1:-4])]
    assert report.first_wrong_token(problem, [*pieces, ""], stopped=True) == len(pieces)
    assert report.first_wrong_token(problem, pieces, stopped=False) is None


def test_the_report_has_its_keys_intervals_and_a_card(pair, tmp_path: Path):
    figures = report.pair_report(pair, n=48, split="tuning")
    for key in report.LABELS:
        low, high = figures["details"][key]["interval"]
        assert low - 1e-9 <= figures[key] <= high + 1e-9, key
    assert figures["n"] == 48
    assert figures["n_wrong"] == round((1 - figures["student_accuracy"]) * 48)
    assert figures == report.pair_report(pair, n=48, split="tuning"), "the same seed gives the same report"
    assert figures["teacher_accuracy"] > figures["student_accuracy"]
    for by_marks in figures["forks"].values():
        assert all(0 <= f["exact"]["value"] <= f["near"]["value"] <= 1 for f in by_marks.values())
    assert figures["forks"][DEFAULT_FORKS]["3"]["near"]["value"] > 0.8
    assert report.forks_table(figures).count("\n") == 1 + 3 * (len(FORK_DEFINITIONS) + 1)
    assert np.isclose(sum(f["student"]["n"] for f in figures["families"].values()), 48)
    for name in RECIPES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").symlink_to(PAIR / name / "model.safetensors")
    write_cards(tmp_path, figures)
    card = (tmp_path / "student" / "README.md").read_text()
    assert report.report_table(figures) in card
    assert "48 held-out problems of the tuning split" in card


def test_the_report_of_a_student_that_is_never_wrong_says_so(pair):
    class Certain(DemoTask):
        def verify(self, example, completion, *, cut=False):
            return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "DemoTask", Certain)
        figures = report.pair_report(pair, n=8, split="tuning")
    assert figures["n_wrong"] == 0
    assert figures["student_accuracy"] == 1
    assert figures["first_error_top1"] is None
    assert "nothing to measure" in report.report_table(figures)
    json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize("near", [0, 1])
def test_chance_equals_random_marks(near):
    """Against 4,000 draws of three marks among nine tokens; the bound is four standard errors."""
    rng = np.random.default_rng(0)
    for error in (0, 4):
        failure = SimpleNamespace(grades=range(9), error=error)
        hits = [abs(rng.choice(9, 3, replace=False) - error).min() <= near for _ in range(4000)]
        assert abs(report.chance(failure, 3, near) - np.mean(hits)) < 4 * 0.5 / np.sqrt(4000)
    assert report.chance(SimpleNamespace(grades=range(2), error=0), 3, near) == 1
    assert report.chance(SimpleNamespace(grades=range(2), error=None), 3, near) == 0


def test_fork_figures_count_the_marks_near_the_first_error():
    """Two trajectories; the penalty peaks at 2 and 8, entropy is highest at 5."""
    penalty = np.array([0, 0, 5, 0, 0, 0, 0, 0, 3, 0], np.float32)
    entropy = np.array([0, 0, 0, 0, 0, 1, 0, 0, 0, 0], np.float32)
    flat = np.full(10, np.log(0.5), np.float32)
    scored = TokenScores(flat, entropy, np.zeros(10), np.zeros((10, 1)), flat[:, None])
    grades = Grades(penalty, penalty, scored, scored, np.zeros(10), np.zeros(10), 1.0)
    failures = [SimpleNamespace(grades=grades, error=error) for error in (8, 4, None)]
    figures = report.fork_figures(failures, np.random.default_rng(0))

    def found(definition, marks, how):
        return round(figures[definition][str(marks)][how]["value"] * 3)

    assert [found("penalty", m, "exact") for m in (1, 2)] == [0, 1]
    assert [found("entropy", m, "exact") for m in (1, 2)] == [0, 0]
    assert [found("entropy", m, "near") for m in (1, 2)] == [1, 1]
    assert figures["entropy"]["1"]["near"]["n"] == 3
    assert figures["chance"]["1"]["exact"]["value"] == pytest.approx((0.1 + 0.1 + 0) / 3)
