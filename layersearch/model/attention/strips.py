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
PLAIN_SCORES = 1 << 17
"""Scores held at once where torch's kernel does not serve."""
_NEVER = -1e30


@dataclass(frozen=True)
class Steps:
    """Blocks of tokens against the columns of earlier blocks."""

    size: int  # tokens of a block
    columns: int  # keys of a block
    own: bool = False  # the columns of a token's own block before it are seen too

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        """Tell whether token ``i`` sees column ``j``, both counted from the strip's first block."""
        block, other = i // self.size, j // self.columns
        if not self.own:
            return other < block
        return (other < block) | ((other == block) & (self.size - self.columns + j % self.columns < i % self.size))


@dataclass(frozen=True)
class BothWays:
    """A span in an encoder, or the pairs outside it."""

    span: Span
    outside: bool = False

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        """Tell whether token ``i`` sees token ``j``."""
        seen: Tensor = self.span.visible(i, j, bidirectional=True)
        return ~seen if self.outside else seen


@dataclass(frozen=True)
class StripGroup:
    """Strips of equal shape: strip s holds queries [first + s*queries, ...) and keys [low + s*step, ...)."""

    first: int
    strips: int
    queries: int
    low: int
    keys: int
    step: int
    mask: Span | Steps | BothWays | None  # masks the pairs that it hides, in positions within the strip
    causal: bool  # query a of a strip sees its keys 0 ... a
    joins: bool = False  # the queries see other keys in an earlier group
    stride: int = 1  # tokens between neighboring queries, and keys, of a strip; strips then begin one token apart

    def cut(self, x: Tensor, *, keys: bool) -> Tensor:
        """View tokens as the strips' queries or keys, which may overlap: (N, T, D) -> (N, S, C or L, D)."""
        if keys:
            return _cut(x, self.low, self.strips, self.keys, self.step, self.stride)
        return _cut(x, self.first, self.strips, self.queries, 1 if self.stride > 1 else self.queries, self.stride)


@functools.lru_cache(maxsize=256)
def strip_groups(span: Span, tokens: int, most: int = MOST_QUERIES) -> tuple[StripGroup, ...] | None:
    """Cut a span, as `effective_span` returns it, into groups of strips; None where strips do not serve it.

    Strips of a window have at most ``most`` queries.
    """
    if span.size is None or span.dilation > 1 or span.decay > 0:
        return None
    size, bare = span.size, Span(kind=span.kind, size=span.size)
    start = size - span.offset if span.kind == "block" else size  # the first query that may have lost a key
    if span.kind == "block" and span.sink > start:
        return None
    cut: list[StripGroup] = []
    if span.kind == "window":
        cut.append(StripGroup(0, 1, size, 0, size, 0, None, True))
        queries = max(FEWEST_QUERIES, min(most, size // 2 // 16 * 16))
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
        first = start % size
        if first:
            cut.append(StripGroup(0, 1, first, 0, first, 0, None, True))
        strips, rest = divmod(tokens - first, queries)
        if strips:
            cut.append(StripGroup(first, strips, queries, first, queries, queries, mask, mask is None))
        if rest:
            cut.append(StripGroup(tokens - rest, 1, rest, tokens - rest, rest, 0, mask, mask is None))
    if span.sink:
        # Query W+a of a window has lost keys 0 ... a, and the sinks among them remain: causal again. All later blocks
        # see all sinks.
        sink = min(span.sink, tokens)
        cut.append(StripGroup(start, 1, tokens - start, 0, sink, 0, None, span.kind == "window", True))
    return tuple(cut)


@functools.lru_cache(maxsize=256)
def _bias(part: StripGroup, dtype: torch.dtype) -> Tensor | None:
    """Return 0 where a strip's query sees a key, else -inf, (1, 1, C, L)."""
    if part.mask is None:
        return None
    steps = isinstance(part.mask, Steps)
    queries = torch.arange(part.queries)[:, None] + (0 if steps else part.first - part.low)
    visible: Tensor = part.mask.visible(queries, torch.arange(part.keys)[None, :])
    # Some queries see no key of theirs here: a softmax of -inf alone is not a number.
    unseen = -torch.inf if isinstance(part.mask, Span) else _NEVER
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, unseen)[None, None]


def _cut(x: Tensor, first: int, strips: int, size: int, step: int, stride: int = 1) -> Tensor:
    """View tokens as strips that may overlap: (N, T, D) -> (N, S, size, D)."""
    rows, tokens, width = x.shape
    strides = (tokens * width, step * width, stride * width, 1)
    return x.as_strided((rows, strips, size, width), strides, x.storage_offset() + first * width)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, part: StripGroup, bias: Tensor | None, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """Return the output (N, S, C, D) and log-sum-exp (N, S, C) of strips (N, S, C, D) and their keys (N, S, L, D)."""
    if q.device.type == "cpu" and softcap == 0:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, is_causal=part.causal, attn_mask=bias, scale=scale
        )
        return out, lse
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:3])
    for rows in _pieces(q, k):
        scores, _ = _scores(q[rows], k[rows], part, bias, scale, softcap)
        sums = scores.logsumexp(dim=-1)
        lse[rows] = sums
        out[rows] = scores.sub_(sums.unsqueeze(-1)).exp_() @ v[rows]
    return out, lse


def _attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    part: StripGroup,
    bias: Tensor | None,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v of `_attend`."""
    if q.device.type == "cpu" and softcap == 0:
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, part.causal, attn_mask=bias, scale=scale
        )
        return dq, dk, dv
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    for rows in _pieces(q, k):
        scores, slope = _scores(q[rows], k[rows], part, bias, scale, softcap)
        weights = scores.sub_(lse[rows].unsqueeze(-1)).exp_()
        delta = (grad[rows] * out[rows]).sum(dim=-1, keepdim=True)
        dv[rows] = weights.mT @ grad[rows]
        d_scores = (grad[rows] @ v[rows].mT).sub_(delta).mul_(weights).mul_(scale)
        if slope is not None:
            d_scores.mul_(slope)
        dq[rows], dk[rows] = d_scores @ k[rows], d_scores.mT @ q[rows]
    return dq, dk, dv


def _pieces(q: Tensor, k: Tensor) -> list[tuple[slice, slice]]:
    """Cut strips into pieces whose scores are held at once, at least one strip of one row each."""
    rows, count, queries = q.shape[:3]
    together = max(1, PLAIN_SCORES // (queries * k.shape[2]))
    if together >= count:
        step = max(1, together // count)
        return [(slice(first, first + step), slice(None)) for first in range(0, rows, step)]
    some = [slice(first, first + together) for first in range(0, count, together)]
    return [(slice(row, row + 1), strips) for row in range(rows) for strips in some]


def _scores(
    q: Tensor, k: Tensor, part: StripGroup, bias: Tensor | None, scale: float, softcap: float
) -> tuple[Tensor, Tensor | None]:
    """Return scaled, capped and masked logits (..., C, L), and the derivative of the cap."""
    scores, slope = q @ k.mT * scale, None
    if softcap:
        capped = torch.tanh(scores.div_(softcap))
        slope = 1.0 - capped * capped
        scores = capped * softcap
    if part.causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1)
        scores.masked_fill_(later, -torch.inf)
    return (scores if bias is None else scores + bias.to(scores.device)), slope


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: tuple[StripGroup, ...],
    scale: float,
    *,
    softcap: float = 0.0,
    covered: bool = True,
) -> tuple[Tensor, Tensor]:
    """Attend over the groups of a span; ``scale`` multiplies the logits.

    q is (N, T, D), k and v are (N, keys, D), all contiguous. Without ``covered`` some queries may be in no group: their
    output is 0 and their log-sum-exp -inf. Returns the output (N, T, D) and the log-sum-exp of each query's logits
    (N, T).
    """
    # The log-sum-exp stays wide: the backward pass recomputes every weight from it.
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
    if not covered:
        out.zero_()
        lse.fill_(-torch.inf)
    for part in plan:
        inputs = part.cut(q, keys=False), part.cut(k, keys=True), part.cut(v, keys=True)
        some, sums = _attend(*inputs, part, _bias(part, q.dtype), scale, softcap)
        into, into_lse = part.cut(out, keys=False), part.cut(lse.unsqueeze(-1), keys=False).squeeze(-1)
        if part.joins:
            joined = torch.logaddexp(into_lse, sums)
            into.mul_((into_lse - joined).exp_().unsqueeze(-1)).addcmul_(some, (sums - joined).exp_().unsqueeze(-1))
            into_lse.copy_(joined)
        else:
            into.copy_(some)
            into_lse.copy_(sums)
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: tuple[StripGroup, ...],
    scale: float,
    *,
    softcap: float = 0.0,
    covered: bool = True,
    begun: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v; arguments as in `forward`, ``out`` and ``lse`` over all keys of a query.

    ``begun`` are gradients that another kernel has found of other pairs, which change.
    """
    if begun is None:
        begun = torch.empty_like(q) if covered else torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    dq, dk, dv = begun
    sums = lse.unsqueeze(-1)
    for part in plan:
        by_query = [part.cut(x, keys=False) for x in (grad, q, out, sums)]
        inputs = by_query[0], by_query[1], part.cut(k, keys=True), part.cut(v, keys=True), by_query[2]
        part_sums, bias = by_query[3].squeeze(-1), _bias(part, q.dtype)
        some_q, some_k, some_v = _attend_backward(*inputs, part_sums, part, bias, scale, softcap)
        into_q = part.cut(dq, keys=False)
        (into_q.add_ if part.joins else into_q.copy_)(some_q)
        # Strips share keys: their gradients are added one step's width at a time, so that writes never overlap. Strips
        # with a stride share none.
        step = part.keys if part.stride > 1 else part.step or part.keys
        for offset in range(0, part.keys, step):
            width = min(step, part.keys - offset)
            for into, some in ((dk, some_k), (dv, some_v)):
                some_into = _cut(into, part.low + offset, part.strips, width, part.step, part.stride)
                some_into.add_(some[:, :, offset : offset + width])
    return dq, dk, dv
