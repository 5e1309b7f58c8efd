"""The benchmarks' pieces on tiny sizes: the harness measures what it says, and the sides do the same work."""

import json
import math

import numpy as np
import pytest
import torch
from tiny import make_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from benchmarks import five_seeds, growth, heal, measuring, roofline
from benchmarks.gradient import make_gradient
from benchmarks.measuring import Cost, Figure, Ratio, alternate, fitted_exponent, peak_memory
from benchmarks.peers import trl
from benchmarks.peers.generate import tokens_generated
from benchmarks.step import Replay
from opd.config import DistillConfig
from opd.engines.sampling import sample
from opd.models.pair import Pair
from opd.reports import StepReport
from opd.runs.run import create_run
from opd.tasks import load_task
from opd.training.distillation import distill
from opd.training.update import gradient

pytestmark = pytest.mark.engine

MIB = 2**20


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(power):
    sizes = [64, 512, 2048, 8192]
    assert fitted_exponent(sizes, [3.0 * s**power for s in sizes]) == pytest.approx(power, abs=1e-9)


def test_ratios_compare_rounds_per_token():
    # The machine was four times as slow in the last round: paired, that changes nothing.
    less = [Cost(1.0, 2.0, 100), Cost(1.0, 2.0, 100), Cost(4.0, 8.0, 100)]
    more = [Cost(3.0, 8.0, 150), Cost(2.0, 4.0, 100), Cost(8.0, 16.0, 100)]
    ratio = Ratio.of(more, less)
    assert (ratio.wall, ratio.cpu) == (2.0, 2.0)
    assert ratio.low == ratio.high == 2.0


def test_sides_take_turns_and_the_warm_up_is_not_counted():
    done = []
    costs = alternate({s: lambda k, s=s: done.append((s, k)) or 7 for s in "ab"}, rounds=2, warm_up=1)
    assert [k for _, k in done] == [0, 0, 1, 1, 2, 2]
    assert done[0][0] != done[2][0], "who goes first changes"
    assert {s: [c.tokens for c in kept] for s, kept in costs.items()} == {"a": [7, 7], "b": [7, 7]}


def test_the_peak_counts_what_was_freed_again():
    with peak_memory() as peak:
        np.ones(64 * MIB, np.uint8)
    assert 60 * MIB < peak.extra < 80 * MIB
    with peak_memory() as peak:
        pass
    assert peak.extra < 4 * MIB, "an earlier peak does not count"


def test_targets_are_bounds_and_the_object_holds_every_figure():
    figures = [Figure("a", 2.0, at_least=2.5), Figure("b", 2.0, at_most=2.5), Figure("c", 1.0, "s")]
    assert [f.met for f in figures] == [False, True, True]
    shown = json.loads(measuring.as_json(figures))
    assert (shown["a"], shown["b"], shown["c"]) == (2.0, 2.0, 1.0)
    assert "NOT met" in measuring.table(figures)


def test_generate_counts_each_completion_up_to_its_end():
    """Greedy completions of both sides are equal, so their tokens must be as many."""
    prompts, limits = ["a", "What is it?", "four words are here"], {"max_tokens": 24}
    model = make_model(0)
    written = sample(model, prompts[0:1], temperature=0, **limits)[0]
    model = make_model(0)
    model.causal_lm.generation_config.eos_token_id = int(written.completion_ids[9])  # so that some do end
    ours = sample(model, prompts, temperature=0, **limits)
    assert min(map(len, ours)) < max(map(len, ours))
    rendered = [model.render(p) for p in prompts]
    counted = tokens_generated(model.causal_lm, rendered, batch=2, do_sample=False, **limits)
    assert counted == sum(map(len, ours))


def models() -> Pair:
    """Without padded rows, which TRL's loss would count."""
    return Pair(make_model(0, rows=261), make_model(1, rows=261, hidden_size=48))


def test_trl_makes_the_updates_that_we_make(tmp_path):
    """Same ids, loss, clipping, optimizer and schedule: after three steps both students have moved alike."""
    config = DistillConfig(
        steps=3, warmup_steps=1, prompts_per_step=4, substeps=1, max_tokens=12, eval_prompts=0
    )
    task = load_task("demo")
    prompts = [[e.prompt for e in task.batch(4, step=k, seed=config.seed)] for k in (1, 2, 3)]
    start, ours = models(), models()
    start.student.model.save_pretrained(tmp_path / "student")
    start.teacher.model.save_pretrained(tmp_path / "teacher")
    theirs = [AutoModelForCausalLM.from_pretrained(tmp_path / side) for side in ("student", "teacher")]
    steps = [sample(start, asked, seed=k, max_tokens=12) for k, asked in enumerate(prompts)]
    run = distill(config, ours)
    run.sampler = Replay(steps)
    counted = [report.metrics.get("trained_tokens") for report in run][1:]

    seen = []

    def after_step(step: trl.PeerStep) -> bool:
        seen.append(step)
        return True

    replayed = [[t.completion_ids.tolist() for t in trajectories] for trajectories in steps]
    trl.train(*theirs, start.tokenizer, config, prompts, after_step, replay=replayed)
    assert [s.cost.tokens for s in seen] == counted
    assert all(0 < s.update.wall < s.cost.wall for s in seen)
    before, our_weights, their_weights = (
        torch.cat([p.detach().flatten() for p in model.parameters()])
        for model in (start.student.model, ours.student.model, theirs[0])
    )
    moved = our_weights - before, their_weights - before
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.999
    assert moved[0].norm() / moved[1].norm() == pytest.approx(1, abs=1e-3)


def test_the_gradient_is_that_of_a_step():
    settings = {"steps": 1, "warmup_steps": 0, "prompts_per_step": 4, "substeps": 1, "max_tokens": 12}
    run = distill(DistillConfig(**settings, eval_prompts=0, max_grad_norm=1e9), models())
    rollouts = run.sample(1)
    gradient(run.learner, rollouts, run.teachers)
    pair = models()
    pair.student.model.requires_grad_(True)
    make_gradient(pair, [r.trajectory for r in rollouts])
    for name, parameter in pair.student.model.named_parameters():
        torch.testing.assert_close(parameter.grad, run.parameters[name].grad, msg=name)


def test_every_kind_of_work_runs_at_a_size():
    for work in (growth.rollout, growth.graded, growth.update):
        seconds, extra = growth.cost_of(work, growth.Size(length=12, batch=3, vocabulary=64))
        assert seconds > 0
        assert extra > 0


def test_the_real_size_script_runs_at_a_small_one():
    figures = {f.name: f.value for f in roofline.measure_at(roofline.TINY)}
    assert all(math.isfinite(v) and v > 0 for v in figures.values())


def test_needed_operations_are_those_of_the_matrices():
    model = make_model(0, rows=261)
    trajectory = sample(model, ["hello"], max_tokens=8)[0]
    counted = FlopCounterMode(display=False)
    ids = np.concatenate([trajectory.prompt_ids, trajectory.completion_ids[:-1]])
    with counted, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model.head(model.hidden(torch.from_numpy(ids)[None])[0, -len(trajectory) :])
    # The counter takes attention for full; half of it lies behind the diagonal.
    assert roofline.forward_flops(model, [trajectory]) == pytest.approx(counted.get_total_flops(), rel=0.15)


def healed_run(seed, *curve):
    """A run on disk with evaluations, and a step before each of them but the first."""
    run = create_run(f"heal-{seed}", DistillConfig(seed=seed, steps=len(curve) - 1))
    for step, kl in enumerate(curve):
        metrics = {"heldout_kl": kl, "heldout_prompts": 40, "seconds_evaluate": 2.0}
        metrics |= {"tokens": 480, "seconds_sample": 1.5, "seconds_update": 2.5} if step else {}
        run.append(StepReport(step, metrics))
    return run


def test_what_is_said_of_healing_is_what_its_runs_wrote(capsys):
    runs = [healed_run(0, 1.5, 1.2, 1.0), healed_run(1, 1.6, 1.1, 0.9), healed_run(2, 1.7, 1.3, 0.8)]
    found = [heal.measured(run) for run in runs]
    assert found[0] == {
        **{"seed": 0, "prompts": 40, "curve": [[0, 1.5], [1, 1.2], [2, 1.0]]},
        **{"trained_tokens": 960, "training_seconds": 8.0, "evaluation_seconds": 6.0},
    }
    heal.say(found)
    # Falls of 0.5, 0.7 and 0.9: their mean, and Student's t with two degrees of freedom times 0.2 / sqrt(3).
    assert "fell by 0.700 [0.203, 1.197] over 3 seeds" in capsys.readouterr().out


def test_the_figures_are_drawn_from_the_data_beside_them():
    data = [json.loads(module.DATA.read_text(encoding="utf-8")) for module in (five_seeds, heal)]
    assert five_seeds.FIGURE.read_text(encoding="utf-8") == five_seeds.draw(data[0])
    assert heal.FIGURE.read_text(encoding="utf-8") == heal.draw(data[1], data[0])
