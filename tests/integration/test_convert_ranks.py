"""Conversions on two ranks: every ZeRO stage gives the losses of one rank, holds its share, and resumes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from layersearch.config.data import DataConfig
from layersearch.data import open_source
from tests.helpers import rank_conversions
from tests.helpers.hf_models import save

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TOLERANCE = 1e-4
"""Largest difference of a loss in float32: sums are taken in another order."""
BYTES_OF_MOMENTS = 2
"""AdamW's moments in float32, in units of the weights."""


@pytest.fixture(scope="module")
def out(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all finished conversions, and their model in ``base``."""
    folder = tmp_path_factory.mktemp("ranks")
    data = DataConfig(source="stdlib", vocab_size=rank_conversions.VOCABULARY, max_tokens=200_000)
    source = open_source(data, 32, cache_dir)
    save("llama", folder / "base", vocab_size=source.vocab_size)
    assert source.tokenizer_file is not None
    shutil.copy(source.tokenizer_file, folder / "base" / "tokenizer.json")
    script = [sys.executable, "-P", rank_conversions.__file__, str(folder / "base"), str(folder), str(cache_dir)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def losses(out: Path, name: str) -> list[float]:
    """Return the training losses of all steps, then those of the evaluations."""
    lines = [json.loads(line) for line in (out / name / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, rank_conversions.STEPS + 1))
    evaluations = [json.loads(line) for line in (out / name / "evaluations.jsonl").read_text().splitlines()]
    assert [one["moment"] for one in evaluations] == ["original", "switched", "training", "converted"]
    return [line["loss"] for line in lines] + [one["loss"] for one in evaluations]


def weights(out: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(out / name / "model" / "model.safetensors")


def memory(out: Path, name: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads((out / name / "memory.json").read_text())
    return found


@pytest.mark.parametrize("name", [*(f"zero{stage}" for stage in (0, 1, 2, 3)), "alone3"])
def test_convert_ranks_and_shards_change_no_loss(name: str, out: Path) -> None:
    assert losses(out, name) == pytest.approx(losses(out, "alone"), abs=TOLERANCE)
    assert losses(out, "alone")[0] > losses(out, "alone")[9] + 0.05, "training that does nothing proves nothing"
    found, wanted = weights(out, name), weights(out, "alone")
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[key], wanted[key], atol=1e-3) for key in wanted)
    config = json.loads((out / name / "model/config.json").read_text())
    assert config["model_type"] == "ministral"
    assert AutoModelForCausalLM.from_pretrained(out / name / "model").num_parameters() > 0


@pytest.mark.parametrize("name", ["alone", "alone3"])
def test_convert_makes_logits_in_pieces_under_zero3_too(name: str, out: Path) -> None:
    results = json.loads((out / "results.json").read_text())
    assert 0 < results[name]["rows"] <= rank_conversions.PIECE_ROWS


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_convert_ranks_each_holds_its_share(stage: int, out: Path) -> None:
    """Moments are halved from stage 1 on, weights at stage 3; DeepSpeed pads by a few hundred bytes."""
    (whole,), found = memory(out, "alone")["weights"], memory(out, f"zero{stage}")
    for name, all_bytes, first in (("weights", whole, 3), ("optimizer_state", BYTES_OF_MOMENTS * whole, 1)):
        share = all_bytes // 2 if stage >= first else all_bytes
        assert len(found[name]) == 2
        assert all(share <= one <= share + 1024 for one in found[name])


def test_convert_bf16_shards_are_saved_unrounded(out: Path) -> None:
    """DeepSpeed gathers in bf16 while it trains so; the saved weights are those of the float32 shards."""
    found = weights(out, "bf16")["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(found, found.bfloat16().float())


@pytest.mark.parametrize("name", [*rank_conversions.BROKEN])
def test_convert_rank_that_hangs_is_killed_and_the_rest_ends_as_unbroken(name: str, out: Path) -> None:
    assert json.loads((out / "results.json").read_text())["stopped"] == 1
    assert losses(out, f"{name}-broken") == losses(out, name)
    found, wanted = weights(out, f"{name}-broken"), weights(out, name)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert not (out / f"{name}-broken" / "checkpoint.pt").exists()
    assert not (out / f"{name}-broken" / "checkpoint").exists()


def test_convert_rank_that_dies_is_named_in_one_line(out: Path) -> None:
    results = json.loads((out / "results.json").read_text())
    said = results["dead"]
    assert results["kills"] == 2  # it was tried once more
    assert "a rank of the conversion died (exit codes [" in said
    assert "-9" in said
    assert "resumes at the last checkpoint" in said
