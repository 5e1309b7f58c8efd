"""opd make-pair."""

import pytest

from opd.cli import main

pytestmark = pytest.mark.engine


def test_make_pair_leaves_a_pair_that_is_there_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.delattr("multiprocessing.get_context")  # nothing may begin to train
    mine = tmp_path / "out" / "student" / "model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert main(["make-pair", "--out", str(tmp_path / "out")]) == 2
    assert "student exists already" in capsys.readouterr().err
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "student-1.pt").touch()  # of another seed
    assert main(["make-pair", "--out", str(tmp_path / "out")]) == 2
    assert mine.exists()
