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

# Where transformers copies the modelling files that it runs; it reads this when it is imported.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp()
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one cache of prepared text for the whole session: the standard library is prepared once."""
    return tmp_path_factory.mktemp("cache")


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
