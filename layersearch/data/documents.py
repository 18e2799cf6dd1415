"""Documents in a fixed order: the standard library, local files, or a data set of the Hugging Face hub."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import json
import lzma
import os
import re
import sys
import sysconfig
import tokenize
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from layersearch.config.recipe import DataConfig
from layersearch.data.hub import read_rows
from layersearch.data.source import require
from layersearch.errors import DataError, one_line

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
FORMATS = dict.fromkeys((".json", ".jsonl", ".ndjson"), "json") | dict.fromkeys((".parquet", ".parq", ".pq"), "parquet")
"""``data.source`` by suffix, in lower case. A file with another suffix is text."""
_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_UNREAD = frozenset([".zst", ".zstd", ".lz4", ".7z", ".tar", ".tgz", ".rar"])
_REMEDY = {"text": "give UTF-8 text", "json": "give one JSON object a line", "parquet": "give Parquet files"}
_SPACE = re.compile(r"\s*")
_PARQUET_ROWS = 1024
"""Rows of Parquet in memory at a time."""
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


def read_documents(config: DataConfig) -> Iterator[Document]:
    """Yield the documents in a fixed order, without empty ones, cut where ``max_tokens`` need no more of them."""
    left = config.max_tokens * BYTES_PER_TOKEN
    for text, key in _all_documents(config):
        yield Document(text[:left], key)
        left -= len(text)
        if left <= 0:
            return


def _all_documents(config: DataConfig) -> Iterator[Document]:
    if config.source == "stdlib":
        for path in stdlib_files(STDLIB):
            with tokenize.open(path) as file:  # heeds the encoding line of the file
                yield Document(file.read(), path.relative_to(STDLIB).as_posix())
    else:
        local = config.source != "hub"
        texts = read_texts(config.source, local_files(config.files), config.column) if local else _hub_texts(config)
        yield from (Document(text, text) for text in texts)


def _hub_texts(config: DataConfig) -> Iterator[str]:
    assert config.dataset is not None
    where = f"data.dataset {config.dataset}"
    for number, row in enumerate(read_rows(config.dataset, config.subset, streaming=config.streaming)):
        check_column(config.column, row, where)
        if text := check_text(row[config.column], config.column, number, where):
            yield text


def local_files(names: Sequence[str]) -> list[Path]:
    """Return the files that ``data.files`` names, each once.

    A pattern gives its matches and a folder all files below it, sorted by name, without hidden and empty files. A
    missing or empty file, or a pattern or folder without files, raises a `DataError`.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name).expanduser()
        folder = path.is_dir()
        if folder or (glob.has_magic(str(path)) and not path.exists()):
            pattern = f"{glob.escape(str(path))}/**" if folder else str(path)
            files = [Path(match) for match in sorted(glob.glob(pattern, recursive=True)) if Path(match).is_file()]
            require(files or folder, f"data.files: no file matches {name!r}; correct the pattern")
            files = [file for file in files if file.stat().st_size > 0]
            require(files, f"data.files: {name} holds no file with text in it; name others")
        else:
            files = [path]
            require(path.is_file(), f"data.files: no file {path}; give an existing path")
            require(path.stat().st_size > 0, f"data.files: {path} is empty; leave it out")
        found |= dict.fromkeys(file.resolve() for file in files)
    return list(found)


def detect_source(files: Sequence[Path]) -> str:
    """Return the ``data.source`` of these files: ``text``, ``json`` or ``parquet``; several raise a `DataError`."""
    found = defaultdict(list)
    for file in files:
        found[_format(file)].append(file)
    formats = ", ".join(f"{len(paths)} {name} ({paths[0]} first)" for name, paths in sorted(found.items()))
    require(len(found) == 1, f"--data: the files are of several formats: {formats}; name those of one format")
    return next(iter(found))


def _format(file: Path) -> str:
    """Return the format of one file by its name, or by its first bytes if the name has no suffix."""
    name = Path(file.name.lower())
    if name.suffix in _OPEN.keys() | _UNREAD | {".zip"}:
        name = name.with_suffix("")
    if name.suffix:
        return FORMATS.get(name.suffix, "text")
    try:
        if file.suffix.lower() == ".zip":
            with zipfile.ZipFile(file) as archive:
                return detect_source([Path(member) for member in _members(archive) if Path(member).suffix])
        streams = _streams(file)  # kept, because a generator that is dropped closes its file
        head = next(streams).read(1 << 12)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zipfile.BadZipFile, StopIteration):
        return "text"  # the reader reports the fault
    if head.startswith(b"PAR1"):
        return "parquet"
    return "json" if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b'{"') else "text"


def read_texts(source: str, files: Sequence[Path], column: str) -> Iterator[str]:
    """Yield the texts of local files in their order, without empty ones.

    Args:
        source: ``text`` (a document a file), ``json`` (an object a line, or an array of them) or ``parquet``.
        files: plain, or packed as .gz, .bz2, .xz or .zip.
        column: the column of the text, in json and parquet. The other columns may have any type, and may change.

    Raises:
        DataError: names the file, the cause and the remedy.
    """
    read = {"text": _plain, "json": _json, "parquet": _parquet}[source]
    for file in files:
        try:
            for stream in _streams(file):
                yield from filter(None, read(stream, column, f"data.files {file}"))
        except DataError:
            raise
        except Exception as error:  # pyarrow, json and the packers each raise their own
            remedy = _REMEDY["text" if isinstance(error, UnicodeError) else source]
            raise DataError(f"data.files: {file} cannot be read as {source} ({one_line(error)}); {remedy}") from None


def _streams(file: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacked; a .zip gives each of its files."""
    suffix = file.suffix.lower()
    require(suffix not in _UNREAD, f"data.files: {file}: {suffix} is not unpacked here; unpack it, or pack it as .gz")
    if suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            for member in _members(archive):
                with archive.open(member) as stream:
                    yield stream
    else:
        with _OPEN.get(suffix, open)(file, "rb") as stream:
            yield stream


def _members(archive: zipfile.ZipFile) -> list[str]:
    """Return the files in an archive, without those that macOS adds."""
    names = [info.filename for info in archive.infolist() if info.file_size]
    return [name for name in names if not name.startswith("__MACOSX/")]


def _plain(stream: IO[bytes], column: str, where: str) -> Iterator[str]:
    with io.TextIOWrapper(stream, encoding="utf-8") as text:
        yield text.read()


def _json(stream: IO[bytes], column: str, where: str) -> Iterator[str | None]:
    columns: dict[str, None] = {}
    for number, row in enumerate(_json_rows(stream)):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} holds {type(row).__name__}, no object")
        columns.update(dict.fromkeys(row))
        text = check_text(row.get(column), column, number, where)
        if text is not None:
            text.encode()  # raises where the text holds half of a surrogate pair
        yield text
    check_column(column, columns, where)


def _json_rows(stream: IO[bytes]) -> Iterator[Any]:
    """Yield the rows of a file: a JSON value per line; if the first line is not JSON, the values of the whole text."""
    first = True
    with io.TextIOWrapper(stream, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                values: Iterator[Any] = iter([json.loads(line)])
            except json.JSONDecodeError as error:
                if not first:
                    raise ValueError(f"line {number}: {error.msg}") from None
                values = _json_values(line + lines.read(), number)
            for value in values:
                if isinstance(value, list):  # an array of objects, or of texts alone
                    yield from ({"text": row} if isinstance(row, str) else row for row in value)
                else:
                    yield value
            first = False


def _json_values(text: str, first_line: int) -> Iterator[Any]:
    """Yield the JSON values of a text, whatever lines they take."""
    decoder, text, place = json.JSONDecoder(), text.strip(), 0
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {first_line + error.lineno - 1}: {error.msg}") from None
        yield value
        place = _SPACE.match(text, place).end()  # type: ignore[union-attr]  # it also matches no space


def _parquet(stream: IO[bytes], column: str, where: str) -> Iterator[str | None]:
    import pyarrow.parquet

    seekable = isinstance(stream, io.BufferedReader)  # else it is unpacked on the fly
    file = pyarrow.parquet.ParquetFile(stream if seekable else io.BytesIO(stream.read()))
    check_column(column, file.schema_arrow.names, where)
    batches = file.iter_batches(_PARQUET_ROWS, columns=[column])
    texts = (text for batch in batches for text in batch.column(column).to_pylist())
    yield from (check_text(text, column, number, where) for number, text in enumerate(texts))


def check_column(column: str, columns: Collection[str], where: str) -> None:
    """Refuse rows of these columns if the one asked for is missing; no columns at all are accepted."""
    held = not columns or column in columns
    require(held, f"{where}: no column {column!r}; set data.column to one of {', '.join(columns)}")


def check_text(text: Any, column: str, number: int, where: str) -> str | None:
    """Return the value of the text column in one row; refuse a value that is no text."""
    kind = type(text).__name__
    good = text is None or isinstance(text, str)
    require(good, f"{where}: column {column!r} holds {kind} in row {number}, not text; set data.column")
    return text  # type: ignore[no-any-return]
