"""GGUF files (llama.cpp's format): the schedule that llama.cpp runs, the sizes, and the FLOPs of the matrices.

Only keys and shapes are read. Sources: ``load_arch_hparams`` of each architecture and ``set_swa_pattern``, in
the source of November 2026. A key that an architecture does not read has no effect, whatever it says.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersearch.errors import DataError, ExportError, one_line
from layersearch.schedule import Schedule, Span, SpanKind
from layersearch.schedule.schedule import MOST_LAYERS

PLAIN = (
    *("llama", "mistral3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "smollm3", "phi2", "phi3", "gemma", "gpt2"),
    *("gptneox", "granite", "granitemoe", "olmo", "olmoe", "starcoder2", "stablelm", "exaone", "command-r", "nemotron"),
)
"""Architectures that llama.cpp runs with full attention in every layer; ``phi3`` has windows that it leaves out."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How llama.cpp reads the windows of one architecture."""

    period: int | None
    """Without a pattern in the file the last layer of each period is full; None: the file must hold the array."""
    size: int | None = None
    """The size where the file names none; None: all layers are then full."""
    fixed: bool = False
    """Whether the size is this one, whatever the file says. A size of 0 in the file still means no windows."""
    kind: SpanKind = "window"
    n_layers: int | None = None
    """Windows hold only in a model of this depth; None: in all."""


ARCHITECTURES = {
    "gemma2": Windows(period=2, size=4096),
    "gemma3": Windows(period=6),
    "cohere2": Windows(period=4),
    "olmo2": Windows(period=4),
    "gpt-oss": Windows(period=2),
    "granite_swa": Windows(period=None),
    "exaone4": Windows(period=4, size=4096, n_layers=64),
    "llama4": Windows(period=4, size=8192, fixed=True, kind="block"),
}


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a GGUF file says before its weights."""

    path: Path
    keys: Mapping[str, Any]
    """Every key but the tokenizer's lists, by its full name."""
    shapes: Mapping[str, tuple[int, ...]]
    """Every tensor's shape; the first number is the width of the input."""

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.keys.get("general.architecture"))

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of ``<architecture>.name``."""
        return self.keys.get(f"{self.architecture}.{name}", default)

    def number(self, name: str, default: int | None = None) -> int:
        """Return a whole number that is the same in every layer.

        Raises:
            ExportError: if it is missing or differs from layer to layer.
        """
        value = self.get(name, default)
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool):
            problem = "is missing" if value is None else "differs from layer to layer, which is not supported"
            raise ExportError(f"{self.path}: {self.architecture}.{name} {problem}; give another file")
        return value


def read_header(path: Path) -> Header:
    """Read a GGUF file's keys and shapes.

    Raises:
        DataError: the package gguf is missing, or the file is none or cut off.
    """
    if importlib.util.find_spec("gguf") is None:
        raise DataError(f'{path} needs the package gguf, which is not installed: pip install "layersearch[gguf]"')
    from gguf import GGUFReader, GGUFValueType

    keys: dict[str, Any] = {}
    try:
        reader = GGUFReader(path)
        for name, field in reader.fields.items():
            of_strings = field.types[:1] == [GGUFValueType.ARRAY] and field.types[-1] == GGUFValueType.STRING
            if not of_strings:
                keys[name] = field.contents()
        if (tokens := reader.fields.get("tokenizer.ggml.tokens")) is not None:
            keys["tokens"] = len(tokens.data)
        shapes = {tensor.name: tuple(int(size) for size in tensor.shape) for tensor in reader.tensors}
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give the path of a GGUF file") from None
    except Exception as error:  # the package raises many kinds
        raise DataError(f"{path} is no whole GGUF file ({one_line(error)}); download it again") from None
    return Header(path=path, keys=keys, shapes=shapes)


def gguf_schedule(header: Header) -> Schedule:
    """Return the schedule that llama.cpp runs.

    Raises:
        ExportError: if the architecture is not known here, or its pattern is missing or of another length.
    """
    name, where = header.architecture, header.path
    layers = header.number("block_count") - header.number("nextn_predict_layers", 0)
    if not 1 <= layers <= MOST_LAYERS:
        raise ExportError(
            f"{where}: {name}.block_count makes {layers} layers, not 1 to {MOST_LAYERS}; give another file"
        )
    full = Schedule((Span(kind="full"),) * layers)
    if name in PLAIN:
        return full
    if name not in ARCHITECTURES:
        known = ", ".join((*ARCHITECTURES, *PLAIN))
        raise ExportError(f"{where}: how llama.cpp attends in architecture {name!r} is not known here; known: {known}")
    rule = ARCHITECTURES[name]
    given = header.get("attention.sliding_window", rule.size)
    size = rule.size if rule.fixed and given else given
    if not size or rule.n_layers not in (None, layers):
        return full
    if not isinstance(size, int):
        raise ExportError(f"{where}: {name}.attention.sliding_window is no whole number ({size!r:.60}); restore it")
    pattern = header.get("attention.sliding_window_pattern", rule.period)
    if isinstance(pattern, list):
        if len(pattern) < layers:
            raise ExportError(f"{where}: sliding_window_pattern names {len(pattern)} of {layers} layers; restore it")
        sparse = [bool(one) for one in pattern[:layers]]
    elif isinstance(pattern, int):
        sparse = [pattern == 0 or layer % pattern < pattern - 1 for layer in range(layers)]
    else:
        raise ExportError(
            f"{where}: {name}.attention.sliding_window_pattern is missing, and llama.cpp wants it; add it"
        )
    return Schedule(tuple(Span(kind=rule.kind, size=size) if one else Span(kind="full") for one in sparse))


def gguf_matrix_flops(header: Header) -> dict[str, int]:
    """Return the FLOPs of one token's matrix products as `layersearch.model.matrices.matrix_flops` does."""
    flops = {"projections": 0, "mlp": 0, "head": 0}
    for name, shape in header.shapes.items():
        block = re.match(r"blk\.\d+\.(\w+)\.weight$", name)
        if len(shape) < 2 or "rope" in name:
            continue
        count = 1
        for size in shape:
            count *= size
        if block is None:
            # A head that is tied to the embedding is not stored a second time.
            tied = name == "token_embd.weight" and "output.weight" not in header.shapes
            flops["head"] += count if tied or name == "output.weight" else 0
        elif block[1].startswith("attn"):
            flops["projections"] += count
        elif len(shape) == 3:
            flops["mlp"] += count // shape[2] * header.number("expert_used_count")
        else:
            flops["mlp"] += count
    return flops
