"""An app on this machine answers under this machine's names alone."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from opd.ui.hosts import HOSTS_VARIABLE, OwnNames


def answer(host: str, address: str = "127.0.0.1") -> tuple[int, str]:
    app = Starlette(
        routes=[Route("/", lambda _: PlainTextResponse("secret"))],
        middleware=[Middleware(OwnNames, address=address)],
    )
    response = TestClient(app).get("/", headers={"host": host})
    return response.status_code, response.text


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "LOCALHOST:7860", "[::1]:7860", "127.0.0.2"])
def test_this_machines_names_are_answered(host):
    assert answer(host) == (200, "secret")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:7860", "192.168.1.5", "", "[::1"])
def test_any_other_name_is_refused_in_a_sentence(host):
    status, text = answer(host)
    assert status == 421
    assert "secret" not in text
    assert HOSTS_VARIABLE in text


def test_further_names_may_be_named(monkeypatch):
    monkeypatch.setenv(HOSTS_VARIABLE, " lab.example, other.example")
    assert answer("Lab.example")[0] == 200
    assert answer("evil.example")[0] == 421
    assert answer("10.0.0.7:7860", address="10.0.0.7")[0] == 200
