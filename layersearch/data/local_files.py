"""Local files and their texts: plain, HTML, JSON and Parquet, each read by its own format, packed or not."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import glob
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import IO, Any, NamedTuple

from layersearch.data.html_text import html_text
from layersearch.data.reading import Reading
from layersearch.data.source import require
from layersearch.errors import DataError, one_line

FORMATS = (
    {".json": "json"}
    | dict.fromkeys((".jsonl", ".ndjson"), "jsonl")
    | dict.fromkeys((".parquet", ".parq", ".pq"), "parquet")
    | dict.fromkeys((".html", ".htm", ".xhtml"), "html")
)
"""Formats by suffix, in lower case. A file with another suffix is text."""
_OF_SOURCE = {"files": None, "text": "text", "json": "jsonl", "parquet": "parquet"}
"""The format of all files of a ``data.source``; None: each has its own."""
_HEAD = 1 << 12
_CHARSET = re.compile(rb"<meta[^>]+charset=[\"']?([\w-]+)", re.IGNORECASE)
_SPACE = re.compile(r"\s*")
_PARQUET_ROWS = 1024
"""Rows of Parquet in memory at a time."""


def _zstd(file: Path) -> IO[bytes]:
    import pyarrow

    stream: Any = pyarrow.CompressedInputStream(pyarrow.OSFile(str(file)), "zstd")
    return io.BufferedReader(stream)


_OPEN: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd, ".zstd": _zstd,
}  # fmt: skip
_UNREAD = frozenset([".lz4", ".7z", ".tar", ".tgz", ".rar"])


UNPACKED, AT_LEAST = 200, 100_000_000
"""Times its size, and bytes, that a packed file may unpack to: a small one can stand for more than fits in memory."""


class _Unpacked(io.RawIOBase):
    """The content of a packed file, up to its bound."""

    def __init__(self, inner: Any, file: Path) -> None:
        self._inner, self._file = inner, file
        self._left = max(UNPACKED * file.stat().st_size, AT_LEAST)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._inner.read(len(buffer))
        self._left -= len(content)
        if self._left < 0:
            raise DataError(f"data.files: {self._file} unpacks to over {UNPACKED} times its size; unpack it yourself")
        buffer[: len(content)] = content
        return len(content)


class _NoText(DataError):
    """A file that is left out of a folder, and refused if it is named itself."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def local_files(names: Sequence[str]) -> dict[Path, bool]:
    """Return the files that ``data.files`` names, each once, and whether it is named itself.

    A pattern gives its matches and a folder all files below it, sorted by name, without hidden files. A missing file,
    an empty one that is named itself, or a pattern or folder of empty files raises a `DataError`.
    """
    found: dict[Path, bool] = {}
    for name in names:
        path = Path(name).expanduser()
        folder = path.is_dir()
        alone = not folder and (path.exists() or not glob.has_magic(str(path)))
        if alone:
            files = [path]
            require(path.is_file(), f"data.files: no file {path}; give an existing path")
            require(path.stat().st_size > 0, f"data.files: {path} is empty; leave it out")
        else:
            pattern = f"{glob.escape(str(path))}/**" if folder else str(path)
            files = [Path(match) for match in sorted(glob.glob(pattern, recursive=True)) if Path(match).is_file()]
            require(files or folder, f"data.files: no file matches {name!r}; correct the pattern")
            held = any(file.stat().st_size > 0 for file in files)
            require(held, f"data.files: {name} holds no file with text in it; name others")
        for file in map(Path.resolve, files):
            found[file] = found.get(file, False) or alone
    return found


def read_texts(source: str, files: Mapping[Path, bool], column: str, reading: Reading | None = None) -> Iterator[str]:
    """Yield the texts of local files in their order, without empty ones.

    A text or HTML file is one text, JSON has one in each object, and Parquet one in each row. A file that is not named
    itself, but through a folder, a pattern or a .zip, is left out if it is binary, or a .json without the column.

    Args:
        source: ``text``, ``json`` or ``parquet``: the format of all. ``files``: each has its own, by its suffix, or by
            its content if it has none.
        files: as `local_files` returns them; plain, or packed as .gz, .bz2, .xz, .zst or .zip.
        column: the column of the text, in JSON and Parquet. The other columns may have any type, and may change.
        reading: counts the files that are read and left out.

    Raises:
        DataError: names the file, the cause and the remedy.
    """
    reading = reading or Reading()
    for file, alone in files.items():
        kind, where = _OF_SOURCE[source] or "a packed file", str(file)
        try:
            for part in _parts(file, alone):
                kind, where = _OF_SOURCE[source] or _format(part), part.where
                yield from _read(part, kind, column, reading)
        except _NoText as error:
            if alone:
                raise
            reading.count(reading.left_out, error.reason)
        except DataError:
            raise
        except Exception as error:  # pyarrow, json and the packers each raise their own
            if isinstance(error, (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)):
                remedy = "give a whole file"
            else:
                remedy = _READERS["text" if isinstance(error, UnicodeError) else kind].remedy
            raise DataError(f"data.files: {where} cannot be read as {kind} ({one_line(error)}); {remedy}") from None


class _Part(NamedTuple):
    """A file, unpacked, or a member of a .zip."""

    name: PurePath
    """Its name without the suffix of a packer, in lower case."""
    stream: Any
    head: bytes
    where: str
    alone: bool
    """Whether it is named itself."""


def _parts(file: Path, alone: bool) -> Iterator[_Part]:
    """Open a file, unpacked; a .zip gives each of its files."""
    suffix = file.suffix.lower()
    if suffix in _UNREAD:
        raise _NoText("binary", f"data.files: {file}: {suffix} is not unpacked here; unpack it, or pack it as .gz")
    if suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.file_size and not member.filename.startswith("__MACOSX/"):  # macOS adds these
                    with archive.open(member) as held:
                        name = PurePath(member.filename.lower())
                        name = name if name.suffix else PurePath(file.stem.lower())
                        stream: Any = io.BufferedReader(_Unpacked(held, file))
                        yield _Part(name, stream, stream.peek(_HEAD), f"{file}: {member.filename}", False)
        return
    with _OPEN[suffix](file) if suffix in _OPEN else file.open("rb") as opened:
        stream = io.BufferedReader(_Unpacked(opened, file)) if suffix in _OPEN else opened
        name = PurePath(file.name.lower())
        yield _Part(name.with_suffix("") if suffix in _OPEN else name, stream, stream.peek(_HEAD), str(file), alone)


def _format(part: _Part) -> str:
    """Return the format of a file by its name, or by its first bytes if the name has no suffix."""
    if part.name.suffix:
        return FORMATS.get(part.name.suffix, "text")
    if part.head.startswith(b"PAR1"):
        return "parquet"
    start = part.head.removeprefix(codecs.BOM_UTF8).lstrip()[:14].lower()
    return "html" if start.startswith((b"<!doctype html", b"<html")) else "jsonl" if start.startswith(b'{"') else "text"


def _read(part: _Part, kind: str, column: str, reading: Reading) -> Iterator[str]:
    """Yield the texts of a part and count it, once."""
    empty = True
    try:
        for text in filter(None, _READERS[kind].read(part, column)):
            if empty:
                reading.count(reading.files, kind)
            empty = False
            yield text
    except _NoText as error:
        if part.alone or kind == "jsonl":
            raise DataError(str(error)) from None
        reading.count(reading.left_out, error.reason)
    except DataError:
        raise
    except ValueError:
        # In a folder of code, a .json is seldom a data set. One that was cut off holds the column's name.
        if part.alone or kind != "json" or not empty or f'"{column}"'.encode() in part.head:
            raise
        reading.count(reading.left_out, f"without column {column!r}")
    else:
        if empty:
            reading.count(reading.left_out, "empty")


def _decoded(part: _Part, encoding: str = "utf-8-sig") -> str:
    content = part.stream.read()
    try:
        if b"\0" in content[:8192]:  # as git and grep tell
            raise UnicodeError("zero bytes")
        return content.decode(encoding)
    except UnicodeError as error:
        problem = f"data.files: {part.where} cannot be read as text ({one_line(error)}); give UTF-8 text"
        raise _NoText("binary", problem) from None


def _text(part: _Part, column: str) -> Iterator[str]:
    yield _decoded(part)


def _html(part: _Part, column: str) -> Iterator[str]:
    named = _CHARSET.search(part.head)
    encoding = "utf-8-sig"
    if named and not part.head.startswith(codecs.BOM_UTF8):
        with contextlib.suppress(LookupError):
            encoding = codecs.lookup(named[1].decode()).name.replace("utf-8", "utf-8-sig")
    yield html_text(_decoded(part, encoding))


def _json(part: _Part, column: str) -> Iterator[str | None]:
    columns: dict[str, None] = {}
    where = f"data.files {part.where}"
    for number, row in enumerate(_json_rows(part.stream)):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} holds {type(row).__name__}, no object")
        columns.update(dict.fromkeys(row))
        text = check_text(row.get(column), column, number, where)
        if text is not None:
            text.encode()  # raises where the text holds half of a surrogate pair
        yield text
    try:
        check_column(column, columns, where)
    except DataError as error:
        raise _NoText(f"without column {column!r}", str(error)) from None


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


def _parquet(part: _Part, column: str) -> Iterator[str | None]:
    import pyarrow.parquet

    where = f"data.files {part.where}"
    plain = isinstance(part.stream, io.BufferedReader) and part.stream.seekable()  # else it is unpacked on the fly
    file = pyarrow.parquet.ParquetFile(part.stream if plain else io.BytesIO(part.stream.read()))
    check_column(column, file.schema_arrow.names, where)
    batches = file.iter_batches(_PARQUET_ROWS, columns=[column])
    texts = (text for batch in batches for text in batch.column(column).to_pylist())
    yield from (check_text(text, column, number, where) for number, text in enumerate(texts))


class _Reader(NamedTuple):
    read: Callable[[_Part, str], Iterator[str | None]]
    remedy: str


_READERS = {
    "text": _Reader(_text, "give UTF-8 text"),
    "html": _Reader(_html, "give UTF-8 text"),
    "json": _Reader(_json, "give JSON objects"),
    "jsonl": _Reader(_json, "give one JSON object a line"),
    "parquet": _Reader(_parquet, "give Parquet files"),
}


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
