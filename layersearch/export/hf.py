"""Export to Hugging Face transformers: a configuration that a stock family obeys, and weights that it loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.errors import UserError
from layersearch.export.families import FAMILIES, Family
from layersearch.export.files import write_text
from layersearch.recipe import ModelConfig
from layersearch.schedule import Schedule, Span

if TYPE_CHECKING:
    from torch import Tensor


def write_config(
    schedule: Schedule, family: str, *, model: ModelConfig, vocab_size: int, seq_len: int, out: Path
) -> Path:
    """Write the ``config.json`` of a stock family, validated by transformers' own configuration class.

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
        UserError: if the family cannot hold the schedule, or the file cannot be written.
    """
    held = FAMILIES[family]
    fields = schedule_fields(schedule, family, seq_len=seq_len)
    import transformers

    config = getattr(transformers, held.config_class)(
        architectures=[held.architecture],
        vocab_size=vocab_size,
        hidden_size=model.d_model,
        intermediate_size=model.d_ff,
        num_hidden_layers=model.n_layers,
        num_attention_heads=model.n_heads,
        num_key_value_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=seq_len,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=model.tie_embeddings,
        # A family's own special tokens mean nothing in another vocabulary: its eos would end texts at random.
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **fields,
    )
    return write_text(out / "config.json", config.to_json_string())


def schedule_fields(schedule: Schedule, family: str, *, seq_len: int) -> dict[str, Any]:
    """Return the configuration's fields that hold a schedule.

    Args:
        schedule: one span per layer.
        family: a key of `FAMILIES`.
        seq_len: the longest text in tokens; stands in a size field that no layer uses but the model wants.

    Raises:
        UserError: if the family cannot hold the schedule; names the layer and what would be accepted.
    """
    held = FAMILIES[family]
    sizes: dict[str, tuple[int, Span]] = {}
    for layer, span in enumerate(schedule):
        _check_layer(layer, span, family, held)
        if span.kind in held.size_fields:
            first, before = sizes.setdefault(span.kind, (layer, span))
            if span.size != before.size:
                raise UserError(
                    f"layer {layer}: {span}, but layer {first} has {before}: family {family} holds one {span.kind} "
                    f"size for all layers; accepted there: {_accepted(held, before)}"
                )
    fields: dict[str, Any] = {"layer_types": [held.layer_types[span.kind] for span in schedule]}
    for kind, name in held.size_fields.items():
        if kind in sizes:
            fields[name] = sizes[kind][1].size
        elif held.unused_size:
            fields[name] = seq_len
    return fields | (dict(held.sparse_flags) if sizes else {})


def _check_layer(layer: int, span: Span, family: str, held: Family) -> None:
    plain = Span(kind=span.kind, size=span.size)
    problems = {
        f"no {span.kind}s": span.kind not in held.layer_types,
        "no dilation": span.dilation > 1,
        "no sinks": span.sink > 0,
        "no LaS decay or pooling": span.is_las,
    }
    for problem, found in problems.items():
        if found:
            accepted = _accepted(held, plain)
            raise UserError(f"layer {layer}: {span}: family {family} holds {problem}; accepted there: {accepted}")


def _accepted(held: Family, span: Span) -> str:
    """Return the terms that a layer may have, with the size at hand."""
    size = span.size or "SIZE"
    return " or ".join(kind if kind not in held.size_fields else f"{kind}:{size}" for kind in held.layer_types)


def save_weights(state: Mapping[str, Tensor], family: str, *, model: ModelConfig, out: Path) -> Path:
    """Write a trained `layersearch.model.Decoder`'s weights as ``model.safetensors`` beside its ``config.json``.

    Args:
        state: the decoder's state dict.
        family: a key of `FAMILIES`.
        model: the decoder's size.
        out: the folder.

    Returns:
        The file's path; ``from_pretrained`` on the folder loads it.

    Raises:
        UserError: if the family normalises queries and keys and the model does not, or the other way round, or the file
            exists or cannot be written.
    """
    if FAMILIES[family].qk_norm != model.qk_norm:
        other = next((name for name, held in FAMILIES.items() if held.qk_norm == model.qk_norm), None)
        remedy = f"give --family {other}" if other else "train with the other value of model.qk_norm"
        raise UserError(f"weights with qk_norm={model.qk_norm} do not load into family {family}; {remedy}")
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
