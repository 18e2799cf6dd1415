"""Strips of a span by batched matrix products: many small tiles of scores at once, forward and backward.

torch's CPU flash kernel takes 32 queries at a time where a strip has fewer than 192: such products run at a third of
the speed (analysis/span_speed). Here equal tiles of neighboring strips, or of several rows, share one batched product,
whose scores stay in the cache. No highest score is subtracted, so all keys of a span, whichever part of it they belong
to, add to the same sums: nothing is joined afterward.

Shape legend: N batch rows (batch and head), T tokens of a row, M keys of a row, D head width, B tiles of one product, C
queries of a tile, L its keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layersearch.model.attention.strips import Steps, StripGroup
from layersearch.model.attention.tiled import CACHED_SCORES, SAFE_MASS

MASKED_QUERIES = 64
"""Most queries of a tile with a mask: the scores of its unseen corners are computed too."""
FEWEST_TOKENS = 1024
"""Fewest tokens of a row: a batch of shorter rows is 2% to 20% faster by the flash kernel, while other programs run."""
MOST_KEYS = 512
"""Most keys of a tile without a mask. Measured, see analysis/span_speed: 256 are as fast, 1,024 are 10% slower."""


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
    hide: Callable[[Tiles, Tensor], None] | None = None  # sets weights (B, C, L) of a tile to 0 that no mask knows of

    def tiles(self, q: Tensor) -> tuple[Tiles, ...]:
        """Return the tiles of queries (N, T, D)."""
        return _tiles(self.plan, q.dtype, len(q), q.shape[1], self.keys.shape[1], self.blocks)


@dataclass(frozen=True)
class Tiles:
    """Equal tiles of one product, among the tokens of all rows one after another.

    Tile b holds queries [first + b*jump, ...) and keys [low + b*step, ...).
    """

    first: int
    count: int
    queries: int
    jump: int
    low: int
    keys: int
    step: int
    stride: int  # tokens between neighboring queries, and keys, of a tile
    caps: tuple[tuple[int, int, Tensor], ...]  # keys [start, end) of which some are unseen: inf where seen, else 0
    adds: bool  # the queries see other keys in earlier tiles
    apart: int  # tiles so far apart share no key
    row: int = 0
    index: Tensor | None = None  # blocks of the row that are the keys, one tile after another

    def of_queries(self, x: Tensor) -> Tensor:
        """View tokens (N, T, ...) as the tiles' queries, (B, C, ...)."""
        return _view(x, self.first, self.count, self.jump, self.queries, self.stride)

    def of_keys(self, x: Tensor) -> Tensor:
        """View keys (N, M, D) as the tiles' keys, which may overlap, (B, L, D)."""
        return _view(x, self.low, self.count, self.step, self.keys, self.stride)

    def hide(self, weights: Tensor, source: Source) -> None:
        """Set weights (B, C, L) of unseen keys to 0, infinite ones too."""
        for start, end, cap in self.caps:
            some = weights[:, :, start:end]
            torch.minimum(some, cap, out=some)
        if source.hide is not None:
            source.hide(self, weights)


def _view(x: Tensor, first: int, count: int, jump: int, size: int, stride: int) -> Tensor:
    width = x.shape[2]
    return x.as_strided((count, size, width), (jump * width, stride * width, 1), x.storage_offset() + first * width)


def _cut(part: StripGroup, dtype: torch.dtype, unit: int) -> Iterator[Tiles]:
    """Cut a group of strips into tiles whose scores fit the cache, without keys at either end that no query sees.

    Keys come in blocks of ``unit``, which stay whole.
    """
    masked = part.causal or part.mask is not None
    width = part.keys if masked else min(part.keys, max(unit, MOST_KEYS // unit * unit))
    most = max(16, CACHED_SCORES // max(width, 1) // 16 * 16)
    if masked:
        most = min(most, MASKED_QUERIES)
    for first in range(0, part.queries, most):
        last = min(first + most, part.queries)
        visible, low, high = _visible(part, first, last), 0, part.keys
        if visible is not None:
            seen = visible.any(0).nonzero().flatten()
            if not len(seen):
                continue
            # A start on a multiple of 16 keeps the keys aligned: faster products.
            low, high = int(seen[0]) // 16 * 16, int(seen[-1]) + 1
        for start in range(low, high, width):
            size = min(width, high - start)
            yield Tiles(
                first=part.first + first * part.stride,
                count=part.strips,
                queries=last - first,
                jump=1 if part.stride > 1 else part.queries,
                low=part.low + start * part.stride,
                keys=size,
                step=part.step,
                stride=part.stride,
                caps=() if visible is None else _caps(visible[:, start : start + size], dtype),
                adds=part.joins or start > low,
                apart=-(-size // part.step) if part.step and part.stride == 1 else 1,
            )


def _visible(part: StripGroup, first: int, last: int) -> Tensor | None:
    """Return which keys of a strip its queries [first, last) see, (C, L); None: all."""
    i, j = torch.arange(first, last)[:, None], torch.arange(part.keys)[None, :]
    if part.causal:
        return j <= i
    if part.mask is None:
        return None
    return part.mask.visible(i if isinstance(part.mask, Steps) else i + part.first - part.low, j)


def _caps(visible: Tensor, dtype: torch.dtype) -> tuple[tuple[int, int, Tensor], ...]:
    """Return the keys before and after the longest stretch that all queries see, with their caps."""
    size, begin, clear = visible.shape[1], 0, (0, 0)
    for key, seen in enumerate([*visible.all(0).tolist(), False]):
        if not seen:
            clear = max(clear, (begin, key), key=lambda stretch: stretch[1] - stretch[0])
            begin = key + 1
    sides = [(0, clear[0]), (clear[1], size)] if clear[1] else [(0, size)]
    cap = torch.zeros(visible.shape, dtype=dtype).masked_fill_(visible, torch.inf)
    return tuple((start, end, cap[:, start:end].contiguous()) for start, end in sides if start < end)


@functools.lru_cache(maxsize=64)
def _tiles(
    plan: tuple[StripGroup, ...],
    dtype: torch.dtype,
    rows: int,
    tokens: int,
    keys: int,
    blocks: tuple[int, tuple[int, ...]] | None,
) -> tuple[Tiles, ...]:
    """Cut strips into tiles of one product each."""
    found = []
    for part in plan:
        for tiles in _cut(part, dtype, 1 if blocks is None else blocks[0]):
            together = max(1, CACHED_SCORES // (tiles.queries * tiles.keys))
            if blocks is None and rows > tiles.count:
                # Short rows: the same tile of several rows.
                for at in range(tiles.count):
                    for row in range(0, rows, together):
                        found.append(
                            replace(
                                tiles,
                                first=row * tokens + tiles.first + at * tiles.jump,
                                low=row * keys + tiles.low + at * tiles.step,
                                count=min(together, rows - row),
                                jump=tokens,
                                step=keys,
                                apart=1,
                            )
                        )
                continue
            if together > tiles.apart:
                together = together // tiles.apart * tiles.apart
            for row in range(rows):
                for at in range(0, tiles.count, together):
                    count, index = min(together, tiles.count - at), None
                    if blocks is not None:
                        size, chosen = blocks
                        starts = [(tiles.low + tile * tiles.step) // size for tile in range(at, at + count)]
                        of_tiles = [chosen[start : start + tiles.keys // size] for start in starts]
                        index = torch.tensor([block for some in of_tiles for block in some])
                    found.append(
                        replace(
                            tiles,
                            first=row * tokens + tiles.first + at * tiles.jump,
                            low=row * keys + tiles.low + at * tiles.step,
                            count=count,
                            row=row,
                            index=index,
                        )
                    )
    return tuple(found)


class _Scratch:
    """Buffers that all tiles reuse: fresh memory costs as much as the product that fills it."""

    def __init__(self, q: Tensor, sources: Sequence[Source]) -> None:
        self.like = q
        sizes = (x.count * x.queries * x.keys for source in sources for x in source.tiles(q))
        self.largest = max(sizes, default=0)
        self.flat: dict[str, Tensor] = {}

    def scores(self, name: str, tiles: Tiles) -> Tensor:
        """Return a buffer for the scores of some tiles, (B, C, L)."""
        if name not in self.flat:
            self.flat[name] = self.like.new_empty(self.largest)
        return self.take(name, tiles.count, tiles.queries, tiles.keys)

    def take(self, name: str, *shape: int) -> Tensor:
        """Return a buffer in a shape of three dimensions."""
        size = shape[0] * shape[1] * shape[2]
        if name not in self.flat or len(self.flat[name]) < size:
            self.flat[name] = self.like.new_empty(size)
        return self.flat[name][:size].view(shape)

    def dense(self, name: str, some: Tensor, tiles: Tiles) -> Tensor:
        """Return queries or keys of some tiles, copied if a stride lies between them: else products are slow."""
        return some if tiles.stride == 1 else self.take(name, *some.shape).copy_(some)

    def add(self, into: Tensor, a: Tensor, b: Tensor, factor: float, tiles: Tiles) -> None:
        """Add factor * a @ b to the queries or keys of some tiles."""
        if tiles.stride == 1:
            into.baddbmm_(a, b, alpha=factor)
        else:
            into.add_(torch.bmm(a, b, out=self.take("product", *into.shape)), alpha=factor)


def _blocks(x: Tensor, size: int) -> Tensor:
    """View the whole blocks of a row (M, D) as rows, (M / size, size * D)."""
    return x[: len(x) // size * size].view(-1, size * x.shape[1])


def _held(source: Source, tiles: Tiles, scratch: _Scratch) -> list[Tensor]:
    """Return the keys and values of some tiles, (B, L, D) each."""
    given = {"keys": source.keys, "values": source.values}
    if source.blocks is None or tiles.index is None:
        return [scratch.dense(name, tiles.of_keys(x), tiles) for name, x in given.items()]
    size, found = source.blocks[0], []
    for name, x in given.items():
        out = scratch.take(name, tiles.count, tiles.keys, x.shape[2])
        torch.index_select(_blocks(x[tiles.row], size), 0, tiles.index, out=out.view(len(tiles.index), -1))
        found.append(out)
    return found


def _give(
    source: Source, tiles: Tiles, into: Tensor, weights: Tensor, rows: Tensor, factor: float, scratch: _Scratch
) -> None:
    """Add factor * weights^T rows to the gradients of the tiles' keys, (N, M, D)."""
    if source.blocks is not None and tiles.index is not None:
        some = torch.bmm(weights.mT, rows, out=scratch.take("product", tiles.count, tiles.keys, rows.shape[2]))
        blocks = _blocks(into[tiles.row], source.blocks[0])
        blocks.index_add_(0, tiles.index, some.view(len(tiles.index), -1), alpha=factor)
        return
    target = tiles.of_keys(into)
    for at in range(min(tiles.apart, tiles.count)):
        each = slice(at, None, tiles.apart)  # these share no key, so that writes never overlap
        scratch.add(target[each], weights[each].mT, rows[each], factor, tiles)


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
        for source in sources:
            for tiles in source.tiles(q):
                keys, values = _held(source, tiles, scratch)
                p = scratch.scores("scores", tiles)
                some_q = scratch.dense("queries", tiles.of_queries(q), tiles)
                torch.baddbmm(p, some_q, keys.mT, beta=0, alpha=scale, out=p).exp_()
                tiles.hide(p, source)
                into, sums = tiles.of_queries(out), tiles.of_queries(mass)
                if tiles.adds or source is not fresh:
                    sums.add_(p.sum(-1, keepdim=True))
                    scratch.add(into, p, values, 1.0, tiles)
                else:
                    torch.sum(p, -1, keepdim=True, out=sums)
                    torch.bmm(p, values, out=into)
        if not bool(((mass > SAFE_MASS[0]) & (mass < SAFE_MASS[1])).all()):
            return None
        out.div_(mass)
        mass.log_()
    return out, mass.squeeze(-1)


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
        delta, lse = (grad * out).sum(-1, keepdim=True), lse.unsqueeze(-1)
        scratch = _Scratch(q, sources)
        for source in sources:
            assert source.gradients is not None
            dk, dv = source.gradients
            for tiles in source.tiles(q):
                keys, values = _held(source, tiles, scratch)
                some_q = scratch.dense("queries", tiles.of_queries(q), tiles)
                some_grad = scratch.dense("gradients", tiles.of_queries(grad), tiles)
                p, ds = scratch.scores("scores", tiles), scratch.scores("their gradients", tiles)
                torch.baddbmm(p, some_q, keys.mT, beta=0, alpha=scale, out=p)
                p.sub_(tiles.of_queries(lse)).exp_()
                tiles.hide(p, source)
                _give(source, tiles, dv, p, some_grad, 1.0, scratch)
                torch.bmm(some_grad, values.mT, out=ds)
                ds.sub_(tiles.of_queries(delta)).mul_(p)
                into = tiles.of_queries(dq)
                if tiles.adds or source is not fresh:
                    scratch.add(into, ds, keys, scale, tiles)
                else:
                    torch.baddbmm(into, ds, keys, beta=0, alpha=scale, out=into)
                _give(source, tiles, dk, ds, some_q, scale, scratch)
    return dq
