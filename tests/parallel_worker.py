"""What a run does, looked at in one process by the tests and in several by torchrun, which starts this file.

``parallel_worker.py FOLDER CASE...`` writes what the cases show; ``parallel_worker.py fail ARGUMENT...`` is
the command line, with a second process that fails in its first update.
"""

import sys
from pathlib import Path
from unittest.mock import patch

import torch
from elsewhere import Elsewhere
from tiny import make_model

import opd
from opd.cli import main
from opd.models.pair import Pair
from opd.models.parallel import exchange, processes, rank, whole
from opd.training.distillation import distill
from opd.training.rollouts import settle
from opd.training.update import gradient, update

QUICK = {
    "steps": 2,
    "warmup_steps": 0,
    "prompts_per_step": 7,
    "substeps": 3,
    "max_tokens": 24,
    "eval_prompts": 6,
    "micro_batch_tokens": 1,  # one rollout each: of seven, one process makes four and the other three
    "learning_rate": 1e-2,
}
CASES = {
    "plain": {},
    "sharded": {"shard": True},
    "adapter": {"lora_rank": 4},
    "sharded adapter": {"shard": True, "lora_rank": 4},
    "sharded, larger micro-batches": {"shard": True, "micro_batch_tokens": 200},
    "sharded, windows": {"shard": True, "micro_batch_tokens": 200},  # which do not pack
    "sharded, recomputed": {"shard": True, "gradient_checkpointing": True},
    "sharded, its own teacher": {
        "shard": True,
        "teacher": "self",
        "teacher_live": True,
        "teacher_hint": "Be wrong.",
    },
    "sharded, two lessons": {
        "shard": True,
        "teacher": "self",
        "teacher_live": True,
        "lessons": [{"teacher": "self", "task": "demo", "share": 0.2}],
    },
    "rewards in groups": {"objective": "rl", "samples_per_prompt": 3, "chain": 2, "prompts_per_step": 6},
    # Not evaluated: round-off that two updates have enlarged is another token in one of the 64 probes.
    "chosen tokens": {
        "objective": "importance_sampling",
        "discount": 0.5,
        "tokens": "fork_score",
        "eval_prompts": 0,
    },
    "sharded, chosen tokens": {"shard": True, "objective": "importance_sampling", "tokens": "penalty"},
    "sharded, two authors": {"shard": True, "objective": "gkd"},
}
# A teacher elsewhere, which grades before the update, in one part of the step and in two.
ASKED = {
    "objective": "importance_sampling",
    "discount": 0.5,
    "substeps": 1,
    "eval_prompts": 0,
    "micro_batch_tokens": 100,
}
ELSEWHERE = {
    "asked, one update a step": ASKED,
    "asked, two updates a step": ASKED | {"substeps": 2},
    "asked, sharded": ASKED | {"substeps": 2, "shard": True, "micro_batch_tokens": 1},
}
ALL_CASES = CASES | ELSEWHERE


class Counting(Elsewhere):
    """Keeps which texts it was asked about."""

    def __init__(self, model):
        super().__init__(model)
        self.asked = []

    def score(self, trajectories, **options):
        self.asked += [(*t.prompt_ids.tolist(), *t.completion_ids.tolist()) for t in trajectories]
        return super().score(trajectories, **options)


def observe(case):
    """Return the gradient of the first step's trajectories, and a run's rows, texts and last weights.

    And what each process asked a teacher elsewhere in the run.
    """
    changes, scorer = ALL_CASES[case], Counting(make_model(1, hidden_size=48))
    windows = {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 0}
    student = make_model(0, **windows if "windows" in case else {})
    assert student.packs == ("windows" not in case)
    student.causal_lm.generation_config.eos_token_id = list(range(0, 256, 12))  # completions of many lengths
    own = "teacher_hint" in changes
    run = distill(
        opd.DistillConfig(**QUICK | changes),
        Pair(
            student,
            student if own else make_model(1, hidden_size=48),
            scorer if case in ELSEWHERE else None,
        ),
    )
    if own:
        run.lessons[0].pair.teacher = run.student
    # A random model is never right; like this it often is.
    with patch.object(
        type(run.lessons[0].task), "verify", lambda task, example, text, **_: len(text) % 3 != 0
    ):
        rollouts = run.sample(1)
        if run.config.grades_first:
            rollouts = settle(run.config, rollouts, run.grade(rollouts))
        updated = gradient(run.learner, rollouts, run.teachers)
        gradients = {name: whole(p.grad).clone() for name, p in run.parameters.items()}
        scorer.asked.clear()
        reports = list(run)
    return {
        "ids": [r.trajectory.completion_ids.tolist() for r in rollouts],
        "penalties": [g.penalty for g in updated.grades],
        "gradient": gradients,
        "rows": [r.row() for r in reports],
        "texts": [review.text for r in reports for review in (*r.samples, *r.probes)],
        "weights": run.state_dict()["weights"],
        "asked": exchange(scorer.asked),
    }


def write_cases(folder, cases):
    with processes():
        for case in cases:
            seen = observe(case)
            if rank() == 0:
                torch.save(seen, Path(folder) / f"{case}.pt")


def fail(arguments):
    def broken(*args):
        if rank() == 1:
            raise RuntimeError("The card fell out.")
        return update(*args)

    with patch("opd.training.distillation.update", broken):
        raise SystemExit(main(arguments))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "fail":
        fail(sys.argv[2:])
    else:
        write_cases(sys.argv[1], sys.argv[2:])
