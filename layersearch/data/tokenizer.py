"""Tokenizers: the user's own, or a byte-level BPE trained here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from layersearch.data.source import require
from layersearch.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
END_TOKENS = (END, "</s>", "<eos>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "[SEP]")
"""End-of-document tokens that are looked for, in this order."""
SMALLEST = 257
"""The 256 bytes and the end-of-document token."""
SAMPLE = 32_000_000
"""Characters of training text that the BPE is trained on, at most: the first documents."""


def train_bpe(texts: Sequence[str], vocab_size: int) -> tuple[Tokenizer, int]:
    """Train a byte-level BPE (as GPT-2's) on the first `SAMPLE` characters of training text.

    The same texts give the same tokenizer; a short one may give fewer than ``vocab_size`` tokens.

    Returns:
        The tokenizer and the id of its end-of-document token.

    Raises:
        UserError: if the vocabulary cannot hold the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    require(
        vocab_size >= SMALLEST,
        f"data.vocab_size {vocab_size} is too small for a byte-level BPE: raise it to at least {SMALLEST}",
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(texts), trainer)
    return tokenizer, 0  # special tokens come first


def _sample(texts: Iterable[str]) -> Iterable[str]:
    left = SAMPLE
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``.

    Raises:
        UserError: if it is not one.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises bare Exception
        raise UserError(
            f"data.tokenizer {path} is not a tokenizer.json ({error}): save one with tokenizers' Tokenizer.save"
        ) from None


def tokenizer_path(name: str) -> Path | None:
    """Return the local ``tokenizer.json`` that ``data.tokenizer`` names; None if it names a hub id.

    Raises:
        UserError: if it names neither.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        require(
            (path / "tokenizer.json").is_file(),
            f"data.tokenizer {name} holds no tokenizer.json: save one there with tokenizers' Tokenizer.save",
        )
        return path / "tokenizer.json"
    if path.is_file():
        return path
    # A hub id is NAME or OWNER/NAME; anything else can only be a path.
    require(
        path.suffix != ".json" and len(path.parts) <= 2 and not path.is_absolute() and path.parts[0] not in ("..", "~"),
        f"data.tokenizer {name} is missing: give a tokenizer.json, a folder that holds one, or a hub id",
    )
    return None


def end_token(tokenizer: Tokenizer, file: Path) -> int:
    """Return the id of the end-of-document token.

    Args:
        tokenizer: read from ``file``.
        file: a ``tokenizer_config.json`` beside it names the token first (``eos_token``).

    Raises:
        UserError: if the tokenizer has none.
    """
    names = [*_named_end(file.with_name("tokenizer_config.json")), *END_TOKENS]
    found = next((identity for name in names if (identity := tokenizer.token_to_id(name)) is not None), None)
    if found is None:
        raise UserError(f"data.tokenizer {file} has no end-of-document token: add {END!r} to it")
    return found


def _named_end(settings: Path) -> list[str]:
    try:
        named: Any = json.loads(settings.read_text(encoding="utf-8")).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return []
    name = named.get("content") if isinstance(named, dict) else named
    return [name] if isinstance(name, str) else []


def vocabulary(tokenizer: Tokenizer) -> int:
    """Return one more than the largest id: ids may have gaps, and an embedding needs a row for each."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def encode(tokenizer: Tokenizer, texts: Sequence[str], end: int, most: int) -> tuple[npt.NDArray[np.int64], int]:
    """Return the packed stream of texts, an end token after each, cut to ``most`` tokens, and the texts it holds.

    Raises:
        UserError: if the tokenizer has no token for something in the text.
    """
    tokenizer.no_truncation()  # settings of a model's own input, which would cut or fill documents
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # an end token that is written out in a text is text
    pieces: list[npt.NDArray[np.int64]] = []
    total = 0
    for start in range(0, len(texts), 64):
        if total >= most:
            break
        try:
            encodings = tokenizer.encode_batch_fast(list(texts[start : start + 64]), add_special_tokens=False)
        except Exception as error:  # the binding raises bare Exception
            raise UserError(
                f"data.tokenizer cannot encode the text ({error}): give one that has a token for unknown words"
            ) from None
        for encoding in encodings:
            if total >= most:
                break
            pieces.append(np.array([*encoding.ids, end], dtype=np.int64)[: most - total])
            total += len(pieces[-1])
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64), len(pieces)
