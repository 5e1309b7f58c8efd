"""Long work says what it is doing to whoever listens."""

import pytest

import opd
from opd import phases
from opd.phases import announce, count, listening
from opd.training.doctor import CHECKS, examine
from opd.training.preview import preview


def test_nobody_need_listen_and_no_word_gets_out_of_the_block():
    announce("Loading")
    count(1, 2)
    heard = []
    with listening(heard.append):
        announce("Loading")
    announce("Evaluating")
    assert heard == ["Loading"]


def test_a_count_belongs_to_its_phase_and_comes_now_and_then(monkeypatch):
    now = 0.0
    monkeypatch.setattr(phases.time, "monotonic", lambda: now)
    heard = []
    with listening(heard.append):
        count(1, 8)
        for phase in ("Evaluating", "Sampling"):
            announce(phase)
            for done in range(1, 9):
                now += phases.COUNT_SECONDS / 4
                count(done, 8)
    assert heard[:3] == ["Evaluating", "Evaluating: 4 of 8", "Evaluating: 8 of 8"]
    assert heard[3:] == ["Sampling", "Sampling: 4 of 8", "Sampling: 8 of 8"]


@pytest.mark.engine
def test_what_takes_long_says_so(folders, monkeypatch):
    monkeypatch.setattr(phases, "COUNT_SECONDS", 0.0)
    config = opd.DistillConfig(
        student=folders["student"],
        teacher=folders["teacher"],
        ignore_doctor=True,
        steps=1,
        prompts_per_step=4,
        substeps=1,
        max_tokens=4,
        eval_prompts=8,
    )
    heard = []
    with listening(heard.append):
        pair = opd.load_pair(config.student, config.teacher)
        assert heard == [f"Loading {config.student}", f"Loading {config.teacher}"]
        heard.clear()
        examine(pair, config=config)
        assert [phase.rpartition(": ")[2] for phase in heard if phase.startswith("Examining")] == [*CHECKS]
        heard.clear()
        preview(config, pair)
        assert heard[0] == "Reading demo"
        assert {"Sampling: 4 of 4", "Grading and taking the gradient: 4 of 4"} <= {*heard}
        assert any(phase.startswith(f"Timing an evaluation of {config.teacher}: ") for phase in heard)
        heard.clear()
        for _ in opd.distill(config, pair):
            pass
    assert {"Asking the probes: 64 of 64", f"Evaluating {config.student}: 8 of 8"} <= {*heard}
