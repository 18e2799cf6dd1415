"""Documents in a fixed order: the standard library, local files, or a data set of the hub."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from layersearch.config.recipe import DataConfig
from layersearch.data import hub
from layersearch.data.files import check_column, check_text, local_files, read_texts
from layersearch.data.source import require
from layersearch.errors import UserError

INSTALLED = ("site-packages", "dist-packages", "__pycache__")
TESTS = ("test", "tests", "idle_test")
OPTIONAL = ("idlelib", "tkinter", "turtledemo", "lib2to3", "distutils", "ensurepip", "venv")
"""Folders that distributions put in packages of their own or leave out; kept out everywhere, so that one Python version
gives one text."""
TABLES = ("encodings", "pydoc_data")
"""Generated tables, no code."""
SKIPPED = frozenset(INSTALLED + TESTS + OPTIONAL + TABLES)
SKIPPED_FILES = frozenset(["turtle.py", "sitecustomize.py", "usercustomize.py", "_distutils_system_mod.py"])


class Document(NamedTuple):
    """One text and the key whose hash decides on which side of the split it falls."""

    text: str
    key: str


def stdlib_files(root: Path) -> list[Path]:
    """Return the standard library's own source files under ``root``, sorted by relative path."""
    files = []
    for folder, folders, names in os.walk(root):
        # Pruned as it goes: what is installed beside the library can be far larger than the library.
        folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith("config-")]
        files += [
            Path(folder, name)
            for name in names
            if name.endswith(".py") and name not in SKIPPED_FILES and not name.startswith("_sysconfigdata")
        ]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def stdlib_root() -> Path:
    """Return the folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def python_version() -> str:
    """Return implementation and version, for example ``CPython 3.11.7``."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def identity(config: DataConfig) -> list[Any]:
    """Return plain data that changes when the documents do, without reading them.

    Raises:
        UserError: as `layersearch.data.files.local_files`.
    """
    if config.source == "stdlib":
        files = stdlib_files(stdlib_root())
        require(
            bool(files),
            f"data.source stdlib: no source files under {stdlib_root()}; use a Python that has them, or data.source "
            "text",
        )
        return [sys.version, *_stamps(files)]
    if config.source == "hub":
        return [config.dataset, config.subset, config.column, config.streaming]
    return [config.column, *_stamps(local_files(config.files))]


def _stamps(files: list[Path]) -> list[Any]:
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def documents(config: DataConfig) -> Iterator[Document]:
    """Yield the documents in a fixed order; empty ones are passed over, but for the standard library's.

    Raises:
        UserError: names the key, the file and the cause.
    """
    if config.source == "stdlib":
        yield from _stdlib_documents(stdlib_root())
    elif config.source == "hub":
        with _quiet():
            yield from (Document(text, text) for text in _hub_texts(config))
    else:
        texts = read_texts(config.source, local_files(config.files), config.column)
        yield from (Document(text, text) for text in texts)


def _stdlib_documents(root: Path) -> Iterator[Document]:
    for path in stdlib_files(root):
        with tokenize.open(path) as file:  # honours a file's own encoding line
            yield Document(file.read(), path.relative_to(root).as_posix())


def _hub_texts(config: DataConfig) -> Iterator[str]:
    assert config.dataset is not None
    where = f"data.dataset {config.dataset}"
    try:
        for number, row in enumerate(hub.dataset(config.dataset, config.subset, streaming=config.streaming)):
            check_column(config.column, row, where)
            if text := check_text(row[config.column], config.column, number, where):
                yield text
    except UserError:
        raise
    except Exception as error:  # the network and the formats each raise their own
        raise UserError(
            f"{where} cannot be read ({_cause(error)}); run the command again if the connection broke, else give "
            "another data set"
        ) from None


def _cause(error: BaseException) -> str:
    """Return what went wrong in one line: Arrow's own word if it has one, which names the row, else the innermost."""
    import pyarrow

    arrow = None
    while True:
        arrow = error if isinstance(error, pyarrow.ArrowInvalid) else arrow
        inner = error.__cause__ or error.__context__
        if inner is None:
            return hub.one_line(arrow or error)
        error = inner


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep `datasets` from writing to the terminal what the error's one line says already, and its progress bars."""
    import datasets

    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
