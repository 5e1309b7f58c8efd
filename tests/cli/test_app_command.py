"""opd app."""

import pytest

from opd.cli import main

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("port", ["70000", "-1", "0"])
def test_a_port_that_is_none_is_one_sentence(port, capsys, monkeypatch):
    assert main(["app", "--port", port]) == 2
    assert capsys.readouterr().err == f"opd: The port must be a number from 1 to 65535, not {port}.\n"
    monkeypatch.setenv("GRADIO_SERVER_PORT", "abc")
    assert main(["app"]) == 2
