"""A weight file that changed after it was written is named, and not loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from layersearch.errors import RunFolderError
from layersearch.model.pretrained import load_pretrained
from layersearch.model.weight_checksums import FILE, check_weights, write_checksums
from tests.helpers.hf_models import save


def test_weights_of_which_one_bit_changed_are_refused_by_name(tmp_path: Path) -> None:
    save("llama", tmp_path)
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    write_checksums(tmp_path)
    load_pretrained(str(tmp_path))
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"model\.safetensors: damaged, .*convert the model again"):
        load_pretrained(str(tmp_path))
    (tmp_path / FILE).unlink()  # the user's own change
    load_pretrained(str(tmp_path))


@pytest.mark.parametrize("text", ["[", "[1]", "[" * 5000, "3"])
def test_checksums_that_are_damaged_are_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(RunFolderError, match=f"{FILE}: damaged"):
        check_weights(tmp_path, "convert again")


def test_weights_that_are_gone_are_named(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(b"x")
    write_checksums(tmp_path)
    check_weights(tmp_path, "convert again")
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"model-1\.safetensors: missing; convert again"):
        check_weights(tmp_path, "convert again")
