"""What several test folders share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one cache of prepared text for the whole session: the standard library is prepared once."""
    return tmp_path_factory.mktemp("cache")
