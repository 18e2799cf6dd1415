"""Local text, JSON lines and Parquet with the user's tokenizer or none, and what can be wrong with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from layersearch.config.data import DataConfig
from layersearch.data import open_source
from layersearch.data.tokenizer import open_tokenizer
from layersearch.errors import DataError
from tests.helpers.documents import TEXTS, write_text, wrong


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


@pytest.mark.parametrize("case", CASES)
def test_documents_wrong_file_is_refused_in_one_line(case, tmp_path, capfd):
    make, line = CASES[case]
    with pytest.raises(DataError, match=line):
        open_source(DataConfig(**make(tmp_path)), 128, tmp_path / "cache").validation(1)
    assert capfd.readouterr() == ("", "")
