"""Run folders of an earlier layersearch, kept in `tests/data_runs`: later code still shows and resumes them.

`finished` is a whole search of the smoke recipe with TPE. `killed` is one with our own sampler and a rung, killed after
eight records. Both were made by the commit that their ``config.json`` names.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from layersearch.cli.main import main
from tests.helpers.runs import check_study, lines, records, run

pytestmark = pytest.mark.integration

SAVED = Path(__file__).parents[1] / "data_runs"
KILLED = ["--set", "search.sampler=gain", "--set", "search.rungs=[0.5]", "--set", "search.trials=10"]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAVED / "finished", tmp_path / "finished"))


def test_show_of_a_saved_run_prints_its_saved_losses_and_the_verdict_of_today(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(finished), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    saved = json.loads((finished / "frontier.json").read_text())
    assert shown["budget"] == saved["budget"]
    assert shown["frontier"] == saved["frontier"]
    # The losses are the saved ones. The winner is today's: shown to be as good as the leader, or the leader itself.
    means = [[entry["mean"] and entry["mean"]["mean"] for entry in held["entries"]] for held in (shown, saved)]
    assert means[0] == pytest.approx(means[1])
    assert shown["winner"]["leader"] == saved["winner"]["leader"] == shown["winner"]["schedule"]
    assert shown["winner"]["tolerance"] == 0.0


def test_run_of_a_finished_saved_run_trains_nothing(finished: Path) -> None:
    before = (finished / "trials.jsonl").read_bytes()
    result = json.loads(run(finished))
    assert (finished / "trials.jsonl").read_bytes() == before
    saved = json.loads((SAVED / "finished" / "frontier.json").read_text())
    assert result["winner"]["leader"] == saved["winner"]["leader"]
    # `run` renews what an earlier version wrote.
    assert f"schedule: {result['winner']['schedule']}" in (finished / "winner.yaml").read_text()
    check_study(finished)


def test_run_of_a_killed_saved_run_trains_only_what_is_missing(tmp_path: Path) -> None:
    out = Path(shutil.copytree(SAVED / "killed", tmp_path / "killed"))
    before = lines(out)
    assert len(before) == 8
    result = json.loads(run(out, *KILLED, "--log", "csv"))
    assert lines(out)[:8] == before
    searched = [key for key in records(out) if key[2] == "search"]  # refuses a trial that stands there twice
    assert len(searched) == 10
    assert result["failed"] == 0
    assert result["winner"] is not None
    assert len((out / "tracking" / "csv" / "trials.csv").read_text().splitlines()) == 1 + len(lines(out))
    check_study(out)
