"""The prepared token streams on the disk: plain files, published whole, checked when opened.

A prepared folder holds ``train.npy`` and ``validation.npy`` (one-dimensional, uint16 or uint32), ``tokenizer.json`` and
``prepared.json``, which records the size and CRC-32 of the others. It is built under a temporary name and renamed, so
that processes that prepare the same text at once never see each other's half-written files.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from layersearch.errors import UserError

INDEX = "prepared.json"


class Prepared(NamedTuple):
    """What a prepared folder is made of."""

    facts: dict[str, Any]
    """Plain data for the index."""
    streams: dict[str, npt.NDArray[np.unsignedinteger[Any]]]
    """Token streams by the stem of their file."""
    tokenizer: str
    """The tokenizer's JSON."""


def default_cache() -> Path:
    """Return ``$LAYERSEARCH_CACHE``, else ``$XDG_CACHE_HOME/layersearch``, else ``~/.cache/layersearch``."""
    if own := os.environ.get("LAYERSEARCH_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "layersearch"
    return Path.home() / ".cache" / "layersearch"


def _checksum(path: Path) -> list[int]:
    """Return size in bytes and CRC-32."""
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def _facts(folder: Path) -> dict[str, Any] | None:
    """Return what a prepared folder records about itself; None if it is missing or damaged."""
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        whole = all(_checksum(folder / name) == check for name, check in index["files"].items())
        return dict(index["facts"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def prepared(cache: Path, key: str, prepare: Callable[[], Prepared]) -> tuple[Path, dict[str, Any]]:
    """Return the prepared folder of a key and its facts; prepare it if it is missing or damaged.

    Args:
        cache: the folder that holds all prepared folders; created if need be.
        key: names the folder; whatever determines its content is in it.
        prepare: called only if there is no intact folder.

    Raises:
        UserError: if the cache cannot be written, or whatever ``prepare`` raises.
    """
    folder = cache / key
    if (facts := _facts(folder)) is not None:
        return folder, facts
    with _writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=cache, prefix=".draft-"))  # before the work, to fail early
    try:
        content = prepare()
        with _writing(cache):
            for name, stream in content.streams.items():
                np.save(draft / f"{name}.npy", stream, allow_pickle=False)
            (draft / "tokenizer.json").write_text(content.tokenizer, encoding="utf-8")
            files = {path.name: _checksum(path) for path in sorted(draft.iterdir())}
            index = json.dumps({"facts": content.facts, "files": files}, indent=1)
            (draft / INDEX).write_text(index + "\n", encoding="utf-8")
            draft.chmod(0o755)  # mkdtemp's own mode shuts other users out of a shared cache
            return folder, _publish(draft, folder, content.facts)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    """Turn an error of the file system into the line that says what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache folder {cache} cannot be written ({error.strerror or error}): free some space, or set "
            "LAYERSEARCH_CACHE to another folder"
        ) from None


def _publish(draft: Path, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Rename the draft into place, unless another process published an intact folder meanwhile; return its facts."""
    while True:
        try:
            draft.rename(folder)
            return facts
        except OSError:
            if not folder.exists():
                raise
        if (published := _facts(folder)) is not None:
            return published
        # A rename takes the damaged folder away in one piece; another process may be doing just that.
        broken = draft.with_name(draft.name + "-broken")
        try:
            folder.rename(broken)
        except FileNotFoundError:
            continue
        shutil.rmtree(broken) if broken.is_dir() else broken.unlink()
