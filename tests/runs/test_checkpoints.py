"""Checkpoints: whole or not there, loadable, and those that matter outlive the others."""

import json
import shutil
import types
from pathlib import Path

import pytest
from running import measure, measured, train

import opd
from opd.models.load import load_model
from opd.reports import StepReport
from opd.runs.checkpoints import read_checkpoint
from opd.runs.export import export_zip
from opd.runs.run import Run, create_run

pytestmark = pytest.mark.engine


def test_an_adapter_checkpoint_loads_in_plain_peft_from_anywhere(config, tmp_path, monkeypatch):
    folder = Path(config.student)
    monkeypatch.chdir(folder.parent)
    run = train(create_run("adapter", config.model_copy(update={"lora_rank": 4, "student": folder.name})))
    from peft import AutoPeftModelForCausalLM

    model_dir = run.model_dir.resolve()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = Run(model_dir.parents[1])
    plain = AutoPeftModelForCausalLM.from_pretrained(model_dir)
    ours = load_model(str(run.model_dir))
    ids = ours.render("hi")[None]
    import torch

    torch.testing.assert_close(plain(torch.tensor(ids)).logits, ours.model(torch.tensor(ids)).logits)


def test_a_checkpoint_is_whole_or_not_there(config, monkeypatch):
    run = create_run("full-disk", config)
    inner, calls = Run.save_checkpoint, []

    def disk_full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def save(self, *args):
        calls.append(1)
        if len(calls) == 2:
            monkeypatch.setattr("safetensors.torch.save_file", disk_full)
        return inner(self, *args)

    monkeypatch.setattr(Run, "save_checkpoint", save)
    with pytest.raises(OSError, match="No space left"):
        train(run)
    assert [c.name for c in run.checkpoints] == ["step-000002"]
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["step-000002"]
    status = run.status()
    assert status.state == "failed"
    assert "No space left" in status.message


def test_odd_generation_settings_train_and_are_saved_as_they_came(config, tmp_path):
    """temperature without do_sample: transformers reads it, and refuses to write it."""
    folder = tmp_path / "odd"
    shutil.copytree(config.student, folder)
    file = folder / "generation_config.json"
    odd = json.loads(file.read_text()) | {"temperature": 0.6, "top_p": 0.9}
    file.write_text(json.dumps(odd))
    changes = {"student": str(folder), "steps": 2, "eval_prompts": 0}
    run = train(create_run("odd", config.model_copy(update=changes)))
    saved = json.loads((run.model_dir / "generation_config.json").read_text())
    assert {key: saved[key] for key in ("temperature", "top_p", "eos_token_id")} == {
        key: odd[key] for key in ("temperature", "top_p", "eos_token_id")
    }
    assert load_model(str(run.model_dir)).causal_lm.generation_config.top_p == 0.9
    assert any("temperature, top_p" in note for note in run.notes())


def test_a_checkpoint_that_cannot_be_written_is_known_before_the_first_step(config, monkeypatch):
    run = create_run("no-room", config)
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=2**10))
    with pytest.raises(OSError, match=r"takes \d+ MiB, and 0 MiB are free"):
        train(run)
    assert not run.rows()
    (run.path / "checkpoints").rmdir()
    (run.path / "checkpoints").write_text("a file")
    with pytest.raises(OSError, match="could not be saved in"):
        train(run)
    assert not run.rows()


def test_a_library_that_refuses_to_write_the_model_does_not_cost_what_was_trained(config, monkeypatch):
    from transformers import PreTrainedModel

    inner = PreTrainedModel.save_pretrained

    def refuses(self, folder, *, state_dict=None, **kwargs):
        if state_dict is None:
            raise RuntimeError("Some tensors share memory.")
        inner(self, folder, state_dict=state_dict, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", refuses)
    run = train(create_run("refused", config))
    assert run.status().state == "finished"
    assert any("Step 4: No model" in n and "share memory" in n for n in run.notes())
    state = read_checkpoint(run.newest_checkpoint)
    assert state["next_step"] == 5
    resumed = opd.distill(config).load_state_dict(state)
    assert all((resumed.parameters[name] == state["weights"][name]).all() for name in resumed.parameters)


def test_a_checkpoint_that_fails_in_between_does_not_end_the_training(config, monkeypatch):
    inner, full = Run.save_checkpoint, [True, False, False]

    def save(self, *args):
        if full and full.pop(0):
            raise OSError(28, "No space left on device")
        return inner(self, *args)

    monkeypatch.setattr(Run, "save_checkpoint", save)
    run = train(create_run("short", config))
    assert [c.name for c in run.checkpoints] == ["step-000004"]
    assert any("Step 2: No checkpoint was written" in note for note in run.notes())


def test_the_best_and_the_pinned_checkpoint_outlive_newer_ones(config, monkeypatch):
    measure(monkeypatch, [0.1, 0.5, 0.9, 0.3, 0.2, 0.1, 0.1])
    changes = {"steps": 6, "eval_prompts": 0, "save_every": 1, "keep_checkpoints": 1}
    run = create_run("best", config.model_copy(update=changes))

    def pin_first(report):
        if report.step == 2:
            run.pin(1)

    train(run, pin_first)
    assert [c.name for c in run.checkpoints] == ["step-000001", "step-000002", "step-000006"]
    assert run.best_step == 2
    assert run.checkpoint(2) == run.checkpoints[1]
    with pytest.raises(ValueError, match="no checkpoint of step 4; it has 1, 2, 6"):
        run.checkpoint(4)


def test_without_answers_the_lowest_held_out_kl_is_the_best(config):
    run = create_run("kl", config)
    for step, kl in enumerate((0.5, 0.2, 0.3)):
        run.append(StepReport(step, {"heldout_kl": kl}))
        (run.path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    assert run.best_step == 1
    assert run.drop_after_best() == 1
    assert [path.name for path in run.checkpoints] == ["step-000000", "step-000001"]


def test_stop_and_keep_best_makes_the_best_checkpoint_the_newest(config, monkeypatch):
    measure(monkeypatch, [0.1, 0.5, 0.9, 0.3, 0.2])
    run = create_run("best", config.model_copy(update={"steps": 9, "eval_prompts": 0, "save_every": 1}))
    train(run, lambda report: run.ask("keep_best") if report.step == 4 else None)
    assert run.model_dir.name == "step-000002"
    status = run.status()
    assert (status.state, status.step) == ("stopped", 4)
    assert "step 2" in status.message


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(config):
    run = train(create_run("damaged", config))
    weights = run.model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"step-000004 is damaged .* Delete it"):
        train(run)
    shutil.rmtree(run.model_dir)
    train(run)
    assert run.status().state == "finished"


def test_a_checkpoint_that_lacks_something_is_named(config):
    run = train(create_run("lacking", config))
    file = run.model_dir / "training.json"
    state = json.loads(file.read_text())
    del state["next_step"]
    for left in (state, None):
        file.write_text(json.dumps(left))
        with pytest.raises(ValueError, match="step-000004 is damaged"):
            train(run)


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 4}], ids=["full", "lora"])
def test_a_checkpoint_holds_the_weights_once_and_one_that_holds_them_twice_still_resumes(config, changes):
    from safetensors.torch import load_file, save_file

    def trained(name, steps=4):
        run = create_run(name, config.model_copy(update={"warmup_steps": 0, **changes}))
        return train(run, lambda report: run.ask("stop") if report.step == steps else None)

    whole, once, twice = trained("whole"), trained("once", 2), trained("twice", 2)
    weights = read_checkpoint(once.newest_checkpoint)["weights"]
    assert load_file(once.model_dir / "training-weights.safetensors") == {}
    assert len(weights) > 4
    # As checkpoints were before: all trained weights beside the model, and no word of the model's files.
    save_file(weights, twice.model_dir / "training-weights.safetensors")
    training = twice.model_dir / "training.json"
    training.write_text(
        json.dumps({k: v for k, v in json.loads(training.read_text()).items() if "held" not in k})
    )
    (twice.model_dir / ("adapter_model" if changes else "model")).with_suffix(".safetensors").unlink()
    for run in (once, twice):
        train(run)
        assert measured(run) == measured(whole)


def test_a_weight_that_the_model_saves_otherwise_is_kept_beside_it(config):
    run, student = create_run("apart", config), load_model(config.student)
    state = opd.distill(config).state_dict()
    name, changed = next(iter(state["weights"])), {}
    changed[name] = state["weights"][name] + 1
    run.save_checkpoint(student, {**state, "next_step": 1, "weights": state["weights"] | changed})
    loaded = read_checkpoint(run.newest_checkpoint)["weights"]
    assert (loaded[name] == changed[name]).all()
    assert loaded.keys() == state["weights"].keys()
    kept_beside = run.newest_checkpoint / "training-weights.safetensors"
    assert kept_beside.stat().st_size < changed[name].nbytes + 1000


def test_a_library_that_no_longer_writes_the_model_costs_no_model_that_is_there(
    config, monkeypatch, tmp_path
):
    run = create_run("refused", config.model_copy(update={"keep_checkpoints": 1}))
    student, state = load_model(config.student), opd.distill(config).state_dict()
    run.save_checkpoint(student, {**state, "next_step": 2})

    def refuses(*args, **kwargs):
        raise RuntimeError("it cannot be written")

    monkeypatch.setattr(student, "save", refuses)
    for step in (2, 3):
        run.save_checkpoint(student, {**state, "next_step": step + 1})
    assert [path.name for path in run.checkpoints] == ["step-000001", "step-000003"]
    assert run.model_dir == run.model_of(1) == run.checkpoints[0]
    assert run.saved_step == read_checkpoint(run.newest_checkpoint)["next_step"] - 1 == 3
    export_zip(run, tmp_path / "student.zip")
    with pytest.raises(ValueError, match="only training state at step 3: there is no model"):
        export_zip(run, tmp_path / "none.zip", 3)
    for step, accuracy in ((1, 0.2), (3, 0.9)):
        run.append(StepReport(step, {"heldout_accuracy": accuracy}))
    assert run.best_step == 1, "the best that can be had"
