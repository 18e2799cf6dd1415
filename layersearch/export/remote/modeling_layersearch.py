"""A causal language model with one attention span per layer. Needs only torch and transformers.

``config.json`` names a stock model (``base_model_type``) and one span per layer (``layer_spans``). All modules and
weight names are the stock model's; its attention runs here. Query i (from 0, without padding) sees key j <= i if

    kind "full"     always
    kind "window"   j = i - t * dilation, t = 0 ... size-1; only the first ``dilated_heads`` heads may be dilated
    kind "block"    i and j lie in the same block of ``size`` tokens; the first holds ``size`` - ``offset``
    ``sink``        or j is one of the first ``sink`` tokens
    kind "strided"  i - j is less than ``size`` or a multiple of it
    kind "fixed"    i and j lie in the same block of ``size`` tokens, or j is one of the last ``columns`` of its block
                    with ``far_heads`` the first heads see multiples (columns) and i alone, the others the rest
    kind "memory"   j is no more than ``memory`` tokens before i's segment of ``size`` tokens
    kind "bigbird"  j's block is i's, the one before, the first, or one of ``random_blocks`` (`Span.random_block`)

``summary`` adds keys that are no tokens (LongT5, 2112.07916, section 3.1.2): the layer's normalized inputs of each so
many tokens, added up and normalized again. Query i sees those that are finished before its own so many tokens. The
cache holds their keys and values, and the sum of the inputs that are not finished.

``decay`` and ``pool`` are LaS (arXiv:2311.16620). The logits of head h are multiplied by exp(-alpha_h (i - j)), where
alpha_0 = 0, and alpha_h doubles from head to head up to ``decay``. Rows of attention weights are averaged over ``pool``
neighbors. Averaging values gives the same: sum_j AP(A)_ij v_j = sum_m A_im mean(v_m ... v_m-pool+1). The cache holds
raw values, including ``pool`` - 1 that are older than the oldest visible key.

Tested with transformers 5.19.0, 5.23.0 and 5.24.0.
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
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
from transformers.configuration_utils import PreTrainedConfig

NAME = "layersearch_spans"
"""The attention implementation that reads the spans; every other one ignores them."""

BASES = ("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gpt2", "gpt_neox", "smollm3", "olmo", "olmo2")
"""Stock models whose attention is plain softmax attention through transformers' AttentionInterface."""

SUMMARY_BASES = ("llama", "qwen3")
"""Those whose keys of a summary are defined: projected, normalized if tokens' are, and rotated."""

CACHE_NAMES = ("cache", "past_key_values")
"""A model's argument for its KV cache: from transformers 5.24 on, and before."""

CHUNK = 256
"""Queries whose scores are in memory at once; each chunk reads only keys within reach of its span."""


@dataclass(frozen=True)
class Span:
    """One layer's span; an entry of ``layer_spans``."""

    kind: str
    size: int | None = None
    dilation: int = 1
    dilated_heads: int | None = None
    offset: int = 0
    columns: int = 0
    random_blocks: int = 0
    seed: int = 0
    memory: int = 0
    far_heads: int | None = None
    summary: int = 0
    sink: int = 0
    decay: float = 0.0
    pool: int = 1

    def __post_init__(self) -> None:
        kinds = ("full", "window", "block", "strided", "fixed", "bigbird", "memory")
        if self.kind not in kinds or (self.size is None) != (self.kind == "full"):
            raise ValueError(f"layer_spans: {self} is neither full nor a window or block with a size")

    def reach(self, dilated: bool = True) -> int | None:
        """Return r such that every visible key except sinks lies at i-r < j; None: no bound.

        ``dilated`` is False for a head that is not dilated, or that sees no strides and columns.
        """
        if self.far_heads is not None and not dilated:
            return self.size
        if self.kind == "window":
            return (self.size - 1) * (self.dilation if dilated else 1) + 1
        return self.size + self.memory if self.kind in ("block", "memory") else None

    def slots(self, tokens: int, dilated: bool = True) -> int:
        """Return the most keys that a cache of so many tokens holds."""
        reach = self.reach(dilated)
        if self.kind == "fixed" and reach is None:  # a block stays whole until the next one begins
            whole, now = tokens // self.size, (tokens - 1) // self.size * self.columns + (tokens - 1) % self.size + 1
            return max(now, (whole - 1) * self.columns + self.size if whole else 0)
        return tokens if reach is None else min(tokens, reach + self.pool - 1 + self.sink)

    def random_block(self, block: Tensor, at: int) -> Tensor:
        """Return one random block of each block of queries, from the ``at``-th of equal parts; 0: there is none."""
        choices, prime = block - 2, 46_337
        first = at * choices // self.random_blocks
        width = (at + 1) * choices // self.random_blocks - first
        salt = ((at + 1) * 7919 + self.seed * 10_007) % prime
        drawn = (block + salt) % prime
        for factor in (30_269, 20_011):
            drawn = (drawn * factor + salt) % prime
            drawn = drawn * drawn % prime
        return (1 + first + drawn % width.clamp(min=1)) * ((choices > 0) & (width > 0))

    def joined(self, near: Tensor, far: Tensor, i: Tensor, j: Tensor, head: Tensor) -> Tensor:
        """Return the keys of all heads, or of those that see strides or columns and of the others."""
        return near | far if self.far_heads is None else torch.where(head < self.far_heads, far | (i == j), near)

    def visible(self, i: Tensor, j: Tensor, head: Tensor) -> Tensor:
        """Return the mask (..., H or 1, Q, S) for positions i (..., Q, 1) and j (..., S), and heads (H, 1, 1)."""
        seen = (j >= 0) & (j <= i)
        if self.kind == "full":
            return seen
        if self.kind == "strided":
            return seen & self.joined(i - j < self.size, (i - j) % self.size == 0, i, j, head)
        if self.kind == "memory":
            return seen & (j >= i // self.size * self.size - self.memory)
        if self.kind == "fixed":
            column = j % self.size >= self.size - self.columns
            return seen & self.joined(j // self.size == i // self.size, column, i, j, head)
        if self.kind == "bigbird":
            block, other = i // self.size, j // self.size
            near = (block - other <= 1) | (other == 0)
            for at in range(self.random_blocks):
                near = near | (other == self.random_block(block, at))
            return seen & near
        if self.kind == "block":
            near = (j + self.offset) // self.size == (i + self.offset) // self.size
        else:
            near = i - j < self.size
            if self.dilation > 1:
                dilated = (i - j < self.size * self.dilation) & ((i - j) % self.dilation == 0)
                near = dilated if self.dilated_heads is None else torch.where(head < self.dilated_heads, dilated, near)
        return seen & (near | (j < self.sink))

    def kept(self, tokens: Tensor, slots: int, dilated: bool = True) -> Tensor:
        """Return the positions (B, slots) in a cache of so many slots after ``tokens`` (B, 1); -1: an empty slot.

        Sinks come first, then the newest tokens, oldest first.
        """
        age = torch.arange(slots - 1, -1, -1, device=tokens.device)  # 0 for the newest slot
        tokens = tokens.clamp(min=0)
        reach = self.reach(dilated)
        if self.kind == "fixed" and reach is None:  # columns of earlier blocks come first, then the newest block
            recent = (tokens - 1) % self.size + 1
            older = age - recent
            column = tokens - recent - (older // self.columns) * self.size - 1 - older % self.columns
            return torch.where(age < recent, tokens - 1 - age, column).clamp(min=-1)
        recent = tokens if reach is None else tokens.clamp(max=reach + self.pool - 1)
        sinks = (tokens - recent).clamp(max=self.sink)
        older = sinks - 1 - (age - recent)
        return torch.where(age < recent, tokens - 1 - age, older.clamp(min=-1))


def average_values(value: Tensor, j: Tensor, width: int) -> Tensor:
    """Return the mean of each value (B, G, S, D) and its width-1 predecessors; before the text they are zero."""
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    total = torch.zeros_like(wide)
    for back in range(min(width, j.shape[-1])):
        before = F.pad(j, (back, 0), value=-1)[:, : j.shape[-1]]  # position of the slot ``back`` slots earlier
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
    """Return the attention (B, Q, H, D) of the layer's span; the stock model calls it through AttentionInterface.

    ``query`` is (B, H, Q, D). ``key`` and ``value`` are (B, G, S, D): first the cached ones, then the new ones.
    ``attention_mask`` holds the new tokens' positions, from `span_positions`. ``scaling`` None means 1 / sqrt(D).
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

    sums = kwargs.get("summaries")
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
        # Padding sees everything, so that no row is empty; its outputs are not used.
        visible = span.visible(to, at, head)
        if sums:
            k, v = (torch.cat(pair, dim=2) for pair in zip((k, v), sums, strict=True))
            there = torch.arange(sums[0].shape[2], device=query.device) < to // span.summary
            visible = torch.cat((visible, there), dim=-1)
        visible = visible | (to < 0)
        q = query[:, :, first:last]
        if not span.decay:
            chunks.append(F.scaled_dot_product_attention(q, k, v, attn_mask=visible, **grouped))
            continue
        wide = torch.promote_types(q.dtype, torch.float32)
        k, v = (x.to(wide).repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
        # alpha_h = decay * 2^(h-H+1), and 0 for head 0.
        alpha = torch.where(head > 0, span.decay * 2.0 ** (head - heads + 1).to(wide), 0.0)
        logits = q.to(wide) @ k.transpose(-1, -2) * scaling * torch.exp(-alpha * (to - at).clamp(min=0))
        weights = logits.masked_fill(~visible, float("-inf")).softmax(dim=-1)
        chunks.append((F.dropout(weights, dropout) @ v).to(query.dtype))
    return torch.cat(chunks, dim=2).transpose(1, 2).contiguous(), None


def padding(attention_mask: Tensor | None) -> Tensor | None:
    """Return the number of padding tokens at the start of each row, (B, 1); None if no row has any."""
    if attention_mask is None or bool((attention_mask != 0).all()):
        return None
    real = (attention_mask != 0).long()
    if bool((real.diff(dim=-1) == 1).sum(-1).add(real[:, 0]).max() > 1):
        raise ValueError("attention_mask has padding inside a text; pad on the left (tokenizer.padding_side='left')")
    start = torch.where(real.any(-1, keepdim=True), real.argmax(dim=-1, keepdim=True), real.shape[1])
    return start if bool(start.any()) else None  # a text never sees the padding after it


def span_positions(
    q_length: int, q_offset: int = 0, attention_mask: Any = None, device: Any = None, **kwargs: Any
) -> Tensor:
    """Return the new tokens' positions instead of a mask: (Q), or (B, Q) with left padding at negative positions."""
    start = padding(attention_mask)
    i = torch.arange(q_offset, q_offset + q_length, device=device)
    return i if start is None else i - start.to(i.device)


AttentionInterface.register(NAME, span_attention)
AttentionMaskInterface.register(NAME, span_positions)


def summarize(rotary: torch.nn.Module, module: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Give attention the keys and values of finished summaries (B, G, M, D) before it runs; ``rotary`` is the model's.

    Block b of a row stands in slot b. Slots of blocks that a row has not finished hold anything: no query sees them.
    """
    size = module.config.layer_spans[module.layer_idx]["summary"]
    hidden, i = args[0] if args else kwargs["hidden_states"], kwargs["attention_mask"]
    i = i if i.ndim == 2 else i[None]  # (B or 1, Q); padding is negative
    cache = next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)
    layer = None if cache is None else cache.layers[module.layer_idx]
    rows, _, width = hidden.shape
    before, after = i[:, :1].clamp(min=0), (i[:, -1:] + 1).clamp(min=0)  # tokens of each row, (B or 1, 1)
    first, most = int((before // size).min()), int((after // size).max())
    # Sums of the blocks from ``first`` on, in the last slot of padding.
    slot = torch.where(i < 0, most + 1, i // size) - first
    wide = torch.promote_types(hidden.dtype, torch.float32)
    sums = torch.zeros(rows, most + 2 - first, width, dtype=wide, device=hidden.device)
    sums = sums.scatter_add(1, slot[..., None].expand_as(hidden), hidden.to(wide))
    open_before, open_after = ((there // size - first).expand(rows, 1)[..., None] for there in (before, after))
    held = None if layer is None else layer.summaries
    if held is not None:
        sums = sums.scatter_add(1, open_before.expand(-1, -1, width), held[0])
    made = sums[:, : most - first]
    key = value = hidden.new_zeros(rows, module.config.num_key_value_heads, 0, module.head_dim)
    if most > first:
        inputs = F.rms_norm(made.to(hidden.dtype), (width,), eps=1e-6)
        key, value = (part(inputs).unflatten(-1, (-1, module.head_dim)) for part in (module.k_proj, module.v_proj))
        key = module.k_norm(key) if hasattr(module, "k_norm") else key
        middle = torch.arange(first, most, device=hidden.device)[None] * size + size // 2
        shift = 0 if kwargs.get("position_ids") is None else kwargs["position_ids"][:, -1:] - i[:, -1:]
        cos, sin = (table[:, :, None] for table in rotary(hidden, middle + shift))
        left, right = key.chunk(2, dim=-1)
        key = (key * cos + torch.cat((-right, left), dim=-1) * sin).transpose(1, 2)
        value = value.transpose(1, 2)
    if held is not None and first < held[1].shape[2]:  # another row has finished some of these blocks before
        done = (torch.arange(first, held[1].shape[2], device=hidden.device) < before // size)[:, None, :, None]
        count = done.shape[2]
        key, value = (
            torch.cat((torch.where(done, old[:, :, first:], new[:, :, :count]), new[:, :, count:]), dim=2)
            for old, new in zip(held[1:], (key, value), strict=True)
        )
    if held is not None and most == first:
        key, value = held[1:]
    elif held is not None:
        key, value = (
            torch.cat((old[:, :, :first], new), dim=2) for old, new in zip(held[1:], (key, value), strict=True)
        )
    if layer is not None:
        layer.summaries = [sums.take_along_dim(open_after, 1), key, value]
    return args, kwargs | ({"summaries": (key, value)} if most else {})


class SpanLayer(CacheLayerMixin):
    """One layer's keys and values, only those that its span still needs.

    If only the first heads are dilated, they reach farther back and keep more slots than the others.
    """

    def __init__(self, span: Span, kv_heads: int, dilated: int):
        """Start empty; the first ``dilated`` of the key-value heads serve a dilated query head."""
        self.span, self.seen, self.is_initialized = span, 0, False  # seen: tokens, including padding
        heads = [(slice(dilated), True), (slice(dilated, kv_heads), False)]
        self.parts = [part for part in heads if part[0].start != part[0].stop and part[0].stop]
        self.held: list[list[Tensor]] = []  # keys and values of each part, (B, its heads, its slots, D)
        # The sum of inputs of the block that is not finished, (B, 1, C), and keys and values of the summaries.
        self.summaries: list[Tensor] | None = None
        self.start: Tensor | int = 0  # padding tokens at the start of each row, (B, 1); set by `prepare`

    # (B, G, slots, D); (B, all heads' slots, D) where heads differ in slots.
    keys = property(lambda self: self._joined(0))
    values = property(lambda self: self._joined(1))

    def _joined(self, which: int) -> Tensor:
        parts = [part[which] for part in self.held]
        return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1, 2) for part in parts], dim=1)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.held = [[states[:, heads, :0] for states in (key_states, value_states)] for heads, _ in self.parts]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add new keys and values; return them after the cached ones, both (B, G, S, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        total = self.seen + key_states.shape[2]
        start = torch.as_tensor(self.start, device=self.device).view(-1, 1)
        before, after, fresh = self.seen - start, total - start, torch.arange(self.seen, total).to(start) - start
        found = []
        for part, (heads, dilated) in enumerate(self.parts):
            old = self.span.kept(before, self.held[part][0].shape[2], dilated)
            positions = torch.cat((old, fresh), dim=-1).clamp(min=-1)  # rising
            new = (key_states[:, heads], value_states[:, heads])
            both = [torch.cat(pair, dim=2) for pair in zip(self.held[part], new, strict=True)]
            found.append((positions, both))
            slots = self.span.slots(total, dilated)
            # A block of a padded row may end at any length: then its columns move.
            if slots < positions.shape[-1] or (self.span.columns and self.span.reach(dilated) is None):
                index = torch.searchsorted(positions, self.span.kept(after, slots, dilated))
                self.held[part] = [pick(states, index) for states in both]
            else:
                self.held[part] = both
        self.seen = total
        (wanted, both), *rest = found
        for positions, fewer in rest:
            # Where these heads lack a slot's key, any key will do: none of their queries sees that slot.
            index = torch.searchsorted(positions, wanted).clamp(max=positions.shape[-1] - 1)
            both = [torch.cat((a, pick(b, index)), dim=1) for a, b in zip(both, fewer, strict=True)]
        return both[0], both[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        self.held = [[change(states) for states in part] for part in self.held]
        self.summaries = self.summaries and [change(states) for states in self.summaries]

    def offload(self) -> None:
        self._change(lambda states: states.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        self._change(lambda states: states.to(self.device, non_blocking=True))

    def reset(self) -> None:
        self.held, self.summaries, self.is_initialized, self.seen = [], None, False, 0

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError("this cache drops what no span needs any more, so it cannot be cropped")

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change(lambda states: states.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._change(lambda states: states.index_select(0, indices.to(states.device)))

    reorder_cache = batch_select_indices


def pick(states: Tensor, index: Tensor) -> Tensor:  # (B, G, S, D), (B or 1, slots) -> (B, G, slots, D)
    """Return the slots at an index, which may differ between rows."""
    return states.index_select(2, index[0]) if len(index) == 1 else states.take_along_dim(index[:, None, :, None], 2)


def cache_layers(config: PreTrainedConfig) -> list[Any]:
    """Return an empty cache layer per layer of the model."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    spans = [Span(**entry) for entry in config.layer_spans]
    cuts = [span.dilated_heads or span.far_heads or heads for span in spans]
    return [SpanLayer(span, kv_heads, -(-cut * kv_heads // heads)) for span, cut in zip(spans, cuts, strict=True)]


def prepare(model: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Check the arguments before each forward pass of the stock model, and give it a cache of the spans.

    Raises:
        ValueError: for arguments that would ignore the schedule, or for which it is not defined.
    """
    parameters = inspect.signature(model.forward).parameters
    kwargs = dict(zip(parameters, args, strict=False)) | kwargs
    caches = [kwargs.pop(name, None) for name in CACHE_NAMES]
    cache = next((given for given in caches if given is not None), None)
    config, mask, use_cache = model.config, kwargs.get("attention_mask"), kwargs.get("use_cache")
    if config._attn_implementation != NAME:
        raise ValueError(f"attn_implementation={config._attn_implementation!r} ignores the schedule; leave it {NAME!r}")
    recomputed = model.training and any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    if cache is None and not recomputed and (config.use_cache if use_cache is None else use_cache):
        cache = Cache(layers=cache_layers(config))
    if cache is not None and not (cache.layers and all(isinstance(layer, SpanLayer) for layer in cache.layers)):
        if type(cache) is not DynamicCache or cache.get_seq_length():
            raise ValueError(f"a {type(cache).__name__} does not know the spans; give none or an empty DynamicCache")
        cache.layers = cache_layers(config)
    kwargs[next(name for name in CACHE_NAMES if name in parameters)] = cache

    inputs = kwargs.get("input_ids")
    tokens = (kwargs["inputs_embeds"] if inputs is None else inputs).shape[1]
    seen = cache.get_seq_length() if cache is not None else 0
    if mask is not None and (mask.ndim != 2 or mask.shape[1] != seen + tokens):
        raise ValueError(f"attention_mask {tuple(mask.shape)}: give (batch, {seen + tokens}), with 0 for padding")
    start = padding(mask)
    for layer in () if cache is None else cache.layers:
        layer.start = 0 if start is None else start
    positions = kwargs.get("position_ids")
    if positions is None and start is not None:
        kwargs["position_ids"] = (torch.arange(seen, seen + tokens, device=start.device) - start).clamp(min=0)
    elif positions is not None and mask is None and bool((positions.diff(dim=-1) != 1).any()):
        raise ValueError("position_ids with jumps pack several texts into one row; give each text its own row")
    return (), kwargs


@functools.cache
def config_class(base: str) -> type[PreTrainedConfig]:
    """Return the stock model's configuration class with the two keys of this file."""
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
            if base not in SUMMARY_BASES and any(span.summary for span in spans):
                raise ValueError(f"layer_spans: a {base} has no summaries; known: {', '.join(SUMMARY_BASES)}")

    Config.__name__ = Config.__qualname__ = "LayersearchConfig"  # the name in auto_map
    return Config


@functools.cache
def model_class(base: str) -> type[torch.nn.Module]:
    """Return the stock model's class with its attention routed to this file."""

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
            hook = functools.partial(summarize, getattr(self.base_model, "rotary_emb", None))
            for layer, span in enumerate(config.layer_spans):
                if span.get("summary"):
                    self.base_model.layers[layer].self_attn.register_forward_pre_hook(hook, with_kwargs=True)

    Model.__name__ = Model.__qualname__ = "LayersearchForCausalLM"  # the name in auto_map
    return Model


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
        config = config or LayersearchConfig.from_pretrained(path)
        return model_class(config.base_model_type).from_pretrained(path, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        return model_class(config.base_model_type)._from_config(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModelForCausalLM") -> None:
        """Do nothing: the classes of `model_class` are registered."""
