"""From documents to token streams: split, tokenized, written once."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

from layersearch.config.recipe import DataConfig
from layersearch.data import hub
from layersearch.data.cache import Prepared, prepared
from layersearch.data.documents import Document, identity, read_documents
from layersearch.data.source import digest, require
from layersearch.data.text import Text
from layersearch.data.tokenizer import encode, eos_token_id, load_tokenizer, tokenizer_path, train_bpe, vocab_size

FORMAT = 1
"""Raised with every change of the prepared files, so that older folders are not used."""
ONE_IN = 10
"""One document in ``ONE_IN`` is validation text."""
FEW = 20
"""With fewer documents than this, the tail of each is validation text."""
BYTES_PER_TOKEN = 8
"""At most ``max_tokens`` times this is read. A BPE packs fewer characters of text into a token."""


def open_text(config: DataConfig, seq_len: int, cache: Path) -> Text:
    """Open a text source, preparing it first if the cache lacks it.

    Raises:
        DataError: names the key that is wrong with the text or the tokenizer.
    """
    own = tokenizer_path(config.tokenizer) if config.tokenizer else None
    wanted = [
        FORMAT,
        config.source,
        identity(config),
        config.max_tokens,
        config.tokenizer or config.vocab_size,
        [str(own.resolve()), own.stat().st_size, own.stat().st_mtime_ns] if own else None,
    ]
    key = f"{config.source}-{digest(wanted)[:20]}"
    folder, facts = prepared(cache, key, lambda: _prepare(config, own))
    return Text(folder, facts, config.source, seq_len)


def _prepare(config: DataConfig, own: Path | None) -> Prepared:
    tokenizer, eos = None, 0
    if config.tokenizer is not None:  # first, because a wrong tokenizer costs less time than reading the text
        file = own or hub.tokenizer_file(config.tokenizer)
        tokenizer = load_tokenizer(file)
        eos = eos_token_id(tokenizer, file)
    train, validation, split = _split(_read(config))
    where = {"stdlib": "data.source stdlib", "hub": f"data.dataset {config.dataset}"}.get(
        config.source, f"data.files {', '.join(config.files)}"
    )
    require(train and validation, f"{where}: the text is too short to split; give more of it")
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
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    return Prepared(facts, packed, text)


def _read(config: DataConfig) -> list[Document]:
    """Return the documents, cut where more text could not be used."""
    left = config.max_tokens * BYTES_PER_TOKEN
    found: list[Document] = []
    for document in read_documents(config):
        found.append(document._replace(text=document.text[:left]))
        left -= len(found[-1].text)
        if left <= 0:
            break
    return found


def _split(documents: list[Document]) -> tuple[list[str], list[str], str]:
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
