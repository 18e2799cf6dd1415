"""The cache of prepared token streams: plain files, published whole, checked when opened.

A prepared folder holds ``train.npy`` and ``validation.npy`` (one-dimensional, uint16 or uint32), ``tokenizer.json`` and
``prepared.json``, which records the size and CRC-32 of the others, and has its own. It is built under a temporary name
and then renamed, so that processes that prepare the same text at once never see each other's half-written files.
"""

from __future__ import annotations

import mmap
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

from layersearch.errors import DataError
from layersearch.files import parse_sealed, write_sealed

INDEX = "prepared.json"


class Prepared(NamedTuple):
    """Content of a prepared folder: plain data for the index, token streams by file stem, the tokenizer's JSON."""

    facts: dict[str, Any]
    streams: dict[str, npt.NDArray[np.unsignedinteger[Any]]]
    tokenizer: str


def default_cache() -> Path:
    """Return ``$LAYERSEARCH_CACHE``, else ``$XDG_CACHE_HOME/layersearch``, else ``~/.cache/layersearch``."""
    if own := os.environ.get("LAYERSEARCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layersearch"


def _checksum(path: Path) -> list[int]:
    """Return size in bytes and CRC-32; an empty file raises a ValueError."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [len(content), zlib.crc32(content)]


def _facts(folder: Path) -> dict[str, Any] | None:
    """Return the facts in a prepared folder's index; None if the folder is missing or damaged."""
    try:
        index: dict[str, Any] = parse_sealed((folder / INDEX).read_text(encoding="utf-8"))
        intact = all(_checksum(folder / name) == check for name, check in index["files"].items())
        return dict(index["facts"]) if intact else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def prepared(cache: Path, key: str, prepare: Callable[[], Prepared]) -> tuple[Path, dict[str, Any]]:
    """Return the prepared folder of a key and its facts; prepare it if it is missing or damaged.

    Args:
        cache: the folder of all prepared folders; created if it does not exist.
        key: name of the folder; it depends on everything that determines the content.
        prepare: called only if there is no intact folder.

    Raises:
        DataError: if the cache cannot be written.
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
            write_sealed(draft / INDEX, {"facts": content.facts, "files": files})
            draft.chmod(0o755)  # mkdtemp's own mode shuts other users out of a shared cache
            return folder, _publish(draft, folder, content.facts)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the cache folder {cache} cannot be written ({error.strerror or error}): free some space, or set "
            "LAYERSEARCH_CACHE to another folder"
        ) from None


def _publish(draft: Path, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Rename the draft to its final name, unless another process published an intact folder; return its facts."""
    while True:
        try:
            draft.rename(folder)
            return facts
        except OSError:
            if not folder.exists():
                raise
        if (published := _facts(folder)) is not None:
            return published
        # A rename moves the damaged folder away at once; another process may do the same.
        broken = draft.with_name(draft.name + "-broken")
        try:
            folder.rename(broken)
        except FileNotFoundError:
            continue
        shutil.rmtree(broken) if broken.is_dir() else broken.unlink()
