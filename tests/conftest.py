"""What several test folders share."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.helpers")

# Where transformers copies the modeling files that it runs; it reads this when it is imported.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp()
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of most integration tests, then of slow ones: a long file at the end leaves a core idle."""
    weights: dict[Path, int] = {}
    for item in items:
        heavy = 100 if item.get_closest_marker("integration") else int(item.get_closest_marker("slow") is not None)
        weights[item.path] = weights.get(item.path, 0) + heavy
    items.sort(key=lambda item: -weights[item.path])  # Stable: the order within a file stays.


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one cache of prepared text for all test processes: the standard library is prepared once."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture(scope="session")
def saved_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the finished smoke search in `data_runs`; copy it again before changing it."""
    saved = Path(__file__).with_name("data_runs") / "finished"
    return Path(shutil.copytree(saved, tmp_path_factory.mktemp("saved") / "run"))


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of one finished ``layersearch run --recipe smoke``; copy it before changing it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    command = [sys.executable, "-P", "-m", "layersearch", "run", "--recipe", "smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out
