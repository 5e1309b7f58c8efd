"""opd race."""

import json

import pytest

from opd.cli import main
from opd.config import DistillConfig
from opd.runs.collection import config_diff
from opd.runs.run import open_run

pytestmark = pytest.mark.engine


def test_a_race_is_entered_with_methods_that_differ(monkeypatch, tmp_path):
    monkeypatch.setattr("opd.runs.worker.work", lambda run, *_: None)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(DistillConfig().model_dump(mode="json")))
    assert main(["race", "derby", "--config", str(file), "--methods", "full", "sft", "lora"]) == 0
    full, sft, lora = (open_run(f"derby-{name}") for name in ("full", "sft", "lora"))
    assert config_diff(full, sft)["objective"] == ("reverse_kl", "sft")
    assert config_diff(full, lora) == {"lora_rank": (0, 32)}
