"""Attention over a band of keys, a tile of scores at a time, forward and backward.

The problem solved here is one band on independent rows of a batch: the front of `chunked` has already split heads,
expanded grouped keys, and dealt the tokens of a dilated window into one row per residue, so that every band is dense.

Shape legend: N batch rows (batch, head, residue), T tokens of a row, D head width, C queries of a tile, S keys of a
tile, G sinks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layersearch.schedule import Span

# Scores held at once: two float32 buffers of this many scores stay in a second-level cache of 2 MB.
CACHED_SCORES = 1 << 17
# Queries of a tile. A window of W keys computes W + C scores a query, so short windows want few queries, but matrix
# products below 32 rows run at a third of the speed (measured, see analysis/span_speed).
FEWEST_QUERIES, MOST_QUERIES = 32, 128
# Logits are kept in base 2: torch's exp takes 5 to 40 times as long on a CPU where its results underflow, as masked
# scores do, and exp2 does not (measured, see analysis/span_speed).
LOG2_E = math.log2(math.e)


@dataclass(frozen=True, kw_only=True)
class Band:
    """What each row of the batch sees."""

    span: Span
    """An undilated span without sinks, in tokens of a row."""
    stride: int = 1
    """Distance D between neighbouring tokens of a row in the text; row r holds the residue r mod D."""
    alphas: Tensor | None = None
    """LaS decay per row and token of the text, (N, 1, 1)."""
    sinks: Span | None = None
    """The span in tokens of the text, if it has sinks: says which of them the band does not see."""


@dataclass(frozen=True)
class _Tile:
    """Queries [first, last) against keys [low, last), and sinks."""

    first: int
    last: int
    low: int


def _tiles(span: Span, tokens: int) -> Iterator[_Tile]:
    """Cut a span into tiles of queries with the keys that any of them sees."""
    size = tokens if span.size is None else min(span.size, tokens)
    if span.kind == "block":
        # A tile holds part of one block or several whole ones.
        most = size if size < MOST_QUERIES else MOST_QUERIES
        step = size * (MOST_QUERIES // (2 * size)) if 2 * size <= MOST_QUERIES else None
        if step is not None:
            for first in range(0, tokens, step):
                yield _Tile(first, min(first + step, tokens), first)
            return
        for low in range(0, tokens, size):
            end = min(low + size, tokens)
            for first in range(low, end, most):
                yield _Tile(first, min(first + most, end), low)
        return
    rows = max(FEWEST_QUERIES, min(MOST_QUERIES, size // 4, 4 * CACHED_SCORES // size))
    for first in range(0, tokens, rows):
        # Starting on a multiple of 16 keeps the keys of a tile aligned and their number round: faster products.
        low = 0 if span.size is None else max(0, first - size + 1) // 16 * 16
        yield _Tile(first, min(first + rows, tokens), low)


@functools.lru_cache(maxsize=256)
def _bias(span: Span, first: int, last: int, low: int, high: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return 0 where queries [first, last) see keys [low, high), else -inf, (C, S)."""
    queries = torch.arange(first, last, device=device)[:, None]
    visible: Tensor = span.visible(queries, torch.arange(low, high, device=device)[None, :])
    return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, -torch.inf)


def _hide(scores: Tensor, span: Span, tile: _Tile, low: int) -> None:
    """Set to -inf, in place, the scores (N, C, S) of keys [low, low+S) that their query does not see."""
    high = low + scores.shape[-1]
    first, last = tile.first, tile.last
    # Spans look alike everywhere along the text, so positions count from the tile's first key or query: one mask
    # serves all tiles. A key is in doubt only near either edge of the span.
    if span.kind == "block":
        regions, origin = [(low, high)], tile.low
    else:
        origin = first - first % 16 if span.kind == "full" else tile.low
        far = tile.low if span.size is None else min(last - span.size, high)
        near = max(first + 1, low)
        regions = [(low, high)] if far > near else [(low, far), (near, high)]
    for start, end in regions:
        if start < end:
            place = (first - origin, last - origin, start - origin, end - origin)
            scores[:, :, start - low : end - low].add_(_bias(span, *place, scores.device, scores.dtype))


def _hide_sinks(scores: Tensor, band: Band, tile: _Tile, rows: slice) -> None:
    """Set to -inf, in place, the sinks (N, C, G) that come after their query, or that the band sees itself."""
    count = scores.shape[-1]
    if tile.low * band.stride >= count or band.sinks is None:
        return
    device = scores.device
    residue = (torch.arange(rows.start, rows.stop, device=device) % band.stride)[:, None, None]
    queries = torch.arange(tile.first, tile.last, device=device)[None, :, None] * band.stride + residue
    keys = torch.arange(count, device=device)
    base = replace(band.sinks, sink=0)
    scores.masked_fill_(~band.sinks.visible(queries, keys) | base.visible(queries, keys), -torch.inf)


class _Scratch:
    """Score-sized buffers that tiles reuse: a fresh allocation costs as much as the product that fills it."""

    def __init__(self, like: Tensor, scores: int, count: int) -> None:
        self.buffers = like.new_empty((count, scores))

    def __call__(self, number: int, *shape: int) -> Tensor:
        size = shape[0] * shape[1] * shape[2]
        return self.buffers[number, :size].view(shape)


def _plan(band: Band, rows: int, tokens: int, sinks: int) -> tuple[list[_Tile], int, int]:
    """Return the tiles, how many batch rows share one, and the scores of the largest."""
    tiles = list(_tiles(band.span, tokens))
    largest = max((tile.last - tile.first) * (tile.last - tile.low + sinks) for tile in tiles)
    together = max(1, min(rows, CACHED_SCORES // largest))
    return tiles, together, together * largest


def _decay(band: Band, rows: slice, tile: _Tile, low: int, high: int, out: Tensor) -> Tensor:
    """Write exp(-alpha (i-j)) of keys [low, high) of the rows into ``out`` (N, C, S)."""
    assert band.alphas is not None
    queries = torch.arange(tile.first, tile.last, device=out.device, dtype=out.dtype)
    keys = torch.arange(low, high, device=out.device, dtype=out.dtype)
    distance = (queries[:, None] - keys[None, :]).clamp_min_(0).mul_(-band.stride * LOG2_E)
    return torch.mul(band.alphas[rows], distance, out=out).exp2_()


def _decay_sinks(band: Band, rows: slice, tile: _Tile, out: Tensor) -> Tensor:
    """Write exp(-alpha (i-j)) of the sinks of the rows into ``out`` (N, C, G)."""
    assert band.alphas is not None
    residue = (torch.arange(rows.start, rows.stop, device=out.device) % band.stride)[:, None, None]
    queries = torch.arange(tile.first, tile.last, device=out.device)[None, :, None] * band.stride + residue
    distance = (queries - torch.arange(out.shape[-1], device=out.device)).clamp_min_(0).to(out.dtype).mul_(-LOG2_E)
    return torch.mul(band.alphas[rows], distance, out=out).exp2_()


def _product(a: Tensor, b: Tensor, factor: float, out: Tensor) -> Tensor:
    """Write factor * a @ b into ``out``, whatever it holds."""
    return torch.baddbmm(out, a, b, beta=0, alpha=factor, out=out)


def forward(
    q: Tensor, k: Tensor, v: Tensor, sink_k: Tensor, sink_v: Tensor, band: Band, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend over a band.

    Args:
        q: queries, (N, T, D).
        k: keys, (N, T, D).
        v: values, (N, T, D).
        sink_k: keys of the sinks, (N, G, D).
        sink_v: values of the sinks, (N, G, D).
        band: what each row sees.
        scale: factor of the logits.

    Returns:
        The output (N, T, D) and the log-sum-exp of each query's logits (N, T).
    """
    total, tokens, _ = q.shape
    sinks = sink_k.shape[1]
    out, lse = torch.empty_like(q), q.new_empty(total, tokens)
    tiles, together, scores = _plan(band, total, tokens, sinks)
    scratch = _Scratch(q, scores, 1 if band.alphas is None else 2)
    for start in range(0, total, together):
        rows = slice(start, min(start + together, total))
        count = rows.stop - rows.start
        decayed: tuple[int, ...] = ()
        for tile in tiles:
            queries, keys = slice(tile.first, tile.last), slice(tile.low, tile.last)
            n_queries, n_keys = tile.last - tile.first, tile.last - tile.low
            tile_k, tile_v = k[rows, keys], v[rows, keys]
            if sinks:
                tile_k = torch.cat((sink_k[rows], tile_k), dim=1)
                tile_v = torch.cat((sink_v[rows], tile_v), dim=1)
            p = scratch(0, count, n_queries, sinks + n_keys)
            _product(q[rows, queries], tile_k.transpose(1, 2), scale * LOG2_E, p)
            if band.alphas is not None:
                decay = scratch(1, count, n_queries, sinks + n_keys)
                shape = (n_queries, n_keys, tile.first - tile.low)
                if sinks:
                    _decay_sinks(band, rows, tile, decay[:, :, :sinks])
                if sinks or shape != decayed:
                    _decay(band, rows, tile, tile.low, tile.last, decay[:, :, sinks:])
                    decayed = shape
                p.mul_(decay)
            _hide(p[:, :, sinks:], band.span, tile, tile.low)
            if sinks:
                _hide_sinks(p[:, :, :sinks], band, tile, rows)
            highest = p.amax(dim=-1, keepdim=True)
            p.sub_(highest).exp2_()
            mass = p.sum(dim=-1, keepdim=True)
            torch.div(torch.bmm(p, tile_v), mass, out=out[rows, queries])
            lse[rows, queries] = mass.log2_().add_(highest).mul_(1 / LOG2_E).squeeze(-1)
    return out, lse


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink_k: Tensor,
    sink_v: Tensor,
    lse: Tensor,
    delta: Tensor,
    grad: Tensor,
    band: Band,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `forward` with the weights recomputed (FlashAttention, 2205.14135, appendix B.2).

    Args:
        q: queries, (N, T, D).
        k: keys, (N, T, D).
        v: values, (N, T, D).
        sink_k: keys of the sinks, (N, G, D).
        sink_v: values of the sinks, (N, G, D).
        lse: log-sum-exp of each query's logits, (N, T).
        delta: inner product of each query's output and its gradient, (N, T).
        grad: gradient of the output, (N, T, D).
        band: what each row sees.
        scale: factor of the logits.

    Returns:
        Gradients of q, k, v, sink_k and sink_v.
    """
    total, tokens, _ = q.shape
    sinks = sink_k.shape[1]
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    dsk, dsv = torch.zeros_like(sink_k), torch.zeros_like(sink_v)
    tiles, together, scores = _plan(band, total, tokens, sinks)
    scratch = _Scratch(q, scores, 2 if band.alphas is None else 3)
    lse, delta = (lse * LOG2_E).unsqueeze(-1), delta.unsqueeze(-1)
    for start in range(0, total, together):
        rows = slice(start, min(start + together, total))
        count = rows.stop - rows.start
        group_q, group_grad, group_lse, group_delta = q[rows], grad[rows], lse[rows], delta[rows]
        group_dq = dq[rows]
        near, far = (k[rows], v[rows], dk[rows], dv[rows]), (sink_k[rows], sink_v[rows], dsk[rows], dsv[rows])
        decayed: tuple[int, ...] = ()
        for tile in tiles:
            first, n_queries = tile.first, tile.last - tile.first
            tile_q, tile_grad = group_q.narrow(1, first, n_queries), group_grad.narrow(1, first, n_queries)
            tile_lse, tile_delta = group_lse.narrow(1, first, n_queries), group_delta.narrow(1, first, n_queries)
            tile_dq = group_dq.narrow(1, first, n_queries)
            # Without a softmax across the row, its keys can be taken piece by piece, each small enough for the cache.
            width = max(256, CACHED_SCORES // (count * n_queries)) // 16 * 16
            pieces = [(near, low, min(low + width, tile.last)) for low in range(tile.low, tile.last, width)]
            if sinks:
                pieces.append((far, 0, sinks))
            for source, low, high in pieces:
                some_k, some_v, into_k, into_v = (x.narrow(1, low, high - low) for x in source)
                p = scratch(0, count, n_queries, high - low)
                ds = scratch(1, count, n_queries, high - low)
                _product(tile_q, some_k.transpose(1, 2), scale * LOG2_E, p)
                if band.alphas is not None:
                    decay = scratch(2, count, n_queries, high - low)
                    shape = (n_queries, high - low, tile.first - low)
                    if source is far:
                        _decay_sinks(band, rows, tile, decay)
                        decayed = ()
                    elif shape != decayed:
                        _decay(band, rows, tile, low, high, decay)
                        decayed = shape
                    p.mul_(decay)
                p.sub_(tile_lse)
                if source is far:
                    _hide_sinks(p, band, tile, rows)
                else:
                    _hide(p, band.span, tile, low)
                p.exp2_()
                into_v.baddbmm_(p.transpose(1, 2), tile_grad)
                torch.bmm(tile_grad, some_v.transpose(1, 2), out=ds)
                ds.sub_(tile_delta).mul_(p)
                if band.alphas is not None:
                    ds.mul_(decay)
                tile_dq.baddbmm_(ds, some_k, alpha=scale)
                into_k.baddbmm_(ds.transpose(1, 2), tile_q, alpha=scale)
    return dq, dk, dv, dsk, dsv
