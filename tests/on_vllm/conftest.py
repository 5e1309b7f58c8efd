"""These tests run against the real vLLM, in the environment of `make vllm`; elsewhere there is none."""

from pathlib import Path

import pytest

from opd.engines.vllm import installed

if not installed():
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)
