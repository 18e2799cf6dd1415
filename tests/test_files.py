"""Files with a checksum: whatever bit of one changes, it is refused or says the same."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from layersearch.convert.run_folder import ConvertFolder
from layersearch.errors import RunFolderError
from layersearch.files import open_folder, parse_sealed, write_sealed
from layersearch.results.retrieval_cells import NAME, read_lengths
from layersearch.study.run_folder import read_config


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << at % 8
    path.write_bytes(data)


def test_sealed_file_with_a_flipped_bit_is_refused_or_reads_the_same(tmp_path: Path) -> None:
    path, content = tmp_path / "f.json", {"a": [0.1, None, float("inf")], "ü": {"10": 1, "9": "x"}}
    write_sealed(path, {"a": [0.1, None, float("inf")], "ü": {9: "x", 10: 1}})
    assert parse_sealed(path.read_bytes()) == content
    for at in range(len(path.read_bytes())):
        flipped(path, at)
        with contextlib.suppress(ValueError):
            found = parse_sealed(path.read_bytes())
            assert found == content or set(found) - set(content)  # the key of the checksum itself
        flipped(path, at)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert parse_sealed(path.read_bytes()) == content


def test_configuration_of_a_run_with_a_flipped_bit_is_refused_or_reads_the_same(
    saved_run: Path, tmp_path: Path
) -> None:
    before = json.loads((saved_run / "config.json").read_text())
    open_folder(tmp_path / "run", "config.json", before, lambda wanted: None).close()
    wanted, file = read_config(tmp_path / "run"), tmp_path / "run" / "config.json"
    assert "crc32" in file.read_text()
    assert "crc32" not in wanted
    for at in range(0, len(file.read_bytes()), 11):
        flipped(file, at)
        with contextlib.suppress(RunFolderError):
            assert read_config(tmp_path / "run").items() >= wanted.items()
        flipped(file, at)
    file.write_text(file.read_text().replace('"budget": 0.6', '"budget": 0.7'))
    with pytest.raises(RunFolderError, match=r"config\.json: changed since it was written; restore it, or remove its"):
        read_config(tmp_path / "run")


def test_request_of_a_conversion_that_changed_is_refused(tmp_path: Path) -> None:
    asked = {"model": "m", "schedule": "full", "recipe": {}, "seed": 0, "data": {}, "family": "f"}
    asked |= {"model_fingerprint": "one"}
    ConvertFolder(tmp_path, asked).release()
    file = tmp_path / "convert.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(RunFolderError, match=r"convert\.json: changed since it was written"):
        ConvertFolder(tmp_path, asked | {"seed": 1})


@pytest.mark.parametrize("text", ['{"fu": {}}', '{"full": {"48": {"0": {"code": 0.5}}}, "crc32": "00000000"}'])
def test_retrieval_at_other_lengths_that_changed_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(RunFolderError, match=rf"{NAME}: damaged; remove it"):
        read_lengths(tmp_path)
