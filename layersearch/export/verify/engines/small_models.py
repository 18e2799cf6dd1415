"""The model that an engine gets: the folder's own weights if they are small, else a narrow copy with random ones.

The narrow copy has every key of ``config.json`` that does not say a width, so all that holds the schedule is unchanged.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layersearch.errors import ExportError
from layersearch.export.families import make_config
from layersearch.export.verify.engines.references import load_state
from layersearch.export.verify.loading import QUERIES_AND_KEYS

OWN_WEIGHT_BYTES = 640 * 2**20
"""Weights up to this size are run; a narrow copy stands for larger ones."""
VOCAB = 256
_HEADS, _HEAD_DIM = 4, 32
_WIDTHS = {
    "hidden_size": _HEADS * _HEAD_DIM,
    "intermediate_size": 256,
    "intermediate_size_mlp": 256,
    "moe_intermediate_size": 256,
    "vocab_size": VOCAB,
}
_MAX_COUNTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
_DROPPED = ("quantization_config", "quantization", "torch_dtype")


@dataclass(frozen=True, kw_only=True)
class EngineModel:
    """A model on disk for an engine, with what the reference needs."""

    path: Path
    """The folder or file that the engine loads."""
    values: Mapping[str, Any]
    """Its decoder's ``config.json``, as transformers reads it."""
    state: Mapping[str, Tensor]
    weights: str
    """``random``, or ``the folder's own``."""
    vocab_size: int
    prepare: Callable[[Any], None] | None = None
    """Applied to the reference's model after its weights; None: nothing is."""


def narrow(values: Mapping[str, Any], positions: int, where: str) -> dict[str, Any]:
    """Return a ``config.json`` (of a decoder) of small width; ``positions`` is the longest text in tokens."""
    config = make_config(values["model_type"], values, where)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    small = {key: value for key, value in values.items() if key not in _DROPPED}
    names = {"num_attention_heads": _HEADS, "num_heads": _HEADS}
    names["num_key_value_heads"] = _HEADS if kv_heads == heads else max(1, _HEADS // 2)
    names |= {
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": max(positions, config.max_position_embeddings),
        **_WIDTHS,
    }
    small |= {name: value for name, value in names.items() if name in values or hasattr(config, name)}
    small |= {name: min(getattr(config, name), most) for name, most in _MAX_COUNTS.items() if hasattr(config, name)}
    for name in _SPECIAL:
        value = getattr(config, name, None)
        if isinstance(value, list) or (isinstance(value, int) and value >= VOCAB):
            small[name] = None if name == "eos_token_id" else 0
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(values.get(name), dict):
            small[name] = _any_width(values[name])
    return small | {"dtype": "float32"}


def _any_width(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return RoPE parameters for any head width: factors per dimension fit only one width."""
    if any(isinstance(value, list) for value in rope.values()):
        return {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10_000.0)}
    return {key: _any_width(value) if isinstance(value, Mapping) else value for key, value in rope.items()}


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Draw every weight: one key at a window's edge must change the logits, so queries and keys have gain 1.5."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            fan = parameter.shape[-2] if "experts" in name else parameter.shape[-1]
            gain = 1.5 if any(part in name for part in QUERIES_AND_KEYS) else 1.0
            parameter.normal_(0.0, gain * fan**-0.5, generator=generator)
        elif "norm" in name:
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.1, generator=generator))
        else:
            parameter.normal_(0.0, 1.0 if "sink" in name else 0.1, generator=generator)


def random_folder(values: Mapping[str, Any], positions: int, out: Path, where: str) -> EngineModel:
    """Write a narrow model with random weights for an engine that reads Hugging Face's files."""
    small = narrow(values, positions, where)
    model = load_state(small, None, where)
    randomize(model)
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    # The keys as they were exported: the library's own file has others, and not all of these.
    (out / "config.json").write_text(json.dumps(small, indent=1), encoding="utf-8")
    return EngineModel(path=out, values=small, state=model.state_dict(), weights="random", vocab_size=VOCAB)


def own_folder(folder: Path, values: Mapping[str, Any], files: tuple[Path, ...], where: str) -> EngineModel:
    """Return a folder with its own weights."""
    from safetensors.torch import load_file

    state = {name: tensor.float() for file in files for name, tensor in load_file(file).items()}
    vocab = values.get("vocab_size")
    if not isinstance(vocab, int):
        raise ExportError(f"{where}: vocab_size is missing; add it")
    return EngineModel(path=folder, values=values, state=state, weights="the folder's own", vocab_size=vocab)
