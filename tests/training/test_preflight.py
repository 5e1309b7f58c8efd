"""What can be known of a run before its turn comes is said then, and nothing is queued."""

import json
import shutil

import pytest

import opd
from opd.cli import main
from opd.models import hub, load, packages
from opd.runs import jobs
from opd.runs.run import Race, list_runs
from opd.training.preflight import preflight


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Nothing is loaded, and the hub is not asked."""

    def refused(*args, **kwargs):
        pytest.fail("too heavy for a look")

    for name in ("load_model", "_load_weights", "_load_tokenizer", "folder_of"):
        monkeypatch.setattr(load, name, refused)
    for source in (hub, packages):
        monkeypatch.setattr(source, "fetch", refused)
    monkeypatch.setattr("opd.training.lessons.load_model", refused)
    monkeypatch.setattr("datasets.load_dataset", refused, raising=False)


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "task.csv"
    path.write_text("prompt,answer\n" + "".join(f"What is {i} + 1?,{i + 1}\n" for i in range(40)))
    return path


def adapter(folder, base):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").touch()
    return str(folder)


def test_a_run_that_can_begin_passes(folders, task, tmp_path, monkeypatch):
    preflight(opd.DistillConfig())
    settings = {"student": folders["student"], "teacher": folders["teacher"], "task": str(task)}
    preflight(opd.DistillConfig(**settings))
    preflight(opd.DistillConfig(**settings | {"student": adapter(tmp_path / "lora", folders["other"])}))
    preflight(opd.DistillConfig(**settings | {"teacher": "self"}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    preflight(opd.DistillConfig(**settings | {"teacher": "nobody/has-this"}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"teacher": "no-such-model"}, "teacher: There is no model folder 'no-such-model'"),
        ({"student": "nobody/has-this"}, "student: nobody/has-this is not .* HF_HUB_OFFLINE forbids"),
        ({"student": "a b/c"}, "student: There is no model a b/c"),
        ({"student": " "}, "student: No model was named"),
        ({"task": "riddles"}, "There is no task called 'riddles'"),
        ({"task": "no-such.jsonl"}, "no-such.jsonl cannot be read"),
        ({"task": "TASK", "teacher_hint": "See {solution}."}, "Each has: answer, prompt"),
        ({"task": "TASK", "prompt_column": "question"}, "no column 'question'; it has prompt, answer"),
        ({"task": "TASK", "heldout_share": 0.0}, "no held-out rows"),
        ({"verifier": "numeric"}, "demo has a verifier of its own"),
        ({"device": "abacus"}, "The device 'abacus' cannot be used"),
        ({"teacher_dtype": "float12"}, "The dtype 'float12' is not one of"),
        ({"report_to": "wandb"}, "report_to wandb needs the package wandb"),
        ({"objective": "sft", "teacher_url": "http://127.0.0.1:1"}, "sft needs completions that the teacher"),
    ],
)  # fmt: skip
def test_what_would_fail_later_is_said_at_once_and_nothing_is_queued(task, settings, said, monkeypatch):
    monkeypatch.setattr("opd.training.preflight.find_spec", lambda name: None)
    settings = {name: str(task) if value == "TASK" else value for name, value in settings.items()}
    config = opd.DistillConfig(**settings)
    with pytest.raises(ValueError, match=said):
        jobs.start(config, "doomed")
    with pytest.raises(ValueError, match=f"sft: .*{said}" if "objective" not in settings else "sft: "):
        jobs.start_race({"sft": config}, Race("derby"))
    assert list_runs() == []


def test_a_folder_that_is_no_model_is_told_from_one(folders, tmp_path):
    empty, run = tmp_path / "empty", tmp_path / "run"
    empty.mkdir()
    (run / "checkpoints" / "step-000002").mkdir(parents=True)
    bare = shutil.copytree(folders["student"], tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    torn = shutil.copytree(folders["student"], tmp_path / "torn")
    (torn / "config.json").write_text("{")
    lost = adapter(tmp_path / "lost", "no-such-base")
    loop = adapter(tmp_path / "loop", str(tmp_path / "loop"))
    nameless = [adapter(tmp_path / f"nameless-{i}", base) for i, base in enumerate((None, 7, [], ""))]
    for name, said in (
        (empty, "holds neither config.json nor adapter_config.json"),
        (run, "is a run, not a model. Point to one of its checkpoints"),
        (bare, "has no weights as safetensors"),
        (torn, "torn cannot be loaded"),
        (lost, "There is no model folder 'no-such-base'"),
        (loop, "loop as its base model, which is an adapter"),
        *((path, "its adapter_config.json names no base model") for path in nameless),
    ):
        with pytest.raises(ValueError, match=said):
            preflight(opd.DistillConfig(student=str(name)))
    preflight(opd.DistillConfig(teacher=str(bare), teacher_url="http://127.0.0.1:1"))  # it scores there


def test_all_that_is_wrong_is_said_together(capsys):
    wrong = ["--teacher", "no-such-model", "--task", "riddles", "--device", "abacus"]
    assert main(["train", *wrong]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("no-such-model", "riddles", "abacus"))
    assert main(["race", "derby", *wrong]) == 2
    assert list_runs() == []


def test_the_library_looks_at_the_teacher_before_it_loads_the_student():
    with pytest.raises(ValueError, match="teacher: There is no model folder"):
        opd.distill(opd.DistillConfig(teacher="no-such-model"))
