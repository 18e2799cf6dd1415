"""Windows and blocks by torch's CPU flash kernel: strips of queries, each against its own keys, in one call.

A strip is a view: neighboring strips share keys without a copy. A window is three calls: its first W queries, the equal
strips that follow, and the rest. Sinks are a fourth call, joined by log-sum-exp (FlashAttention-2, 2307.08691, section
3.1). Each call's backward pass gets the joined output and log-sum-exp and returns its own share of the gradients (Ring
Attention, 2310.01889, uses the same identity).

Shape legend: N batch rows (batch and head), T tokens, D head width, S strips, C queries of a strip, L its keys.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from layersearch.schedule import Span

# Queries of a strip. The kernel's products are fast from 192 rows on, but a strip computes W + C scores per query
# (measured, see analysis/span_speed).
FEWEST_QUERIES, MOST_QUERIES = 32, 192


@dataclass(frozen=True)
class StripGroup:
    """Strips of equal shape: strip s holds queries [first + s*queries, ...) and keys [low + s*step, ...)."""

    first: int
    strips: int
    queries: int
    low: int
    keys: int
    step: int
    mask: Span | None  # masks the pairs that this span hides, in positions within the strip
    causal: bool  # query a of a strip sees its keys 0 ... a
    joins: bool = False  # the queries see other keys in an earlier group


@functools.lru_cache(maxsize=256)
def strip_groups(span: Span, tokens: int) -> tuple[StripGroup, ...] | None:
    """Cut a span, as `effective_span` returns it, into groups of strips; None where strips do not serve it."""
    if span.size is None or span.dilation > 1 or span.decay > 0 or (span.kind == "block" and span.sink > span.size):
        return None
    size, bare = span.size, Span(kind=span.kind, size=span.size)
    cut: list[StripGroup] = []
    if span.kind == "window":
        cut.append(StripGroup(0, 1, size, 0, size, 0, None, True))
        queries = max(FEWEST_QUERIES, min(MOST_QUERIES, size // 2 // 16 * 16))
        strips, rest = divmod(tokens - size, queries)
        # Strip s starts W tokens after its first key, which that query just misses: so the number of keys is round.
        if strips:
            cut.append(StripGroup(size, strips, queries, 0, size + queries, queries, bare, False))
        if rest:
            cut.append(StripGroup(tokens - rest, 1, rest, tokens - rest - size, size + rest, 0, bare, False))
    else:
        # Several small blocks form one strip, with a mask.
        queries = size * max(1, FEWEST_QUERIES // size)
        mask = bare if queries > size else None
        strips, rest = divmod(tokens, queries)
        if strips:
            cut.append(StripGroup(0, strips, queries, 0, queries, queries, mask, mask is None))
        if rest:
            cut.append(StripGroup(tokens - rest, 1, rest, tokens - rest, rest, 0, mask, mask is None))
    if span.sink:
        # Query W+a of a window has lost keys 0 ... a, and the sinks among them remain: causal again. All later blocks
        # see all sinks.
        sink = min(span.sink, tokens)
        cut.append(StripGroup(size, 1, tokens - size, 0, sink, 0, None, span.kind == "window", True))
    return tuple(cut)


@functools.lru_cache(maxsize=256)
def _bias(part: StripGroup, dtype: torch.dtype) -> Tensor | None:
    """Return 0 where a strip's query sees a key, else -inf, (1, 1, C, L)."""
    if part.mask is None:
        return None
    queries = torch.arange(part.queries)[:, None] + (part.first - part.low)
    visible: Tensor = part.mask.visible(queries, torch.arange(part.keys)[None, :])
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)[None, None]


def _cut(x: Tensor, first: int, strips: int, size: int, step: int) -> Tensor:
    """View tokens as strips that may overlap: (N, T, D) -> (N, S, size, D)."""
    rows, tokens, width = x.shape
    return x.as_strided(
        (rows, strips, size, width), (tokens * width, step * width, width, 1), x.storage_offset() + first * width
    )


def forward(q: Tensor, k: Tensor, v: Tensor, plan: tuple[StripGroup, ...], scale: float) -> tuple[Tensor, Tensor]:
    """Attend over the groups of a span; ``scale`` multiplies the logits.

    q, k and v are (N, T, D) and contiguous. Returns the output (N, T, D) and the log-sum-exp of each query's logits
    (N, T).
    """
    # The log-sum-exp stays wide: the backward pass recomputes every weight from it.
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
    for part in plan:
        rows = (part.first, part.strips, part.queries, part.queries)
        columns = (part.low, part.strips, part.keys, part.step)
        inputs = _cut(q, *rows), _cut(k, *columns), _cut(v, *columns)
        some, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *inputs, is_causal=part.causal, attn_mask=_bias(part, q.dtype), scale=scale
        )
        queries = slice(part.first, part.first + part.strips * part.queries)
        into, into_lse = out[:, queries], lse[:, queries]
        some, sums = some.flatten(1, 2), sums.flatten(1, 2)
        if part.joins:
            joined = torch.logaddexp(into_lse, sums)
            into.mul_((into_lse - joined).exp_().unsqueeze(-1)).addcmul_(some, (sums - joined).exp_().unsqueeze(-1))
            into_lse.copy_(joined)
        else:
            into.copy_(some)
            into_lse.copy_(sums)
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, plan: tuple[StripGroup, ...], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v; arguments as in `forward`, (N, T, D) and contiguous."""
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    sums = lse.unsqueeze(-1)
    for part in plan:
        rows = (part.first, part.strips, part.queries, part.queries)
        columns = (part.low, part.strips, part.keys, part.step)
        inputs = _cut(grad, *rows), _cut(q, *rows), _cut(k, *columns), _cut(v, *columns), _cut(out, *rows)
        part_sums, bias = _cut(sums, *rows).squeeze(-1), _bias(part, q.dtype)
        some_q, some_k, some_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *inputs, part_sums, 0.0, part.causal, attn_mask=bias, scale=scale
        )
        into_q = _cut(dq, *rows)
        (into_q.add_ if part.joins else into_q.copy_)(some_q)
        # Strips share keys: their gradients are added one step's width at a time, so that writes never overlap.
        step = part.step or part.keys
        for offset in range(0, part.keys, step):
            width = min(step, part.keys - offset)
            for into, some in ((dk, some_k), (dv, some_v)):
                _cut(into, part.low + offset, part.strips, width, part.step).add_(some[:, :, offset : offset + width])
    return dq, dk, dv
