"""Documents in a fixed order: the standard library, local files, or a data set of the Hugging Face hub."""

from __future__ import annotations

import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from layersearch.config.data import DataConfig
from layersearch.data.hub import read_rows
from layersearch.data.local_files import check_column, check_text, local_files, read_texts
from layersearch.data.reading import Reading
from layersearch.data.source import require

STDLIB = Path(sysconfig.get_path("stdlib"))
# Some distributions leave out folders of the library or put them in other packages. They are skipped everywhere, so
# that one Python version gives one text.
SKIPPED = frozenset(
    (
        *("site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"),
        *("idlelib", "tkinter", "turtledemo", "lib2to3", "distutils", "ensurepip", "venv"),
        *("encodings", "pydoc_data"),  # generated tables, no code
    )
)
SKIPPED_FILES = frozenset(["turtle.py", "sitecustomize.py", "usercustomize.py", "_distutils_system_mod.py"])
BYTES_PER_TOKEN = 8
"""At most ``max_tokens`` times this is read. A BPE packs fewer characters of text into a token."""


class Document(NamedTuple):
    """A text, and the key whose hash decides its side of the split."""

    text: str
    key: str


def stdlib_files(root: Path) -> list[Path]:
    """Return the source files of the standard library under ``root``, sorted by relative path."""
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        # Pruned here, because installed packages can be far larger than the library.
        folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith("config-")]
        kept = [name for name in names if name.endswith(".py") and name not in SKIPPED_FILES]
        files += [Path(folder, name) for name in kept if not name.startswith("_sysconfigdata")]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def origin(source: str) -> tuple[str, str]:
    """Return the key that names the text of a ``data.source``, and the remedy if there is too little of it."""
    return {
        "stdlib": ("data.source stdlib", "raise data.max_tokens"),
        "hub": ("data.dataset", "raise data.max_tokens, name a larger data set"),
    }.get(source, ("data.files", "name more text in data.files"))


def identity(config: DataConfig) -> list[Any]:
    """Return plain data that changes when the documents do, without reading them."""
    if config.source == "hub":
        return [config.source, config.max_tokens, config.dataset, config.subset, config.column, config.streaming]
    stdlib = config.source == "stdlib"
    files = stdlib_files(STDLIB) if stdlib else local_files(config.files)
    missing = f"data.source stdlib: no source files under {STDLIB}; use a Python that has them, or data.source text"
    require(files or not stdlib, missing)
    stamps = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return [config.source, config.max_tokens, sys.version if stdlib else config.column, *stamps]


def read_documents(config: DataConfig, reading: Reading) -> Iterator[Document]:
    """Yield the documents in a fixed order, without empty ones, cut where ``max_tokens`` need no more of them.

    ``reading`` counts them. If all files are left out, a `DataError` is raised.
    """
    most = config.max_tokens * BYTES_PER_TOKEN
    for text, key in _all_documents(config, reading):
        kept = text[: most - reading.characters]
        reading.documents += 1
        reading.characters += len(kept)
        yield Document(kept, key)
        if reading.characters >= most:
            reading.stopped = True
            return
    nothing = f"data.files: no text in {', '.join(config.files)} ({reading}); name others"
    require(reading.documents or not reading.left_out, nothing)


def _all_documents(config: DataConfig, reading: Reading) -> Iterator[Document]:
    if config.source == "stdlib":
        for path in stdlib_files(STDLIB):
            with tokenize.open(path) as file:  # heeds the encoding line of the file
                reading.count(reading.files, "text")
                yield Document(file.read(), path.relative_to(STDLIB).as_posix())
    elif config.source == "hub":
        yield from (Document(text, text) for text in _hub_texts(config))
    else:
        texts = read_texts(config.source, local_files(config.files), config.column, reading)
        yield from (Document(text, text) for text in texts)


def _hub_texts(config: DataConfig) -> Iterator[str]:
    assert config.dataset is not None
    where = f"data.dataset {config.dataset}"
    for number, row in enumerate(read_rows(config.dataset, config.subset, streaming=config.streaming)):
        check_column(config.column, row, where)
        if text := check_text(row[config.column], config.column, number, where):
            yield text
