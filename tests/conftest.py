"""What every test gets: no hub, quiet threads, a folder of runs of its own."""

from __future__ import annotations

import os
import subprocess

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # each has a core, and waits for no other one's threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from tiny import make_model

from opd.models.pair import Pair
from opd.training.distillation import Distillation


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may be absent
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With ``-n 2``: one worker begins with the files that need a browser, the others with the rest.

    Who has none of its own left takes over whole files of the others, the browser's with an app of its own.
    """
    from xdist.scheduler import LoadFileScheduling

    class BrowserFirst(LoadFileScheduling):
        def _assign_work_unit(self, node: object) -> None:
            browser = node is self.nodes[0]
            mine = (file for file in self.workqueue if file.startswith("tests/browser/") == browser)
            self.workqueue.move_to_end(next(mine, next(iter(self.workqueue))), last=False)
            super()._assign_work_unit(node)

    return BrowserFirst(config, log)


@pytest.fixture
def pair() -> Pair:
    return Pair(make_model(0, name="tiny-student"), make_model(1, name="tiny-teacher", hidden_size=48))


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, str]:
    """Tiny random models that lie on disk, to be read only: their folders by name."""
    out = {}
    for seed, name in enumerate(("student", "teacher", "other")):
        model, folder = make_model(seed), tmp_path_factory.mktemp(name)
        model.save(folder)
        out[name] = str(folder)
    return out


@pytest.fixture(autouse=True)
def layer(request, monkeypatch) -> None:
    """The unit layer keeps small: without a marker a test starts no process and trains nothing."""
    if not any(map(request.node.get_closest_marker, ("engine", "browser", "slow"))):

        def refused(*args: object, **kwargs: object) -> None:
            pytest.fail("This belongs to another layer: mark the test or its file with pytest.mark.engine.")

        monkeypatch.setattr(subprocess.Popen, "__init__", refused)
        monkeypatch.setattr(Distillation, "__next__", refused)


@pytest.fixture(autouse=True)
def opd_home(tmp_path, monkeypatch):
    """Every test has its own folder of runs."""
    monkeypatch.setenv("OPD_HOME", str(tmp_path))
    return tmp_path
