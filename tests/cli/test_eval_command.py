"""opd eval."""

import json

import pytest

from opd.cli import main

pytestmark = pytest.mark.engine


def test_eval_prints_sample_size_and_interval(models, capsys):
    assert main(["eval", models[1], "-n", "5", "--max-tokens", "8", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == 5
    assert result["low"] <= result["accuracy"] <= result["high"]


def test_eval_is_greedy_at_temperature_0_and_knows_no_setting_of_training(models, capsys):
    greedy = ["eval", models[1], "-n", "3", "--max-tokens", "8", "--json", "--temperature", "0"]
    assert main(greedy) == 0
    first = capsys.readouterr().out
    assert main([*greedy, "--seed", "5"]) == 0
    assert capsys.readouterr().out == first
    assert main(["eval", models[1], "-n", "3", "--temperature", "-1"]) == 2
    assert "temperature" in capsys.readouterr().err
