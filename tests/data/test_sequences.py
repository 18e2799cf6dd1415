"""Sequences of whole documents: packed, disjoint in their documents, the same for every other length and count."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from layersearch.config.data import DataConfig
from layersearch.data.sequences import Sequences, _packed, document_sequences
from layersearch.data.tokenizer import encode_each
from layersearch.errors import DataError

END, DOCUMENTS = 1, 240
COUNTS = {"calibration": 6, "selection": 4, "confirmation": 5}


def words_of(number: int) -> str:
    """Return document ``number``: from 1 to 80 words, each of which names it."""
    return " ".join([f"w{number}"] * (1 + number * 37 % 80))


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[DataConfig, str]:
    """Return text files and a tokenizer whose token 10 + n is the only word of document n."""
    for number in range(DOCUMENTS):
        (tmp_path / f"{number:03}.txt").write_text(words_of(number))
    save_tokenizer(tmp_path)
    return DataConfig(source="text", files=(str(tmp_path / "*.txt"),)), str(tmp_path / "tokenizer.json")


def save_tokenizer(folder: Path, *, begin: bool = False) -> str:
    vocabulary = {"[UNK]": 0, "</s>": END, "<s>": 2} | {f"w{number}": 10 + number for number in range(DOCUMENTS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def draw(corpus: tuple[DataConfig, str], seq_len: int, counts: Mapping[str, int] = COUNTS, seed: int = 0) -> Sequences:
    config, tokenizer = corpus
    return document_sequences(config, tokenizer, seq_len, counts, seed=seed, cache=Path(tokenizer).parent / "cache")


def documents(rows: np.ndarray) -> set[int]:
    return {int(token) - 10 for token in rows.flat if token >= 10}


def test_document_sequences_counts_are_met_and_tokens_are_of_whole_documents(corpus):
    found = draw(corpus, 31)
    assert {part: (rows.shape, rows.dtype) for part, rows in found.items()} == {
        part: ((count, 32), np.dtype(np.int64)) for part, count in COUNTS.items()
    }
    joined = 0
    for row in itertools.chain(*found.values()):
        pieces = [piece.tolist() for piece in np.split(row, np.flatnonzero(row == END) + 1)]
        assert all(len(set(piece) - {END}) <= 1 for piece in pieces)  # one document between two end tokens
        for piece in pieces[:-1]:
            assert len(piece) - 1 == len(words_of(piece[0] - 10).split())  # whole, then the end token
        held = pieces[-1][0] - 10 if pieces[-1] else None
        assert held is None or len(words_of(held).split()) >= len(pieces[-1])
        joined += len(pieces) > 1
    assert 0 < joined < sum(COUNTS.values())  # some are joined, some are one long document


@pytest.mark.parametrize("seq_len", [7, 31, 200])
def test_document_sequences_no_document_is_in_two_sequences(corpus, seq_len):
    held = [documents(row) for rows in draw(corpus, seq_len).values() for row in rows]
    assert sum(map(len, held)) == len(set().union(*held))


@pytest.mark.slow
def test_document_sequences_no_document_moves_to_another_part_with_length_count_or_seed(corpus):
    seen: dict[str, set[int]] = {part: set() for part in COUNTS}
    for seq_len, times, seed in itertools.product((7, 31, 60), (1, 3), (0, 1)):
        counts = {part: count * times for part, count in COUNTS.items()}
        for part, rows in draw(corpus, seq_len, counts, seed).items():
            seen[part] |= documents(rows)
    assert min(map(len, seen.values())) > 40
    assert sum(map(len, seen.values())) == len(set().union(*seen.values()))


def test_document_sequences_another_part_only_takes_documents(corpus):
    before = draw(corpus, 7, {"a": 30, "b": 30})
    after = draw(corpus, 7, {"a": 20, "b": 20, "c": 20})
    assert not documents(after["a"]) & documents(before["b"])
    assert not documents(after["b"]) & documents(before["a"])
    assert documents(after["c"]) & documents(before["a"])


def test_document_sequences_more_of_them_begin_with_the_same(corpus):
    fewer, more = draw(corpus, 31), draw(corpus, 31, {**COUNTS, "calibration": 12})
    np.testing.assert_array_equal(more["calibration"][:6], fewer["calibration"])
    np.testing.assert_array_equal(more["confirmation"], fewer["confirmation"])


def test_document_sequences_same_request_same_tokens_other_seed_other_tokens(corpus, tmp_path):
    first, other = draw(corpus, 31), draw(corpus, 31, seed=1)
    again = document_sequences(*corpus, 31, COUNTS, cache=tmp_path / "elsewhere")  # nothing prepared there
    for part in COUNTS:
        np.testing.assert_array_equal(first[part], again[part])
        assert not np.array_equal(first[part], other[part])


def test_document_sequences_files_renamed_and_repeated_same_tokens(corpus, tmp_path):
    first = draw(corpus, 31)
    for number in range(DOCUMENTS):
        (tmp_path / f"{number:03}.txt").rename(tmp_path / f"x{number * 7 % DOCUMENTS:03}.txt")
        (tmp_path / f"y{number:03}.txt").write_text(words_of(number))
    for part, rows in draw(corpus, 31).items():
        np.testing.assert_array_equal(rows, first[part])


def test_document_sequences_prepared_ones_are_read_from_the_cache(corpus, monkeypatch):
    first = draw(corpus, 31)
    assert str(first.reading).startswith("read 240 documents of 240 files (text 240), ")
    monkeypatch.setattr("layersearch.data.sequences.read_documents", lambda *config: pytest.fail("read again"))
    again = draw(corpus, 31)
    assert again.reading == first.reading
    for part, rows in again.items():
        np.testing.assert_array_equal(rows, first[part])


def test_document_sequences_no_more_documents_are_encoded_than_needed(corpus, monkeypatch):
    taken: list[str] = []

    def counted(tokenizer: Tokenizer, texts: list[str]) -> Iterator[list[int]]:
        return encode_each(tokenizer, (text for text in texts if not taken.append(text)))

    monkeypatch.setattr("layersearch.data.sequences.encode_each", counted)
    draw(corpus, 31, {"a": 1, "b": 1})
    assert 2 <= len(taken) <= 32 < DOCUMENTS


def test_document_sequences_begin_token_of_the_tokenizer_begins_each(corpus, tmp_path):
    plain = draw(corpus, 31)
    save_tokenizer(tmp_path, begin=True)
    for part, rows in draw(corpus, 32).items():
        assert (rows[:, 0] == 2).all()
        np.testing.assert_array_equal(rows[:, 1:], plain[part])


def test_document_sequences_too_little_text_names_the_longest_length_and_it_serves(corpus):
    with pytest.raises(DataError) as refused:
        draw(corpus, 900)
    said = re.fullmatch(
        r"data\.files gives too few sequences of 900 tokens \(3 of 6 for calibration, 3 of 4 for selection, 3 of 5 for "
        r"confirmation\): lower the length to (\d+), the longest that it can serve, or name more text in data\.files",
        str(refused.value),
    )
    assert said
    longest = int(said[1])
    assert {part: len(rows) for part, rows in draw(corpus, longest).items()} == COUNTS
    with pytest.raises(DataError, match=rf"lower the length to {longest}, "):
        draw(corpus, longest + 1)


def test_document_sequences_fewer_documents_than_sequences_are_refused(corpus):
    with pytest.raises(
        DataError, match=r"\(\d+ of 500 for a\): its documents \(240 for a\) are too few for any length; name more text"
    ):
        draw(corpus, 31, {"a": 500})


@pytest.mark.parametrize("source", ["recall", "mix"])
def test_document_sequences_source_without_documents_is_refused(corpus, source):
    with pytest.raises(DataError, match=rf"^data\.source {source} holds no documents; give text"):
        document_sequences(DataConfig(source=source), corpus[1], 31, COUNTS)


def test_packed_shorter_sequences_are_never_fewer():
    generator = np.random.Generator(np.random.Philox(0))
    for _ in range(50):
        lengths = generator.geometric(0.05, size=60).tolist()
        found = [_packed(lengths, size) for size in range(2, 200)]
        assert found == sorted(found, reverse=True)
