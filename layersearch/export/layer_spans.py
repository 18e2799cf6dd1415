"""What a transformers configuration means: the span of each layer, and the positions that the layer rotates by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from layersearch.errors import ExportError
from layersearch.export.families import FAMILIES, Family
from layersearch.export.uniform import UNIFORM, UniformFamily
from layersearch.schedule import Schedule, Span

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BY_TYPE: dict[str, Family] = {family.model_type: family for family in FAMILIES.values()}
"""Every family whose configuration holds a schedule, by its model type."""

SEES_LATER = ("paligemma",)
"""Models of text and images whose prompt sees later tokens: no window and no causal mask holds in it."""

_NO_WINDOW = ("llama", "gpt2")
"""Stock models that read no window, whatever the configuration says."""
_NO_ROPE_IF_FULL = ("cohere2", "exaone4")
"""Families whose full layers have no RoPE; in EXAONE 4 only where ``sliding_window`` is set."""


def text_part(values: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any], bool]:
    """Return the decoder's model type, its part of a ``config.json``, and whether that is under ``text_config``.

    Raises:
        ExportError: if the whole sees later tokens, which its text part alone does not show.
    """
    from transformers import CONFIG_MAPPING

    own, text = values.get("model_type"), values.get("text_config")
    for held in (own, text.get("model_type") if isinstance(text, Mapping) else None):
        if not isinstance(held, str | None):
            raise ExportError(f"model_type must be a word, not {held!r}; correct it")
    if own in SEES_LATER:
        raise ExportError(
            f"in a {own} the prompt sees later tokens, so no window holds there; give its text model alone"
        )
    if not isinstance(text, Mapping) or own in BY_TYPE:
        return own, values, False
    inner = text.get("model_type")
    if inner is None and own is not None and own in CONFIG_MAPPING:  # transformers knows it from the whole
        inner = getattr(CONFIG_MAPPING[own].sub_configs.get("text_config"), "model_type", None)
    return inner, text, True


def readable(model_type: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the layer types that transformers does not derive itself.

    EXAONE 4 names them by a string such as ``LLLG`` (L a window, G full, the last layer always full), or has no window.
    transformers then asks for ``layer_types`` as well.
    """
    filled, layers = dict(values), values.get("num_hidden_layers", 32)
    if model_type != "exaone4" or values.get("layer_types") or not isinstance(layers, int):
        return filled
    pattern, word = values.get("sliding_window_pattern", 4), BY_TYPE["exaone4"].layer_types
    if values.get("sliding_window", 4096) is None or not pattern:
        filled["layer_types"] = [word["full"]] * layers
    elif isinstance(pattern, str):
        letters = [pattern[layer % len(pattern)] for layer in range(layers - 1)] + ["G"]
        filled["layer_types"] = [word["window" if letter == "L" else "full"] for letter in letters]
    return filled


def layer_words(family: Family, config: PreTrainedConfig) -> list[str]:
    """Return the family's word for each layer."""
    name = "layer_types" if "layer_types" in family.layer_fields else "attention_layers"
    words: list[str] = getattr(config, name)
    return words


def layer_positions(family: Family, config: PreTrainedConfig) -> list[Any]:
    """Return what each layer rotates queries and keys by; layers of equal values have equal positions."""
    layers = range(config.num_hidden_layers)
    if isinstance(family, UniformFamily) or family.position_change is None:
        return [None for _ in layers]
    words = layer_words(family, config)
    if family.rope == "by_type":
        rope = config.rope_parameters or {}
        return [rope.get(word, rope) for word in words]
    assert family.name in _NO_ROPE_IF_FULL
    everywhere = family.name == "exaone4" and config.sliding_window is None
    return ["RoPE" if everywhere or word != family.layer_types["full"] else None for word in words]


def changed_positions(family: Family, before: PreTrainedConfig, after: PreTrainedConfig) -> str | None:
    """Return the layers whose positions differ between two configurations, in words; None: there is none."""
    pairs = zip(layer_positions(family, before), layer_positions(family, after), strict=True)
    changed = [str(layer) for layer, (old, new) in enumerate(pairs) if old != new]
    return f"layer{'s' if len(changed) > 1 else ''} {', '.join(changed)}" if changed else None


def config_schedule(config: PreTrainedConfig, where: str) -> Schedule | None:
    """Return the schedule that a stock model of a configuration runs; None: the family is not known here.

    Raises:
        ExportError: if transformers does not run the configuration, or no span says what a layer does.
    """
    kind, layers = config.model_type, config.num_hidden_layers
    if kind in _NO_WINDOW:
        return Schedule((Span(kind="full"),) * layers)
    if kind in UNIFORM:
        size = config.sliding_window
        return Schedule((Span(kind="full") if size is None else Span(kind="window", size=size),) * layers)
    if kind not in BY_TYPE:
        return None
    family = BY_TYPE[kind]
    kinds = {word: one for one, word in family.layer_types.items()}
    name, factor = next(iter(family.size_fields.items()))
    size, spans = getattr(config, name), []
    for layer, word in enumerate(layer_words(family, config)):
        if word not in kinds:
            raise ExportError(f"{where}: layer {layer} is {word}, which no span says; known: {', '.join(kinds)}")
        if kinds[word] == "full":
            spans.append(Span(kind="full"))
        elif size is None or size < factor:
            flags = "".join(f" and {flag}" for flag in family.sparse_flags)
            raise ExportError(f"{where}: layer {layer} is {word}, but {name} is not set; set {name}{flags}")
        else:
            spans.append(Span(kind=kinds[word], size=size // factor))
    return Schedule(tuple(spans))
