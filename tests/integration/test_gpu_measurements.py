"""The measurements for a GPU in analysis/gpu run on a CPU at toy size: kernels and speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
