"""The measurements for a GPU in analysis/gpu run on a CPU at toy size, every part of them."""

from __future__ import annotations

import argparse
import json
import json.decoder
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers.selections import save_model

SCRIPT = Path(__file__).parents[2] / "analysis/gpu/measure.py"
if not SCRIPT.is_file():
    pytest.skip("the measurements lie in a checkout only", allow_module_level=True)
pytestmark = pytest.mark.integration


def found(out: Path, part: str, *more: str) -> dict[str, object]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--toy", "--only", part, *more]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    held = json.loads((out / f"{part}.json").read_text())
    assert held["part"] == part
    return held  # type: ignore[no-any-return]


def test_gpu_kernels_part_on_cpu_finds_every_kernel_within_its_tolerance(tmp_path: Path) -> None:
    kernels = found(tmp_path, "kernels")["found"]
    assert kernels["beyond"] == []  # type: ignore[index]
    assert set(kernels["largest_error"]) == {"flex float32", "flex bfloat16", "chunked float64"}  # type: ignore[index]


def test_gpu_speed_parts_on_cpu_compare_time_with_exact_cost(tmp_path: Path) -> None:
    schedules = found(tmp_path, "attention")["found"]["schedules"]  # type: ignore[index]
    assert [round(row["cost"], 3) for row in schedules.values()] == [1.0, 0.56, 0.121]
    assert all(row["time"] > 0 for row in schedules.values())
    rows = found(tmp_path, "training")["found"]
    assert all(row["tokens_per_second"] > 0 and row["peak_bytes"] > 0 for row in rows)  # type: ignore[attr-defined]


def test_gpu_kernel_times_on_cpu_are_of_every_span_and_size(tmp_path: Path) -> None:
    rows = found(tmp_path, "kernel_times")["found"]
    assert [row["batch_size"] for row in rows] == [1, 2]  # type: ignore[attr-defined]
    assert all(row["call"] > 0 and row["kernels"] > 0 for row in rows)  # type: ignore[attr-defined]


def test_gpu_search_part_on_cpu_names_a_winner_and_what_ran(tmp_path: Path) -> None:
    ran = found(tmp_path, "search")["found"]
    assert ran["winner"]["cost"] <= 0.6  # type: ignore[index]
    assert ran["devices"] == ["cpu"]  # type: ignore[index]


def test_gpu_selection_part_on_cpu_chooses_and_heals(tmp_path: Path) -> None:
    texts = [Path(module.__file__ or "").read_text() for module in (argparse, json.decoder, textwrap)]
    model = save_model(tmp_path / "model", texts, 4)
    ran = found(tmp_path / "out", "selection", "--model", str(model))["found"]
    assert ran["winner"]["cost"] <= 0.5  # type: ignore[index]
    assert ran["healing"]["evaluations"][-1]["step"] == 2  # type: ignore[index]
