"""Export to Hugging Face transformers: the configuration of a stock family, and weights that it loads."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.config.recipe import ModelConfig
from layersearch.errors import ExportError
from layersearch.export.families import FAMILIES, Family
from layersearch.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor


def config_text(schedule: Schedule, family: Family, model: ModelConfig, vocab_size: int, seq_len: int) -> str:
    """Return the ``config.json`` of a stock family, after transformers built its model from it."""
    family.capabilities.check(schedule, seq_len=seq_len, n_heads=model.n_heads)
    if not family.gqa and model.n_kv_heads != model.n_heads:
        other = next(one.name for one in FAMILIES.values() if one.gqa)
        raise ExportError(
            f"n_kv_heads: family {family.name} has one key-value head per query head, the model {model.n_kv_heads} for "
            f"{model.n_heads}; give --family {other}, or a --recipe with n_kv_heads: {model.n_heads}"
        )
    fields = size_fields(model, vocab_size, seq_len)
    rope = fields.pop("rope_parameters")
    if family.rope == "one":
        fields["rope_parameters"] = rope
    elif family.rope == "by_type":
        fields["rope_parameters"] = {word: dict(rope) for word in family.layer_types.values()}
    fields |= {name: fields[source] for name, source in family.copies.items()}
    fields |= {name: [value] * model.n_layers for name, value in family.per_layer.items()}
    fields |= {**family.constants, **schedule_fields(schedule, family, seq_len), "architectures": [family.architecture]}
    where = f"family {family.name} at this size"
    return family.build(known_fields(family.config_class, fields), where).to_json_string()


def known_fields(config_class: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a configuration class of transformers has; it would store the others unread."""
    known = {entry.name for entry in dataclasses.fields(config_class)} | {"architectures"}
    return {name: value for name, value in fields.items() if name in known}


def size_fields(model: ModelConfig, vocab_size: int, seq_len: int) -> dict[str, Any]:
    """Return a model's size under the names that configuration classes of transformers use for it."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "attention_scale": model.head_dim**-0.5,
        "max_position_embeddings": seq_len,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_embeddings,
        # A family's own special tokens mean nothing in another vocabulary: its eos would end texts at random.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def schedule_fields(schedule: Schedule, family: Family, seq_len: int) -> dict[str, Any]:
    """Return the configuration fields of a schedule; ``seq_len`` tokens is for a required size that no layer uses."""
    words = [family.layer_types[span.kind] for span in schedule]
    runs = [[[word], len(list(run))] for word, run in itertools.groupby(words)]
    fields: dict[str, Any] = {name: words if form == "list" else runs for name, form in family.layer_fields.items()}
    size = next((span.size for span in schedule if span.size is not None), None)
    unused = seq_len if family.size_required else None
    for name, factor in family.size_fields.items():
        value = unused if size is None else size
        fields[name] = None if value is None else value * factor
    return fields | dict(family.sparse_flags if size is not None else {})


def save_weights(state: Mapping[str, Tensor], family: str, *, model: ModelConfig, out: Path) -> Path:
    """Write a trained `Decoder`'s state dict as ``model.safetensors`` beside the family's ``config.json``.

    Raises:
        ExportError: if the family has other weights than this decoder, or the file exists or cannot be written.
    """
    fitting = [name for name, other in FAMILIES.items() if other.decoder_weights and other.qk_norm == model.qk_norm]
    if family not in fitting:
        weights = f"weights with qk_norm={model.qk_norm}"
        weights = weights if FAMILIES[family].decoder_weights else "the decoder's weights"
        raise ExportError(f"{weights} do not load into family {family}; give --family {fitting[0]}")
    path = out / "model.safetensors"
    if path.exists():
        raise ExportError(f"{path} exists; give --out another folder or remove it")
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {
        name if name.startswith("lm_head.") else f"model.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        # Tied weights are one tensor under two names; only the embedding is saved.
        if not (model.tie_embeddings and name == "lm_head.weight")
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path} cannot be written ({error}); give --out a folder that can") from None
    return path
