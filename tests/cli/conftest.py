"""What the tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from layersearch.cli.main import main
from tests.helpers.refusals import Line, Refuses, check_line, contents


@pytest.fixture
def refuses(
    tmp_path: Path,
    saved_run: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Refuses:
    """Return what runs a wrong command line in an empty folder and checks that it is refused in one line."""
    monkeypatch.setenv("LAYERSEARCH_CACHE", str(cache_dir))
    monkeypatch.chdir(tmp_path)

    def refused(line: Line, *words: str) -> None:
        arguments = line if isinstance(line, list) else line(tmp_path, saved_run)
        before = contents(tmp_path), contents(saved_run)
        assert main(arguments) == 2
        out, err = capfd.readouterr()
        assert out == ""
        check_line(err, words)
        assert (contents(tmp_path), contents(saved_run)) == before

    return refused
