"""The cache: reused while intact, rebuilt when damaged, shared by processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import layersearch
from layersearch.config.data import DataConfig
from layersearch.data import open_source
from layersearch.data.cache import default_cache
from layersearch.errors import DataError

ROOT = Path(layersearch.__file__).parent.parent


@pytest.fixture
def config(tmp_path) -> DataConfig:
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog; " * 200)
    return DataConfig(source="text", files=(str(tmp_path / "a.txt"),), vocab_size=280)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_prepare_intact_folder_is_reused(config, tmp_path):
    cache = tmp_path / "cache"
    first = open_source(config, 16, cache)
    before = snapshot(first.tokenizer_file.parent)
    second = open_source(config, 32, cache)
    assert second.tokenizer_file == first.tokenizer_file
    assert snapshot(first.tokenizer_file.parent) == before
    assert set(before) == {"train.npy", "validation.npy", "tokenizer.json", "prepared.json"}
    assert list(cache.iterdir()) == [first.tokenizer_file.parent]


def truncate(folder: Path) -> None:
    os.truncate(folder / "train.npy", 200)


def flip(folder: Path) -> None:
    data = bytearray((folder / "train.npy").read_bytes())
    data[-3] ^= 1
    (folder / "train.npy").write_bytes(data)


def lose(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def garble(folder: Path) -> None:
    (folder / "prepared.json").write_text("{")


def other_index(folder: Path) -> None:
    (folder / "prepared.json").write_text(json.dumps({"files": {}}))


def replace_by_a_file(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("x")


@pytest.mark.parametrize("damage", [truncate, flip, lose, garble, other_index, replace_by_a_file])
def test_prepare_damaged_folder_is_rebuilt(config, tmp_path, damage):
    cache = tmp_path / "cache"
    first = open_source(config, 16, cache)
    folder = first.tokenizer_file.parent
    batch, before = first.train(seed=0, step=0, batch_size=4), snapshot(folder)
    del first
    damage(folder)
    again = open_source(config, 16, cache)
    np.testing.assert_array_equal(again.train(seed=0, step=0, batch_size=4).tokens, batch.tokens)
    assert {name: data for name, (_, data) in snapshot(folder).items()} == {
        name: data for name, (_, data) in before.items()
    }
    assert list(cache.iterdir()) == [folder]


def test_prepare_changed_text_is_prepared_anew(config, tmp_path):
    first = open_source(config, 16, tmp_path / "cache")
    (tmp_path / "a.txt").write_text("pack my box with five dozen liquor jugs; " * 200)
    assert open_source(config, 16, tmp_path / "cache").fingerprint != first.fingerprint


def test_fingerprint_follows_the_content_wherever_it_lies(config, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "b.txt"
    copy.write_bytes((tmp_path / "a.txt").read_bytes())
    moved = DataConfig(source="text", files=(str(copy),), vocab_size=280)
    smaller = DataConfig(source="text", files=config.files, vocab_size=270)
    here, there, other = (open_source(each, 16, tmp_path / "cache") for each in (config, moved, smaller))
    assert here.tokenizer_file != there.tokenizer_file
    assert here.fingerprint == there.fingerprint != other.fingerprint


@pytest.mark.slow
def test_prepare_by_processes_at_once_agrees(config, tmp_path):
    script = """
import sys
from pathlib import Path
from layersearch.data import open_source
from layersearch.config.data import DataConfig
source = open_source(DataConfig(source="text", files=(sys.argv[1],), vocab_size=280), 16, Path(sys.argv[2]))
print(source.fingerprint, source.train(seed=0, step=0, batch_size=2).tokens.tobytes().hex())
"""
    command = [sys.executable, "-c", script, config.files[0], str(tmp_path / "cache")]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate()[0] for process in started}
    assert all(process.returncode == 0 for process in started)
    assert len(answers) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_prepare_unwritable_cache_names_the_remedy(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cache folder .* cannot be written .* LAYERSEARCH_CACHE"):
        open_source(config, 16, tmp_path / "file" / "cache")


def test_prepare_failing_text_leaves_nothing_behind(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff" * 100)
    with pytest.raises(DataError):
        open_source(DataConfig(source="text", files=(str(tmp_path / "bad.txt"),)), 16, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_default_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("LAYERSEARCH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "layersearch"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "layersearch"
    monkeypatch.setenv("LAYERSEARCH_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"
