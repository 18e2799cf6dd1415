"""The type in which a pre-trained model's weights are stored, read from the headers of its files."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from layersearch.data.gguf_file import is_gguf
from layersearch.errors import ConfigError, one_line

_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def stored_dtype(name: str, config: Any) -> torch.dtype:
    """Return the floating-point type of most of a model's weights: float32, bfloat16 or float16.

    A GGUF file's weights become plain floats, so float32, and so does any other type.

    Args:
        name: a folder, a hub id whose files are in the local cache, or a GGUF file.
        config: its transformers configuration, which answers where there are no safetensors files.
    """
    if is_gguf(name):
        return torch.float32
    folder = Path(name).expanduser()
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "config.json")
        folder = Path(found).parent if isinstance(found, str) else folder
    counts: Counter[str] = Counter()
    for file in sorted(folder.glob("*.safetensors")):
        for held in _header(file).values():
            if held.get("dtype") in _TYPES:
                first, last = held["data_offsets"]
                counts[held["dtype"]] += last - first
    if counts:
        return _TYPES[counts.most_common(1)[0][0]]
    named = getattr(config, "dtype", None)
    text = str(named).removeprefix("torch.")
    return next((kind for kind in _TYPES.values() if str(kind) == f"torch.{text}"), torch.float32)


def _header(file: Path) -> dict[str, Any]:
    """Return the entries of the tensors in a safetensors file; raise ConfigError if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt"):  # checks the header's length, its JSON and every offset
            pass
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} is no whole safetensors file ({one_line(error)}); download it again") from None
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        content: dict[str, Any] = json.loads(opened.read(length))
    content.pop("__metadata__", None)
    return content
