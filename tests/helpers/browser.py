"""The browser of the tests: the system's Chromium, or the one that playwright installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

WAIT = 120_000  # milliseconds; a busy machine is slow to start a browser and to draw


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser; skip the test where playwright or a browser is missing."""
    reason = "needs playwright: pip install 'layersearch[browser]'"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as library:
        try:
            started = library.chromium.launch(executable_path=found, args=["--no-sandbox"], timeout=WAIT)
        except playwright.Error as error:
            pytest.skip(f"no Chromium starts here: {str(error).splitlines()[0]}")
        yield started
        started.close()
