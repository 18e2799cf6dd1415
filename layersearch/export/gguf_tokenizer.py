"""The tokenizer of a GGUF file: copied from another one, or from a byte-level BPE in a ``tokenizer.json``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layersearch.data.gguf_file import is_gguf
from layersearch.files import parse_json

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REGEX = {rf"{_WORDS}\p{{N}}{{1,3}}{_REST}": "llama-bpe", rf"{_WORDS}\p{{N}}{_REST}": "qwen2"}
"""Regular expressions that split a text before the merges, with llama.cpp's name for each."""


def add_tokenizer(writer: Any, source: Path | None, config: Any) -> str | None:
    """Add a tokenizer to a GGUF file, or say there that it has none.

    Args:
        writer: gguf's writer.
        source: a folder with ``tokenizer.json``, or a GGUF file; None: there is none.
        config: the model's configuration in transformers.

    Returns:
        Why there is none; None: it was added.
    """
    if source is not None and is_gguf(str(source)):
        _copy(writer, source)
        return None
    problem = "the model has no tokenizer.json" if source is None else _add_bpe(writer, source, config.vocab_size)
    if problem is not None:
        writer.add_tokenizer_model("no_vocab")
    return problem


def _copy(writer: Any, source: Path) -> None:
    import gguf

    for key, entry in gguf.GGUFReader(source).fields.items():
        if key.startswith("tokenizer."):
            part = entry.types[-1] if len(entry.types) > 1 else None
            writer.add_key_value(key, entry.contents(), entry.types[0], sub_type=part)


def _add_bpe(writer: Any, folder: Path, rows: int) -> str | None:
    """Add a byte-level BPE, padded to the ``rows`` of the embedding; return why it cannot be."""
    import gguf

    try:
        content = parse_json((folder / "tokenizer.json").read_text(encoding="utf-8"))
        model, added = content["model"], content.get("added_tokens") or []
        vocab: dict[str, int] = dict(model["vocab"])
    except (OSError, ValueError, KeyError, TypeError):
        return "it has no tokenizer.json that holds a vocabulary"
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        return f"its tokenizer is {model.get('type')} and no byte-level BPE"
    name = split_name(content.get("pre_tokenizer"))
    if name is None:
        return "llama.cpp has no name for how its tokenizer splits a text"
    tokens = {number: token for token, number in vocab.items()}
    kinds = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for one in added:
        tokens[one["id"]] = one["content"]
        kinds[one["id"]] = gguf.TokenType.CONTROL if one.get("special") else gguf.TokenType.USER_DEFINED
    if max(tokens, default=-1) >= rows:
        return f"its tokenizer has {max(tokens) + 1} tokens, the model {rows}"
    for number in range(rows):
        if number not in tokens:
            tokens[number], kinds[number] = f"[PAD{number}]", gguf.TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list([tokens[number] for number in range(rows)])
    writer.add_token_types([kinds[number] for number in range(rows)])
    with _silent():
        gguf.SpecialVocab(folder, load_merges=True, n_vocab=rows).add_to_gguf(writer, quiet=True)
    return None


def split_name(pre_tokenizer: Any) -> str | None:
    """Return llama.cpp's name of a ``tokenizer.json``'s ``pre_tokenizer``; None: it has none that we know."""
    if not isinstance(pre_tokenizer, dict):
        return None
    parts = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if not parts or parts[-1].get("type") != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    *before, last = parts
    by_regex = last.get("use_regex", True)
    if not before:
        return "gpt-2" if by_regex else None
    if len(before) > 1:
        return None
    if before[0].get("type") == "Digits":
        return "smollm" if by_regex and before[0].get("individual_digits") else None
    pattern = before[0].get("pattern") or {}
    whole = before[0].get("type") == "Split" and before[0].get("behavior") == "Isolated" and not before[0].get("invert")
    return _REGEX.get(pattern.get("Regex", "")) if whole and not by_regex else None


@contextmanager
def _silent() -> Iterator[None]:
    """Hide the warnings of gguf's reader of special tokens: what it leaves out is optional."""
    logger = logging.getLogger("gguf.vocab")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
