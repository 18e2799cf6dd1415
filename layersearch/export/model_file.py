"""A model file of others: its schedule, its sizes and its FLOPs, without its weights.

It is a ``config.json`` of transformers, the folder that holds one, or a GGUF file. A configuration means here what
transformers does with it, a GGUF file what llama.cpp does with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersearch.errors import ConfigError, ExportError, LayersearchError, did_you_mean
from layersearch.export.encoders import ENCODERS, encoder_schedule, encoder_sizes, is_encoder_file
from layersearch.export.encoders.reading import encoder_flops, read_encoder_config
from layersearch.export.encoders.remote import MODEL_TYPE as REMOTE_ENCODER
from layersearch.export.families import check_no_layer_windows, make_config
from layersearch.export.files import read_json
from layersearch.export.gguf_spans import gguf_matrix_flops, gguf_schedule, read_header
from layersearch.export.layer_spans import BY_TYPE, config_schedule, readable, text_part
from layersearch.files import parse_json
from layersearch.schedule import Schedule

_CONFIG_KEYS = ("model_type", "architectures", "text_config", "num_hidden_layers", "hidden_size")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """What a model file says about attention, and how to count the rest."""

    path: Path
    kind: str
    """transformers' model type, or llama.cpp's architecture."""
    schedule: Schedule
    n_heads: int
    """Query heads of a layer."""
    n_kv_heads: int
    """Key-value heads of a layer."""
    head_dim: int
    """Width of a head."""
    positions: int | None
    """Most tokens of a sequence; None: the file names no such number."""
    token_flops: Callable[[], dict[str, int]]
    """Counts one token's matrix products outside of attention's own, by part."""
    bidirectional: bool = False
    """Whether it is an encoder, or the encoder of a model that has a decoder too."""


def is_model_file(name: str) -> bool:
    """Return whether a command's argument names a model file, and not a schedule: by its name, or a JSON's keys."""
    path = Path(name)
    try:
        if name.lower().endswith(".gguf") or path.is_dir():
            return True
        if path.suffix != ".json" or not path.is_file():
            return False
        values = parse_json(path.read_bytes())
    except (OSError, ValueError):  # too long for a name, or no JSON
        return False
    return isinstance(values, Mapping) and any(key in values for key in _CONFIG_KEYS)


def read_model_file(name: str) -> ModelFile:
    """Read a model file.

    Raises:
        LayersearchError: it cannot be read, is neither a decoder's nor a known encoder's, or no span says what one of
            its layers does.
    """
    path = Path(name)
    if name.lower().endswith(".gguf") and not path.is_dir():
        return _gguf(path)
    file = path / "config.json" if path.is_dir() else path
    if path.is_dir() and not file.is_file() and (held := sorted(path.glob("*.gguf"))):
        raise ConfigError(f"{path} holds GGUF files: name one of them, for example {held[0]}")
    values = read_json(file, str(path), "give a config.json, the folder that holds it, or a GGUF file")
    if "recipe" in values and "model_type" not in values:
        raise ConfigError(f"{path} is a run folder; give its winner.yaml, or layersearch show {path}")
    return _config(values, file)


def _gguf(path: Path) -> ModelFile:
    header = read_header(path)
    heads = header.number("attention.head_count")
    if heads < 1:
        raise ExportError(f"{path}: {header.architecture}.attention.head_count is {heads}; give another file")
    return ModelFile(
        path=path,
        kind=header.architecture,
        schedule=gguf_schedule(header),
        n_heads=heads,
        n_kv_heads=header.number("attention.head_count_kv", heads),
        head_dim=header.number("attention.key_length", header.number("embedding_length") // heads),
        positions=header.get("context_length"),
        token_flops=lambda: gguf_matrix_flops(header),
    )


def _config(values: Mapping[str, Any], file: Path) -> ModelFile:
    where, spans = str(file), None
    both = values.get("model_type") == REMOTE_ENCODER
    if (both or values.get("model_type") == "layersearch") and "layer_spans" in values:  # hf-remote
        spans = Schedule.from_dicts(values["layer_spans"])
        values = {key: value for key, value in values.items() if key not in ("auto_map", "layer_spans")}
        values["model_type"] = values.pop("base_model_type", None)
    check_no_layer_windows(values, where)
    if is_encoder_file(values) and not values.get("is_decoder"):
        return _encoder(values, file)
    model_type, part, _ = text_part(values)
    config = _configuration(model_type, part, where)
    if getattr(config, "use_bidirectional_attention", False):
        raise ExportError(f"{where}: it sees later tokens (use_bidirectional_attention), which no span says")
    found = config_schedule(config, where)
    heads = kv_heads = width = 0
    if found is None:
        from layersearch.model.kinds import check_kind, skeleton

        check_kind(where, config)
        decoder = skeleton(where, config)
        if decoder is None:
            raise ExportError(f"{where}: the attention of {model_type!r} cannot be read; known: {', '.join(BY_TYPE)}")
        found, heads, kv_heads, width = decoder.original, decoder.n_heads, decoder.n_kv_heads, decoder.head_dim
    heads = heads or config.num_attention_heads
    kv_heads = kv_heads or getattr(config, "num_key_value_heads", None) or heads
    if heads % kv_heads:
        raise ExportError(
            f"{where}: num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}; set it"
        )

    def token_flops() -> dict[str, int]:
        from layersearch.model.matrices import matrix_flops

        return matrix_flops(config, where)

    return ModelFile(
        path=file,
        kind=str(model_type),
        schedule=spans or found,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=width or getattr(config, "head_dim", None) or config.hidden_size // heads,
        positions=getattr(config, "max_position_embeddings", None),
        token_flops=token_flops,
        bidirectional=both,
    )


def _encoder(values: Mapping[str, Any], file: Path) -> ModelFile:
    where, family = str(file), ENCODERS[str(values["model_type"])]
    config = read_encoder_config(values, family, where)
    sizes = encoder_sizes(config, family)
    return ModelFile(
        path=file,
        kind=family.model_type,
        schedule=encoder_schedule(config, family, where),
        n_heads=sizes.n_heads,
        n_kv_heads=sizes.n_kv_heads,
        head_dim=sizes.head_dim,
        positions=sizes.positions,
        token_flops=lambda: encoder_flops(config, family, where),
        bidirectional=True,
    )


def _configuration(model_type: str | None, part: Mapping[str, Any], where: str) -> Any:
    from transformers import CONFIG_MAPPING

    if model_type is None:
        raise ConfigError(f"{where}: no key 'model_type', which says how its layers attend; add it")
    if model_type not in CONFIG_MAPPING:
        own = "; it brings code of its own, which is not run" if part.get("auto_map") else ""
        hint = own or did_you_mean(model_type, [*BY_TYPE, "llama", "mistral", "mixtral", "phi3"])
        raise LayersearchError(f"{where}: transformers knows no model_type {model_type!r}{hint}")
    return make_config(model_type, readable(model_type, part), where)
