"""The model that an export is of: its configuration, and its weights and tokenizer where it has them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.config.model import ModelConfig
from layersearch.data import hub
from layersearch.data.gguf_file import is_gguf
from layersearch.errors import ExportError, one_line

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """A stock model of transformers."""

    name: str
    """For errors: a path, a hub id, or words."""
    values: dict[str, Any] = field(repr=False)
    """Its ``config.json``."""
    tensors: Callable[[], dict[str, Tensor]] | None = field(default=None, repr=False)
    """Returns its weights by their names in transformers, a tied one once; None: there are none."""
    tokenizer: Path | None = None
    """Folder or GGUF file that holds its tokenizer."""
    gguf: Path | None = None
    """The GGUF file that it is."""

    @property
    def folder(self) -> Path | None:
        """Its folder with files beside the weights; None if it is no folder."""
        return None if self.gguf is not None else self.tokenizer


def read_source(name: str) -> SourceModel:
    """Read a model folder, a hub id or a GGUF file; its weights are read when they are asked for.

    Raises:
        LayersearchError: it cannot be read, or is no causal language model that transformers has.
    """
    from layersearch.model.pretrained import load_config, load_tensors

    values = config_values(load_config(name))
    if is_gguf(name):
        path = Path(name)
        # transformers notes here how the file was quantized; the weights that it returns are plain floats.
        values = {key: value for key, value in values.items() if key != "quantization_config"} | {"dtype": "float32"}
        return SourceModel(name=name, values=values, tensors=lambda: load_tensors(name), tokenizer=path, gguf=path)
    folder = Path(name) if os.path.isdir(name) else _cached(name)
    held = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) or not os.path.isdir(name)
    return SourceModel(
        name=name, values=values, tensors=(lambda: load_tensors(name)) if held else None, tokenizer=folder
    )


def config_values(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the content of a ``config.json`` with every field that the model's own class has, defaults too.

    Other engines have other defaults. Fields of every transformers model are left out where they are at their defaults.
    """
    from transformers import PreTrainedConfig

    general, own = PreTrainedConfig().to_dict(), ("tie_word_embeddings", "transformers_version")
    values = config.to_dict()
    values.pop("_name_or_path", None)
    return {key: value for key, value in values.items() if key in own or key not in general or value != general[key]}


def decoder_source(state: dict[str, Tensor], model: ModelConfig, *, vocab_size: int, seq_len: int) -> SourceModel:
    """Return a trained `Decoder` as a source: a Llama, or a Qwen3 if it normalizes queries and keys.

    Args:
        state: its state dict.
        model: its size.
        vocab_size: number of tokens in the vocabulary.
        seq_len: longest sequence in tokens.
    """
    from layersearch.export.hf import stock_config
    from layersearch.export.weights import decoder_tensors

    values = config_values(stock_config(model, vocab_size, seq_len))
    return SourceModel(name="the decoder", values=values, tensors=lambda: decoder_tensors(state, model))


def check_yarn(rope: Mapping[str, Any], engine: str) -> None:
    """Refuse parameters of YaRN that transformers reads and other engines compute from the factor alone.

    Raises:
        ExportError: names the parameter.
    """
    if rope.get("rope_type") != "yarn":
        return
    usual = 0.1 * math.log(rope["factor"]) + 1.0
    factor = rope.get("attention_factor")
    other = next((key for key in ("mscale", "mscale_all_dim") if rope.get(key) is not None), None)
    if factor is not None and not math.isclose(factor, usual, rel_tol=1e-4):
        problem = f"attention_factor is {factor:g}, and {engine} takes {usual:g} for this factor"
    elif other is not None or rope.get("truncate") is False:
        problem = f"{other or 'truncate'} is set, which {engine} was not seen to read"
    else:
        return
    raise ExportError(f"rope_parameters: {problem}; the logits would differ")


def _cached(name: str) -> Path:
    """Return the local folder of a hub id's small files."""
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.jinja", "*.model", "merges.txt"]
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=not hub.reachable()))
    except Exception as error:  # the hub's client raises many kinds
        raise ExportError(f"--model {name}: its tokenizer cannot be read ({one_line(error)}); give a folder") from None
