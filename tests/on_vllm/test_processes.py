"""Several processes, each with a vLLM of its own."""

import os
import subprocess
import sys

from opd.runs.run import open_run

RUN = [
    "--name", "both", "--engine", "vllm", "--vllm-memory", "0.1", "--device", "cpu", "--steps", "3",
    "--prompts-per-step", "8", "--substeps", "1", "--max-tokens", "32", "--eval-prompts", "0",
    "--warmup-steps", "0",
]  # fmt: skip


def test_every_process_samples_its_share_from_the_newest_weights():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*torchrun, "-m", "opd", "train", *RUN],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = open_run("both").rows()[1:]
    assert [row["step"] for row in rows] == [1, 2, 3]
    # A vLLM that missed an update would sample its share from other weights than those that are trained.
    assert max(abs(row["sampler_mismatch"]) for row in rows) < 1e-4
