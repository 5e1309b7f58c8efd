"""Several processes: they see what one sees, save what one saves, and fail together, in words."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parallel_worker import CASES, ELSEWHERE, observe
from safetensors.torch import load_file
from tiny import make_model

import opd
from opd.cli import main
from opd.models import parallel
from opd.models.parallel import gpus, share
from opd.runs import worker
from opd.runs.run import open_run
from opd.training import preview, rollouts
from opd.training.memory import estimate_memory

pytestmark = pytest.mark.engine

HERE = Path(__file__).parents[1]  # of the worker
QUICK = ("plain", "sharded", *ELSEWHERE)
RUN = ["--prompts-per-step", "6", "--max-tokens", "24", "--eval-prompts", "8", "--eval-every", "2"]
RUN += ["--warmup-steps", "0", "--device", "cpu"]


def torchrun(*command, timeout=300):
    """Run something in two processes and return its exit code and what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command],
        cwd=HERE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def observations(folder, cases):
    code, said = torchrun("parallel_worker.py", str(folder), *cases)
    assert code == 0, said
    return {case: torch.load(folder / f"{case}.pt", weights_only=False) for case in cases}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return observations(tmp_path_factory.mktemp("two"), QUICK)


@pytest.fixture(scope="module")
def two_more(tmp_path_factory):
    return observations(tmp_path_factory.mktemp("more"), CASES.keys() - set(QUICK))


def agree(several, one):
    """The sampled tokens are equal; all else is, up to fp32 round-off."""
    assert several["ids"] == one["ids"]
    assert len(set(map(len, one["ids"]))) > 1, "trajectories of equal lengths would show nothing"
    np.testing.assert_allclose(
        np.concatenate(several["penalties"]), np.concatenate(one["penalties"]), atol=1e-5
    )
    assert max(float(g.abs().max()) for g in one["gradient"].values()) > 1e-3
    for name, gradient in one["gradient"].items():
        torch.testing.assert_close(several["gradient"][name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    same_rows(several["rows"], one["rows"])
    assert several["texts"] == one["texts"]
    for name, weight in one["weights"].items():
        # A gradient that is but round-off may have either sign, and Adam makes a whole step of it.
        far = (several["weights"][name] - weight).abs() > 2e-4
        assert far.float().mean() < 1e-3, name


def same_rows(rows, others):
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            if not any(word in name for word in ("second", "memory")):
                # After an update: of a small gradient round-off is a part of Adam's step. One token's ratio
                # shows that most, and a share that one token can enter.
                rel = 1e-3 if name in ("importance_ratio_max", "shared_mass") else 1e-4
                assert row[name] == pytest.approx(other[name], rel=rel, abs=1e-6), name


@pytest.mark.parametrize("case", QUICK)
def test_two_processes_see_what_one_sees(two, case):
    agree(two[case], observe(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in QUICK])
def test_two_processes_see_what_one_sees_whatever_is_asked(two_more, case):
    agree(two_more[case], observe(case))


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_teacher_elsewhere_is_asked_once_for_each_trajectory_by_one_of_the_processes(two, case):
    shares = two[case]["asked"]
    assert all(shares), "a process asked for nothing"
    texts = list(itertools.chain(*shares))
    assert len(texts) == len(set(texts)) == 2 * 7  # steps, rollouts a step


@pytest.mark.slow
@pytest.mark.parametrize("changes", [[], ["--shard"], ["--shard", "--lora-rank", "4"]], ids=" ".join)
def test_a_run_goes_on_with_another_number_of_processes(changes, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    begin = ["train", "--steps", "2", *RUN, *changes, "--name"]
    assert main([*begin, "alone"]) == 0
    assert torchrun("-m", "opd", *begin, "changing")[0] == 0
    for steps, start in ((4, main), (6, lambda command: torchrun("-m", "opd", *command)[0])):
        assert main(["train", "--resume", "alone", "--steps", str(steps)]) == 0
        assert start(["train", "--resume", "changing", "--steps", str(steps)]) == 0
    alone, changing = open_run("alone"), open_run("changing")
    same_rows(changing.rows(), alone.rows())
    texts = [[s.review.text for s in run.samples.rollouts(6)] for run in (changing, alone)]
    assert texts[0] == texts[1]
    name = "adapter_model.safetensors" if "--lora-rank" in changes else "model.safetensors"
    ours, theirs = (load_file(run.model_dir / name) for run in (changing, alone))
    assert ours.keys() == theirs.keys()
    for key, weight in theirs.items():
        torch.testing.assert_close(ours[key], weight, atol=1e-3, rtol=0, msg=key)
    grades = opd.grade(
        opd.load_pair(str(changing.model_dir)), opd.sample(opd.load_pair(), ["What is 7 + 3?"], max_tokens=8)
    )
    assert np.isfinite(grades[0].penalty).all(), "what was saved is a model"


@pytest.mark.slow
@pytest.mark.parametrize("changes", [[], ["--shard"]], ids=" ".join)
def test_a_process_that_fails_ends_all_with_its_sentence(changes):
    code, said = torchrun(
        "parallel_worker.py", "fail", "train", "--name", "broken", "--steps", "2", *RUN, *changes
    )
    assert code != 0
    assert "opd: The card fell out." in said
    assert "opd: Process 1 of the run failed: The card fell out." in said
    status = open_run("broken").status()
    assert (status.state, status.message) == ("failed", "Process 1 of the run failed: The card fell out.")


def test_shares_are_dealt_by_size_and_leave_nothing_out(monkeypatch):
    monkeypatch.setattr(parallel, "world", lambda: 3)
    sizes = [5, 90, 7, 100, 1, 80, 6]
    shares = [share(sizes, number) for number in range(3)]
    assert sorted(itertools.chain(*shares)) == list(range(7))
    assert all(sum(sizes[i] >= 80 for i in mine) == 1 for mine in shares)


def test_every_process_wants_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(parallel.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert list(gpus(torch.device("cuda"))) == [0, 1]
    assert list(gpus(torch.device("cuda:1"))) == [1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="4 processes on a machine with 2 GPUs"):
        gpus(torch.device("cuda"))
    monkeypatch.setattr(worker, "world", lambda: 2)
    monkeypatch.setattr(worker, "resolve_device", torch.device)
    with pytest.raises(ValueError, match=r"set the device to auto instead of cuda:0"):
        worker.devices_of(opd.DistillConfig(device="cuda:0"))


def test_sharding_divides_what_an_update_keeps():
    student, teacher = make_model(0).causal_lm, make_model(1).causal_lm
    plain, sharded = (
        estimate_memory(student, teacher, opd.DistillConfig(shard=shard), processes=4)
        for shard in (False, True)
    )
    for part in ("student", "gradients", "moments"):
        assert getattr(sharded, part) == pytest.approx(getattr(plain, part) / 4, abs=1)
    assert sharded.student + sharded.sampling == plain.student + plain.sampling, "to sample it is whole"


def test_the_plan_says_what_sits_where_and_who_talks_to_whom(monkeypatch):
    run = opd.distill(opd.DistillConfig(shard=True), opd.Pair(make_model(0), make_model(1, name="wise")))
    assert preview.plan(run)[0] == "One process trains the student, on cpu."
    monkeypatch.setattr(preview, "world", lambda: 2)
    monkeypatch.setattr(preview, "exchange", lambda device: ["cuda:0", "cuda:1"])
    size = sum(p.numel() * 4 for p in run.student.model.parameters()) / 2**20
    students, teacher, talk = preview.plan(run)
    assert students.startswith(
        "2 processes train the student, on cuda:0, cuda:1; each holds 1/2 of its weights"
    )
    assert teacher.startswith("The teacher wise sits on cpu (")
    assert "once for each process" in teacher
    assert talk.count(f"({size:.0f} MiB)") == 2


def test_the_plan_says_where_vllm_sits_and_what_it_takes(monkeypatch):
    run = opd.distill(opd.DistillConfig(), opd.Pair(make_model(0), make_model(1)))
    assert "vLLM" not in " ".join(preview.plan(run))
    run.config = opd.DistillConfig(engine="vllm", vllm_memory=0.45)
    run.sampler = SimpleNamespace(memory_share=0.45)
    assert preview.plan(run)[1].startswith(
        "Beside it, on cpu, a vLLM in a process of its own samples, with 45%"
    )
    monkeypatch.setattr(preview, "world", lambda: 2)
    monkeypatch.setattr(preview, "exchange", lambda device: ["cuda:0", "cuda:1"])
    assert preview.plan(run)[1].startswith("Beside each of them, on its device, a vLLM")


def test_several_processes_do_not_sample_ahead(monkeypatch):
    monkeypatch.setattr(rollouts, "world", lambda: 2)
    config = opd.DistillConfig(engine="vllm", asynchronous=True, objective="importance_sampling")
    with pytest.raises(ValueError, match="one process only"):
        opd.distill(config)


def test_vllm_and_sharding_exclude_each_other():
    with pytest.raises(ValueError, match="shard"):
        opd.DistillConfig(shard=True, engine="vllm")
