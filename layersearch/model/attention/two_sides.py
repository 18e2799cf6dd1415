"""Gradients of wide windows in encoders, by the tiles of a causal window, where products do not serve them.

Strips are as fast in the forward pass.

Query i of a window with W keys on each side sees keys i-W ... i+W. So does query i+W of a causal window of 2W+1 keys.
All queries but the last W therefore move on by W tokens, behind W empty ones, whose gradients are 0. The last W go
by strips, and so do pairs with global tokens.

Shape legend: N batch rows (batch and head), T tokens, D head width.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from layersearch.model.attention import strips, tiled, union
from layersearch.model.attention.strips import BothWays, StripGroup
from layersearch.schedule import Span

FEWEST_WINDOWS = 4
"""Windows' sides that a text has at least: the empty queries cost less than an eighth of it."""


def serves(span: Span, tokens: int, least: int) -> bool:
    """Return whether a span, as `effective_span` returns it, is a window of at least ``least`` keys for tiles."""
    size = span.size or 0
    return span.kind == "window" and 2 * size + 1 >= least and tokens >= FEWEST_WINDOWS * size


@functools.lru_cache(maxsize=64)
def _rest(span: Span, tokens: int) -> tuple[StripGroup, ...]:
    """Cut the pairs of the last W queries, and those beyond the window of a global token, into strips."""
    assert span.size is not None
    size = span.size
    mask = BothWays(Span(kind="window", size=size))
    last = StripGroup(tokens - size, 1, size, tokens - 2 * size, 2 * size, 0, mask, False)
    return (last, *union.global_strips(span, tokens))


def _back(x: Tensor, size: int) -> Tensor:
    """Move all tokens but the last W on by W, behind zeros: (N, T, ...) -> same."""
    return F.pad(x[:, : x.shape[1] - size], (0,) * (2 * x.ndim - 4) + (size, 0))


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, span: Span, scale: float, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v; all are (N, T, D), ``lse`` is (N, T), over all keys of a query."""
    assert span.size is not None
    size, none = span.size, q.new_empty(len(q), 0, q.shape[2])
    moved = {"lse": lse, "delta": (grad * out).sum(dim=-1), "grad": grad}
    named = {name: _back(x, size) for name, x in moved.items()}
    band = tiled.Band(span=Span(kind="window", size=2 * size + 1), softcap=softcap)
    near, dk, dv, *_ = tiled.backward(_back(q, size), k, v, none, none, **named, band=band, scale=scale)
    dq = torch.empty_like(q)
    dq[:, : q.shape[1] - size] = near[:, size:]
    rest = _rest(span, q.shape[1])
    return strips.backward(grad, q, k, v, out, lse, rest, scale, softcap=softcap, begun=(dq, dk, dv))
