"""LaS in an encoder: logits that decay with the distance |i-j|, and rows smoothed toward both sides.

Queries are taken in tiles, each against the keys of its span and the global tokens: work and memory grow with the span.

Shape legend: N batch rows (batch and head), T tokens, D head width, C queries of a tile, S its keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from layersearch.schedule import Span

QUERIES = 64
"""Queries of a tile."""
SCORES = 1 << 18
"""Most scores held at once."""


def center_values(v: Tensor, width: int) -> Tensor:
    """Return means of ``width`` values around each, with zeros beyond the ends: (..., T, D) -> same.

    Pooling attention rows after the softmax equals pooling the values, as in `pool_values`. An odd width reaches as far
    to either side, so the map is its own transpose.
    """
    pooled = v.clone()
    for off in range(1, min(width // 2 + 1, v.shape[-2])):
        pooled[..., off:, :] += v[..., :-off, :]
        pooled[..., :-off, :] += v[..., off:, :]
    return pooled.div_(width)


class _Tile(NamedTuple):
    """Queries [first, last) against keys [low, high), after the first ``far`` keys of the text."""

    first: int
    last: int
    low: int
    high: int
    far: int


def _tiles(span: Span, tokens: int) -> Iterator[_Tile]:
    """Yield tiles that hold every query once, with every key that it sees."""
    heads = min(span.global_first, tokens)
    starts = [0] if heads else []
    starts += list(range(heads, tokens, QUERIES))
    for first, last in zip(starts, [*starts[1:], tokens], strict=True):
        if span.size is None or first < heads:
            yield _Tile(first, last, 0, tokens, 0)
            continue
        if span.kind == "window":
            low, high = first - span.size, last + span.size
        else:
            low = (first + span.offset) // span.size * span.size - span.offset
            high = ((last - 1 + span.offset) // span.size + 1) * span.size - span.offset
        low, high = max(0, low), min(tokens, high)
        yield _Tile(first, last, low, high, min(heads, low))


def _keys(x: Tensor, tile: _Tile) -> Tensor:
    """Return a tile's keys or values, (N, S, D)."""
    near = x[:, tile.low : tile.high]
    return torch.cat((x[:, : tile.far], near), dim=1) if tile.far else near


def _logits(
    q: Tensor, k: Tensor, span: Span, tile: _Tile, alphas: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return a tile's decayed and masked logits, the decay, and the derivative of the cap, (N, C, S) each."""
    i = torch.arange(tile.first, tile.last, device=q.device)[:, None]
    near = torch.arange(tile.low, tile.high, device=q.device)
    j = torch.cat((torch.arange(tile.far, device=q.device), near))[None, :]
    scores, slope = q @ k.mT * scale, None
    if softcap:
        capped = torch.tanh(scores / softcap)
        scores, slope = capped * softcap, 1.0 - capped * capped
    decay = torch.exp(-alphas * (i - j).abs().to(q.dtype))
    visible: Tensor = span.visible(i, j, bidirectional=True)
    return (scores * decay).masked_fill(~visible, -torch.inf), decay, slope


def _rows(total: int, tile: _Tile) -> Iterator[slice]:
    """Cut the batch rows so that the scores of a tile are few."""
    together = max(1, SCORES // ((tile.last - tile.first) * (tile.high - tile.low + tile.far)))
    for start in range(0, total, together):
        yield slice(start, start + together)


def forward(
    q: Tensor, k: Tensor, v: Tensor, span: Span, alphas: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """Attend over a span whose logits decay.

    Args:
        q: queries, (N, T, D).
        k: keys, (N, T, D).
        v: values, (N, T, D); pooled already.
        span: as `effective_span` returns it.
        alphas: decay per token of each row, (N, 1, 1).
        scale: factor of the logits.
        softcap: as of `reference_attention`.

    Returns:
        The output (N, T, D) and the log-sum-exp of each query's logits (N, T).
    """
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2])
    for tile in _tiles(span, q.shape[1]):
        queries = slice(tile.first, tile.last)
        for rows in _rows(q.shape[0], tile):
            logits, *_ = _logits(q[rows, queries], _keys(k[rows], tile), span, tile, alphas[rows], scale, softcap)
            sums = logits.logsumexp(dim=-1)
            lse[rows, queries] = sums
            out[rows, queries] = logits.sub_(sums.unsqueeze(-1)).exp_() @ _keys(v[rows], tile)
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    span: Span,
    alphas: Tensor,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v of `forward`, with the weights recomputed (2205.14135, appendix B.2)."""
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    delta = (grad * out).sum(dim=-1, keepdim=True)
    for tile in _tiles(span, q.shape[1]):
        queries, near = slice(tile.first, tile.last), slice(tile.low, tile.high)
        for rows in _rows(q.shape[0], tile):
            some_q, some_grad, keys = q[rows, queries], grad[rows, queries], _keys(k[rows], tile)
            logits, decay, slope = _logits(some_q, keys, span, tile, alphas[rows], scale, softcap)
            weights = logits.sub_(lse[rows, queries].unsqueeze(-1)).exp_()
            d_values = weights.mT @ some_grad
            d_scores = (some_grad @ _keys(v[rows], tile).mT).sub_(delta[rows, queries]).mul_(weights)
            d_scores.mul_(decay).mul_(scale)
            if slope is not None:
                d_scores.mul_(slope)
            dq[rows, queries] = d_scores @ keys
            for into, some in ((dk, d_scores.mT @ some_q), (dv, d_values)):
                into[rows, near] += some[:, tile.far :]
                into[rows, : tile.far] += some[:, : tile.far]
    return dq, dk, dv
