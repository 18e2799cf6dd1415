"""Two runs that share schedules: how the one ranks them, against the other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from layersearch.cli.main import main
from layersearch.errors import ConfigError
from layersearch.schedule import Schedule
from layersearch.study.transfer import compare_runs, matched

ANALYSIS = Path(__file__).parents[2] / "analysis"


def test_matched_takes_equal_text_then_relative_depth_and_each_schedule_once() -> None:
    def losses(*texts: str) -> dict[Schedule, dict[int, float]]:
        return {Schedule.parse(text): {0: 1.0} for text in texts}

    small = losses("full window:4", "window:4*2", "full*2", "block:4 full")
    large = losses("full*2 window:4*2", "window:16*4", "full*4", "block:8*2 full*2")
    found = {(str(a), str(b)) for a, b in matched(small, large, scale=4.0)}
    assert found == {("full window:4", "full*2 window:4*2"), ("window:4*2", "window:16*4"), ("full*2", "full*4")}
    assert len(matched(small, small, scale=1.0)) == 4


def test_transfer_of_a_run_to_itself_is_perfect_and_of_too_few_schedules_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ANALYSIS / "first_run", copy)
    found = compare_runs(ANALYSIS / "first_run", copy)
    assert found.correlation is not None
    assert found.correlation.spearman == pytest.approx(1)
    assert found.regret is not None
    assert found.regret.nats == 0
    assert "exactly" in found.verdict
    assert main(["transfer", str(ANALYSIS / "first_run"), str(ANALYSIS / "text_run"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert 0 < len(said["schedules"]) < 10
    assert said["correlation"]["low"] is None
    assert said["verdict"].startswith(f"Too few schedules to say: the runs share {len(said['schedules'])}")
    assert main(["transfer", str(ANALYSIS / "first_run"), str(copy)]) == 0
    assert "Spearman" in capsys.readouterr().out


def test_compare_runs_refuses_one_folder_given_twice_and_selections(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="given twice"):
        compare_runs(ANALYSIS / "first_run", ANALYSIS / "text_run" / ".." / "first_run")
    with pytest.raises(ConfigError, match="pre-trained"):
        compare_runs(ANALYSIS / "first_run", ANALYSIS / "smollm2/run")
    assert main(["transfer", str(ANALYSIS / "first_run"), str(ANALYSIS / "missing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
