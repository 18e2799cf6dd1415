"""What an encoder's configuration means: the span of each layer, and its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from layersearch.errors import ExportError, one_line
from layersearch.export.encoders.family import SUMMED, WORDS, EncoderFamily
from layersearch.export.families import make_config
from layersearch.schedule import Schedule, Span
from layersearch.schedule.span import FULL


class EncoderSizes(NamedTuple):
    """The sizes of an encoder."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    positions: int | None
    """Most tokens of a text; None: the configuration names no such number."""


def encoder_sizes(config: Any, family: EncoderFamily) -> EncoderSizes:
    """Return the sizes of the encoder of a configuration object."""
    own = family.encoder_part(config)
    heads = int(own.num_attention_heads)
    return EncoderSizes(
        n_layers=int(own.num_hidden_layers),
        n_heads=heads,
        n_kv_heads=int(getattr(own, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(own, "head_dim", None) or own.hidden_size // heads),
        positions=family.positions(config),
    )


def encoder_schedule(config: Any, family: EncoderFamily, where: str) -> Schedule:
    """Return the schedule that transformers runs for an encoder's configuration object.

    A window that covers the longest text is a full layer. Global tokens are named at each call, so none are here.

    Raises:
        ExportError: begins with ``where``; transformers does not run it, or no span says what a layer does.
    """
    own, sizes = family.encoder_part(config), encoder_sizes(config, family)
    count = sizes.n_layers
    if family.form == "none":
        return Schedule((FULL,) * count)
    assert family.size is not None
    held = getattr(own, family.size)
    if family.form == "types":
        kinds = {word: kind for kind, word in WORDS.items()}
        for layer, word in enumerate(own.layer_types):
            if word not in kinds:
                raise ExportError(f"{where}: layer {layer} is {word}, which no span says; known: {', '.join(kinds)}")
        return Schedule(
            tuple(
                FULL if kinds[word] == "full" else _window(held, family, sizes.positions, f"{where}: layer {layer}")
                for layer, word in enumerate(own.layer_types)
            )
        )
    if family.summary is not None and own.encoder_attention_type == SUMMED:
        span = _with_summary(held, getattr(own, family.summary), family, sizes.positions, where)
        return Schedule((span,) * count)
    if family.summary is not None and own.encoder_attention_type != "local":
        raise ExportError(
            f"{where}: encoder_attention_type is {own.encoder_attention_type}, which no span says; "
            f"known: local, {SUMMED}"
        )
    each = list(held) if isinstance(held, list | tuple) else [held] * count
    if len(each) != count:
        raise ExportError(f"{where}: {family.size} has {len(each)} sizes for {count} layers; give one for each")
    spans = (_window(size, family, sizes.positions, f"{where}: layer {layer}") for layer, size in enumerate(each))
    return Schedule(tuple(spans))


def _window(size: Any, family: EncoderFamily, positions: int | None, where: str) -> Span:
    """Return the span of a size as the family writes it."""
    whole = isinstance(size, int) and not isinstance(size, bool)
    even = whole and (size % family.factor == 0 or family.form == "types")  # ModernBERT rounds down
    if not even or size < family.factor:
        kind = "an even whole number" if family.factor == 2 else "a whole number"
        raise ExportError(f"{where}: {family.size} is {size!r}; expected {kind} of at least {family.factor}")
    side = size // family.factor
    if positions is not None and side >= positions - 1:
        return FULL
    return Span(kind="window", size=side)


def _with_summary(radius: Any, block: Any, family: EncoderFamily, positions: int | None, where: str) -> Span:
    """Return LongT5's span with summaries of ``block`` tokens; a text that is shorter has none."""
    if not isinstance(block, int) or isinstance(block, bool) or block < 2:
        raise ExportError(f"{where}: {family.summary} is {block!r}; expected a whole number of at least 2")
    span = _window(radius, family, None, where)
    if positions is None:
        return replace(span, summary=block)
    if block > positions:
        return _window(radius, family, positions, where)
    return replace(span, size=min(radius, max(1, positions - 1)), summary=block)


def read_encoder_config(values: Mapping[str, Any], family: EncoderFamily, where: str) -> Any:
    """Return transformers' configuration object of an encoder's ``config.json``."""
    return make_config(family.model_type, values, where)


def encoder_flops(config: Any, family: EncoderFamily, where: str) -> dict[str, int]:
    """Return the FLOPs of one token's matrix products outside of attention's QK^T and AV, by part.

    One multiply-add = one FLOP. They are the encoder's alone where the model has a decoder. Longformer's further
    projections of global tokens are not counted: a configuration names no such tokens. LongT5's keys and values of
    summaries are not either: their number depends on the text.

    Raises:
        LayersearchError: begins with ``where``; the model cannot be built.
    """
    import torch
    from torch import nn
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_MAPPING

    from layersearch.data.quiet import quiet
    from layersearch.model.matrices import module_flops

    mapping: Any = MODEL_MAPPING if family.decoder else MODEL_FOR_MASKED_LM_MAPPING
    try:
        with torch.device("meta"), quiet():
            model = mapping[type(config)](config)
    except Exception as error:  # models raise many kinds for sizes that do not fit together
        raise ExportError(f"{where}: transformers cannot build it ({one_line(error)}); correct it") from None
    if family.decoder:
        model = model.encoder
    for _, module in list(model.named_modules()):
        for name in ("query_global", "key_global", "value_global"):
            if hasattr(module, name):
                setattr(module, name, nn.Identity())
    return module_flops(model, where)
