"""Checksums of a model's weight files: a file that changed after it was written is named, and not loaded."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from layersearch.errors import RunFolderError
from layersearch.files import parse_json, write_text

FILE = "weights.crc32.json"
_PIECE = 1 << 24


def write_checksums(folder: Path) -> None:
    """Write the CRC-32 of each safetensors file of a folder beside them."""
    found = {file.name: _crc32(file) for file in sorted(folder.glob("*.safetensors"))}
    write_text(folder / FILE, json.dumps(found, indent=1) + "\n")


def check_weights(folder: Path, remedy: str) -> None:
    """Raise RunFolderError, which ends with the remedy, if a weight file does not fit its checksum.

    A folder of others has no checksums; what its files hold is not checked.
    """
    checksums = folder / FILE
    if not checksums.is_file():
        return
    try:
        wanted = dict(parse_json(checksums.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise RunFolderError(f"{checksums}: damaged ({type(error).__name__}); {remedy}") from None
    for name, crc32 in wanted.items():
        file = folder / Path(name).name
        if not file.is_file():
            raise RunFolderError(f"{file}: missing; {remedy}")
        if _crc32(file) != crc32:
            own = f"remove {FILE} if you changed it yourself"
            raise RunFolderError(f"{file}: damaged, it does not fit its CRC-32 in {FILE}; {remedy}, or {own}")


def _crc32(file: Path) -> str:
    found = 0
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE):
            found = zlib.crc32(piece, found)
    return f"{found:08x}"
