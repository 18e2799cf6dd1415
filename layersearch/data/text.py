"""Text as a packed, memory-mapped stream of tokens: split and tokenized once, then cut into sequences."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from layersearch.config.data import DataConfig
from layersearch.data.cache import Prepared, prepared
from layersearch.data.documents import Document, identity, origin, read_documents
from layersearch.data.reading import Reading
from layersearch.data.source import Batch, Source, digest, generator, require
from layersearch.data.tokenizer import encode, open_tokenizer, tokenizer_stamp, train_bpe, vocab_size
from layersearch.errors import DataError

FORMAT = 2
"""Raised with every change of the prepared files, so that older folders are not used."""
ONE_IN = 10
"""One document in ``ONE_IN`` is validation text."""
FEW = 20
"""With fewer documents than this, the tail of each is validation text."""
SAMPLING = 1
"""Raised with every change of the sampling, because the fingerprint does not see code."""


class Text(Source):
    """Documents in their order, an end-of-document token after each, cut into sequences.

    A training sequence starts at a random offset of the stream, so it keeps the long distances of a file. Validation
    sequences are spread evenly over their stream and never overlap. A batch that needs more text than there is raises
    a `DataError`.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], name: str, seq_len: int) -> None:
        self.name, self.seq_len, self.vocab_size = name, seq_len, facts["vocab_size"]
        self.tokenizer_file = folder / "tokenizer.json"
        self.details = {key: value for key, value in facts.items() if key not in ("content", "vocab_size")}
        self.reading = Reading(**facts["read"])
        self.fingerprint = digest([facts["content"], name, seq_len, SAMPLING])
        self._train = np.load(folder / "train.npy", mmap_mode="r", allow_pickle=False)
        self._validation = np.load(folder / "validation.npy", mmap_mode="r", allow_pickle=False)
        self._key, self._remedy = origin(name)

    def _cut(self, stream: npt.NDArray[Any], starts: npt.NDArray[np.int64]) -> Batch:
        windows = stream[starts[:, None] + np.arange(self.seq_len + 1)].astype(np.int64)
        return Batch(windows[:, :-1], windows[:, 1:])

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        if len(self._train) <= self.seq_len:
            self._refuse(1)
        starts = generator(seed, step).integers(len(self._train) - self.seq_len, size=batch_size)
        return self._cut(self._train, starts)

    def validation(self, sequences: int) -> Batch:
        return self.validation_after(0, sequences)

    def rows_from(self, places: npt.NDArray[np.int64]) -> Batch:
        """Return training rows that begin at these places of the stream; places beyond its end begin again."""
        if len(self._train) <= self.seq_len:
            self._refuse(1)
        # A multiple of the length, so that a row which goes on never skips a token but at the end of the text.
        whole = max(1, (len(self._train) - 1) // self.seq_len) * self.seq_len
        tokens = len(self._train)
        places = places % whole
        held = self._train[(places[:, None] + np.arange(self.seq_len + 1)) % tokens].astype(np.int64)
        return Batch(held[:, :-1], held[:, 1:])

    def validation_after(self, warm: int, sequences: int) -> Batch:
        """Return validation sequences, evenly spread, each after ``warm`` tokens; none overlap but there."""
        held = len(self._validation) - 1 - warm
        if len(self._train) <= self.seq_len or held // self.seq_len < sequences:
            self._refuse(sequences, warm)
        starts = np.arange(sequences) * held // sequences
        windows = self._validation[starts[:, None] + np.arange(warm + self.seq_len + 1)].astype(np.int64)
        return Batch(windows[:, :-1], windows[:, 1:])

    def _refuse(self, sequences: int, warm: int = 0) -> NoReturn:
        """Name the longest sequences that the text serves, and the most validation sequences of this length."""
        train, held = len(self._train) - 1, max(0, len(self._validation) - 1 - warm)
        longest = min(train, held // max(1, sequences))
        remedies = [f"lower training.seq_len to {longest}, the longest that it can serve"] if longest > 1 else []
        if train >= self.seq_len <= held:
            remedies.append(f"lower training.val_sequences to {held // self.seq_len}")
        raise DataError(
            f"{self._key} gives {train + 1} tokens of training text and {held + warm + 1} of validation text, too few "
            f"for {f'training.warm_tokens {warm} and ' if warm else ''}"
            f"training.seq_len {self.seq_len} with training.val_sequences {sequences}: "
            + ", or ".join([*remedies, self._remedy])
        )


def open_text(config: DataConfig, seq_len: int, cache: Path) -> Text:
    """Open a text source, preparing it first if the cache lacks it."""
    own = tokenizer_stamp(config.tokenizer) if config.tokenizer else config.vocab_size
    key = f"{config.source}-{digest([FORMAT, identity(config), own])[:20]}"
    folder, facts = prepared(cache, key, lambda: _prepare(config))
    return Text(folder, facts, config.source, seq_len)


def _prepare(config: DataConfig) -> Prepared:
    tokenizer, eos = None, 0
    if config.tokenizer is not None:  # first, because a wrong tokenizer costs less time than reading the text
        tokenizer, eos = open_tokenizer(config.tokenizer)
    reading = Reading()
    documents_read = list(read_documents(config, reading))
    train, validation, split = split_documents(documents_read)
    where = {"stdlib": "data.source stdlib", "hub": f"data.dataset {config.dataset}"}.get(
        config.source, f"data.files {', '.join(config.files)}"
    )
    short = "the text is too short to split; give more of it"
    if len(documents_read) > 1 and len(set(documents_read)) == 1:
        short = f"all {len(documents_read)} documents are equal; give others"
    require(train and validation, f"{where}: {short}")
    del documents_read
    tokenizer = tokenizer or train_bpe(train, config.vocab_size)  # its end-of-document token has the id 0
    size = vocab_size(tokenizer)
    # Validation first: it is the smaller side, and max_tokens must not starve it.
    kept, kept_documents = encode(tokenizer, validation, eos, max(1, config.max_tokens // ONE_IN))
    stream, documents = encode(tokenizer, train, eos, config.max_tokens - len(kept))
    width = "<u2" if size <= 1 << 16 else "<u4"
    packed = {"train": stream.astype(width), "validation": kept.astype(width)}
    text = tokenizer.to_str(pretty=True)
    facts = {
        "content": {name: hashlib.sha256(stream.tobytes()).hexdigest() for name, stream in packed.items()}
        | {"tokenizer": digest(json.loads(text))},
        "vocab_size": size,
        "train_tokens": len(stream),
        "validation_tokens": len(kept),
        "train_documents": documents,
        "validation_documents": kept_documents,
        "split": split,
        "read": dataclasses.asdict(reading),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    return Prepared(facts, packed, text)


def split_documents(documents: list[Document]) -> tuple[list[str], list[str], str]:
    """Return training texts, validation texts and a description of the split.

    The hash of a document's key decides its side. A document that comes or goes then moves no other one, and equal
    documents stay together. The document with the least hash is always validation, so that neither side is empty.
    """
    if len(documents) < FEW:
        cuts = [(text, len(text) - len(text) // ONE_IN) for text, _ in documents]
        tails = [text[cut:] for text, cut in cuts if text[cut:]]
        return [text[:cut] for text, cut in cuts], tails, f"the last 1/{ONE_IN} of each document"
    hashes = [int.from_bytes(hashlib.sha256(document.key.encode()).digest()[:8]) for document in documents]
    least, sides = min(hashes), (list[str](), list[str]())
    for document, number in zip(documents, hashes, strict=True):
        sides[number % ONE_IN == 0 or number == least].append(document.text)
    return *sides, f"whole documents, 1 in {ONE_IN} by hash"
