"""Graded trajectories that a run keeps: read by step, bounded."""

import json

import numpy as np
from graded import make_review

from opd.reports import FrozenScores, Push, StepReport


def kept(step, seed=0, **groups):
    """A report that keeps one rollout, with what was meant and done to its three tokens."""
    columns = np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)
    made = make_review(["a", "b", str(step)])
    return StepReport(step, {"loss": 1.0}, samples=[made, made], pushes=[Push(*columns)] * 2, **groups)


def test_kept_rollouts_probes_and_frozen_probes_are_read_by_step(run):
    scores = FrozenScores(*np.float32([[0.5, -1, 2], [0.25, 0, 1e-7], [-0.1, -1.23456789, -9]]))
    run.append(StepReport(0, {}, probes=[make_review(["p"]), make_review(["q"])], frozen=[scores]))
    for step in range(1, 6):
        run.append(kept(step, seed=step))
    assert run.samples.steps() == [1, 2, 3, 4, 5]
    assert run.samples.steps("probe") == run.samples.steps("frozen") == [0]
    samples = run.samples.rollouts(4)
    assert [(s.step, s.index, s.review.text) for s in samples] == [(4, 0, "ab4"), (4, 1, "ab4")]
    np.testing.assert_allclose(samples[0].push.advantage, kept(4, seed=4).pushes[0].advantage, rtol=1e-3)
    assert [review.text for review in run.samples.probes(0)] == ["p", "q"]
    ((index, frozen),) = run.samples.frozen(0).items()
    assert index == 0
    np.testing.assert_allclose(frozen.logprobs, scores.logprobs, rtol=1e-3)
    assert run.samples.rollouts(77) == run.samples.probes(3) == []


def test_a_step_that_was_made_again_shows_its_newest_rollouts(run):
    run.append(kept(1, seed=1))
    assert len(run.samples.rollouts(1)) == 2
    with (run.path / "samples.jsonl").open("ab") as file:
        file.write(b'{"step": 1, "kind": "rollout", "index": 1, "rev')
    run.append(kept(1, seed=2))
    samples = run.samples.rollouts(1)
    assert len(samples) == 2
    np.testing.assert_allclose(samples[1].push.change, kept(1, seed=2).pushes[0].change, rtol=1e-3)


def test_a_step_of_a_large_file_is_found_without_parsing_the_others(run, monkeypatch):
    for step in range(1, 40):
        run.append(kept(step))
    run.samples.steps()
    parsed, loads = [], json.loads
    monkeypatch.setattr("json.loads", lambda text: parsed.append(1) or loads(text))
    assert len(run.samples.rollouts(20)) == 2
    assert len(parsed) == 2


def test_the_file_of_rollouts_is_bounded_and_says_so_once(run, monkeypatch):
    size = len(json.dumps(make_review(["a", "b", "1"]).to_dict())) + 200
    monkeypatch.setattr("opd.runs.samples.SAMPLES_LIMIT", 40 * size)
    for step in range(1, 2001, 20):
        run.append(kept(step))
    run.append(StepReport(2000, {}, probes=[make_review(["p"])]))
    assert (run.path / "samples.jsonl").stat().st_size < 30 * size
    steps = run.samples.steps()
    assert 5 < len(steps) < 20
    assert steps[0] == 1
    assert steps[-1] > 1500, "rollouts are kept all along a run, not only at its start"
    assert run.samples.steps("probe") == [2000], "probes find room when rollouts no longer do"
    assert len(run.notes()) == 1
    assert "MiB of graded trajectories" in run.notes()[0]
