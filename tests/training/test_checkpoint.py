"""Checkpoints and weights of which a bit changed are refused by name; the checkpoint before is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layersearch.errors import RunFolderError
from layersearch.training.checkpoint import load_state, load_weights, previous, save_state, save_weights


def flip(path: Path, content: bytes) -> None:
    """Flip one bit in the middle of the bytes of a tensor."""
    data = bytearray(path.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 4
    path.write_bytes(data)


def test_state_with_a_flipped_bit_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    path, states = tmp_path / "checkpoint.pt", [{"step": n, "w": torch.full((64,), 1.5 + n)} for n in (1, 2)]
    for state in states:
        save_state(path, state)
    found, problem = load_state(path, "cpu")
    assert found is not None
    assert (found["step"], problem) == (2, None)
    flip(path, states[1]["w"].numpy().tobytes())
    found, problem = load_state(path, "cpu")
    assert found is not None
    assert torch.equal(found["w"], states[0]["w"])
    assert problem is not None
    assert "checkpoint.pt: damaged" in problem
    flip(previous(path), states[0]["w"].numpy().tobytes())
    with pytest.raises(RunFolderError, match=r"checkpoint\.pt: damaged.*remove it"):
        load_state(path, "cpu")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\0" * 100])
def test_state_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"checkpoint\.pt: damaged"):
        load_state(tmp_path / "checkpoint.pt", "cpu")


def test_weights_with_a_flipped_bit_are_refused_by_name(tmp_path: Path) -> None:
    path, model = tmp_path / "w.safetensors", torch.nn.Linear(8, 8)
    save_weights(model, path, 5)
    assert load_weights(torch.nn.Linear(8, 8), path) == 5
    flip(path, model.weight.detach().numpy().tobytes())
    with pytest.raises(RunFolderError, match=r"w\.safetensors: damaged"):
        load_weights(torch.nn.Linear(8, 8), path)
