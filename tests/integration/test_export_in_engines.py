"""Exported Llamas of every kind run their schedule in MLX-LM and llama.cpp, each in an environment of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from layersearch.export import export_model, read_source
from layersearch.schedule import Schedule
from tests.helpers import hf_models

environments = pytest.importorskip("layersearch.export.verify.engines.environments")
pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
ASKED = Schedule.parse("full window:16 window:16")
ROPE = {"rope_theta": 5000.0, "original_max_position_embeddings": 64}
LLAMAS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 16},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}},
    "yarn": {"rope_parameters": ROPE | {"rope_type": "yarn", "factor": 4.0}},
    "llama3": {
        "rope_parameters": ROPE
        | {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "target"), [("mlx", "mlx"), ("llama.cpp", "gguf")])
@pytest.mark.parametrize("kind", LLAMAS)
def test_exported_llama_runs_its_schedule_in_the_engine(kind: str, engine: str, target: str, tmp_path: Path) -> None:
    if (kind, engine) == ("biases", "llama.cpp"):
        pytest.skip("the reference that is read from a GGUF file has no biases")
    named = os.environ.get(str(environments.ENVIRONMENTS[engine].variable))
    python = Path(named) if named else ROOT / environments.installed(engine)
    if not python.exists():
        pytest.skip(f"{engine} is not installed; make test-engines installs it")
    from layersearch.export.verify.engines import verify_in_engine

    model = hf_models.save("llama", tmp_path / "model", max_position_embeddings=512, **LLAMAS[kind])
    export_model(ASKED, target, read_source(str(model)), out=tmp_path / "out")
    proof = verify_in_engine(tmp_path / "out", engine, python=python)
    assert proof.proven, proof.problem
    assert proof.nearest.name == "as asked"
