"""GGUF files (llama.cpp's format): one file holds a model's configuration, weights and tokenizer."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.data.quiet import quiet
from layersearch.errors import DataError, LayersearchError, one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAGIC = b"GGUF"


def is_gguf(name: str) -> bool:
    """Return whether a name is that of a GGUF file, present or not."""
    return name.lower().endswith(".gguf") and not os.path.isdir(name)


@contextmanager
def opened(what: str) -> Iterator[dict[str, Any]]:
    """Yield the arguments with which transformers' ``from_pretrained`` reads a GGUF file, ``what`` being KEY FILE.

    The file is shown alone in a folder: transformers would also read what lies beside it, of other models.

    Raises:
        DataError: a package is missing or does not load, or the file cannot be read.
    """
    path = Path(what.split(" ", 1)[1]).expanduser()
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise DataError(f"{what} cannot be read ({error.strerror}); give the path of a GGUF file") from None
    if magic != MAGIC:
        raise DataError(f"{what} is no GGUF file, though its name says so; give one, or download it again")
    if any(importlib.util.find_spec(package) is None for package in ("gguf", "accelerate")):
        raise DataError(f'{what} needs the package gguf, which is not installed: pip install "layersearch[gguf]"')
    with tempfile.TemporaryDirectory() as folder, quiet(), _no_bar():
        Path(folder, "model.gguf").symlink_to(path.resolve())
        try:
            yield {"pretrained_model_name_or_path": folder, "gguf_file": "model.gguf", "local_files_only": True}
        except LayersearchError:
            raise
        except ImportError as error:  # the installation is at fault, not the file
            remedy = 'pip install --force-reinstall "layersearch[gguf]"'
            raise DataError(f"{what} cannot be read: a package does not load ({one_line(error)}); {remedy}") from None
        except Exception as error:  # transformers and gguf raise many kinds
            text = one_line(error).replace(folder, str(path.parent))
            if "support" in text.lower() or isinstance(error, NotImplementedError):
                problem = f"is of a kind that transformers does not read ({text}); give the model's folder or hub id"
            else:
                problem = f"is cut off or damaged ({text}); download it again"
            raise DataError(f"{what} {problem}") from None


@contextmanager
def _no_bar() -> Iterator[None]:
    """Hide the progress bar of transformers' GGUF reader, which knows no setting for it."""
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = reader.tqdm
    reader.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar


def read_tokenizer(key: str, path: Path) -> tuple[Tokenizer, str | None]:
    """Return the tokenizer in a GGUF file, and its end-of-document token where the file names one.

    Raises:
        DataError: names ``key``: the file cannot be read, or holds no tokenizer.
    """
    found = path.stat()
    return _read_tokenizer(f"{key} {path}", found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1)  # reading takes seconds
def _read_tokenizer(what: str, size: int, mtime_ns: int) -> tuple[Tokenizer, str | None]:
    from transformers import AutoTokenizer

    with opened(what) as source:
        tokenizer: Any = AutoTokenizer.from_pretrained(**source)
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise DataError(f"{what} holds no tokenizer that can be read; name a tokenizer.json instead")
        return tokenizer.backend_tokenizer, tokenizer.eos_token


def save_tokenizer(key: str, path: Path, out: Path) -> None:
    """Write the tokenizer in a GGUF file to a folder, as transformers does; errors as of `read_tokenizer`."""
    from transformers import AutoTokenizer

    with opened(f"{key} {path}") as source:
        AutoTokenizer.from_pretrained(**source).save_pretrained(out)
