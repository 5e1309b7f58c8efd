"""On a device of its own, or on two, all is as on the CPU, and nothing meets what is elsewhere.

The device is a pretended one (pretend.py), so that this is tested where there is no GPU.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pretend
import pytest
import torch
from pretend import NAME, Mixed
from tiny import make_model, make_tokenizer, small_config

import opd
from opd.grading.branching import branch, fork_value, teacher_line
from opd.models.load import resolve_dtype
from opd.models.pair import load_pair
from opd.objectives import OBJECTIVES
from opd.packed import pack
from opd.tasks import Example, load_task
from opd.training.update import gradient

pytestmark = [pytest.mark.engine, pytest.mark.device]

PLACES = {"both there": (NAME, NAME), "the student there": (NAME, "cpu"), "the teacher there": ("cpu", NAME)}

BFLOAT16 = 2 / 16
"""Nats by which a figure in bfloat16 may differ: a last digit of the logits of each model, between 8 and 16.
On a device of ours the CPU's fused kernels are not taken, so products are rounded elsewhere."""


@pytest.fixture(scope="module", autouse=True)
def device() -> Iterator[torch.device]:
    with pretend.moved_in_place():
        yield pretend.register()


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def places(request) -> tuple[str, str]:
    return request.param


def pair_at(folders, student: str, teacher: str, dtype: str = "float32", **options):
    return load_pair(
        folders["student"], folders["teacher"], device=student, teacher_device=teacher, dtype=dtype, **options
    )


def run_at(folders, student: str, teacher: str, **changes):
    """A run of one step of two updates, of which the second shows what the first has changed."""
    here = {"device": student, "teacher_device": teacher, "dtype": "float32"}
    models = {
        "student": folders["student"],
        "teacher": folders["teacher"],
        "learning_rate": 1e-2,
        "prompts_per_step": 2,
        "max_tokens": 12,
    }
    return opd.distill(small_config(**here | models | changes))


@cache
def reports_here(folders, changes):
    return list(run_at(dict(folders), "cpu", "cpu", **dict(changes)))


def here(folders, **changes):
    """What the same run reports on the CPU."""
    return reports_here(tuple(folders.items()), tuple(changes.items()))


def same_graded(found, expected, tolerance: float = 1e-5) -> None:
    for (t, g), (u, h) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(t.completion_ids, u.completion_ids)
        for name in ("penalty", "reverse_kl", "forward_kl", "jsd", "student_entropy", "teacher_entropy"):
            if getattr(h, name) is None:  # an update does without some of them
                continue
            np.testing.assert_allclose(getattr(g, name), getattr(h, name), atol=tolerance, err_msg=name)


def same_reports(found, expected, tolerance: float = 1e-3) -> None:
    for one, other in zip(found, expected, strict=True):
        for name in {"loss", "reverse_kl", "penalty", "gradient_norm", "stop_mass"} & other.metrics.keys():
            assert one.metrics[name] == pytest.approx(other.metrics[name], rel=tolerance, abs=tolerance), name
        for mine, theirs in zip(one.samples, other.samples, strict=True):
            assert mine.text == theirs.text


# The device itself


def test_what_is_on_two_devices_does_not_meet(device):
    there, cpu = torch.arange(4.0, device=device), torch.arange(4.0)
    with pytest.raises(Mixed, match="add reads tensors of two devices"):
        there + cpu
    with pytest.raises(Mixed):
        cpu[there.long()]
    with pytest.raises(Mixed):
        there[torch.tensor([1, 2])] = torch.ones(2)
    with pytest.raises(Mixed), torch.inference_mode():
        torch.nn.functional.linear(there[None], cpu[None])
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()


def test_numbers_indices_and_copies_may_come_from_elsewhere(device):
    there, cpu = torch.arange(4.0, device=device), torch.arange(4.0)
    assert (there * torch.tensor(2.0)).tolist() == [0, 2, 4, 6]
    assert there[torch.tensor([3])].item() == 3
    assert cpu.to(device).device == there.device == device
    assert there.cpu().device.type == "cpu"
    there[1:3].copy_(cpu[2:])
    assert there.tolist() == [0, 2, 3, 3]
    weight = torch.ones(2, 4, device=device, requires_grad=True)
    with torch.autocast(NAME, torch.bfloat16):
        product = torch.nn.functional.linear(there[None], weight)
    assert product.dtype == torch.bfloat16
    product.sum().backward()
    assert weight.grad.device == device
    assert weight.grad.dtype == torch.float32


def test_a_mixture_planted_in_an_update_is_found(folders, monkeypatch):
    monkeypatch.setattr("opd.training.update.pack", lambda parts, device: pack(parts))
    with pytest.raises(Mixed):
        list(run_at(folders, NAME, NAME))


# Grading


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", BFLOAT16)])
def test_sampling_and_grades_are_those_of_the_cpu(folders, places, dtype, tolerance):
    def graded(pair):
        written = opd.sample(pair, ["hi", "What is 3 + 4?"], n=2, max_tokens=12)
        return list(zip(written, opd.grade(pair, written), strict=True))

    pair = pair_at(folders, *places, dtype)
    assert [model.device.type for model in (pair.student, pair.teacher)] == list(places)
    same_graded(graded(pair), graded(pair_at(folders, "cpu", "cpu", dtype)), tolerance)


def test_by_default_weights_there_are_bfloat16(device):
    assert resolve_dtype("auto", device) == torch.bfloat16


@pytest.mark.parametrize("at", [(NAME, "cpu"), ("cpu", NAME)], ids=["the student there", "the teacher there"])
def test_branches_go_the_same_ways(folders, at):
    def walked(pair):
        *_, (review,) = opd.stream_reviews(pair, "hi", n=1, max_tokens=12)
        *_, forced = branch(pair, review, 3, 65, max_tokens=12)
        *_, taught = teacher_line(pair, review, 2, temperature=1.0, max_tokens=12)
        known = {"task": load_task("demo"), "example": Example("hi", "4")}
        *_, value = fork_value(pair, review, 2, k=2, max_tokens=12, **known)
        return [(r.trajectory, r.grades) for r in (review, forced, taught)], value.sentence

    (found, said), (expected, also) = (walked(pair_at(folders, *where)) for where in (at, ("cpu", "cpu")))
    same_graded(found, expected)
    assert said == also


def test_what_two_vocabularies_share_is_graded_the_same(tmp_path):
    for seed, token in enumerate(("<think>", "<tool>")):
        make_model(seed, tokenizer=make_tokenizer((token,))).save(tmp_path / token)
    for file in (tmp_path / "<tool>").glob(
        "tokenizer*.json"
    ):  # whose end is another token than the student's
        file.write_text(file.read_text().replace("<|end|>", "<|over|>"))
    names = {"student": str(tmp_path / "<think>"), "teacher": str(tmp_path / "<tool>")}

    def graded(*at):
        pair = pair_at(names, *at, shared_vocabulary=True)
        assert pair.shared.end == (256, 256)
        written = opd.sample(pair, ["hi"], n=2, max_tokens=12)
        return list(zip(written, opd.grade(pair, written), strict=True))

    same_graded(graded("cpu", NAME), graded("cpu", "cpu"))
    steps = [list(run_at(names, *at, shared_vocabulary=True)) for at in ((NAME, "cpu"), ("cpu", "cpu"))]
    same_reports(*steps)


def test_the_doctor_finds_there_what_it_finds_here(folders):
    found, expected = (
        opd.examine(pair_at(folders, *at), config=small_config(max_tokens=12))
        for at in ((NAME, "cpu"), ("cpu", "cpu"))
    )
    assert [(f.check, f.level) for f in found] == [(f.check, f.level) for f in expected]


# Training


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_as_on_the_cpu(folders, objective):
    grouped = OBJECTIVES[objective].judge == "verifier"
    changes = {"objective": objective, **({"samples_per_prompt": 2} if grouped else {})}
    same_reports(list(run_at(folders, NAME, NAME, **changes)), here(folders, **changes))


@pytest.mark.parametrize(
    ("at", "changes"),
    [
        ("the student there", {}),
        ("the teacher there", {}),
        ("both there", {"lora_rank": 4}),
        ("the teacher there", {"lora_rank": 4}),
        ("the student there", {"gradient_checkpointing": True}),
        ("the student there", {"tokens": "entropy", "objective": "importance_sampling"}),
    ],
)
def test_a_run_on_two_devices_is_that_on_one(folders, at, changes):
    same_reports(list(run_at(folders, *PLACES[at], **changes)), here(folders, **changes))


def test_evaluations_and_what_updates_did_are_the_same(folders, monkeypatch):
    monkeypatch.setattr("opd.training.watch.PROBES", 4)
    monkeypatch.setattr("opd.training.distillation.PUSHES_FROM", 1)
    found, expected = (list(run_at(folders, *at, eval_prompts=4)) for at in ((NAME, "cpu"), ("cpu", "cpu")))
    same_reports(found, expected)
    kl = [[r.metrics["heldout_kl"] for r in run if "heldout_kl" in r.metrics] for run in (found, expected)]
    assert kl[0] == pytest.approx(kl[1], abs=1e-3)
    frozen, pushes = (
        [[one for report in run for one in getattr(report, name)] for run in (found, expected)]
        for name in ("frozen", "pushes")
    )
    assert all(map(len, (kl[1], frozen[1], pushes[1]))), "there must be something to compare"
    for mine, theirs in zip(*frozen, strict=True):
        np.testing.assert_allclose(mine.penalty, theirs.penalty, atol=1e-3)
    for mine, theirs in zip(*pushes, strict=True):
        np.testing.assert_allclose(mine.change, theirs.change, atol=1e-3)


@pytest.mark.parametrize(
    ("at", "changes"),
    [("both there", {}), ("the student there", {"lora_rank": 4}), ("the teacher there", {})],
)
def test_under_autocast_to_bfloat16_a_gradient_is_near_that_on_the_cpu(folders, at, changes):
    """Of the same rollouts: where two tokens are as likely, rounding decides which one is sampled."""
    cpu, there = (run_at(folders, *w, dtype="bfloat16", **changes) for w in (("cpu", "cpu"), PLACES[at]))
    rollouts = cpu.sample(1)
    expected = gradient(cpu.learner, rollouts, cpu.teachers)
    moved = [replace(r, lesson=there.lessons[0]) for r in rollouts]
    found = gradient(there.learner, moved, there.teachers)
    same_graded(
        [(r.trajectory, g) for r, g in zip(moved, found.grades, strict=True)],
        [(r.trajectory, g) for r, g in zip(rollouts, expected.grades, strict=True)],
        BFLOAT16,
    )
    assert found.loss == pytest.approx(expected.loss, abs=BFLOAT16)
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=BFLOAT16)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_state_goes_on_there_and_here(folders, lora_rank):
    changes = {"lora_rank": lora_rank, "steps": 2}
    first = run_at(folders, NAME, NAME, **changes)
    next(first), next(first)
    state = first.state_dict()
    others = [run_at(folders, at, at, **changes).load_state_dict(state) for at in (NAME, "cpu")]
    last = list(first)
    for other in others:
        same_reports(list(other), last)
