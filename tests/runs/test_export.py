"""What leaves a run: metrics, the student as a zip, or published."""

import csv
import io
import zipfile

import pytest
from running import evaluated, train

import opd
from opd.cli import main
from opd.models.load import load_model
from opd.reports import StepReport
from opd.runs.export import metrics_csv, publish
from opd.runs.run import create_run

pytestmark = pytest.mark.engine


class FakeHub:
    """What a hub would receive."""

    calls: list

    def __init__(self, token):
        type(self).calls = [("token", token)]

    def create_repo(self, repo_id, private, exist_ok):
        self.calls.append(("repo", repo_id, private))

    def create_commit(self, repo_id, operations, commit_message):
        self.calls.append(("files", sorted(operation.path_in_repo for operation in operations)))
        return type("Commit", (), {"repo_url": f"https://hub/{repo_id}"})


def test_metrics_leave_as_csv(capsys):
    run = evaluated("table", [0.25])
    run.append(StepReport(1, {"loss": 0.5}))
    rows = list(csv.DictReader(io.StringIO(metrics_csv(run))))
    assert [row["step"] for row in rows] == ["0", "1"]
    assert (rows[0]["heldout_accuracy"], rows[0]["loss"], rows[1]["loss"]) == ("0.25", "", "0.5")
    assert main(["runs", "csv", "table"]) == 0
    assert capsys.readouterr().out == metrics_csv(run)


@pytest.mark.parametrize("rank", [0, 4], ids=["weights", "adapter"])
def test_a_zip_unpacks_to_a_student_that_loads(config, tmp_path, rank):
    changes = {"lora_rank": rank, "steps": 1, "warmup_steps": 0}
    run = train(create_run("zipped", config.model_copy(update=changes)))
    assert main(["runs", "zip", "zipped", str(tmp_path / "out.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert not [name for name in archive.namelist() if "training" in name]
        archive.extractall(tmp_path / "unpacked")
    ours, theirs = load_model(str(run.model_dir)), load_model(str(tmp_path / "unpacked" / "zipped"))
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert (a == b).all()


def test_a_run_without_checkpoint_has_nothing_to_export(tmp_path, capsys):
    create_run("bare", opd.DistillConfig())
    assert main(["runs", "zip", "bare", str(tmp_path / "out.zip")]) == 2
    assert "no checkpoint yet" in capsys.readouterr().err
    assert not (tmp_path / "out.zip").exists()


def test_publishing_sends_the_student_and_keeps_the_token_nowhere(trained, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert main(["runs", "publish", "trained", "me/student"]) == 0
    assert "https://hub/me/student" in capsys.readouterr().out
    assert FakeHub.calls[:2] == [("token", "hf_secret"), ("repo", "me/student", True)]
    files = FakeHub.calls[2][1]
    assert {"model.safetensors", "tokenizer.json", "opd-config.json"} <= set(files)
    assert not [name for name in files if "training" in name]
    written = (path for path in trained.path.rglob("*") if path.is_file())
    assert not [path for path in written if b"hf_secret" in path.read_bytes()]


def test_a_hub_that_refuses_is_quoted_without_the_token(trained, monkeypatch):
    def refuse(self, repo_id, private, exist_ok):
        raise OSError("401: hf_secret is not welcome")

    monkeypatch.setattr(FakeHub, "create_repo", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    with pytest.raises(ValueError, match="did not take the run trained: 401: … is not welcome") as refused:
        publish(trained, "me/student", "hf_secret")
    assert "hf_secret" not in str(refused.value)
