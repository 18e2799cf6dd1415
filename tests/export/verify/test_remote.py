"""Folders with a modeling file, proven in the real transformers; altered ones are detected."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from layersearch.config.model import ModelConfig
from layersearch.export import export
from layersearch.export.files import write_files
from layersearch.export.hf import MODELING, remote_files
from layersearch.export.remote.modeling_layersearch import BASES
from layersearch.export.verify import verify
from layersearch.schedule import Schedule
from tests.helpers import hf_models

torch.set_num_threads(1)
EVERY = Schedule.parse(
    "window:5 full window:4/3 window:3/4@1 block:6 window:5+sink:3 block:5+sink:2 window:2/3@3+sink:2 full+las:0.1/3 "
    "window:7+las:0.05/4 block:7~3+sink:2+las:0.0/5 window:3/2@2+las:0.2/3 full+las:0.3 "
    "strided:4 fixed:5/2 bigbird:3/2/1 memory:7/5 window:4+summary:5 block:6~2+summary:3+sink:2"
)


def written(schedule: Schedule, out: Path) -> Path:
    model = ModelConfig(n_layers=len(schedule), d_model=32, n_heads=4, n_kv_heads=2, d_ff=48)
    export(schedule, "hf-remote", model=model, vocab_size=61, seq_len=64, out=out)
    return out


@pytest.mark.slow
def test_verify_every_kind_of_span_is_proven(tmp_path: Path) -> None:
    proof = verify(written(EVERY, tmp_path / "new"), trust_remote_code=True)
    assert proof.proven, proof.problem
    assert proof.logits is not None
    assert len(proof.layers) == len(EVERY)


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_verify_every_base_is_proven(base: str, tmp_path: Path) -> None:
    name, values = (hf_models.FAMILIES | {"olmo2": ("Olmo2Config", hf_models.FAMILIES["llama"][1])})[base]
    schedule = Schedule.parse("window:4/3@2+sink:1 full block:6+las:0.1/3")
    write_files(tmp_path / "new", remote_files(schedule, getattr(transformers, name)(**values)), schedule)
    proof = verify(tmp_path / "new", trust_remote_code=True)
    assert proof.proven, proof.problem


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("near = i - j < self.size", "near = i - j <= self.size"),
        ("tokens.clamp(max=reach + self.pool - 1)", "tokens.clamp(max=reach + self.pool - 3)"),
    ],
)
def test_verify_altered_modeling_file_is_caught(code: str, wrong: str, tmp_path: Path) -> None:
    folder = written(Schedule.parse("full window:5 window:5"), tmp_path / "new")
    text = (folder / MODELING).read_text()
    assert text.count(code) == 1
    (folder / MODELING).write_text(text.replace(code, wrong))
    assert not verify(folder, trust_remote_code=True).proven


@pytest.mark.slow
def test_verify_faults_hidden_from_masks_are_caught_by_heads_and_logits(tmp_path: Path) -> None:
    folder = written(Schedule.parse("full window:4/2@1 window:5+las:0.1/2"), tmp_path / "new")
    heads = verify(folder, schedule=Schedule.parse("full window:4/2@3 window:5+las:0.1/2"), trust_remote_code=True)
    assert [(layer.too_many, layer.too_few) for layer in heads.layers] == [(0, 0)] * 3
    assert [layer.proven for layer in heads.layers] == [True, False, True]
    assert "layer 1, head 1: token" in (heads.problem or "")
    decay = verify(folder, schedule=Schedule.parse("full window:4/2@1 window:5+las:0.3/2"), trust_remote_code=True)
    assert all(layer.proven for layer in decay.layers)
    assert "logits differ" in (decay.problem or "")
