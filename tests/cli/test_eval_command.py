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


def test_eval_can_ask_all_rows_of_a_file_and_says_which_it_asks(models, tmp_path, capsys):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i}?", "answer": f"{i}"}) + "\n" for i in range(40)))
    command = ["eval", models[1], "--task", str(path), "--max-tokens", "2", "--json"]
    assert main([*command, "--split", "all"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["n"] == 40
    assert "Prompts from the column question; answers from answer, compared by exact." in said.err
    assert "Asked are all of its 40 prompts" in said.err
    assert main([*command, "--split", "all", "-n", "3"]) == 0
    assert "the first 3 of its 40 prompts" in capsys.readouterr().err
    assert main(command) == 0
    said = capsys.readouterr()
    n = json.loads(said.out)["n"]
    assert f"up to 512 of the {n} prompts, of 40, that a hash" in said.err
    assert "--split all asks all" in said.err


@pytest.mark.parametrize("command", [["eval", "m"], ["train"], ["doctor"], ["grade", "--prompt", "1?"]])
def test_sampling_that_would_make_the_penalty_biased_is_refused_with_the_reason(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--top-p", "0.9"])
    error = capsys.readouterr().err
    assert "--top-p is not offered: sampling takes the model's whole distribution" in error
    assert "no unbiased estimate of its reverse KL" in error
