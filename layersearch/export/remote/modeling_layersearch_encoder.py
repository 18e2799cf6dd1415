"""An encoder with one attention span per layer, for masked language modeling. Needs only torch and transformers.

``config.json`` names a stock decoder (``base_model_type``), whose modules and weight names it has, and one span per
layer (``layer_spans``). Its attention runs here, in both directions. Query i (from 0, without padding) sees key j if

    kind "full"       always
    kind "window"     |i - j| <= ``size``: so many keys on each side, and the token itself
    kind "block"      i and j lie in the same block of ``size`` tokens; the first holds ``size`` - ``offset``
    kind "bigbird"    j's block of ``size`` tokens is i's, a neighbor, the first, the last, or one of ``random_blocks``
                      (`Span.random_block`), or i's block is the first or the last
    ``global_first``  or i or j is one of so many first tokens
    ``global_marked`` or i or j is one of so many tokens that a call marks with 1 in ``global_attention_mask`` (B, T),
                      as Longformer's; without it, of so many first tokens

``summary`` adds keys that are no tokens, which all queries see (LongT5, 2112.07916, section 3.1.2): the layer's
normalized inputs of each so many tokens, added up and normalized again. A rest of the text joins the last one.

``decay`` and ``pool`` are LaS (arXiv:2311.16620). The logits of head h are multiplied by exp(-alpha_h |i - j|), where
alpha_0 = 0, and alpha_h doubles from head to head up to ``decay``. Rows of attention weights are averaged over ``pool``
neighbors, which averaging the values does too.

Tested with transformers 5.19.0, 5.23.0 and 5.24.0.
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
    random_blocks: int = 0
    seed: int = 0
    summary: int = 0
    global_first: int = 0
    global_marked: int = 0
    decay: float = 0.0
    pool: int = 1

    def __post_init__(self) -> None:
        kinds = ("full", "window", "block", "bigbird")
        if self.kind not in kinds or (self.size is None) != (self.kind == "full"):
            raise ValueError(f"layer_spans: {self} is neither full nor a window or blocks with a size")

    def visible(self, i: Tensor, j: Tensor, length: Any) -> Tensor:
        """Return the mask (..., Q, S) of queries i (..., Q, 1) and keys j (..., S), but for marked tokens.

        ``length`` is the number of the text's tokens, or a tensor of one for each row, (B, 1, 1, 1).
        """
        if self.kind == "full":
            return (i == i) & (j == j)
        if self.kind == "window":
            near = (i - j).abs() <= self.size
        elif self.kind == "block":
            near = (i + self.offset) // self.size == (j + self.offset) // self.size
        else:
            block, other, end = i // self.size, j // self.size, (length - 1) // self.size
            near = ((block - other).abs() <= 1) | (block == 0) | (other == 0) | (block == end) | (other == end)
            for at in range(self.random_blocks):
                near = near | (other == self.random_block(block, at, end))
        return near | (i < self.global_first) | (j < self.global_first)

    def random_block(self, block: Tensor, at: int, end: Any) -> Tensor:
        """Return one random block of each block of queries, from the ``at``-th of equal parts; 0: there is none.

        The parts are those of all blocks but the first, the last one, ``end``, and the neighbors.
        """
        prime, below = 46_337, (block > 2) * (block - 2)
        choices = below + (block < end - 2) * (end - 2 - block)
        first = at * choices // self.random_blocks
        width = (at + 1) * choices // self.random_blocks - first
        salt = ((at + 1) * 7919 + self.seed * 10_007) % prime
        drawn = (block + salt) % prime
        for factor in (30_269, 20_011):
            drawn = (drawn * factor + salt) % prime
            drawn = drawn * drawn % prime
        place = 1 + first + drawn % width.clamp(min=1)
        return (place + (place > below) * (block + 1 - below)) * (width > 0)

    def blocks(self, first: int, last: int, tokens: int) -> Tensor | None:
        """Return the keys that BigBird's queries [first, last) see; None: all."""
        own, end = torch.arange(first // self.size, (last - 1) // self.size + 1), (tokens - 1) // self.size
        if own[0] == 0 or own[-1] == end:
            return None
        drawn = [self.random_block(own, at, end) for at in range(self.random_blocks)]
        seen = torch.cat((torch.tensor([0, end]), own - 1, own, own + 1, *drawn)).unique()
        keys = (seen[:, None] * self.size + torch.arange(self.size)).flatten()
        return keys[keys < tokens]

    def keys(self, first: int, last: int, tokens: int) -> tuple[int, int, int]:
        """Return (low, high, far): queries [first, last) see keys in [low, high), and the first ``far`` before it."""
        if self.kind in ("full", "bigbird") or first < self.global_first:
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
    tokens, width = query.shape[2:]
    scaling = width**-0.5 if scaling is None else scaling
    real, place = attention_mask, torch.arange(tokens, device=query.device)[None]  # (B, T), (B or 1, T)
    length, shifted = tokens, False
    if real is not None:
        start = real.long().argmax(dim=-1, keepdim=True)
        place, shifted = place - start, bool(start.any()) or span.kind == "bigbird"
        length = real.sum(-1)[:, None, None, None]
        value = value * real[:, None, :, None]
    if span.pool > 1:
        value = average_values(value, span.pool)
    # Keys that every query sees: summaries, and marked tokens where they are not among its others.
    sums = kwargs.get("summaries")
    marks = marked_places(span, kwargs.get("global_attention_mask"), place).expand(len(query), -1)  # (B, M)
    chosen = marks[:, None, :, None]
    more = [(key.take_along_dim(chosen, 2), value.take_along_dim(chosen, 2))] if span.global_marked else []
    more += [sums[:2]] if sums else []
    chunks = []
    for first in range(0, tokens, CHUNK):
        last = min(first + CHUNK, tokens)
        low, high, far = (0, tokens, 0) if shifted else span.keys(first, last, tokens)
        some = span.blocks(first, last, tokens) if span.kind == "bigbird" and not shifted else None

        def cut(x: Tensor, dim: int, low: int = low, high: int = high, far: int = far, some: Any = some) -> Tensor:
            if some is not None:
                return x.index_select(dim, some.to(x.device))
            near = x.narrow(dim, low, high - low)
            return torch.cat((x.narrow(dim, 0, far), near), dim=dim) if far else near

        at, to = cut(place, 1)[:, None, None], place[:, None, first:last, None]  # (B or 1, 1, 1, S), (B or 1, 1, Q, 1)
        visible = span.visible(to, at, length)
        if real is not None:
            visible = visible & cut(real, 1)[:, None, None]
        k, v, parts = cut(key, 2), cut(value, 2), [visible]
        if span.global_marked:
            there = place.expand(len(marks), -1).take_along_dim(marks, 1)[:, None, None]
            parts.append(~span.visible(to, there, length))
        if sums:
            parts.append(sums[2].expand(-1, -1, last - first, -1))
        if more:
            k, v = (torch.cat((x, *extra), dim=2) for x, extra in zip((k, v), zip(*more, strict=True), strict=True))
            rows = max(map(len, parts))
            visible = torch.cat([part.expand(rows, -1, -1, -1) for part in parts], dim=-1)
        if real is not None:  # padding sees everything, so that no row is empty; its outputs are not used
            visible = visible | ~real[:, None, first:last, None]
        mask = None if span.kind == "full" and real is None else visible
        distance = (to - at).abs() if span.decay else None
        chunks.append(attend(query[:, :, first:last], k, v, mask, scaling, dropout, span.decay, distance))
    out = torch.cat(chunks, dim=2)
    if span.global_marked:  # marked tokens see all
        every = torch.ones_like(place, dtype=torch.bool) if real is None else real
        seen = every[:, None, None]
        if sums:
            rows = max(len(seen), len(sums[2]))
            seen = torch.cat([part.expand(rows, -1, -1, -1) for part in (seen, sums[2])], dim=-1)
            key, value = torch.cat((key, sums[0]), dim=2), torch.cat((value, sums[1]), dim=2)
        own = attend(query.take_along_dim(chosen, 2), key, value, seen, scaling, dropout)
        out = out.scatter(2, chosen.expand_as(own), own)
    return out.transpose(1, 2).contiguous(), None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    scaling: float,
    dropout: float,
    decay: float = 0.0,
    distance: Tensor | None = None,
) -> Tensor:
    """Return softmax attention (B, H, Q, D) over the visible keys; None: all. Logits decay with their distance."""
    heads = q.shape[1]
    if not decay:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, dropout_p=dropout, scale=scaling, enable_gqa=k.shape[1] != heads
        )
    wide = torch.promote_types(q.dtype, torch.float32)
    k, v = (x.to(wide).repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    head = torch.arange(heads, device=q.device)[:, None, None]
    # alpha_h = decay * 2^(h-H+1), and 0 for head 0.
    alpha = torch.where(head > 0, decay * 2.0 ** (head - heads + 1).to(wide), 0.0)
    logits = q.to(wide) @ k.transpose(-1, -2) * scaling * torch.exp(-alpha * distance)
    if visible is not None:
        logits = logits.masked_fill(~visible, float("-inf"))
    return (F.dropout(logits.softmax(dim=-1), dropout) @ v).to(q.dtype)


def marked_places(span: Span, marks: Tensor | None, place: Tensor) -> Tensor:
    """Return where the marked tokens stand, (B or 1, M): those of a mask (B, T), or the text's first ones."""
    marks = (place >= 0) & (place < span.global_marked) if marks is None else marks.bool()
    return marks.nonzero()[:, 1].view(len(marks), -1) if span.global_marked else place[:, :0]


def summarize(module: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Give attention the keys and values of its summaries (B, G, M, D), and which a row has (B or 1, 1, 1, M)."""
    size = module.config.layer_spans[module.layer_idx]["summary"]
    hidden, real = kwargs["hidden_states"] if not args else args[0], kwargs["attention_mask"]
    rows, tokens, width = hidden.shape
    start = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
    length = start + tokens
    if real is not None:
        start, length = real.long().argmax(dim=-1, keepdim=True), real.sum(dim=-1, keepdim=True)
    count, place = length // size, torch.arange(tokens, device=hidden.device) - start  # (B or 1, 1), (B or 1, T)
    most = int(count.max())
    if not most:
        return args, kwargs
    block = torch.minimum(place // size, count - 1)
    block = torch.where((place >= 0) & (place < length) & (block >= 0), block, most)  # the last slot is not used
    wide = torch.promote_types(hidden.dtype, torch.float32)
    sums = torch.zeros(rows, most + 1, width, dtype=wide, device=hidden.device)
    sums = sums.scatter_add(1, block[..., None].expand_as(hidden), hidden.to(wide))[:, :most].to(hidden.dtype)
    inputs = F.rms_norm(sums, (width,), eps=1e-6)
    key, value = (part(inputs).view(rows, most, -1, module.head_dim) for part in (module.k_proj, module.v_proj))
    key = module.k_norm(key) if hasattr(module, "k_norm") else key
    middle = (start + torch.arange(most, device=hidden.device) * size + size // 2).clamp(max=tokens - 1)[..., None]
    there = torch.arange(most, device=hidden.device) < count
    cos, sin = (table.take_along_dim(middle, 1)[:, :, None] for table in kwargs["position_embeddings"])
    first, second = key.chunk(2, dim=-1)
    key = key * cos + torch.cat((-second, first), dim=-1) * sin
    return args, kwargs | {"summaries": (key.transpose(1, 2), value.transpose(1, 2), there[:, None, None])}


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
    """Refuse arguments that would ignore the schedule, before each forward pass of the stock model.

    Raises:
        ValueError: for them, and for marks that are not the number of tokens that the spans name.
    """
    implementation = model.config._attn_implementation
    if implementation != NAME:
        raise ValueError(f"attn_implementation={implementation!r} ignores the schedule; leave it {NAME!r}")
    if kwargs.get("past_key_values") is not None or kwargs.get("cache") is not None:
        raise ValueError("an encoder sees later tokens, so it has no cache; give none")
    wanted = {span["global_marked"] for span in model.config.layer_spans if span.get("global_marked")}
    marks, inputs, real = (kwargs.get(name) for name in ("global_attention_mask", "input_ids", "attention_mask"))
    shape = (args[0] if args else kwargs["inputs_embeds"] if inputs is None else inputs).shape[:2]
    if real is not None and wanted and int((real != 0).sum(-1).min()) < max(wanted):
        raise ValueError(f"a text of fewer tokens than the {max(wanted)} that are marked; give a longer one")
    if marks is not None:
        if not wanted:
            raise ValueError("global_attention_mask: no layer has marked tokens; leave it out")
        if marks.shape != shape:
            raise ValueError(f"global_attention_mask {tuple(marks.shape)}: give one mark a token, {tuple(shape)}")
        if real is not None and bool(((marks != 0) & (real == 0)).any()):
            raise ValueError("global_attention_mask marks padding; mark tokens of the text")
        found = set((marks != 0).sum(-1).tolist())
        if found != wanted:
            raise ValueError(f"global_attention_mask marks {sorted(found)} tokens of a text, spans {sorted(wanted)}")
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
            for layer, span in zip(self.base_model.layers, config.layer_spans, strict=True):
                if span.get("summary"):
                    layer.self_attn.register_forward_pre_hook(summarize, with_kwargs=True)

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
