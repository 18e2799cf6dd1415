"""Documents, read through `datasets`, in a fixed order."""

from __future__ import annotations

import glob
import os
import platform
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from layersearch.config.recipe import DataConfig
from layersearch.data import hub
from layersearch.data.source import require
from layersearch.errors import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset

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


def local_files(config: DataConfig) -> list[Path]:
    """Return the files that ``data.files`` names, globs expanded, each once, sorted within a glob.

    Raises:
        UserError: if a file is missing or empty, or a glob matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in config.files:
        pattern = str(Path(pattern).expanduser())
        if glob.has_magic(pattern) and not Path(pattern).exists():
            matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
            require(bool(matches), f"data.files: no file matches {pattern!r}; correct the pattern")
        else:
            matches = [Path(pattern)]
            require(not matches[0].is_dir(), f"data.files: {pattern} is a folder; write {pattern}/* for its files")
            require(matches[0].is_file(), f"data.files: no file {pattern}; give an existing path")
        for path in matches:
            require(path.stat().st_size > 0, f"data.files: {path} is empty; leave it out")
            found[path.resolve()] = None
    return list(found)


def identity(config: DataConfig) -> list[Any]:
    """Return plain data that changes when the documents do, without reading them.

    Raises:
        UserError: as `local_files`.
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
    return [config.column, *_stamps(local_files(config))]


def _stamps(files: list[Path]) -> list[Any]:
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def documents(config: DataConfig) -> Iterator[Document]:
    """Yield the documents in a fixed order; empty ones are passed over.

    Raises:
        UserError: names the key, the file and the cause.
    """
    import datasets

    if config.source == "stdlib":
        rows = datasets.IterableDataset.from_generator(_stdlib_rows, gen_kwargs={"root": str(stdlib_root())})
        yield from (Document(**row) for row in rows)
        return
    if config.source == "hub":
        assert config.dataset is not None
        rows = hub.dataset(config.dataset, config.subset, streaming=config.streaming)
        try:
            yield from _texts(rows, config.column, f"data.dataset {config.dataset}")
        except UserError:
            raise
        except Exception as error:  # the network and the formats each raise their own
            raise UserError(
                f"data.dataset {config.dataset} cannot be read ({_cause(error)}); run the command again if the "
                "connection broke, else give another data set"
            ) from None
        return
    files = local_files(config)
    try:
        yield from _local(config, files)
    except UserError:
        raise
    except Exception as error:  # pyarrow, json and datasets each raise their own
        raise UserError(_blame(config, files, error)) from None


def _stdlib_rows(root: str) -> Iterator[dict[str, str]]:
    for path in stdlib_files(Path(root)):
        with tokenize.open(path) as file:  # honours a file's own encoding line
            yield {"text": file.read(), "key": path.relative_to(root).as_posix()}


def _local(config: DataConfig, files: list[Path]) -> Iterator[Document]:
    import datasets

    options = {"sample_by": "document"} if config.source == "text" else {}
    rows = datasets.load_dataset(
        config.source, data_files=[glob.escape(str(path)) for path in files], split="train", streaming=True, **options
    )
    column = "text" if config.source == "text" else config.column
    yield from _texts(rows, column, f"data.files {config.files[0]}")


def _texts(rows: IterableDataset, column: str, where: str) -> Iterator[Document]:
    for number, row in enumerate(rows):
        require(column in row, f"{where}: no column {column!r}; set data.column to one of {', '.join(row)}")
        text = row[column]
        require(
            text is None or isinstance(text, str),
            f"{where}: column {column!r} holds {type(text).__name__} in row {number}, not text; set data.column",
        )
        if text:
            yield Document(text, text)


def _blame(config: DataConfig, files: list[Path], error: Exception) -> str:
    """Return the line that names the file at fault and the cause."""
    culprit = "the files, each readable alone," if len(files) > 1 else str(files[0])
    for path in files if len(files) > 1 else ():
        try:
            for _ in _local(config, [path]):
                pass
        except Exception as alone:
            culprit, error = str(path), alone
            break
    return f"data.files: {culprit} cannot be read as {config.source} ({_cause(error)}); {_REMEDY[config.source]}"


_REMEDY = {
    "text": "give UTF-8 text",
    "json": "give one JSON object a line",
    "parquet": "give Parquet files of the same columns",
}


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
def quiet() -> Iterator[None]:
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
