"""Strips of queries and keys cut into equal tiles, which one batched matrix product takes together.

Shape legend: N batch rows (batch and head), T tokens of a row, M keys of a row, D width of a token, P products of equal
tiles, B tiles of one product, C queries of a tile, L its keys.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layersearch.model.attention.strips import Steps, StripGroup
from layersearch.model.attention.tiled import CACHED_SCORES

MASKED_QUERIES, WIDE_MASKED_QUERIES = 64, 96
"""Most queries of a tile with a mask, and of one with many keys: the scores of its unseen corners are computed too."""
FEW_KEYS = 32
"""Most keys of a tile that has all queries despite a mask: the scores that it wastes cost less than more tiles."""
WIDE_KEYS = 1024
"""Fewest keys of such a wide tile."""
MOST_KEYS = 512
"""Most keys of a tile without a mask. Measured, see analysis/span_speed: 256 are as fast, 1,024 are 10% slower."""
COPIED_TOKENS = 3 << 9
"""Most queries and keys of a product that are copied first: the copies stay in the cache beside the scores."""


@dataclass(frozen=True)
class Hidden:
    """Keys [start, end) of a tile of which some queries see only some: inf where seen, else 0."""

    start: int
    end: int
    cap: Tensor  # (C, L)
    cap_by_key: Tensor  # (L, C)


@dataclass(frozen=True)
class Tiles:
    """Products of equal tiles, among the tokens of all rows one after another.

    Tile b of product p holds queries [first + p*onward + b*jump, ...) and keys [low + p*along + b*step, ...).
    """

    products: int
    first: int
    onward: int
    count: int
    queries: int
    jump: int
    low: int
    along: int
    keys: int
    step: int
    stride: int  # tokens between neighboring queries, and keys, of a tile
    hidden: tuple[Hidden, ...]
    adds: bool  # the queries see other keys in earlier tiles
    apart: int  # tiles of a product so far apart share no key
    row: int = 0
    chosen: tuple[Tensor, ...] = ()  # for each product the blocks of the row that are its keys, one tile after another

    def of_queries(self, x: Tensor) -> Tensor:
        """View tokens (N, T, D) as the queries of all tiles, (P, B, C, D)."""
        return self._view(x, self.first, self.onward, self.jump, self.queries)

    def of_keys(self, x: Tensor) -> Tensor:
        """View keys (N, M, D) as the tiles' keys, which may overlap, (P, B, L, D)."""
        return self._view(x, self.low, self.along, self.step, self.keys)

    def _view(self, x: Tensor, first: int, onward: int, jump: int, size: int) -> Tensor:
        width = x.shape[2]
        return x.as_strided(
            (self.products, self.count, size, width),
            (onward * width, jump * width, self.stride * width, 1),
            x.storage_offset() + first * width,
        )

    def apart_in(self, tiles: Tensor) -> list[tuple[Tensor, ...]]:
        """Cut the tiles (P, B, ...) of each product into parts that share no key, so that writes never overlap."""
        if self.apart == 1:
            return [(x,) for x in tiles.unbind()]
        if self.apart < self.count:
            return list(zip(*(tiles[:, at :: self.apart].unbind() for at in range(self.apart)), strict=True))
        # One tile each. If all are evenly spaced, their views are made at once.
        if self.products > 1 and tiles.stride(0) != self.count * tiles.stride(1):
            return list(zip(*(tiles[:, at : at + 1].unbind() for at in range(self.count)), strict=True))
        one = tiles.view(-1, 1, *tiles.shape[2:]).unbind()
        return [one[at : at + self.count] for at in range(0, len(one), self.count)]


def masked_queries(keys: int) -> int:
    """Return how many queries a tile with a mask and so many keys has at most."""
    if keys <= FEW_KEYS:
        return CACHED_SCORES // FEW_KEYS
    return MASKED_QUERIES if keys < WIDE_KEYS else WIDE_MASKED_QUERIES


def cut(part: StripGroup, dtype: torch.dtype, unit: int = 1) -> Iterator[Tiles]:
    """Cut a group of strips into tiles whose scores fit the cache, without keys at either end that no query sees.

    Keys come in blocks of ``unit``, which stay whole. Each yields one product of all strips.
    """
    masked = part.causal or part.mask is not None
    width = part.keys if masked else min(part.keys, max(unit, MOST_KEYS // unit * unit))
    most = max(16, CACHED_SCORES // max(width, 1) // 16 * 16)
    if masked:
        most = min(most, masked_queries(width))
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
                products=1,
                first=part.first + first * part.stride,
                onward=0,
                count=part.strips,
                queries=last - first,
                jump=1 if part.stride > 1 else part.queries,
                low=part.low + start * part.stride,
                along=0,
                keys=size,
                step=part.step,
                stride=part.stride,
                hidden=() if visible is None else _hidden(visible[:, start : start + size], dtype),
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


def _hidden(visible: Tensor, dtype: torch.dtype) -> tuple[Hidden, ...]:
    """Return the keys before and after the longest stretch that all queries see, with their caps."""
    size, begin, clear = visible.shape[1], 0, (0, 0)
    for key, seen in enumerate([*visible.all(0).tolist(), False]):
        if not seen:
            clear = max(clear, (begin, key), key=lambda stretch: stretch[1] - stretch[0])
            begin = key + 1
    sides = [(0, clear[0]), (clear[1], size)] if clear[1] else [(0, size)]
    cap = torch.zeros(visible.shape, dtype=dtype).masked_fill_(visible, torch.inf)
    caps = [(start, end, cap[:, start:end]) for start, end in sides if start < end]
    return tuple(Hidden(start, end, some.contiguous(), some.t().contiguous()) for start, end, some in caps)


@functools.lru_cache(maxsize=64)
def tiles_of(
    plan: tuple[StripGroup, ...],
    dtype: torch.dtype,
    rows: int,
    tokens: int,
    keys: int,
    blocks: tuple[int, tuple[int, ...]] | None,
) -> tuple[Tiles, ...]:
    """Cut strips of rows (rows, tokens), against so many keys a row, into products that fit the cache."""
    found: list[Tiles] = []
    for part in plan:
        for tiles in cut(part, dtype, 1 if blocks is None else blocks[0]):
            together = max(1, CACHED_SCORES // (tiles.queries * tiles.keys))
            if blocks is not None or tiles.stride > 1:
                together = max(1, min(together, COPIED_TOKENS // max(tiles.queries, tiles.keys)))
            if blocks is None and rows > tiles.count:
                # Short rows: the same tile of several rows.
                for at in range(tiles.count):
                    first, low = tiles.first + at * tiles.jump, tiles.low + at * tiles.step
                    same = replace(tiles, first=first, low=low, count=rows, jump=tokens, step=keys, apart=1)
                    found += _products(same, together)
                continue
            if together > tiles.apart:
                together = together // tiles.apart * tiles.apart
            for some in _products(tiles, together):
                for row in range(rows):
                    moved = replace(some, first=row * tokens + some.first, low=row * keys + some.low)
                    found.append(moved if blocks is None else _choose(moved, row, some.low, *blocks))
    return tuple(_merge(found))


def _products(tiles: Tiles, together: int) -> list[Tiles]:
    """Cut the tiles of one product into products of so many, and one of the rest."""
    products, rest = divmod(tiles.count, together)
    onward, along = together * tiles.jump, together * tiles.step
    found = []
    if products:
        found.append(replace(tiles, products=products, count=together, onward=onward, along=along))
    if rest:
        first, low = tiles.first + products * onward, tiles.low + products * along
        found.append(replace(tiles, first=first, low=low, count=rest))
    return found


def _choose(tiles: Tiles, row: int, low: int, size: int, chosen: tuple[int, ...]) -> Tiles:
    """Return tiles of a row whose keys, from place ``low`` on, are the chosen blocks of ``size``, one by one."""
    indices = []
    for product in range(tiles.products):
        starts = [(low + product * tiles.along + tile * tiles.step) // size for tile in range(tiles.count)]
        of_tiles = [chosen[start : start + tiles.keys // size] for start in starts]
        indices.append(torch.tensor([block for some in of_tiles for block in some]))
    return replace(tiles, row=row, chosen=tuple(indices))


def _merge(found: list[Tiles]) -> list[Tiles]:
    """Join products of equal tiles that follow one another at even steps."""
    merged: list[Tiles] = []
    for tiles in found:
        last = merged.pop() if merged else None
        joined = None if last is None else _join(last, tiles)
        merged += [x for x in (joined or last, None if joined else tiles) if x is not None]
    return merged


def _join(last: Tiles, tiles: Tiles) -> Tiles | None:
    """Return products and another one together, if it follows them at even steps; masks are those of one tile."""
    if tiles.products > 1 or last.hidden is not tiles.hidden or tiles.chosen:
        return None
    if last.products == 1:
        last = replace(last, onward=tiles.first - last.first, along=tiles.low - last.low)
    first, low = last.first + last.products * last.onward, last.low + last.products * last.along
    moved = replace(last, products=1, first=first, onward=tiles.onward, low=low, along=tiles.along)
    return replace(last, products=last.products + 1) if moved == tiles else None
