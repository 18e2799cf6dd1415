"""A run and a conversion belong to the model that they began with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layersearch.convert.run_folder import ConvertFolder
from layersearch.errors import UserError
from layersearch.model.pretrained import fingerprint
from layersearch.study.run_folder import RunFolder

SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model-00001-of-00002.safetensors").write_bytes(bytes(5000))
    (folder / SHARD).write_bytes(bytes(3000))
    (folder / "training_args.bin").write_bytes(b"no weights")
    return folder


@pytest.mark.parametrize(("name", "place"), [("config.json", 0), (SHARD, 0), (SHARD, 1500), (SHARD, 2999)])
def test_fingerprint_one_byte_changed_gives_another(model: Path, name: str, place: int) -> None:
    before = fingerprint(str(model))
    assert fingerprint(str(model)) == before
    content = bytearray((model / name).read_bytes())
    content[place] ^= 1
    (model / name).write_bytes(content)
    assert fingerprint(str(model)) != before


def test_fingerprint_files_that_hold_no_weights_change_nothing(model: Path) -> None:
    before = fingerprint(str(model))
    (model / "training_args.bin").write_bytes(b"others")
    (model / "README.md").write_text("new")
    assert fingerprint(str(model)) == before


def open_run(path: Path, model_fingerprint: str) -> None:
    data = {"source": "recall", "vocab_size": 64}
    asked = {"recipe": {"name": "r"}, "space": {"name": "s"}, "budget": 0.5, "seed": 0, "data": data}
    RunFolder(path, asked | {"model_fingerprint": model_fingerprint}).release()


def open_conversion(path: Path, model_fingerprint: str) -> None:
    asked = {"model": "m", "schedule": "full", "recipe": {}, "seed": 0, "data": {}, "family": "hf-remote"}
    ConvertFolder(path, asked | {"model_fingerprint": model_fingerprint}).release()


@pytest.mark.parametrize(("opened", "file"), [(open_run, "config.json"), (open_conversion, "convert.json")])
def test_folder_model_changed_is_refused_and_nothing_is_touched(tmp_path: Path, opened, file: str) -> None:
    out = tmp_path / "out"
    opened(out, "one")
    held = (out / file).read_bytes()
    opened(out, "one")
    with pytest.raises(UserError, match=r"weights or its config.json changed since this began; restore them, or name"):
        opened(out, "two")
    assert (out / file).read_bytes() == held


@pytest.mark.parametrize(("opened", "file"), [(open_run, "config.json"), (open_conversion, "convert.json")])
def test_folder_without_a_fingerprint_still_opens(tmp_path: Path, opened, file: str) -> None:
    out = tmp_path / "out"
    opened(out, "one")
    held = json.loads((out / file).read_text())
    assert held.pop("model_fingerprint") == "one"
    del held["crc32"]
    (out / file).write_text(json.dumps(held))
    opened(out, "two")
