"""Exports of a finished run: every target holds the winner, and the evidence for it that the run's own records give."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import yaml

from layersearch.cli.main import main
from layersearch.export import TARGETS
from layersearch.schedule import Schedule

FAMILY = {"hf": "ministral", "vllm": "llama", "sglang": "gemma3"}


@pytest.mark.parametrize("target", TARGETS)
def test_export_run_winner_is_written_with_its_evidence(
    target: str, saved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = ["--family", FAMILY[target]] if target in FAMILY else []
    assert main(["export", str(saved_run), "--to", target, *family, "--out", str(tmp_path / "new")]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines() if not line.startswith("note:")]
    assert {path.parent for path in paths} == {tmp_path / "new"}
    assert set(paths) == set((tmp_path / "new").iterdir())
    said = yaml.safe_load(paths[-1].read_text())  # JSON is YAML too
    winner = yaml.safe_load((saved_run / "winner.yaml").read_text())
    assert said == winner
    assert Schedule.parse(said["schedule"]) == Schedule.from_dicts(said["layers"])
    records = [json.loads(line) for line in (saved_run / "trials.jsonl").read_text().splitlines()]
    confirmed = [
        one["loss"]
        for one in records
        if one["phase"] == "confirm"
        and one["schedule"] == said["schedule"]
        and one["seed"] in said["evidence"]["seeds"]
    ]
    assert len(confirmed) == len(said["evidence"]["seeds"]) > 1
    assert said["evidence"]["validation_loss"] == pytest.approx(statistics.fmean(confirmed))
