"""Local text, JSON lines and Parquet with the user's tokenizer or none, and what can be wrong with them."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import json
import lzma
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from layersearch.config.recipe import DataConfig
from layersearch.data import describe, open_source
from layersearch.data.documents import read_documents
from layersearch.data.local_files import local_files, read_texts
from layersearch.data.reading import Reading
from layersearch.data.tokenizer import open_tokenizer
from layersearch.errors import DataError

TEXTS = [f"document {number}: the quick brown fox, jumping {number * 7919 % 101} times\n" * 3 for number in range(60)]


def write_text(folder: Path) -> DataConfig:
    for number, text in enumerate(TEXTS):
        (folder / f"{number:03}.txt").write_text(text)
    return DataConfig(source="text", files=(str(folder / "*.txt"),), vocab_size=300)


def write_jsonl(folder: Path) -> DataConfig:
    rows = [json.dumps({"id": number, "body": text}) for number, text in enumerate(TEXTS)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return DataConfig(source="json", files=(str(folder / "rows.jsonl"),), column="body", vocab_size=300)


def write_parquet(folder: Path) -> DataConfig:
    for name, texts in (("one", TEXTS[:25]), ("two", TEXTS[25:])):
        pq.write_table(pa.table({"id": list(range(len(texts))), "body": texts}), folder / f"{name}.parquet")
    files = (str(folder / "one.parquet"), str(folder / "two.parquet"))
    return DataConfig(source="parquet", files=files, column="body", vocab_size=300)


def sides(source: Any) -> tuple[list[str], list[str]]:
    """Return the documents of each side, decoded."""
    tokenizer = Tokenizer.from_file(str(source.tokenizer_file))
    end = tokenizer.token_to_id("<|endoftext|>")
    found = []
    for side in ("train", "validation"):
        stream = np.load(source.tokenizer_file.with_name(f"{side}.npy"))
        parts = np.split(stream, np.flatnonzero(stream == end) + 1)[:-1]
        found.append([tokenizer.decode(part[:-1].tolist(), skip_special_tokens=False) for part in parts])
    return found[0], found[1]


@pytest.mark.parametrize("write", [write_text, write_jsonl, write_parquet])
def test_documents_come_back_whole_and_in_order(tmp_path, write: Callable[[Path], DataConfig]):
    train, validation = sides(open_source(write(tmp_path), 16, tmp_path / "cache"))
    assert sorted(train + validation) == sorted(TEXTS)
    assert train == [text for text in TEXTS if text in set(train)]
    assert validation == [text for text in TEXTS if text in set(validation)]
    assert 1 <= len(validation) < len(train)


def test_documents_every_format_gives_the_same_tokens(tmp_path):
    streams = []
    for write in (write_text, write_jsonl, write_parquet):
        source = open_source(write(tmp_path), 16, tmp_path / "cache")
        streams.append(source.train(seed=0, step=0, batch_size=32).tokens)
    np.testing.assert_array_equal(streams[0], streams[1])
    np.testing.assert_array_equal(streams[0], streams[2])


def test_documents_few_are_split_by_their_tails(tmp_path):
    (tmp_path / "book[1].txt").write_text("".join(TEXTS))
    config = DataConfig(source="text", files=(str(tmp_path / "book[1].txt"),), vocab_size=300)
    source = open_source(config, 16, tmp_path / "cache")
    train, validation = sides(source)
    assert train[0] + validation[0] == "".join(TEXTS)
    assert len(validation[0]) == len("".join(TEXTS)) // 10
    assert source.details["split"] == "the last 1/10 of each document"


def test_documents_no_more_tokens_than_max_tokens_are_read(tmp_path):
    config = write_text(tmp_path)
    capped = DataConfig(source="text", files=config.files, vocab_size=300, max_tokens=500)
    details = open_source(capped, 16, tmp_path / "cache").details
    assert details["train_tokens"] == 450
    assert details["validation_tokens"] == 50
    assert details["train_documents"] < 54


def test_documents_end_token_written_in_a_text_is_text(tmp_path):
    (tmp_path / "a.txt").write_text("before <|endoftext|> after " * 40)
    config = DataConfig(source="text", files=(str(tmp_path / "a.txt"),), vocab_size=300)
    train, _ = sides(open_source(config, 8, tmp_path / "cache"))
    assert len(train) == 1


def word_tokenizer(*extra: str, unknown: bool = True) -> Tokenizer:
    words = ["[UNK]", *extra, "the", "quick", "brown", "fox"]
    tokenizer = Tokenizer(
        models.WordLevel(
            {word: number for number, word in enumerate(words)}, **({"unk_token": "[UNK]"} if unknown else {})
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize("as_folder", [True, False])
def test_tokenizer_of_the_user_is_used_and_sets_the_vocabulary(tmp_path, as_folder):
    config = write_text(tmp_path)
    word_tokenizer("</s>").save(str(tmp_path / "tokenizer.json"))
    name = str(tmp_path if as_folder else tmp_path / "tokenizer.json")
    source = open_source(DataConfig(source="text", files=config.files, tokenizer=name), 16, tmp_path / "cache")
    assert source.vocab_size == 6
    stream = np.load(source.tokenizer_file.with_name("train.npy"))
    assert set(stream) == set(range(6))
    assert (stream == 1).sum() == source.details["train_documents"]
    assert Tokenizer.from_file(str(source.tokenizer_file)).get_vocab() == word_tokenizer("</s>").get_vocab()


def test_tokenizer_truncation_and_padding_are_ignored(tmp_path):
    config = write_text(tmp_path)
    plain, cutting = word_tokenizer("</s>"), word_tokenizer("</s>")
    cutting.enable_truncation(4)
    cutting.enable_padding(length=90)
    batches = []
    for number, tokenizer in enumerate((plain, cutting)):
        tokenizer.save(str(tmp_path / f"{number}.json"))
        own = DataConfig(source="text", files=config.files, tokenizer=str(tmp_path / f"{number}.json"))
        batches.append(open_source(own, 16, tmp_path / "cache").train(seed=0, step=0, batch_size=8).tokens)
    np.testing.assert_array_equal(batches[0], batches[1])


def test_tokenizer_folder_may_name_its_end_token(tmp_path):
    config = write_text(tmp_path)
    word_tokenizer("<stop>").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<stop>"}}))
    source = open_source(DataConfig(source="text", files=config.files, tokenizer=str(tmp_path)), 16, tmp_path / "cache")
    assert np.load(source.tokenizer_file.with_name("train.npy"))[-1] == 1


@pytest.mark.parametrize(
    ("beside", "content"),
    [
        ("special_tokens_map.json", {"eos_token": "<stop>"}),
        ("special_tokens_map.json", {"eos_token": {"content": "<stop>", "lstrip": False}}),
        ("generation_config.json", {"eos_token_id": [2, 3]}),
        ("config.json", {"eos_token_id": 2}),
    ],
)
def test_tokenizer_end_token_is_named_beside_it(tmp_path, beside, content):
    word_tokenizer("<pad>", "<stop>").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": None}))
    (tmp_path / beside).write_text(json.dumps(content))
    assert open_tokenizer(str(tmp_path))[1] == 2


def test_tokenizer_end_token_of_config_that_it_lacks_is_refused(tmp_path):
    word_tokenizer("<stop>").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 600}))
    with pytest.raises(DataError, match="name it as eos_token"):
        open_tokenizer(str(tmp_path))


def test_tokenizer_large_vocabulary_with_gaps_keeps_every_id(tmp_path):
    (tmp_path / "a.txt").write_text("far near " * 200)
    words = {"[UNK]": 0, "</s>": 1, "near": 2, "far": 70_000}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = DataConfig(source="text", files=(str(tmp_path / "a.txt"),), tokenizer=str(tmp_path))
    source = open_source(config, 8, tmp_path / "cache")
    assert source.vocab_size == 70_001
    assert source.train(seed=0, step=0, batch_size=4).tokens.max() == 70_000


def wrong(folder: Path, name: str, content: bytes | str) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


GOOD = json.dumps({"text": "a b c", "id": 1}) + "\n"
CASES: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "missing file": (
        lambda at: {"source": "text", "files": (str(at / "no.txt"),)},
        r"^data\.files: no file \S+no\.txt; give an existing path$",
    ),
    "glob of nothing": (
        lambda at: {"source": "json", "files": (str(at / "*.jsonl"),)},
        r"^data\.files: no file matches '\S+\*\.jsonl'; correct the pattern$",
    ),
    "folder without text": (
        lambda at: {"source": "text", "files": (str(Path(wrong(at, "e.txt", "")).parent),)},
        r"^data\.files: \S+ holds no file with text in it; name others$",
    ),
    "empty file": (
        lambda at: {"source": "text", "files": (wrong(at, "e.txt", ""),)},
        r"^data\.files: \S+e\.txt is empty; leave it out$",
    ),
    "one character": (
        lambda at: {"source": "text", "files": (wrong(at, "e.txt", "x"),)},
        r"^data\.files \S+e\.txt: the text is too short to split; give more of it$",
    ),
    "equal documents": (
        lambda at: {"source": "json", "files": (wrong(at, "same.jsonl", GOOD * 60),)},
        r"^data\.files \S+same\.jsonl: all 60 documents are equal; give others$",
    ),
    "not UTF-8": (
        lambda at: {
            "source": "text",
            "files": (wrong(at, "a.txt", "good " * 99), wrong(at, "b.txt", b"th\xe9 " * 99)),
        },
        r"^data\.files: \S+b\.txt cannot be read as text \('utf-8' codec can't decode .*\); give UTF-8 text$",
    ),
    "malformed JSON": (
        lambda at: {"source": "json", "files": (wrong(at, "a.jsonl", GOOD * 3 + '{"text": oops}\n'),)},
        r"^data\.files: \S+a\.jsonl cannot be read as jsonl \(line 4: Expecting value\); give one JSON object a line$",
    ),
    "text as JSON": (
        lambda at: {"source": "json", "files": (wrong(at, "a.jsonl", GOOD), wrong(at, "b.jsonl", "once upon a time"))},
        r"^data\.files: \S+b\.jsonl cannot be read as jsonl \(line 1: Expecting value\); give one JSON object a line$",
    ),
    "rows that are no objects": (
        lambda at: {"source": "json", "files": (wrong(at, "a.jsonl", GOOD + "7\n"),)},
        r"^data\.files: \S+a\.jsonl cannot be read as jsonl \(row 1 holds int, no object\); give one JSON object",
    ),
    "half of a surrogate pair": (
        lambda at: {"source": "json", "files": (wrong(at, "a.jsonl", '{"text": "\\ud83d"}\n'),)},
        r"^data\.files: \S+a\.jsonl cannot be read as jsonl \('utf-8' codec can't encode .*\); give UTF-8 text$",
    ),
    "JSON in another encoding": (
        lambda at: {"source": "json", "files": (wrong(at, "a.jsonl", GOOD.encode("utf-16")),)},
        r"^data\.files: \S+a\.jsonl cannot be read as jsonl \('utf-8' codec can't decode .*\); give UTF-8 text$",
    ),
    "packed otherwise": (
        lambda at: {"source": "json", "files": (wrong(at, "a.jsonl.lz4", b"\x04\x22\x4d\x18"),)},
        r"^data\.files: \S+a\.jsonl\.lz4: \.lz4 is not unpacked here; unpack it, or pack it as \.gz$",
    ),
    "no .gz": (
        lambda at: {"source": "json", "files": (wrong(at, "a.jsonl.gz", GOOD),)},
        r"^data\.files: \S+a\.jsonl\.gz cannot be read as jsonl \(Not a gzipped file .*\); give a whole file$",
    ),
    "not Parquet": (
        lambda at: {"source": "parquet", "files": (wrong(at, "a.parquet", "no such thing"),)},
        r"^data\.files: \S+a\.parquet cannot be read as parquet \(.*[Pp]arquet.*\); give Parquet files$",
    ),
    "missing column": (
        lambda at: {"source": "json", "files": (wrong(at, "a.jsonl", GOOD),), "column": "body"},
        r"^data\.files \S+a\.jsonl: no column 'body'; set data\.column to one of text, id$",
    ),
    "column of numbers": (
        lambda at: {"source": "json", "files": (wrong(at, "a.jsonl", GOOD),), "column": "id"},
        r"^data\.files \S+a\.jsonl: column 'id' holds int in row 0, not text; set data\.column$",
    ),
    "too short": (
        lambda at: {"source": "text", "files": (wrong(at, "a.txt", "a b c d e f " * 9),), "vocab_size": 257},
        r"^data\.files gives 99 tokens of training text and 11 of validation text, too few for "
        r"training\.seq_len 128 with training\.val_sequences 1: lower training\.seq_len to 10, the longest that it can "
        r"serve, or name more text in data\.files$",
    ),
    "vocabulary below the bytes": (
        lambda at: {"source": "text", "files": (wrong(at, "a.txt", "a b c " * 99),), "vocab_size": 256},
        r"^data\.vocab_size 256 is too small for a byte-level BPE: raise it to at least 257$",
    ),
    "no tokenizer": (
        lambda at: {"source": "stdlib", "tokenizer": str(at / "no.json")},
        r"^data\.tokenizer \S+no\.json is missing: give a tokenizer\.json, a folder that holds one, a GGUF file, or a "
        r"hub id$",
    ),
    "folder without tokenizer": (
        lambda at: {"source": "stdlib", "tokenizer": str(at)},
        r"^data\.tokenizer \S+ holds no tokenizer\.json: save one there with tokenizers' Tokenizer\.save$",
    ),
    "not a tokenizer": (
        lambda at: {"source": "stdlib", "tokenizer": wrong(at, "t.json", '{"a": 1}')},
        r"^data\.tokenizer \S+t\.json is not a tokenizer\.json \(.*\): save one with tokenizers' Tokenizer\.save$",
    ),
    "tokenizer without end": (
        lambda at: {"source": "stdlib", "tokenizer": wrong(at, "t.json", word_tokenizer().to_str())},
        r"^data\.tokenizer \S+t\.json has no end-of-document token that is known: name it as eos_token in a "
        r"tokenizer_config\.json beside it$",
    ),
    "tokenizer that cannot spell the text": (
        lambda at: {
            "source": "text",
            "files": (wrong(at, "a.txt", "unheard of " * 99),),
            "tokenizer": wrong(at, "t.json", word_tokenizer("</s>", unknown=False).to_str()),
        },
        r"^data\.tokenizer cannot encode the text \(.*\): give one that has a token for unknown words$",
    ),
}


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
        ("a.parquet", b"PAR1 and no more", r"a\.parquet cannot be read as parquet \(.*\); give Parquet files$"),
        ("a.jsonl", JSON[:-9], r"a\.jsonl cannot be read as jsonl \(line 60: .*\); give one JSON object a line$"),
        ("a.json", b'[{"text": "a"}, {"te', r"a\.json cannot be read as json \(line 1: .*\); give JSON objects$"),
        ("a.jsonl", b'{"body": "a"}\n', r"a\.jsonl: no column 'text'; set data\.column to one of body$"),
    ],
    ids=["gz", "zst", "zip", "parquet", "jsonl", "json", "column"],  # a packed file holds the time
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


def test_validation_text_too_short_names_the_longest_length_and_it_serves(tmp_path):
    config = DataConfig(source="text", files=(wrong(tmp_path, "a.txt", "".join(TEXTS) * 3),), vocab_size=300)
    source = open_source(config, 400, tmp_path / "cache")
    with pytest.raises(DataError) as refused:
        source.validation(8)
    said = re.fullmatch(
        r"data\.files gives \d+ tokens of training text and \d+ of validation text, too few for "
        r"training\.seq_len 400 with training\.val_sequences 8: lower training\.seq_len to (\d+), the longest that it "
        r"can serve, or lower training\.val_sequences to (\d), or name more text in data\.files",
        str(refused.value),
    )
    assert said
    longest, most = map(int, said.groups())
    assert source.validation(most).tokens.shape == (most, 400)
    assert open_source(config, longest, tmp_path / "cache").validation(8).tokens.shape == (8, longest)
    with pytest.raises(DataError, match=rf"lower training\.seq_len to {longest}, "):
        open_source(config, longest + 1, tmp_path / "cache").validation(8)


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


@pytest.mark.parametrize("case", CASES)
def test_documents_wrong_file_is_refused_in_one_line(case, tmp_path, capfd):
    make, line = CASES[case]
    with pytest.raises(DataError, match=line):
        open_source(DataConfig(**make(tmp_path)), 128, tmp_path / "cache").validation(1)
    assert capfd.readouterr() == ("", "")
