"""Export to Hugging Face transformers: a configuration that a stock family obeys, and weights that it loads."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.config.recipe import ModelConfig
from layersearch.errors import UserError
from layersearch.export.capabilities import check_held
from layersearch.export.families import FAMILIES
from layersearch.export.files import write_text
from layersearch.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor


def write_config(
    schedule: Schedule, family: str, *, model: ModelConfig, vocab_size: int, seq_len: int, out: Path
) -> Path:
    """Write the ``config.json`` of a stock family, after transformers built its model from it.

    Args:
        schedule: one span per layer.
        family: a key of `FAMILIES`.
        model: the model's size.
        vocab_size: tokens of the vocabulary.
        seq_len: the longest text in tokens.
        out: the folder.

    Returns:
        The file's path.

    Raises:
        CannotHold: if the family cannot hold the schedule.
        UserError: if it cannot hold the model's size, transformers cannot build that, or the file cannot be written.
    """
    held = FAMILIES[family]
    check_held(schedule, held.capabilities(family), seq_len=seq_len, n_heads=model.n_heads)
    sizes = model_fields(family, model=model, vocab_size=vocab_size, seq_len=seq_len)
    fields = sizes | schedule_fields(schedule, family, seq_len=seq_len)
    import transformers

    known = {entry.name for entry in dataclasses.fields(getattr(transformers, held.config_class))} | {"architectures"}
    known_fields = {name: value for name, value in fields.items() if name in known}
    config = held.build(known_fields, f"family {family} at this size")
    return write_text(out / "config.json", config.to_json_string())


def model_fields(family: str, *, model: ModelConfig, vocab_size: int, seq_len: int) -> dict[str, Any]:
    """Return the configuration's fields that hold a model's size; the family's class knows some of them only.

    Raises:
        UserError: if the family has no grouped-query attention and the model has.
    """
    held = FAMILIES[family]
    if not held.gqa and model.n_kv_heads != model.n_heads:
        grouped = next(name for name, other in FAMILIES.items() if other.gqa)
        raise UserError(
            f"n_kv_heads: family {family} has a key-value head for every query head, the model {model.n_kv_heads} for "
            f"{model.n_heads}; give --family {grouped}, or a --recipe with n_kv_heads: {model.n_heads}"
        )
    rope = {"rope_type": "default", "rope_theta": model.rope_theta}
    sizes: dict[str, Any] = {
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
        "tie_word_embeddings": model.tie_embeddings,
        # A family's own special tokens mean nothing in another vocabulary: its eos would end texts at random.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "architectures": [held.architecture],
    }
    if held.rope == "one":
        sizes["rope_parameters"] = rope
    elif held.rope == "by_type":
        sizes["rope_parameters"] = {word: dict(rope) for word in held.layer_types.values()}
    sizes |= {name: sizes[source] for name, source in held.copies.items()}
    sizes |= {name: [value] * model.n_layers for name, value in held.per_layer.items()}
    return sizes | dict(held.constants)


def schedule_fields(schedule: Schedule, family: str, *, seq_len: int) -> dict[str, Any]:
    """Return the configuration's fields that hold a schedule which the family can hold.

    Args:
        schedule: one span per layer.
        family: a key of `FAMILIES`.
        seq_len: the longest text in tokens; stands in a size field that no layer uses but the model wants.
    """
    held = FAMILIES[family]
    words = [held.layer_types[span.kind] for span in schedule]
    runs = [[[word], len(list(run))] for word, run in itertools.groupby(words)]
    fields: dict[str, Any] = {name: words if form == "list" else runs for name, form in held.layer_fields.items()}
    sizes = {span.kind: span.size for span in schedule if span.size is not None}
    for kind, names in held.size_fields.items():
        for name, factor in names.items():
            if kind in sizes:
                fields[name] = sizes[kind] * factor
            else:
                fields[name] = seq_len * factor if held.size_required else None
    return fields | (dict(held.sparse_flags) if sizes else {})


def save_weights(state: Mapping[str, Tensor], family: str, *, model: ModelConfig, out: Path) -> Path:
    """Write the weights of a trained `Decoder` as ``model.safetensors`` beside its ``config.json``.

    Args:
        state: the decoder's state dict.
        family: a key of `FAMILIES`.
        model: the decoder's size.
        out: the folder.

    Returns:
        The file's path; ``from_pretrained`` on the folder loads it.

    Raises:
        UserError: if the family has other weights than the decoder, or normalises queries and keys and the model does
            not, or the other way round, or the file exists or cannot be written.
    """
    held = FAMILIES[family]
    fitting = [name for name, other in FAMILIES.items() if other.decoder_weights and other.qk_norm == model.qk_norm]
    if family not in fitting:
        remedy = f"give --family {fitting[0]}" if fitting else "train with the other value of model.qk_norm"
        what = f"weights with qk_norm={model.qk_norm}" if held.decoder_weights else "the decoder's weights"
        raise UserError(f"{what} do not load into family {family}; {remedy}")
    path = out / "model.safetensors"
    if path.exists():
        raise UserError(f"{path} exists; give --out another folder or remove it")
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {
        name if name.startswith("lm_head.") else f"model.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        # Tied weights are one tensor under two names; the embedding's stays.
        if not (model.tie_embeddings and name == "lm_head.weight")
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written ({error}); give --out a folder that can") from None
    return path
