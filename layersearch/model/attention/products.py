"""Strips of a span by batched matrix products: many small tiles of scores at once, forward and backward.

torch's CPU flash kernel takes 32 queries at a time where a strip has fewer than 192: such products run at a third of
the speed (analysis/span_speed). Here equal tiles of neighboring strips, or of several rows, share one batched product,
whose scores stay in the cache. No highest score is subtracted, so all keys of a span, whichever part of it they belong
to, add to the same sums: nothing is joined afterward.

Shape legend: N batch rows (batch and head), T tokens of a row, M keys of a row, D head width, B tiles of one product, C
queries of a tile, L its keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layersearch.model.attention.product_tiles import Tiles, tiles_of
from layersearch.model.attention.strips import StripGroup
from layersearch.model.attention.tiled import SAFE_MASS

FEWEST_TOKENS = 1024
"""Fewest tokens of a row: a batch of shorter rows is 2% to 20% faster by the flash kernel, while other programs run."""
DELTA_TOKENS = 1 << 10
"""Tokens whose output and its gradient are multiplied at once, so that the product stays in the cache."""


def serves(q: Tensor, softcap: float) -> bool:
    """Return whether queries (..., T, D), in float32 or wider, go by these products: on CPU, without a softcap."""
    return q.device.type == "cpu" and softcap == 0 and q.shape[-2] >= FEWEST_TOKENS


@dataclass(frozen=True)
class Source:
    """Keys and values of some strips, (N, M, D) each and contiguous, and in the backward pass their gradients."""

    plan: tuple[StripGroup, ...]
    keys: Tensor
    values: Tensor
    blocks: tuple[int, tuple[int, ...]] | None = None  # a strip's keys are these blocks of so many tokens
    gradients: tuple[Tensor, Tensor] | None = None  # added to
    # Sets weights (B, C, L) of a product's tiles to 0 that no mask knows of; the product is given by its number.
    hide: Callable[[Tiles, int, Tensor], None] | None = None

    def tiles(self, q: Tensor) -> tuple[Tiles, ...]:
        """Return the tiles of queries (N, T, D)."""
        return tiles_of(self.plan, q.dtype, len(q), q.shape[1], self.keys.shape[1], self.blocks)


class _Scratch:
    """Buffers that all tiles reuse: fresh memory costs as much as the product that fills it."""

    def __init__(self, q: Tensor, sources: Sequence[Source]) -> None:
        self.like = q
        self.tiles = [(source, tiles) for source in sources for tiles in source.tiles(q)]
        self.scores = max((x.count * x.queries * x.keys for _, x in self.tiles), default=0)
        copied = [x for _, x in self.tiles if x.chosen or x.stride > 1]
        self.tokens = max((x.count * max(x.queries, x.keys) for x in copied), default=0) * q.shape[2]
        self.flat: dict[str, Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def take(self, name: str, *shape: int, scores: bool = False) -> Tensor:
        """Return a buffer in a shape of tokens (B, C, D), or of scores (B, C, L)."""
        if (name, shape) not in self.views:
            if name not in self.flat:
                self.flat[name] = self.like.new_empty(self.scores if scores else self.tokens)
            self.views[name, shape] = self.flat[name][: math.prod(shape)].view(shape)
        return self.views[name, shape]

    def dense(self, name: str, some: Tensor, tiles: Tiles) -> Iterator[Tensor]:
        """Yield the tokens (P, B, C, D) of each product, copied if a stride makes its products slow."""
        if tiles.stride == 1:
            yield from some.unbind()
            return
        buffer = self.take(name, *some.shape[1:])
        for x in some.unbind():
            yield buffer.copy_(x)

    def held(self, name: str, x: Tensor, source: Source, tiles: Tiles) -> Iterator[Tensor]:
        """Yield the keys or values of each product, of those of all rows (N, M, D)."""
        if source.blocks is None:
            yield from self.dense(name, tiles.of_keys(x), tiles)
            return
        blocks, buffer = _blocks(x[tiles.row], source.blocks[0]), self.take(name, tiles.count, tiles.keys, x.shape[2])
        into = buffer.view(-1, blocks.shape[1])
        for index in tiles.chosen:
            torch.index_select(blocks, 0, index, out=into)
            yield buffer


def _blocks(x: Tensor, size: int) -> Tensor:
    """View the whole blocks of a row (M, D) as rows, (M / size, size * D)."""
    return x[: len(x) // size * size].view(-1, size * x.shape[1])


class _KeyGradients:
    """Where some tiles add to the gradients of keys or of values, (N, M, D)."""

    def __init__(
        self,
        into: Tensor,
        weights: Tensor,
        rows: Tensor,
        factor: float,
        source: Source,
        tiles: Tiles,
        scratch: _Scratch,
    ) -> None:
        """Prepare to add factor * weights^T rows; ``weights`` (B, L, C) are those of each product in turn."""
        self.weights, self.factor, self.chosen = weights, factor, tiles.chosen
        self.copies = source.blocks is not None or tiles.stride > 1
        if self.copies:
            self.buffer = scratch.take("given", tiles.count, tiles.keys, into.shape[2])
        if source.blocks is not None:
            self.blocks = _blocks(into[tiles.row], source.blocks[0])
            self.by_block = self.buffer.view(-1, self.blocks.shape[1])
        elif self.copies:
            self.targets = tiles.of_keys(into).unbind()
        else:
            (by_part,) = tiles.apart_in(weights.unsqueeze(0))
            by_key, by_query = (tiles.apart_in(x) for x in (tiles.of_keys(into), tiles.of_queries(rows)))
            self.shares = [
                list(zip(targets, by_part, some, strict=True)) for targets, some in zip(by_key, by_query, strict=True)
            ]

    def add(self, product: int, rows: Tensor) -> None:
        """Add a product's share, from its queries' rows (B, C, D)."""
        if not self.copies:
            for target, weights, some in self.shares[product]:
                target.baddbmm_(weights, some, alpha=self.factor)
            return
        torch.bmm(self.weights, rows, out=self.buffer)
        if self.chosen:
            self.blocks.index_add_(0, self.chosen[product], self.by_block, alpha=self.factor)
        else:
            self.targets[product].add_(self.buffer, alpha=self.factor)


def forward(
    q: Tensor, sources: Sequence[Source], scale: float, begun: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor] | None:
    """Attend over strips; ``scale`` multiplies the logits.

    Args:
        q: queries, (N, T, D), contiguous.
        sources: the strips. Every query is in the first source's, or has a key in ``begun``.
        scale: multiplies the logits.
        begun: output (N, T, D) and log-sum-exp (N, T) over other keys, which do not change.

    Returns:
        The output (N, T, D) and the log-sum-exp of each query's logits (N, T), or None where a sum of exponentials
        nears the ends of the range.
    """
    fresh = sources[0] if begun is None else None
    if begun is None:
        out, mass = torch.empty_like(q), q.new_empty(*q.shape[:2], 1)
    else:
        mass = begun[1].exp().unsqueeze(-1)
        out = begun[0] * mass
    with torch.inference_mode():  # outside, each view records its base
        scratch = _Scratch(q, sources)
        for source, tiles in scratch.tiles:
            p = scratch.take("scores", tiles.count, tiles.queries, tiles.keys, scores=True)
            hidden = [(p[:, :, x.start : x.end], x.cap) for x in tiles.hidden]
            adds, copies = tiles.adds or source is not fresh, tiles.stride > 1
            views = zip(
                scratch.dense("queries", tiles.of_queries(q), tiles),
                scratch.held("keys", source.keys, source, tiles),
                scratch.held("values", source.values, source, tiles),
                tiles.of_queries(out).unbind(),
                tiles.of_queries(mass).unbind(),
                strict=True,
            )
            for product, (some_q, keys, values, into, sums) in enumerate(views):
                torch.baddbmm(p, some_q, keys.mT, beta=0, alpha=scale, out=p).exp_()
                for some, cap in hidden:
                    torch.minimum(some, cap, out=some)
                if source.hide is not None:
                    source.hide(tiles, product, p)
                if adds:
                    sums.add_(p.sum(-1, keepdim=True))
                else:
                    torch.sum(p, -1, keepdim=True, out=sums)
                if copies:
                    some_out = torch.bmm(p, values, out=scratch.take("given", *into.shape))
                    into.add_(some_out) if adds else into.copy_(some_out)
                elif adds:
                    into.baddbmm_(p, values)
                else:
                    torch.bmm(p, values, out=into)
        if not bool(((mass > SAFE_MASS[0]) & (mass < SAFE_MASS[1])).all()):
            return None
        out.div_(mass)
        mass.log_()
    return out, mass.squeeze(-1)


def _deltas(grad: Tensor, out: Tensor) -> Tensor:
    """Return the inner product of each output and its gradient: (N, T, D) each -> (N, T, 1)."""
    found = out.new_empty(*out.shape[:2], 1)
    rows = [torch.split(x.view(-1, x.shape[2]), DELTA_TOKENS) for x in (grad, out, found)]
    buffer = torch.empty_like(rows[0][0])
    for some, of_out, into in zip(*rows, strict=True):
        torch.sum(torch.mul(some, of_out, out=buffer[: len(some)]), -1, keepdim=True, out=into)
    return found


def backward(
    grad: Tensor,
    q: Tensor,
    out: Tensor,
    lse: Tensor,
    sources: Sequence[Source],
    scale: float,
    begun: Tensor | None = None,
) -> Tensor:
    """Return the gradients of q, (N, T, D), and add those of keys and values to the sources' own.

    The weights are recomputed (2205.14135, appendix B.2). ``grad`` is the gradient of the output. ``begun``, to which
    the gradients are added, are those of q over other keys. Other arguments as of `forward`, and as it returns them.
    """
    dq, fresh = (torch.empty_like(q), sources[0]) if begun is None else (begun, None)
    with torch.inference_mode():
        scratch, lse, delta = _Scratch(q, sources), lse.unsqueeze(-1), _deltas(grad, out)
        for source, tiles in scratch.tiles:
            assert source.gradients is not None
            # Scores stored key by key: the products for keys and values are faster.
            p, ds = (
                scratch.take(x, tiles.count, tiles.keys, tiles.queries, scores=True)
                for x in ("scores", "their gradients")
            )
            by_query, ds_by_query = p.mT, ds.mT
            hidden = [(p[:, x.start : x.end], x.cap_by_key) for x in tiles.hidden]
            kept, copies = float(tiles.adds or source is not fresh), tiles.stride > 1
            given = [
                _KeyGradients(into, weights, rows, factor, source, tiles, scratch)
                for into, weights, rows, factor in zip(source.gradients, (ds, p), (q, grad), (scale, 1.0), strict=True)
            ]
            views = zip(
                scratch.dense("queries", tiles.of_queries(q), tiles),
                scratch.dense("gradients", tiles.of_queries(grad), tiles),
                tiles.of_queries(lse).mT.unbind(),
                tiles.of_queries(delta).mT.unbind(),
                tiles.of_queries(dq).unbind(),
                scratch.held("keys", source.keys, source, tiles),
                scratch.held("values", source.values, source, tiles),
                strict=True,
            )
            for product, (some_q, some_grad, sums, some_delta, into, keys, values) in enumerate(views):
                torch.baddbmm(p, keys, some_q.mT, beta=0, alpha=scale, out=p).sub_(sums).exp_()
                for some, cap in hidden:
                    torch.minimum(some, cap, out=some)
                if source.hide is not None:
                    source.hide(tiles, product, by_query)
                torch.bmm(values, some_grad.mT, out=ds).sub_(some_delta).mul_(p)
                given[1].add(product, some_grad)
                given[0].add(product, some_q)
                if copies:
                    some_dq = torch.bmm(ds_by_query, keys, out=scratch.take("given", *into.shape))
                    into.add_(some_dq, alpha=scale) if kept else torch.mul(some_dq, scale, out=into)
                else:
                    into.baddbmm_(ds_by_query, keys, beta=kept, alpha=scale)
    return dq
