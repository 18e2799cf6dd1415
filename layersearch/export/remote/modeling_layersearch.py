"""A causal language model whose layers differ in the span of their attention. Needs torch and transformers only.

``config.json`` names a stock model (``base_model_type``) and one span per layer (``layer_spans``). All modules, and so
all names of weights, are the stock model's; its calls of attention come here. Query i (counted from 0, padding left
out) sees key j <= i where

    kind "full"     always
    kind "window"   j = i - t * dilation, t = 0 ... size-1; a dilation may serve the first ``dilated_heads`` heads only
    kind "block"    i and j lie in the same block of ``size`` tokens
    ``sink``        or j is one of the first ``sink`` tokens

``decay`` and ``pool`` are LaS (arXiv:2311.16620): the logits of head h are multiplied by exp(-alpha_h (i - j)), with
alpha_0 = 0 and then doubling from head to head up to ``decay``; rows of attention weights are averaged over ``pool``
neighbours. Averaging rows is the same as averaging values, sum_j AP(A)_ij v_j = sum_m A_im mean(v_m ... v_m-pool+1):
the cache holds raw values, ``pool`` - 1 of them older than the oldest visible key, and averages what it holds.

Tested with transformers 5.10.1, 5.23.0 and 5.24.0.

Shape legend: B batch, H query heads, G key-value heads, Q new tokens, S slots of keys, D head width.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    PreTrainedConfig,
)
from transformers.cache_utils import Cache, CacheLayerMixin

NAME = "layersearch_spans"
"""The attention implementation that reads the spans; any other would ignore them."""

BASES = ("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gpt2", "gpt_neox", "smollm3", "olmo", "olmo2")
"""Stock models whose attention is plain softmax attention once it is routed here."""

CACHE_NAMES = ("cache", "past_key_values")
"""How a model's forward calls its KV cache: from transformers 5.24 on, and before."""

CHUNK = 256
"""Queries whose scores are in memory at once; each chunk reads only the keys that its span can reach."""


@dataclass(frozen=True)
class Span:
    """What one layer sees; the entries of ``layer_spans``."""

    kind: str
    size: int | None = None
    dilation: int = 1
    dilated_heads: int | None = None
    sink: int = 0
    decay: float = 0.0
    pool: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("full", "window", "block") or (self.size is None) != (self.kind == "full"):
            raise ValueError(f"layer_spans: {self} is neither full nor a window or block of a size")

    def reach(self, dilated: bool = True) -> int | None:
        """Return r such that, but for sinks, every visible key lies at i-r < j; None: no bound."""
        if self.kind == "window":
            return (self.size - 1) * (self.dilation if dilated else 1) + 1
        return self.size

    def visible(self, i: Tensor, j: Tensor, head: Tensor) -> Tensor:
        """Tell which keys are seen: (..., H or 1, Q, S) of positions i (..., Q, 1), j (..., S), heads (H, 1, 1)."""
        seen = (j >= 0) & (j <= i)
        if self.kind == "full":
            return seen
        if self.kind == "block":
            near = j // self.size == i // self.size
        else:
            near = i - j < self.size
            if self.dilation > 1:
                dilated = (i - j < self.size * self.dilation) & ((i - j) % self.dilation == 0)
                near = dilated if self.dilated_heads is None else torch.where(head < self.dilated_heads, dilated, near)
        return seen & (near | (j < self.sink))

    def kept(self, tokens: Tensor, slots: int, dilated: bool = True) -> Tensor:
        """Return the positions that a cache of so many slots holds after so many tokens; -1: an empty slot.

        Sinks first, then the newest tokens, oldest first: (B, slots) of tokens (B, 1).
        """
        age = torch.arange(slots - 1, -1, -1, device=tokens.device)  # 0 for the newest slot
        tokens = tokens.clamp(min=0)
        reach = self.reach(dilated)
        recent = tokens if reach is None else tokens.clamp(max=reach + self.pool - 1)
        sinks = (tokens - recent).clamp(max=self.sink)
        older = sinks - 1 - (age - recent)
        return torch.where(age < recent, tokens - 1 - age, older.clamp(min=-1))


def average_values(value: Tensor, j: Tensor, width: int) -> Tensor:
    """Return the mean of each value (B, G, S, D) and its width-1 predecessors; those before the text count as zero."""
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    total = torch.zeros_like(wide)
    for back in range(min(width, j.shape[-1])):
        before = F.pad(j, (back, 0), value=-1)[:, : j.shape[-1]]  # the position that lies so many slots before
        there = (before >= 0) & (before == j - back)
        total += F.pad(wide, (0, 0, back, 0))[:, :, : j.shape[-1]] * there[:, None, :, None]
    return (total / width).to(value.dtype)


def span_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as the layer's span says; called by the stock model through transformers' AttentionInterface.

    Args:
        module: the stock attention module.
        query: (B, H, Q, D).
        key: (B, G, S, D): what the layer's cache held, then the new tokens.
        value: as key.
        attention_mask: the new tokens' positions, from `span_positions`.
        scaling: of the logits; None: 1 / sqrt(D).
        dropout: of the attention weights.

    Returns:
        (B, Q, H, D), and no attention weights.
    """
    span = Span(**module.config.layer_spans[module.layer_idx])
    heads, tokens, width = query.shape[1:]
    held = key.shape[2] - tokens
    scaling = width**-0.5 if scaling is None else scaling
    grouped = {"dropout_p": dropout, "scale": scaling, "enable_gqa": key.shape[1] != heads}
    padded = attention_mask.ndim == 2
    i = attention_mask if padded else attention_mask[None]  # (B or 1, Q)
    j = torch.cat((span.kept(i[:, :1], held), i), dim=-1)  # (B or 1, S)
    if span.pool > 1:
        value = average_values(value, j, span.pool)
    if span.kind == "full" and not (span.decay or held or padded):
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, **grouped)
        return out.transpose(1, 2).contiguous(), None

    head = torch.arange(heads, device=query.device)[:, None, None]
    reach, sinks = span.reach(), int((j < span.sink).sum(-1).max()) if span.sink else 0
    chunks = []
    for first in range(0, tokens, CHUNK):
        last = min(first + CHUNK, tokens)
        oldest = 0 if reach is None else max(held + first - reach + 1, 0)
        parts = [slice(0, min(sinks, oldest)), slice(oldest, held + last)]
        k, v = (torch.cat([x[:, :, part] for part in parts], dim=2) for x in (key, value))
        at = torch.cat([j[:, part] for part in parts], dim=1)[:, None, None]  # (B or 1, 1, 1, S')
        to = i[:, None, first:last, None]  # (B or 1, 1, Q', 1)
        # Padding sees everything, which nobody reads, so that no row is empty.
        visible = span.visible(to, at, head) | (to < 0)
        q = query[:, :, first:last]
        if not span.decay:
            chunks.append(F.scaled_dot_product_attention(q, k, v, attn_mask=visible, **grouped))
            continue
        wide = torch.promote_types(q.dtype, torch.float32)
        k, v = (x.to(wide).repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
        # alpha_h = decay * 2^(h-H+1), and none for head 0.
        alpha = torch.where(head > 0, span.decay * 2.0 ** (head - heads + 1).to(wide), 0.0)
        logits = q.to(wide) @ k.transpose(-1, -2) * scaling * torch.exp(-alpha * (to - at).clamp(min=0))
        weights = logits.masked_fill(~visible, float("-inf")).softmax(dim=-1)
        chunks.append((F.dropout(weights, dropout) @ v).to(query.dtype))
    return torch.cat(chunks, dim=2).transpose(1, 2).contiguous(), None


def padding(attention_mask: Tensor | None) -> Tensor | None:
    """Return how many tokens of padding each row begins with, (B, 1), or None where no row has any.

    Raises:
        ValueError: where text follows padding that follows text.
    """
    if attention_mask is None or bool((attention_mask != 0).all()):
        return None
    real = (attention_mask != 0).long()
    if bool((real.diff(dim=-1) == 1).sum(-1).add(real[:, 0]).max() > 1):
        raise ValueError("attention_mask has padding inside a text; pad on the left (tokenizer.padding_side='left')")
    start = real.argmax(dim=-1, keepdim=True)
    return start if bool(start.any()) else None  # padding behind a text is never seen by it


def span_positions(
    q_length: int, q_offset: int = 0, attention_mask: Any = None, device: Any = None, **kwargs: Any
) -> Tensor:
    """Return the new tokens' positions in place of a mask: (Q) or, with padding on the left, (B, Q), negative there."""
    start = padding(attention_mask)
    i = torch.arange(q_offset, q_offset + q_length, device=device)
    return i if start is None else i - start.to(i.device)


AttentionInterface.register(NAME, span_attention)
AttentionMaskInterface.register(NAME, span_positions)


class SpanLayer(CacheLayerMixin):
    """One layer's keys and values: those that its span still needs, and no others.

    Where only the first heads are dilated, those reach back farther: they keep more slots than the rest.
    """

    def __init__(self, span: Span, kv_heads: int, dilated: int):
        """Begin empty, for so many key-value heads, the first ``dilated`` of which serve a dilated query head."""
        self.span, self.seen, self.is_initialized = span, 0, False  # seen: tokens, padding counted
        heads = [(slice(dilated), True), (slice(dilated, kv_heads), False)]
        self.parts = [part for part in heads if part[0].start != part[0].stop and part[0].stop]
        self.held: list[list[Tensor]] = []  # keys and values of each part, (B, its heads, its slots, D)
        self.start: Tensor | int = 0  # padding that each row begins with, (B, 1); set by `prepare`

    @property
    def keys(self) -> Tensor:
        """What is held: (B, G, slots, D), or with the heads laid end to end where they differ in slots."""
        return self._joined(0)

    @property
    def values(self) -> Tensor:
        return self._joined(1)

    def _joined(self, which: int) -> Tensor:
        parts = [part[which] for part in self.held]
        return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1, 2) for part in parts], dim=1)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.held = [[states[:, heads, :0] for states in (key_states, value_states)] for heads, _ in self.parts]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take new keys and values; return them behind those that were held, (B, G, S, D) both."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        total = self.seen + key_states.shape[2]
        start = torch.as_tensor(self.start, device=self.device).view(-1, 1)
        before, after, fresh = self.seen - start, total - start, torch.arange(self.seen, total).to(start) - start
        found = []
        for part, (heads, dilated) in enumerate(self.parts):
            old = self.span.kept(before, self.held[part][0].shape[2], dilated)
            positions = torch.cat((old, fresh), dim=-1).clamp(min=-1)  # rising
            pairs = zip(self.held[part], (key_states[:, heads], value_states[:, heads]), strict=True)
            both = [torch.cat(pair, dim=2) for pair in pairs]
            found.append((positions, both))
            reach = self.span.reach(dilated)
            slots = total if reach is None else min(total, reach + self.span.pool - 1 + self.span.sink)
            if slots < positions.shape[-1]:
                index = torch.searchsorted(positions, self.span.kept(after, slots, dilated))
                self.held[part] = [pick(states, index) for states in both]
            else:
                self.held[part] = both
        self.seen = total
        (wanted, both), *rest = found
        for positions, fewer in rest:
            # Where these heads hold no key of a slot, any key stands in: none of their queries sees that slot.
            index = torch.searchsorted(positions, wanted).clamp(max=positions.shape[-1] - 1)
            both = [torch.cat((a, pick(b, index)), dim=1) for a, b in zip(both, fewer, strict=True)]
        return both[0], both[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in transformers 5.10

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        self.held = [[change(states) for states in part] for part in self.held]

    def offload(self) -> None:
        self._change(lambda states: states.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        self._change(lambda states: states.to(self.device, non_blocking=True))

    def reset(self) -> None:
        self.held, self.is_initialized, self.seen = [], False, 0

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError("what a span no longer needs is gone: this cache cannot be cropped")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change(lambda states: states.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._change(lambda states: states.index_select(0, indices.to(states.device)))


def pick(states: Tensor, index: Tensor) -> Tensor:  # (B, G, S, D), (B or 1, slots) -> (B, G, slots, D)
    """Return the slots of an index, which may differ from row to row."""
    if len(index) == 1:
        return states.index_select(2, index[0])
    return states.take_along_dim(index[:, None, :, None], dim=2)


def cache_layers(config: PreTrainedConfig) -> list[Any]:
    """Return an empty cache layer per layer of the model."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    layers = []
    for span in (Span(**entry) for entry in config.layer_spans):
        dilated = heads if span.dilated_heads is None else span.dilated_heads
        layers.append(SpanLayer(span, kv_heads, -(-dilated * kv_heads // heads)))
    return layers


def prepare(model: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Before each forward pass of the stock model: check what it was given, and see to a cache that keeps to the spans.

    Raises:
        ValueError: for what would ignore the schedule or what it is not defined for; says what to give instead.
    """
    parameters = inspect.signature(model.forward).parameters
    kwargs = dict(zip(parameters, args, strict=False)) | kwargs
    caches = {name: kwargs.pop(name, None) for name in CACHE_NAMES}
    config, mask = model.config, kwargs.get("attention_mask")
    cache = next((given for given in caches.values() if given is not None), None)
    if config._attn_implementation != NAME:
        raise ValueError(f"attn_implementation={config._attn_implementation!r} ignores the schedule; leave it {NAME!r}")
    use_cache = kwargs.get("use_cache")
    recomputed = model.training and any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    if cache is None and not recomputed and (config.use_cache if use_cache is None else use_cache):
        cache = Cache(layers=cache_layers(config))
    if cache is not None and not (cache.layers and all(isinstance(layer, SpanLayer) for layer in cache.layers)):
        if type(cache) is not DynamicCache or cache.get_seq_length():
            raise ValueError(f"a {type(cache).__name__} does not keep to the spans; give none or an empty DynamicCache")
        cache.layers = cache_layers(config)
    kwargs[next(name for name in CACHE_NAMES if name in parameters)] = cache

    inputs = kwargs.get("input_ids")
    tokens = (kwargs["inputs_embeds"] if inputs is None else inputs).shape[1]
    seen = cache.get_seq_length() if cache is not None else 0
    if mask is not None and (mask.ndim != 2 or mask.shape[1] != seen + tokens):
        raise ValueError(f"attention_mask {tuple(mask.shape)}: give (batch, {seen + tokens}), 0 where text is padded")
    start = padding(mask)
    if cache is not None:
        for layer in cache.layers:
            layer.start = 0 if start is None else start
    positions = kwargs.get("position_ids")
    if positions is None and start is not None:
        kwargs["position_ids"] = (torch.arange(seen, seen + tokens, device=start.device) - start).clamp(min=0)
    elif positions is not None and mask is None and bool((positions.diff(dim=-1) != 1).any()):
        raise ValueError("position_ids that jump pack several texts into one row; give each text a row, and pad")
    return (), kwargs


@functools.cache
def config_class(base: str) -> type[PreTrainedConfig]:
    """Return the stock model's configuration with the two keys of this file."""
    if base not in BASES:
        raise ValueError(f"base_model_type {base!r} is not known; known: {', '.join(BASES)}")

    class Config(CONFIG_MAPPING[base]):
        model_type = "layersearch"
        _auto_class = "AutoConfig"
        base_model_type: str = base
        layer_spans: list | None = None

        def __post_init__(self, **kwargs: Any) -> None:
            super().__post_init__(**kwargs)
            spans = [Span(**entry) for entry in self.layer_spans or ()]
            if spans and len(spans) != self.num_hidden_layers:
                raise ValueError(f"{len(spans)} layer_spans for {self.num_hidden_layers} layers")

    return named(Config, "LayersearchConfig")


@functools.cache
def model_class(base: str) -> type[torch.nn.Module]:
    """Return the stock model with its attention routed here."""

    class Model(MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[base]]):
        config_class = globals()["config_class"](base)
        _auto_class = "AutoModelForCausalLM"

        def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any):
            if not config.layer_spans:
                raise ValueError("config.json has no layer_spans: one span per layer, such as {'kind': 'full'}")
            if config._attn_implementation not in (None, NAME):
                raise ValueError(f"attn_implementation={config._attn_implementation!r} ignores the schedule; drop it")
            config._attn_implementation = NAME
            super().__init__(config, *args, **kwargs)
            self.base_model.register_forward_pre_hook(prepare, with_kwargs=True)

    return named(Model, "LayersearchForCausalLM")


def named(cls: type, name: str) -> type:
    """Give a class the name under which ``auto_map`` finds it again."""
    cls.__name__ = cls.__qualname__ = name
    return cls


class LayersearchConfig(PreTrainedConfig):
    """Reads ``config.json`` into the stock model's configuration."""

    model_type = "layersearch"
    base_model_type: str = "llama"

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs: Any) -> PreTrainedConfig:
        return config_class(config_dict.get("base_model_type")).from_dict(config_dict, **kwargs)


class LayersearchForCausalLM:
    """Builds the stock model that the configuration names."""

    config_class = LayersearchConfig

    def __new__(cls, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> Any:
        return model_class(config.base_model_type)(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, config: PreTrainedConfig | None = None, **kwargs: Any) -> Any:
        if config is None:
            config = LayersearchConfig.from_pretrained(path)
        return model_class(config.base_model_type).from_pretrained(path, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        return model_class(config.base_model_type)._from_config(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModelForCausalLM") -> None:
        """Nothing to do: the classes of `model_class` are registered."""
