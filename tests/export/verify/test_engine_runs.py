"""Exports that run in engines: each says which schedule ran, and a wrong one is found."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from layersearch.cli.main import main
from layersearch.config.model import ModelConfig
from layersearch.export import export, export_model, read_source
from layersearch.export.verify.engines import verify_in_engine
from layersearch.export.verify.engines.environments import ENVIRONMENTS, installed
from layersearch.schedule import Schedule
from tests.helpers.engine_models import saved

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[3]
ASKED = Schedule.parse("full window:16*2 full")
SIZE = ModelConfig(n_layers=4, d_model=64, n_heads=4, n_kv_heads=2, d_ff=96)


def engine_python(engine: str) -> Path:
    """Return an installed engine's Python, or skip the test."""
    named = os.environ.get(str(ENVIRONMENTS[engine].variable))
    python = Path(named) if named else ROOT / installed(engine)
    if not python.exists():
        pytest.skip(f"{engine} is not installed; make test-engines installs it")
    return python


def exported(target: str, out: Path, model_type: str = "llama") -> Path:
    """Export a small model with random weights; return the folder."""
    export_model(ASKED, target, read_source(str(saved(model_type, out / "model"))), out=out / target)
    return out / target


def test_verify_export_engine_hf_obeying_family_is_proven(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(ASKED, "hf", model=SIZE, vocab_size=61, seq_len=64, out=tmp_path / "out", family="ministral")
    assert main(["verify-export", str(tmp_path / "out"), "--engine", "hf"]) == 0
    out = capsys.readouterr().out
    assert "nearest    as asked: 'full window:16*2 full'" in out
    assert "PROVEN: hf ran the schedule" in out


def test_verify_export_engine_hf_deaf_family_ran_all_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved("llama", tmp_path / "model")
    assert main(["verify-export", str(folder), "--engine", "hf", "--schedule", str(ASKED), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["problem"] == "hf ran all-full ('full*4'), not the schedule asked for"
    assert report["weights"] == "the folder's own"
    assert report["nearest"]["error"] < 1e-4 < 0.1 < report["asked"]["error"]


@pytest.mark.parametrize(("engine", "target"), [("mlx", "mlx"), ("llama.cpp", "gguf"), ("litgpt", "litgpt")])
def test_verify_in_engine_exported_llama_is_proven_and_another_window_is_named(
    engine: str, target: str, tmp_path: Path
) -> None:
    python = engine_python(engine)
    folder = exported(target, tmp_path)
    proof = verify_in_engine(folder, engine, python=python)
    assert proof.proven, proof.problem
    assert (proof.nearest.name, proof.equal) == ("as asked", proof.generated)
    assert proof.asked.error < 1e-4 < 0.1 < proof.next_nearest.error
    wrong = verify_in_engine(folder, engine, python=python, schedule=Schedule.parse("full window:15*2 full"))
    assert str(wrong.problem).startswith(f"{engine} ran one key more ('full window:16*2 full')")


def test_verify_in_engine_mlx_deaf_family_ran_all_full(tmp_path: Path) -> None:
    python = engine_python("mlx")
    export(ASKED, "hf", model=SIZE, vocab_size=61, seq_len=64, out=tmp_path / "out", family="qwen3")
    proof = verify_in_engine(tmp_path / "out", "mlx", python=python)
    assert str(proof.problem).startswith("mlx ran all-full")
    assert proof.weights == "random"


def test_bench_engine_llama_cpp_holds_less_than_all_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = engine_python("llama.cpp")
    folder = exported("gguf", tmp_path)
    line = ["bench-engine", str(folder), "--engine", "llama.cpp", "--engine-python", str(python)]
    capsys.readouterr()  # libraries print as they are loaded
    assert main([*line, "--tokens", "1500", "--new", "2", "--repeats", "1", "--json"]) == 0
    ours, full = json.loads(capsys.readouterr().out)
    assert (ours["variant"], full["variant"]) == ("schedule", "all-full")
    # Two of four layers keep window + one batch of 512 cells, rounded up to 256, in half precision.
    cell = 2 * 2 * 32 * 2
    rounding = 0.01 * 2**20  # llama.cpp logs MiB with two digits
    assert ours["kv_bytes"] == pytest.approx(full["kv_bytes"] / 2 + 2 * 768 * cell, abs=2 * rounding)
    assert full["kv_bytes"] + rounding >= full["cost_bytes"] == 4 * 1502 * cell
    assert ours["cost_bytes"] == (2 * 1502 + 2 * 16) * cell
