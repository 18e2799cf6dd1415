"""The contract of every export target."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError
from layersearch.export import TARGETS, decoder_source, export, export_model
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule

SUPPORTED = Schedule.parse("window:5 full window:5 full")
FAMILY = {"hf": "qwen3", "vllm": "llama", "sglang": "gemma3", "tensorrt-llm": "gemma3"}
UNLIMITED = {"hf-remote", "flex", "yaml", "json"}
"""Targets that support every schedule."""


def write(schedule: Schedule, target: str, out: Path) -> list[Path]:
    model = ModelConfig(n_layers=len(schedule), d_model=32, n_heads=4, n_kv_heads=4, d_ff=48)
    if target == "gguf":  # it writes weights
        torch.manual_seed(0)
        state = Decoder(model, 61, schedule).state_dict()
        held = decoder_source(state, model, vocab_size=61, seq_len=23)
        return export_model(schedule, target, held, out=out)[0]
    return export(schedule, target, model=model, vocab_size=61, seq_len=23, out=out, family=FAMILY.get(target))


@contextmanager
def disk_of(room: int) -> Iterator[None]:
    """Limit the size of every file in bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("target", TARGETS)
def test_target_supported_schedule_is_written_and_may_be_written_again(target: str, tmp_path: Path) -> None:
    files = write(SUPPORTED, target, tmp_path / "out")
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    before = {file: file.read_bytes() for file in files}
    assert all(before.values())
    assert write(SUPPORTED, target, tmp_path / "out") == files
    assert {file: file.read_bytes() for file in files} == before


@pytest.mark.parametrize("target", [target for target in TARGETS if target not in UNLIMITED])
def test_target_unsupported_schedule_is_refused_naming_the_nearest(target: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"layer [01]: .*the nearest supported schedule is '"):
        write(Schedule.parse("full block:8"), target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", TARGETS)
def test_target_other_files_of_the_same_name_are_refused_and_kept(target: str, tmp_path: Path) -> None:
    for file in write(SUPPORTED, target, tmp_path / "whole"):
        out = tmp_path / f"out-{file.name}"
        out.mkdir()
        (out / file.name).write_text("mine")
        with pytest.raises(ExportError, match=f"{file.name} exists and differs"):
            write(SUPPORTED, target, out)
        assert (out / file.name).read_text() == "mine"


@pytest.mark.parametrize("target", TARGETS)
def test_target_on_a_full_disk_leaves_no_half_file(target: str, tmp_path: Path) -> None:
    whole = {file.name: file.read_bytes() for file in write(SUPPORTED, target, tmp_path / "whole")}
    out = tmp_path / "out"
    with disk_of(20), pytest.raises(ExportError, match="cannot be written"):
        write(SUPPORTED, target, out)
    left = {file.name: file.read_bytes() for file in out.iterdir()} if out.exists() else {}
    assert left.items() <= whole.items()
