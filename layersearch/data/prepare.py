"""From documents to token streams: split, tokenised, written once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from layersearch.config.recipe import DataConfig
from layersearch.data import documents as documents_module
from layersearch.data import hub
from layersearch.data import tokenizer as tokenizer_module
from layersearch.data.cache import Prepared, prepared
from layersearch.data.source import digest, require
from layersearch.data.text import Text

FORMAT = 1
"""Raised with every change of what is prepared, so that older folders are left alone."""
SHARE = 10
"""One part in so many is validation text."""
FEW = 20
"""With fewer documents than this, the tail of each is validation text."""
BYTES_PER_TOKEN = 8
"""No more than ``max_tokens`` times this is read: above what a BPE packs into a token of text."""


def open_text(config: DataConfig, seq_len: int, cache: Path) -> Text:
    """Open a text source, preparing it first if the cache lacks it.

    Raises:
        UserError: names the key that is wrong with the text or the tokenizer.
    """
    own = tokenizer_module.tokenizer_path(config.tokenizer) if config.tokenizer else None
    wanted = [
        FORMAT,
        config.source,
        documents_module.identity(config),
        config.max_tokens,
        config.tokenizer or config.vocab_size,
        [str(own.resolve()), own.stat().st_size, own.stat().st_mtime_ns] if own else None,
    ]
    key = f"{config.source}-{digest(wanted)[:20]}"
    folder, facts = prepared(cache, key, lambda: _prepare(config, own))
    return Text(folder, facts, config.source, seq_len)


def _prepare(config: DataConfig, own: Path | None) -> Prepared:
    """Read, split and tokenise."""
    ready = None
    if config.tokenizer is not None:  # before any text is read: it is the cheaper thing to be wrong
        file = own or hub.tokenizer_file(config.tokenizer)
        tokenizer = tokenizer_module.load_tokenizer(file)
        ready = tokenizer, tokenizer_module.end_token(tokenizer, file)
    train, validation, how = _split(_read(config))
    require(bool(train and validation), f"{_key(config)}: the text is too short to split; give more of it")
    tokenizer, end = ready or tokenizer_module.train_bpe(train, config.vocab_size)
    size = tokenizer_module.vocabulary(tokenizer)
    # Validation first: it is the smaller side, and max_tokens must not starve it.
    kept, kept_documents = tokenizer_module.encode(tokenizer, validation, end, max(1, config.max_tokens // SHARE))
    stream, documents = tokenizer_module.encode(tokenizer, train, end, config.max_tokens - len(kept))
    width = "<u2" if size <= 1 << 16 else "<u4"
    packed = {"train": stream.astype(width), "validation": kept.astype(width)}
    text = tokenizer.to_str(pretty=True)
    facts = {
        "content": {name: hashlib.sha256(stream.tobytes()).hexdigest() for name, stream in packed.items()}
        | {"tokenizer": digest(json.loads(text))},
        "vocab_size": size,
        "train_tokens": len(packed["train"]),
        "validation_tokens": len(packed["validation"]),
        "train_documents": documents,
        "validation_documents": kept_documents,
        "split": how,
        "python": documents_module.python_version(),
    }
    return Prepared(facts, packed, text)


def _key(config: DataConfig) -> str:
    return {"stdlib": "data.source stdlib", "hub": f"data.dataset {config.dataset}"}.get(
        config.source, f"data.files {', '.join(config.files)}"
    )


def _read(config: DataConfig) -> list[documents_module.Document]:
    """Return the documents, the last one cut where more could not be used."""
    left = config.max_tokens * BYTES_PER_TOKEN
    found = []
    for document in documents_module.documents(config):
        text = document.text[:left]
        found.append(document._replace(text=text))
        left -= len(text)
        if left <= 0:
            break
    return found


def _split(documents: list[documents_module.Document]) -> tuple[list[str], list[str], str]:
    """Return training texts, validation texts and how they were told apart.

    Whole documents fall on a side by the hash of their key, so that a document that comes or goes moves no other and
    equal documents stay together. The least hash is validation in any case, which leaves no side without text.
    """
    if len(documents) < FEW:
        cuts = [len(document.text) - len(document.text) // SHARE for document in documents]
        train = [document.text[:cut] for document, cut in zip(documents, cuts, strict=True)]
        validation = [document.text[cut:] for document, cut in zip(documents, cuts, strict=True)]
        return train, [text for text in validation if text], f"the last 1/{SHARE} of each document"
    hashes = [int.from_bytes(hashlib.sha256(document.key.encode()).digest()[:8]) for document in documents]
    least = min(hashes)
    train, validation = [], []
    for document, number in zip(documents, hashes, strict=True):
        (validation if number % SHARE == 0 or number == least else train).append(document.text)
    return train, validation, f"whole documents, 1 in {SHARE} by hash"
