"""Tokenizers: the user's own, or a byte-level BPE trained on the text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layersearch.data import hub
from layersearch.data.gguf_file import is_gguf, read_tokenizer
from layersearch.data.source import Tokens, require
from layersearch.errors import DataError
from layersearch.files import parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOS = "<|endoftext|>"
EOS_TOKENS = (EOS, "</s>", "<eos>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "[SEP]")
"""Known end-of-document tokens; the first one in a tokenizer's vocabulary is used."""
MIN_VOCAB_SIZE = 257
"""The 256 bytes and the end-of-document token."""
BPE_CHARACTERS = 32_000_000
"""The BPE is trained on this many characters of the training text at most."""
_AT_ONCE = 16


def train_bpe(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE (as GPT-2's) on the first `BPE_CHARACTERS` of training text.

    The same texts give the same tokenizer; a short text may give fewer than ``vocab_size`` tokens. A ``vocab_size``
    below `MIN_VOCAB_SIZE` raises a `DataError`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    require(
        vocab_size >= MIN_VOCAB_SIZE,
        f"data.vocab_size {vocab_size} is too small for a byte-level BPE: raise it to at least {MIN_VOCAB_SIZE}",
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    starts = itertools.accumulate(map(len, texts), initial=0)
    sample = (text[: max(0, BPE_CHARACTERS - start)] for text, start in zip(texts, starts, strict=False))
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json`` or a GGUF file's tokenizer, or raise a `DataError` if it is neither."""
    from tokenizers import Tokenizer

    if is_gguf(str(path)):
        return read_tokenizer("data.tokenizer", path)[0]
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises bare Exception
        message = f"data.tokenizer {path} is not a tokenizer.json ({error}): save one with tokenizers' Tokenizer.save"
        raise DataError(message) from None


def tokenizer_path(name: str) -> Path | None:
    """Return the local ``tokenizer.json`` or GGUF file that ``data.tokenizer`` names, None for a hub id.

    Raises:
        DataError: there is no such file.
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
        path.suffix not in (".json", ".gguf")
        and len(path.parts) <= 2
        and not path.is_absolute()
        and path.parts[0] not in ("..", "~"),
        f"data.tokenizer {name} is missing: give a tokenizer.json, a folder that holds one, a GGUF file, or a hub id",
    )
    return None


def eos_token_id(tokenizer: Tokenizer, file: Path) -> int:
    """Return the id of the end-of-document token of a tokenizer read from ``file``, or raise a `DataError`.

    The one that a GGUF file names comes first, or the ``eos_token`` in a ``tokenizer_config.json`` or
    ``special_tokens_map.json`` beside the file. Then come `EOS_TOKENS`, then the ``eos_token_id`` of the model's
    configuration.
    """
    if is_gguf(str(file)):
        named: list[Any] = [read_tokenizer("data.tokenizer", file)[1]]
    else:
        named = [_beside(file, name, "eos_token") for name in ("tokenizer_config.json", "special_tokens_map.json")]
    names = [name.get("content") if isinstance(name, dict) else name for name in named]
    for name in [*(name for name in names if isinstance(name, str)), *EOS_TOKENS]:
        if (found := tokenizer.token_to_id(name)) is not None:
            return found
    for ids in [_beside(file, name, "eos_token_id") for name in ("generation_config.json", "config.json")]:
        number = ids[0] if isinstance(ids, list) and ids else ids
        if isinstance(number, int) and number >= 0 and tokenizer.id_to_token(number) is not None:
            return number
    raise DataError(
        f"data.tokenizer {file} has no end-of-document token that is known: name it as eos_token in a "
        "tokenizer_config.json beside it"
    )


def _beside(file: Path, name: str, key: str) -> Any:
    """Return the value of a key in a JSON file beside ``file``; None if there is none."""
    try:
        return parse_json(file.with_name(name).read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return None


def vocab_size(tokenizer: Tokenizer) -> int:
    """Return one more than the largest id: ids may have gaps, and an embedding needs a row for each."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def encode(tokenizer: Tokenizer, texts: Sequence[str], eos: int, max_tokens: int) -> tuple[Tokens, int]:
    """Return the packed stream of texts, an end token after each, cut to ``max_tokens``, and its number of texts.

    Text that the tokenizer has no token for raises a `DataError`.
    """
    pieces = [np.empty(0, dtype=np.int64)]
    left = max_tokens
    for ids in encode_each(tokenizer, texts):
        pieces.append(np.array([*ids, eos], dtype=np.int64)[:left])
        left -= len(pieces[-1])
        if left <= 0:
            break
    return np.concatenate(pieces), len(pieces) - 1


def encode_each(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yield the token ids of each text, without special tokens; `_AT_ONCE` texts are encoded at a time.

    Text that the tokenizer has no token for raises a `DataError`.
    """
    tokenizer.no_truncation()  # these settings are for a model's own input; they would cut or fill documents
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # an end token that is written out in a text is text
    left = iter(texts)
    while batch := list(itertools.islice(left, _AT_ONCE)):
        try:
            encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        except Exception as error:  # the binding raises bare Exception
            raise DataError(
                f"data.tokenizer cannot encode the text ({error}): give one that has a token for unknown words"
            ) from None
        yield from (encoding.ids for encoding in encodings)


def tokenizer_file(name: str) -> Path:
    """Return the local ``tokenizer.json`` or GGUF file of ``data.tokenizer``, from the hub if it is there."""
    return tokenizer_path(name) or hub.tokenizer_file(name)


def open_tokenizer(name: str) -> tuple[Tokenizer, int]:
    """Return the tokenizer that ``data.tokenizer`` names and the id of its end-of-document token.

    Raises:
        DataError: there is none, or it has no such token.
    """
    file = tokenizer_file(name)
    tokenizer = load_tokenizer(file)
    tokenizer.no_truncation()  # saved settings for a model's own input; they would cut or fill any text
    tokenizer.no_padding()
    return tokenizer, eos_token_id(tokenizer, file)


def tokenizer_stamp(name: str) -> list[Any]:
    """Return plain data that changes when the tokenizer of this name does, without reading it."""
    own = tokenizer_path(name)
    return [name, *([str(own.resolve()), own.stat().st_size, own.stat().st_mtime_ns] if own else [])]
