"""Sequences of whole documents in disjoint parts. No document is in two sequences, so they are independent units."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from layersearch.config.data import DataConfig
from layersearch.data.cache import Prepared, default_cache, prepared
from layersearch.data.classes import MAKERS
from layersearch.data.documents import identity, origin, read_documents
from layersearch.data.reading import Reading
from layersearch.data.source import Tokens, digest, require
from layersearch.data.tasks import TASKS
from layersearch.data.tokenizer import encode_each, open_tokenizer, tokenizer_stamp
from layersearch.errors import DataError

FORMAT = 1
"""Raised with every change of the reading, the drawing or the packing, so that older sequences are not used."""
_CHARACTERS_PER_TOKEN = 16
"""A document is cut at this many characters per token of a sequence: several times what a BPE packs into a token."""


class Sequences(dict[str, Tokens]):
    """Token ids by part, int64 of shape [count, seq_len + 1]."""

    def __init__(self, parts: Mapping[str, Tokens], *, reading: Reading) -> None:
        super().__init__(parts)
        self.reading = reading
        """How much text was read, and which files were left out."""


def document_sequences(
    config: DataConfig,
    tokenizer_name: str,
    seq_len: int,
    counts: Mapping[str, int],
    *,
    seed: int = 0,
    cache: Path | None = None,
) -> Sequences:
    """Return sequences of whole documents for each part.

    The part of a document depends on its text and the names of the parts alone. So no other length, count or seed moves
    it from one part to another; a new part takes documents from the others, and the rest stay. The seed orders the
    documents of a part. Equal texts are one document.

    A document of a sequence's length or more gives one sequence, from its beginning. Shorter ones are joined, an end
    token after each, until a sequence is full; the rest of the last one is dropped. A sequence begins with the token
    that the tokenizer puts before a text, if there is one.

    Args:
        config: the data section; of its keys, those of the text count.
        tokenizer_name: as ``data.tokenizer``.
        seq_len: tokens that the model sees.
        counts: sequences of each part, by name.
        seed: seed of the order.
        cache: folder of prepared text; None: `default_cache`.

    Returns:
        Token ids by part, int64 of shape [count, seq_len + 1].

    Raises:
        DataError: there are too few documents; it names the longest ``seq_len`` that they could serve. Or the text or
            the tokenizer cannot be read.
    """
    generated = config.source in (*TASKS, *MAKERS, "mix")
    require(not generated, f"data.source {config.source} holds no documents; give text, for example data.source stdlib")
    wanted = [FORMAT, identity(config), tokenizer_stamp(tokenizer_name), seq_len, sorted(counts.items()), seed]

    def prepare() -> Prepared:
        tokenizer, eos = open_tokenizer(tokenizer_name)
        start = tokenizer.encode("").ids[:1]
        size = seq_len + 1 - len(start)
        reading = Reading()
        documents = _documents(config, counts, size * _CHARACTERS_PER_TOKEN, seed, reading)
        packers = {part: _Packer(size, eos) for part in counts}
        for part, packer in packers.items():
            packer.pack(encode_each(tokenizer, documents[part]), counts[part])
        if any(len(packers[part].sequences) < count for part, count in counts.items()):
            raise _too_little(config.source, packers, counts, seq_len)
        rows = {part: [[*start, *row] for row in packer.sequences] for part, packer in packers.items()}
        found = {part: np.array(held, dtype="<u4").reshape(-1, seq_len + 1) for part, held in rows.items()}
        return Prepared(dataclasses.asdict(reading), found, tokenizer.to_str())

    folder, facts = prepared(cache or default_cache(), f"sequences-{digest(wanted)[:20]}", prepare)
    found = {part: np.load(folder / f"{part}.npy", allow_pickle=False).astype(np.int64) for part in counts}
    return Sequences(found, reading=Reading(**facts))


def _documents(
    config: DataConfig, parts: Iterable[str], characters: int, seed: int, reading: Reading
) -> dict[str, list[str]]:
    """Return the texts of each part in the order of the seed, each cut to so many characters."""
    documents = read_documents(config, reading)
    texts = {hashlib.sha256(text.encode()).digest(): text[:characters] for text, _ in documents}
    found: dict[str, list[bytes]] = {part: [] for part in parts}
    for name in texts:
        # The part with the highest hash (rendezvous hashing): an additional part only takes documents.
        found[max(found, key=lambda part: hashlib.sha256(part.encode() + name).digest())].append(name)
    order = {name: hashlib.sha256(b"%d:" % seed + name).digest() for name in texts}
    return {part: [texts[name] for name in sorted(names, key=order.__getitem__)] for part, names in found.items()}


class _Packer:
    """Packs documents into sequences of ``size`` tokens; ``lengths`` holds the tokens of each document it took."""

    def __init__(self, size: int, eos: int) -> None:
        self.size, self.eos = size, eos
        self.sequences: list[list[int]] = []
        self.lengths: list[int] = []

    def pack(self, documents: Iterator[list[int]], count: int) -> None:
        """Take documents until there are ``count`` sequences or no more documents."""
        joined: list[int] = []
        while len(self.sequences) < count and (ids := next(documents, None)) is not None:
            self.lengths.append(len(ids))
            if len(ids) >= self.size:
                self.sequences.append(ids[: self.size])
                continue
            joined += [*ids, self.eos]
            if len(joined) >= self.size:
                self.sequences.append(joined[: self.size])
                joined = []


def _packed(lengths: Sequence[int], size: int) -> int:
    """Return how many sequences of ``size`` tokens `_Packer` makes of documents of these lengths."""
    found = joined = 0
    for length in lengths:
        if length >= size:
            found += 1
        elif (joined := joined + length + 1) >= size:
            found, joined = found + 1, 0
    return found


def _too_little(source: str, packers: Mapping[str, _Packer], counts: Mapping[str, int], seq_len: int) -> DataError:
    key, remedy = origin(source)
    short = {part: packer for part, packer in packers.items() if len(packer.sequences) < counts[part]}
    held = ", ".join(f"{len(packer.sequences)} of {counts[part]} for {part}" for part, packer in short.items())
    said = f"{key} gives too few sequences of {seq_len} tokens ({held}): "
    ends = next(iter(short.values())).size - seq_len  # tokens of a sequence beyond seq_len
    longest = seq_len - 1
    for part, packer in short.items():
        low, high = 0, longest  # a shorter length never gives fewer sequences
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if _packed(packer.lengths, middle + ends) >= counts[part] else (low, middle - 1)
        longest = low
    if longest < 2:
        documents = ", ".join(f"{len(packer.lengths)} for {part}" for part, packer in short.items())
        return DataError(f"{said}its documents ({documents}) are too few for any length; {remedy} or ask for fewer")
    return DataError(f"{said}lower the length to {longest}, the longest that it can serve, or {remedy}")
