"""An encoder with one attention span per layer, for masked language modeling. Needs only torch and transformers.

``config.json`` names a stock decoder (``base_model_type``), whose modules and weight names it has, and one span per
layer (``layer_spans``). Its attention runs here, in both directions. Query i (from 0, without padding) sees key j if

    kind "full"       always
    kind "window"     |i - j| <= ``size``: so many keys on each side, and the token itself
    kind "block"      i and j lie in the same block of ``size`` tokens; the first holds ``size`` - ``offset``
    ``global_first``  or i or j is one of so many first tokens

``decay`` and ``pool`` are LaS (arXiv:2311.16620). The logits of head h are multiplied by exp(-alpha_h |i - j|), where
alpha_0 = 0, and alpha_h doubles from head to head up to ``decay``. Rows of attention weights are averaged over ``pool``
neighbors, which averaging the values does too.

Tested with transformers 5.23.0.
Shape legend: B batch, H query heads, G key-value heads, T tokens, Q queries of a chunk, S keys, D head width.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, AttentionMaskInterface
from transformers.configuration_utils import PreTrainedConfig

NAME = "layersearch_encoder_spans"
"""The attention implementation that reads the spans; every other one ignores them."""

BASES = ("llama", "qwen3")
"""Stock models whose modules an encoder of layersearch has."""

CHUNK = 256
"""Queries whose scores are in memory at once; each chunk reads only the keys of its span."""


@dataclass(frozen=True)
class Span:
    """One layer's span; an entry of ``layer_spans``."""

    kind: str
    size: int | None = None
    offset: int = 0
    global_first: int = 0
    decay: float = 0.0
    pool: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("full", "window", "block") or (self.size is None) != (self.kind == "full"):
            raise ValueError(f"layer_spans: {self} is neither full nor a window or block with a size")

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        """Return the mask (..., Q, S) of queries i (..., Q, 1) and keys j (..., S)."""
        if self.kind == "full":
            return (i == i) & (j == j)
        if self.kind == "window":
            near = (i - j).abs() <= self.size
        else:
            near = (i + self.offset) // self.size == (j + self.offset) // self.size
        return near | (i < self.global_first) | (j < self.global_first)

    def keys(self, first: int, last: int, tokens: int) -> tuple[int, int, int]:
        """Return (low, high, far): queries [first, last) see keys in [low, high), and the first ``far`` before it."""
        if self.kind == "full" or first < self.global_first:
            return 0, tokens, 0
        if self.kind == "window":
            low, high = first - self.size, last + self.size
        else:
            low = (first + self.offset) // self.size * self.size - self.offset
            high = ((last - 1 + self.offset) // self.size + 1) * self.size - self.offset
        low, high = max(0, low), min(tokens, high)
        return low, high, min(self.global_first, low)


def average_values(value: Tensor, width: int) -> Tensor:
    """Return the mean of the values (B, G, T, D) around each, of an odd width; beyond the text they are zero."""
    side = width // 2
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    return (F.pad(wide, (0, 0, side, side)).unfold(2, width, 1).sum(-1) / width).to(value.dtype)


def span_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the attention (B, T, H, D) of the layer's span; the stock model calls it through AttentionInterface.

    ``query`` is (B, H, T, D), ``key`` and ``value`` are (B, G, T, D). ``attention_mask`` (B, T) is true for tokens that
    are no padding; None: all are. ``scaling`` None means 1 / sqrt(D).
    """
    span = Span(**module.config.layer_spans[module.layer_idx])
    heads, tokens, width = query.shape[1:]
    scaling = width**-0.5 if scaling is None else scaling
    grouped = {"dropout_p": dropout, "scale": scaling, "enable_gqa": key.shape[1] != heads}
    real, place = attention_mask, torch.arange(tokens, device=query.device)[None]  # (B, T), (B or 1, T)
    shifted = False
    if real is not None:
        start = real.long().argmax(dim=-1, keepdim=True)
        place, shifted = place - start, bool(start.any())
        value = value * real[:, None, :, None]
    if span.pool > 1:
        value = average_values(value, span.pool)
    chunks = []
    for first in range(0, tokens, CHUNK):
        last = min(first + CHUNK, tokens)
        low, high, far = (0, tokens, 0) if shifted else span.keys(first, last, tokens)

        def cut(x: Tensor, dim: int, low: int = low, high: int = high, far: int = far) -> Tensor:
            near = x.narrow(dim, low, high - low)
            return torch.cat((x.narrow(dim, 0, far), near), dim=dim) if far else near

        k, v, at = cut(key, 2), cut(value, 2), cut(place, 1)[:, None, None]  # (B or 1, 1, 1, S)
        to = place[:, None, first:last, None]  # (B or 1, 1, Q, 1)
        visible = span.visible(to, at)
        if real is not None:  # padding sees everything, so that no row is empty; its outputs are not used
            visible = (visible & cut(real, 1)[:, None, None]) | ~real[:, None, first:last, None]
        q = query[:, :, first:last]
        if not span.decay:
            mask = None if span.kind == "full" and real is None else visible
            chunks.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **grouped))
            continue
        wide = torch.promote_types(q.dtype, torch.float32)
        k, v = (x.to(wide).repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
        head = torch.arange(heads, device=q.device)[:, None, None]
        # alpha_h = decay * 2^(h-H+1), and 0 for head 0.
        alpha = torch.where(head > 0, span.decay * 2.0 ** (head - heads + 1).to(wide), 0.0)
        logits = q.to(wide) @ k.transpose(-1, -2) * scaling * torch.exp(-alpha * (to - at).abs())
        weights = logits.masked_fill(~visible, float("-inf")).softmax(dim=-1)
        chunks.append((F.dropout(weights, dropout) @ v).to(query.dtype))
    return torch.cat(chunks, dim=2).transpose(1, 2).contiguous(), None


def padding_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Return which tokens are no padding, (B, T), instead of a mask of pairs; None: all are.

    Raises:
        ValueError: there is padding inside a text, where positions are not defined.
    """
    if attention_mask is None or bool((attention_mask != 0).all()):
        return None
    real = attention_mask != 0
    if bool((real.long().diff(dim=-1) == 1).sum(-1).add(real[:, 0].long()).max() > 1):
        raise ValueError("attention_mask has padding inside a text; pad on one side")
    return real


AttentionInterface.register(NAME, span_attention)
AttentionMaskInterface.register(NAME, padding_mask)


def prepare(model: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Refuse arguments that would ignore the schedule, before each forward pass of the stock model."""
    implementation = model.config._attn_implementation
    if implementation != NAME:
        raise ValueError(f"attn_implementation={implementation!r} ignores the schedule; leave it {NAME!r}")
    if kwargs.get("past_key_values") is not None or kwargs.get("cache") is not None:
        raise ValueError("an encoder sees later tokens, so it has no cache; give none")
    return args, kwargs | {"use_cache": False}


@functools.cache
def config_class(base: str) -> type[PreTrainedConfig]:
    """Return the stock model's configuration class with the two keys of this file."""
    if base not in BASES:
        raise ValueError(f"base_model_type {base!r} is not known; known: {', '.join(BASES)}")

    class Config(CONFIG_MAPPING[base]):
        model_type = "layersearch_encoder"
        _auto_class = "AutoConfig"
        base_model_type: str = base
        layer_spans: list | None = None

        def __post_init__(self, **kwargs: Any) -> None:
            super().__post_init__(**kwargs)
            spans = [Span(**entry) for entry in self.layer_spans or ()]
            if spans and len(spans) != self.num_hidden_layers:
                raise ValueError(f"{len(spans)} layer_spans for {self.num_hidden_layers} layers")

    Config.__name__ = Config.__qualname__ = "LayersearchEncoderConfig"  # the name in auto_map
    return Config


@functools.cache
def model_class(base: str) -> type[torch.nn.Module]:
    """Return the stock model's class with its attention routed to this file; a token's logits are of itself."""

    class Model(MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[base]]):
        config_class = globals()["config_class"](base)
        _auto_class = "AutoModelForMaskedLM"

        def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any):
            if not config.layer_spans:
                raise ValueError("config.json has no layer_spans: one span per layer, such as {'kind': 'full'}")
            if config._attn_implementation not in (None, NAME):
                raise ValueError(f"attn_implementation={config._attn_implementation!r} ignores the schedule; drop it")
            config._attn_implementation = NAME
            config.use_cache = False
            super().__init__(config, *args, **kwargs)
            self.loss_type = "ForMaskedLM"  # labels stand in their place, and -100 is not scored
            self.base_model.register_forward_pre_hook(prepare, with_kwargs=True)

    Model.__name__ = Model.__qualname__ = "LayersearchForMaskedLM"  # the name in auto_map
    return Model


class LayersearchEncoderConfig(PreTrainedConfig):
    """Reads ``config.json`` into the stock model's configuration."""

    model_type = "layersearch_encoder"
    base_model_type: str = "llama"

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs: Any) -> PreTrainedConfig:
        return config_class(config_dict.get("base_model_type")).from_dict(config_dict, **kwargs)


class LayersearchForMaskedLM:
    """Builds the stock model that the configuration names."""

    config_class = LayersearchEncoderConfig

    def __new__(cls, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> Any:
        return model_class(config.base_model_type)(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, config: PreTrainedConfig | None = None, **kwargs: Any) -> Any:
        config = config or LayersearchEncoderConfig.from_pretrained(path)
        return model_class(config.base_model_type).from_pretrained(path, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        return model_class(config.base_model_type)._from_config(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModelForMaskedLM") -> None:
        """Do nothing: the classes of `model_class` are registered."""
