"""A run in which nothing can be trained says why, and a run may be resumed with other workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from layersearch.cli.main import main
from layersearch.errors import UserError
from layersearch.study.run_folder import RunFolder

pytestmark = pytest.mark.integration

ASKED = {
    "recipe": {"name": "r", "search": {"workers": 2, "trials": 6, "pruner": "none"}},
    "space": {"name": "s"},
    "budget": 0.5,
    "seed": 0,
    "data": {"source": "recall", "vocab_size": 64},
}


def test_run_every_baseline_failing_ends_with_the_reason(
    tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    code = main(["run", "--recipe", "smoke", "--budget", "0.6", "--out", out, "--set", "training.learning_rate=1e30"])
    assert code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("layersearch: every baseline failed (the loss is not finite")
    assert "--out" in last


def test_run_folder_resumed_with_other_workers_is_accepted_and_nothing_else(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", ASKED).release()
    more = {**ASKED, "recipe": {"name": "r", "search": {"workers": 9, "trials": 6, "pruner": "none"}}}
    RunFolder(tmp_path / "run", more).release()
    with pytest.raises(UserError, match=r"recipe\.search\.trials \(6, now 7\)"):
        RunFolder(
            tmp_path / "run",
            {**ASKED, "recipe": {"name": "r", "search": {"workers": 2, "trials": 7, "pruner": "none"}}},
        )
