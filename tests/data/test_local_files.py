"""Local files: each is read by its own format, however it is named and packed, or left out with a reason."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layersearch.config.data import DataConfig
from layersearch.data import describe, open_source
from layersearch.data.documents import read_documents
from layersearch.data.local_files import local_files, read_texts
from layersearch.data.reading import Reading
from layersearch.errors import DataError
from tests.helpers.documents import TEXTS, write_text, wrong

JSON = "".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(TEXTS)).encode()
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zip": lambda content: zipped({"a": content}),
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}  # fmt: skip


def zipped(members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(held := io.BytesIO(), "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return held.getvalue()


@pytest.mark.parametrize("packer", ["", *PACKERS])
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "A.JSONL", "a.json", "part-0"])
def test_read_texts_json_files_are_json_however_named_and_packed(tmp_path, name, packer):
    file = Path(wrong(tmp_path, name + packer, PACKERS.get(packer, bytes)(JSON)))
    for source in ("json", "files"):
        assert [*read_texts(source, {file: True}, "text")] == TEXTS


@pytest.mark.parametrize("name", ["a.parquet", "a.PARQUET", "a.parq", "a.pq", "part-0", "a.parquet.gz", "b.pq.zst"])
def test_read_texts_parquet_files_are_parquet_however_named(tmp_path, name):
    pq.write_table(pa.table({"text": TEXTS}), held := io.BytesIO())
    content = PACKERS.get(Path(name).suffix, bytes)(held.getvalue())
    file = Path(wrong(tmp_path, name, content))
    for source in ("parquet", "files"):
        assert [*read_texts(source, {file: True}, "text")] == TEXTS


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", JSON), ("a.md", b"# A"), ("README", b"{ once }"), ("A.TXT", b"a")]
)
@pytest.mark.parametrize("packer", ["", *PACKERS])
def test_read_texts_other_files_are_text(tmp_path, name, content, packer):
    file = Path(wrong(tmp_path, name + packer, PACKERS.get(packer, bytes)(content)))
    assert [*read_texts("files", {file: True}, "text")] == [content.decode()]


def test_read_texts_zip_is_read_by_its_members(tmp_path):
    members = {"x/a.jsonl": JSON, "__MACOSX/x/._a.jsonl": b"mac", "x/b.md": b"# B", "x/c.png": b"\x89PNG\0"}
    file = Path(wrong(tmp_path, "books.zip", zipped(members)))
    assert [*read_texts("files", {file: True}, "text", reading := Reading())] == [*TEXTS, "# B"]
    assert (reading.files, reading.left_out) == ({"jsonl": 1, "text": 1}, {"binary": 1})


def test_read_texts_byte_order_mark_is_no_text(tmp_path):
    file = Path(wrong(tmp_path, "a.txt", b"\xef\xbb\xbfonce"))
    assert [*read_texts("text", {file: True}, "text")] == ["once"]


PAGE = b"<html><head><title>Tea</title><style>b {}</style></head><body><p>Boil <b>wat</b>er&amp; wait</p></body></html>"


@pytest.mark.parametrize("name", ["a.html", "A.HTM", "a.html.gz", "page"])
def test_read_texts_html_is_stripped(tmp_path, name):
    file = Path(wrong(tmp_path, name, PACKERS.get(Path(name).suffix, bytes)(PAGE)))
    assert [*read_texts("files", {file: True}, "text")] == ["Tea\n\nBoil water& wait"]
    assert [*read_texts("text", {file: True}, "text")] != ["Tea\n\nBoil water& wait"]


def test_read_texts_html_in_the_encoding_that_it_names(tmp_path):
    page = "<meta http-equiv=Content-Type content='text/html; charset=iso-8859-1'><p>thé".encode("latin-1")
    assert [*read_texts("files", {Path(wrong(tmp_path, "a.html", page)): True}, "text")] == ["thé"]


def folder_of_everything(at: Path) -> DataConfig:
    pq.write_table(pa.table({"text": ["row 1", None, "row 2"]}), held := io.BytesIO())
    for name, content in {
        "a.txt": "one",
        "src/b.py": "two = 2",
        "src/pkg/__init__.py": "",
        "src/package.json": '{"name": "x"}',
        "src/tsconfig.json": "{ // a comment\n}",
        "c.html": PAGE,
        "d.jsonl.zst": PACKERS[".zst"](JSON),
        "e.parquet": held.getvalue(),
        "f.json.xz": PACKERS[".xz"](b'["three"]'),
        "g.md.bz2": PACKERS[".bz2"](b"# four"),
        "no/rows.jsonl": '{"text": null}\n',
        "no/picture.png": b"\x89PNG\r\n\0\0",
        "no/latin.txt": b"th\xe9",
        "no/archive.tar.gz": PACKERS[".gz"](b"x" * 90 + b"\0" * 90),
        "no/archive.7z": b"7z",
        ".hidden": "no",
    }.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        wrong(at, name, content)
    return DataConfig(source="files", files=(str(at),))


def test_read_documents_folder_of_several_formats_each_is_read_by_its_own(tmp_path):
    reading = Reading()
    found = [text for text, _ in read_documents(folder_of_everything(tmp_path), reading)]
    assert found == ["one", "Tea\n\nBoil water& wait", *TEXTS, "row 1", "row 2", "three", "# four", "two = 2"]
    assert str(reading) == (
        f"read 67 documents of 7 files (text 3, html 1, json 1, jsonl 1, parquet 1), {sum(map(len, found)):,} "
        "characters; left out 8 files (binary 4, empty 2, without column 'text' 2)"
    )


def test_open_source_reading_is_recorded_and_comes_out_of_the_cache(tmp_path):
    (tmp_path / "in").mkdir()
    config = dataclasses.replace(folder_of_everything(tmp_path / "in"), vocab_size=300)
    for _ in range(2):
        source = open_source(config, 8, tmp_path / "cache")
        assert source.reading.left_out == {"binary": 4, "without column 'text'": 2, "empty": 2}
        assert describe(source)["read"] == dataclasses.asdict(source.reading)


def test_read_documents_no_more_than_max_tokens_needs_is_read(tmp_path):
    config = dataclasses.replace(write_text(tmp_path), max_tokens=20)
    reading = Reading()
    texts = [text for text, _ in read_documents(config, reading)]
    assert (reading.characters, sum(map(len, texts))) == (160, 160)
    assert str(reading) == "read 2 documents of 2 files (text 2), 160 characters; data.max_tokens needs no more"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.png", b"\x89PNG\0", r"\S+a\.png cannot be read as text \(zero bytes\); give UTF-8 text$"),
        ("a.7z", b"7z", r"\S+a\.7z: \.7z is not unpacked here"),
        ("a.json", b'{"name": 1}', r"\S+a\.json: no column 'text'; set data\.column to one of name$"),
        ("a.json", b"{ // a comment\n}", r"\S+a\.json cannot be read as json \(line 1: .*\); give JSON objects$"),
    ],
)
def test_read_texts_file_without_text_is_refused_if_named_and_left_out_of_a_folder(tmp_path, name, content, line):
    file = Path(wrong(tmp_path, name, content))
    with pytest.raises(DataError, match=line):
        [*read_texts("files", {file: True}, "text")]
    assert [*read_texts("files", {file: False}, "text", reading := Reading())] == []
    assert sum(reading.left_out.values()) == 1


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (
            "a.jsonl.gz",
            gzip.compress(JSON)[:-30],
            r"a\.jsonl\.gz cannot be read as jsonl \(.*ended.*\); give a whole file$",
        ),
        (
            "a.txt.zst",
            pa.Codec("zstd").compress(JSON, asbytes=True)[:-9],
            r"a\.txt\.zst .* \(Trunc.*\); give a whole file$",
        ),
        (
            "a.zip",
            zipped({"a.txt": b"one"})[:-30],
            r"a\.zip cannot be read as a packed file \(.*\); give a whole file$",
        ),
        (
            "a.zip",
            zipped({"a.txt": b"one"}).replace(b"\x14\0\0\0\0\0", b"\x14\0\1\0\0\0"),
            r"a\.zip cannot be read as a packed file \(.*encrypted.*\); unpack it$",
        ),
        ("a.parquet", b"PAR1 and no more", r"a\.parquet cannot be read as parquet \(.*\); give Parquet files$"),
        ("a.jsonl", JSON[:-9], r"a\.jsonl cannot be read as jsonl \(line 60: .*\); give one JSON object a line$"),
        ("a.json", b'[{"text": "a"}, {"te', r"a\.json cannot be read as json \(line 1: .*\); give JSON objects$"),
        ("a.jsonl", b'{"body": "a"}\n', r"a\.jsonl: no column 'text'; set data\.column to one of body$"),
    ],
    ids=[
        "gz",
        "zst",
        "zip",
        "zip with a password",
        "parquet",
        "jsonl",
        "json",
        "column",
    ],  # a packed file holds the time
)
def test_read_texts_broken_shard_of_a_folder_is_refused(tmp_path, name, content, line):
    with pytest.raises(DataError, match=line):
        [*read_texts("files", {Path(wrong(tmp_path, name, content)): False}, "text")]


def test_read_documents_folder_of_binary_files_is_refused_with_their_count(tmp_path):
    wrong(tmp_path, "a.png", b"\x89PNG\0")
    with pytest.raises(
        DataError, match=r"^data\.files: no text in \S+ \(.*left out 1 file \(binary 1\)\); name others$"
    ):
        [*read_documents(DataConfig(source="files", files=(str(tmp_path),)), Reading())]


def test_local_files_folder_gives_what_lies_below_it_without_hidden_files(tmp_path):
    for name in ("b/c.txt", "b/a.txt", "a.txt", ".git/x.txt", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        wrong(tmp_path, name, "text")
    wrong(tmp_path, "b/__init__.py", "")
    found = local_files([str(tmp_path)])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["a.txt", "b/__init__.py", "b/a.txt", "b/c.txt"]
    assert not any(found.values())
    assert local_files([str(tmp_path / "**")]) == found
    both = local_files([str(tmp_path), str(tmp_path / "a.txt")])
    assert [path.name for path, alone in both.items() if alone] == ["a.txt"]


def rows(*more: dict[str, Any]) -> bytes:
    """Return more than the 10 MB from which a reader of Arrow would guess the columns, then other columns."""
    long = "alpha beta gamma delta " * 300
    usual = [{"text": f"{number} {long}", **more[0]} for number in range(1600)]
    return "".join(json.dumps(row) + "\n" for row in [*usual, {"text": "last", **more[1]}]).encode()


@pytest.mark.parametrize(
    "content",
    [
        rows({"id": 7}, {"id": "x-17"}),
        rows({"note": None}, {"note": "first"}),
        rows({}, {"extra": 1}),
        rows({"meta": {"a": 1}}, {"meta": {"a": 1, "b": []}}),
    ],
    ids=["another type", "null, then text", "a late column", "a struct that grows"],
)
def test_read_texts_json_other_columns_may_change(tmp_path, content):
    assert len(content) > 10 << 20
    *_, last = texts = [*read_texts("json", {Path(wrong(tmp_path, "a.jsonl", content)): True}, "text")]
    assert (len(texts), last) == (1601, "last")


@pytest.mark.parametrize("source", ["json", "parquet"])
def test_read_texts_files_of_other_columns_are_read_in_either_order(tmp_path, source):
    plain, more = {"text": ["a", "b"]}, {"id": [1, 2], "text": ["c", "d"], "note": [None, "n"]}
    files = []
    for name, columns in (("1", plain), ("2", more)):
        files.append(tmp_path / name)
        if source == "parquet":
            pq.write_table(pa.table(columns), files[-1])
        else:
            lines = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            files[-1].write_text("\n".join(map(json.dumps, lines)))
    assert [*read_texts(source, dict.fromkeys(files, True), "text")] == ["a", "b", "c", "d"]
    assert [*read_texts(source, dict.fromkeys(files[::-1], True), "text")] == ["c", "d", "a", "b"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + JSON,
        JSON.replace(b"\n", b"\r\n"),
        b"\n \n" + JSON.replace(b"\n", b"\n\n"),
        JSON.rstrip(),
        b'{"text": null}\n{"id": 1}\n{"text": ""}\n' + JSON + b'{"text": null, "id": NaN}\n',
        b'{"id": [1, "a", {"b": -Infinity}]}\n' + JSON,
        json.dumps([json.loads(line) for line in JSON.splitlines()]).encode(),
        json.dumps([json.loads(line) for line in JSON.splitlines()], indent=1).encode(),
        b"\n".join(json.dumps(json.loads(line), indent=1).encode() for line in JSON.splitlines()) + b"\n\n",
        json.dumps(TEXTS).encode(),
    ],
    ids=[
        *("BOM", "CRLF", "blank lines", "no last newline", "nulls and NaN", "arrays in a column"),
        *("array", "indented array", "indented objects", "array of texts"),
    ],
)
def test_read_texts_json_takes_what_people_write(tmp_path, content):
    assert [*read_texts("json", {Path(wrong(tmp_path, "a.jsonl", content)): True}, "text")] == TEXTS


def test_read_texts_parquet_shard_without_rows_holds_no_texts(tmp_path):
    schema = pa.schema([("text", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "0.parquet")
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "1.parquet")
    for source in ("parquet", "files"):
        files = {tmp_path / "0.parquet": True, tmp_path / "1.parquet": True}
        assert [*read_texts(source, files, "text", reading := Reading())] == TEXTS
        assert (reading.files, reading.left_out) == ({"parquet": 1}, {"empty": 1})
