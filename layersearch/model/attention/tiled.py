"""Attention over a band of keys, one tile of scores at a time, forward and backward.

The problem is one dense band on independent rows of a batch. `operator` has already split heads, expanded grouped keys,
and dealt the tokens of a dilated window into one row per residue.

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

# All measured, see analysis/span_speed. Scores held at once: two float32 buffers of this size stay in a second-level
# cache of 2 MB.
CACHED_SCORES = 1 << 17
# Queries of a tile. A window of W keys computes W + C scores per query, so short windows want few queries. But matrix
# products below 32 rows run at a third of the speed.
FEWEST_QUERIES, SOME_QUERIES, MOST_QUERIES = 32, 64, 128
# Decays are taken in base 2. Over long distances they underflow: exp then takes 5 to 40 times as long on a CPU,
# and exp2 does not.
LOG2_E = math.log2(math.e)
# Within this range, sums of exponentials and their products with values keep their precision in float32.
SAFE_MASS = 2.0**-60, 2.0**60


@dataclass(frozen=True, kw_only=True)
class Band:
    """The keys that each row of the batch sees."""

    span: Span  # undilated and without sinks, in tokens of a row
    stride: int = 1  # distance D between neighboring tokens of a row in the text; row r holds the residue r mod D
    alphas: Tensor | None = None  # LaS decay per row and token of the text, (N, 1, 1)
    sinks: Span | None = None  # the span in tokens of the text, if it has sinks
    softcap: float = 0.0  # scaled logits z become softcap tanh(z / softcap), before a decay; 0: they stay


@dataclass(frozen=True)
class _Tile:
    """Queries [first, last) against keys [low, last), and sinks; or a run of such tiles, evenly spaced."""

    first: int
    last: int
    low: int
    run: int = 1  # tiles of the run; they share buffers and masks, and their views are made together
    step: int = 0  # distance from one tile to the next, in tokens

    def at(self, index: int) -> _Tile:
        """Return a tile of the run, or the one that would follow it."""
        moved = index * self.step
        return _Tile(self.first + moved, self.last + moved, self.low + moved)

    def cut(self, first: int, *tensors: Tensor, last: int | None = None) -> list[tuple[Tensor, ...]]:
        """View each tensor (N, T, ...) at tokens [first, last) of the first tile and, one step on, of each other."""
        views, size = [], (last or self.last) - first
        for x in tensors:
            rows, token, value = x.stride()
            shape, strides = (self.run, len(x), size, x.shape[2]), (self.step * token, rows, token, value)
            views.append(x.as_strided(shape, strides, x.storage_offset() + first * token).unbind())
        return views


def _tiles(span: Span, tokens: int) -> Iterator[_Tile]:
    """Cut a span into tiles: some queries, with the keys that any of them sees."""
    size = tokens if span.size is None else min(span.size, tokens)
    if span.offset:
        # The first block is the end of one; the others follow as in a text of their own.
        start = min((span.size or 0) - span.offset, tokens)
        yield from _tiles(Span(kind="block", size=start), start)
        for tile in _tiles(replace(span, offset=0), tokens - start):
            yield _Tile(tile.first + start, tile.last + start, tile.low + start)
        return
    if span.kind == "block":
        # A tile holds several whole blocks, or part of one.
        if 2 * size <= MOST_QUERIES:
            step = MOST_QUERIES // (2 * size) * size
            for first in range(0, tokens, step):
                yield _Tile(first, min(first + step, tokens), first)
            return
        most = min(size, MOST_QUERIES)
        # Tiles at the same place of their blocks are alike, so they follow one another.
        for place in range(0, size, most):
            for low in range(0, tokens - place, size):
                yield _Tile(low + place, min(low + min(place + most, size), tokens), low)
        return
    rows = min(SOME_QUERIES, size // 64 * 16) if size < 5 * SOME_QUERIES else min(MOST_QUERIES, size // 80 * 16)
    rows = max(FEWEST_QUERIES, min(rows, 4 * CACHED_SCORES // size))
    for first in range(0, tokens, rows):
        # A start on a multiple of 16 keeps the keys aligned and their number round: faster products.
        low = 0 if span.size is None else max(0, first - size + 1) // 16 * 16
        yield _Tile(first, min(first + rows, tokens), low)


@functools.lru_cache(maxsize=64)
def _runs(span: Span, tokens: int) -> tuple[_Tile, ...]:
    """Cut a span into runs of equal tiles."""
    runs: list[_Tile] = []
    for tile in _tiles(span, tokens):
        if runs:
            run = runs[-1] if runs[-1].run > 1 else replace(runs[-1], step=tile.first - runs[-1].first)
            if run.at(run.run) == tile:
                runs[-1] = replace(run, run=run.run + 1)
                continue
        runs.append(tile)
    return tuple(runs)


@functools.lru_cache(maxsize=256)
def _cap(
    span: Span, first: int, last: int, low: int, high: int, unseen: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return inf where queries [first, last) see keys [low, high), else ``unseen``: (C, S)."""
    queries = torch.arange(first, last, device=device)[:, None]
    visible: Tensor = span.visible(queries, torch.arange(low, high, device=device)[None, :])
    return torch.full(visible.shape, torch.inf, dtype=dtype, device=device).masked_fill_(~visible, unseen)


def _doubtful(scores: Tensor, span: Span, tile: _Tile, low: int, unseen: float) -> list[tuple[Tensor, Tensor]]:
    """Return the regions of the scores (N, C, S) of keys [low, low+S) that hold unseen keys, each with its caps."""
    high = low + scores.shape[-1]
    first, last = tile.first, tile.last
    # A span looks the same along the text, so positions count from the tile's first key or query: one mask serves all
    # tiles. Keys are unseen only near either edge of the span.
    if span.kind == "block":
        # A tile begins with a block, whatever the offset.
        regions, origin, span = [(low, high)], tile.low, replace(span, offset=0)
    else:
        origin = first - first % 16 if span.kind == "full" else tile.low
        far = tile.low if span.size is None else min(last - span.size, high)
        near = max(first + 1, low)
        regions = [(low, high)] if far > near else [(low, far), (near, high)]
    return [
        (
            scores[:, :, start - low : end - low],
            _cap(span, *(x - origin for x in (first, last, start, end)), unseen, scores.device, scores.dtype),
        )
        for start, end in regions
        if start < end
    ]


def _text_positions(band: Band, tile: _Tile, rows: slice, device: torch.device) -> Tensor:
    """Return the positions in the text of a tile's queries, by row: (N, C, 1)."""
    residue = (torch.arange(rows.start, rows.stop, device=device) % band.stride)[:, None, None]
    return torch.arange(tile.first, tile.last, device=device)[None, :, None] * band.stride + residue


def _hide_sinks(scores: Tensor, band: Band, tile: _Tile, rows: slice) -> None:
    """Set to -inf, in place, the sinks (N, C, G) that follow their query or that the band sees itself."""
    count = scores.shape[-1]
    if tile.low * band.stride >= count or band.sinks is None:
        return
    queries, keys = _text_positions(band, tile, rows, scores.device), torch.arange(count, device=scores.device)
    base = replace(band.sinks, sink=0)
    scores.masked_fill_(~band.sinks.visible(queries, keys) | base.visible(queries, keys), -torch.inf)


class _Scratch:
    """Score-sized buffers that tiles reuse: a fresh allocation costs as much as the product that fills it."""

    def __init__(self, like: Tensor, scores: int, by_key: bool, unseen: float, capped: bool) -> None:
        self.buffers = like.new_empty((4 if capped else 3, scores))
        self.unseen = unseen
        # The backward pass stores scores key by key: four of its five products are then faster.
        self.by_key = by_key
        self.stages: dict[tuple[int, ...], _Stage] = {}

    def stage(self, band: Band, tile: _Tile, rows: int, sinks: int, low: int, high: int) -> _Stage:
        """Return the buffers for the scores of a tile's queries and its keys [low, high), after those of the sinks."""
        queries, keys = tile.last - tile.first, sinks + high - low
        place = (rows, queries, keys, sinks, tile.first - tile.low, low - tile.low)
        if place not in self.stages:
            flat = self.buffers[:, : rows * queries * keys]
            shaped = flat.view(-1, rows, keys, queries).mT if self.by_key else flat.view(-1, rows, queries, keys)
            p, ds, decay = shaped[:3]
            doubtful = _doubtful(p[:, :, sinks:], band.span, tile, low, self.unseen) if high > low else []
            if self.by_key:
                doubtful = [(part, cap.t().contiguous().t()) for part, cap in doubtful]
            self.stages[place] = _Stage(p, ds, decay, shaped[-1], doubtful)
        return self.stages[place]


class _Stage:
    """Buffers (N, C, S) in the shape of one tile, shared by all equal tiles, and their views."""

    def __init__(
        self, p: Tensor, ds: Tensor, decay: Tensor, slope: Tensor, doubtful: list[tuple[Tensor, Tensor]]
    ) -> None:
        self.p, self.ds, self.decay, self.slope = p, ds, decay, slope
        self.p_by_key, self.ds_by_key = self.p.transpose(1, 2), self.ds.transpose(1, 2)
        self._doubtful = doubtful

    def cap(self, softcap: float, *, slope: bool) -> None:
        """Squash ``p`` to softcap tanh(p / softcap); keep the derivative in ``slope``, if it is wanted."""
        self.p.div_(softcap).tanh_()
        if slope:
            torch.mul(self.p, self.p, out=self.slope).neg_().add_(1.0)
        self.p.mul_(softcap)

    def hide(self) -> None:
        """Set ``p`` to the scratch's ``unseen`` at unseen keys, and leave it elsewhere."""
        for part, cap in self._doubtful:
            torch.minimum(part, cap, out=part)


def _plan(band: Band, rows: int, tokens: int, sinks: int) -> tuple[tuple[_Tile, ...], int, int]:
    """Return the runs of tiles, the batch rows processed together, and the scores of the largest tile."""
    runs = _runs(band.span, tokens)
    largest = max((run.last - run.first) * (run.last - run.low + sinks) for run in runs)
    together = max(1, min(rows, CACHED_SCORES // largest))
    return runs, together, together * largest


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
    queries = _text_positions(band, tile, rows, out.device)
    distance = (queries - torch.arange(out.shape[-1], device=out.device)).clamp_min_(0).to(out.dtype).mul_(-LOG2_E)
    return torch.mul(band.alphas[rows], distance, out=out).exp2_()


def _product(a: Tensor, b: Tensor, factor: float, out: Tensor) -> Tensor:
    """Write factor * a @ b into ``out``."""
    return torch.baddbmm(out, a, b, beta=0, alpha=factor, out=out)


def forward(
    q: Tensor, k: Tensor, v: Tensor, sink_k: Tensor, sink_v: Tensor, band: Band, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend over a band; ``scale`` multiplies the logits.

    q, k and v are (N, T, D), the keys and values of the sinks (N, G, D). Returns the output (N, T, D) and the
    log-sum-exp of each query's logits (N, T).
    """
    if q.device.type == "cpu":
        # Subtracting each row's highest score costs a tenth of the pass and only guards the range. So the pass first
        # runs without it, and again with it where a sum comes near the ends of float32.
        out, mass = _forward(q, k, v, sink_k, sink_v, band, scale, None)
        if bool(((mass > SAFE_MASS[0]) & (mass < SAFE_MASS[1])).all()):
            return out, mass.log_()
    highest = q.new_empty(q.shape[:2])
    out, mass = _forward(q, k, v, sink_k, sink_v, band, scale, highest)
    return out, mass.log_().add_(highest)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, sink_k: Tensor, sink_v: Tensor, band: Band, scale: float, highest: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the output and each row's sum of exponentials; ``highest`` is filled and subtracted, if there is one."""
    total, tokens, _ = q.shape
    sinks = sink_k.shape[1]
    out, mass = torch.empty_like(q), q.new_empty(total, tokens, 1)
    runs, together, scores = _plan(band, total, tokens, sinks)
    # exp takes two thirds of the time of exp2 unless its results underflow. So unseen keys are hidden after it, except
    # where the highest score is needed.
    scratch = _Scratch(q, scores, by_key=False, unseen=0.0 if highest is None else -torch.inf, capped=False)
    # Outside inference mode each view records its base: 2% of a pass.
    with torch.inference_mode():
        for start in range(0, total, together):
            rows = slice(start, min(start + together, total))
            by_query, by_key = [x[rows] for x in (q, out, mass)], [x[rows] for x in (k, v)]
            for run in runs:
                stage = scratch.stage(band, run, rows.stop - rows.start, sinks, run.low, run.last)
                p, decay = stage.p, stage.decay
                if band.alphas is not None:
                    _decay(band, rows, run, run.low, run.last, decay[:, :, sinks:])
                views = run.cut(run.first, *by_query) + run.cut(run.low, *by_key)
                for index, (tile_q, tile_out, tile_mass, tile_k, tile_v) in enumerate(zip(*views, strict=True)):
                    if sinks:
                        tile_k = torch.cat((sink_k[rows], tile_k), dim=1)
                        tile_v = torch.cat((sink_v[rows], tile_v), dim=1)
                    _product(tile_q, tile_k.transpose(1, 2), scale, p)
                    if band.softcap:
                        stage.cap(band.softcap, slope=False)
                    if band.alphas is not None:
                        if sinks:
                            _decay_sinks(band, rows, run.at(index), decay[:, :, :sinks])
                        p.mul_(decay)
                    if sinks:
                        _hide_sinks(p[:, :, :sinks], band, run.at(index), rows)
                    if highest is None:
                        p.exp_()
                        stage.hide()
                    else:
                        stage.hide()
                        tile = run.at(index)
                        top = highest[rows, tile.first : tile.last].unsqueeze(-1)
                        p.sub_(torch.amax(p, dim=-1, keepdim=True, out=top)).exp_()
                    torch.sum(p, dim=-1, keepdim=True, out=tile_mass)
                    torch.bmm(p, tile_v, out=tile_out).div_(tile_mass)
    return out, mass.squeeze(-1)


def backward(
    *inputs: Tensor, lse: Tensor, delta: Tensor, grad: Tensor, band: Band, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `forward`'s ``inputs``, with the weights recomputed (2205.14135, appendix B.2).

    ``inputs`` are q, k, v, sink_k and sink_v. ``lse`` is the log-sum-exp of each query's logits, ``delta`` the inner
    product of its output and the output's gradient, both (N, T). ``grad`` is the output's gradient, (N, T, D).
    """
    q, k, v, sink_k, sink_v = inputs
    total, tokens, _ = q.shape
    sinks = sink_k.shape[1]
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    dsk, dsv = torch.zeros_like(sink_k), torch.zeros_like(sink_v)
    runs, together, scores = _plan(band, total, tokens, sinks)
    scratch = _Scratch(q, scores, by_key=True, unseen=0.0, capped=band.softcap > 0)
    lse, delta = lse.unsqueeze(-1), delta.unsqueeze(-1)
    with torch.inference_mode():
        for start in range(0, total, together):
            rows = slice(start, min(start + together, total))
            near, far = (k[rows], v[rows], dk[rows], dv[rows]), (sink_k[rows], sink_v[rows], dsk[rows], dsv[rows])
            by_query = [x[rows] for x in (q, grad, lse, delta, dq, dk, dv)]
            for run in runs:
                # Without a softmax across the row, its keys are processed in pieces, each small enough for the cache.
                # The sinks are a piece of their own.
                count = rows.stop - rows.start
                width = max(256, CACHED_SCORES // (count * (run.last - run.first))) // 16 * 16
                pieces = []
                for low in range(run.low, run.last, width):
                    high = min(low + width, run.last)
                    stage = scratch.stage(band, run, count, 0, low, high)
                    pieces.append((stage, low, high, list(zip(*run.cut(low, *near, last=high), strict=True))))
                if sinks:
                    stage = scratch.stage(band, run, count, sinks, run.low, run.low)
                    pieces.append((stage, run.low, run.low, [far] * run.run))
                decayed: _Stage | None = None
                for index, views in enumerate(zip(*run.cut(run.first, *by_query), strict=True)):
                    tile_q, tile_grad, tile_lse, tile_delta, tile_dq, new_dk, new_dv = views
                    # No earlier tile sees these keys. Zeros written just before use are still in the cache.
                    new_dk.zero_()
                    new_dv.zero_()
                    kept = 0  # the first piece overwrites
                    for stage, low, high, sources in pieces:
                        some_k, some_v, into_k, into_v = sources[index]
                        p, ds, decay = stage.p, stage.ds, stage.decay
                        _product(some_k, tile_q.transpose(1, 2), scale, stage.p_by_key)
                        if band.softcap:
                            stage.cap(band.softcap, slope=True)
                        if band.alphas is not None:
                            if low == high:
                                _decay_sinks(band, rows, run.at(index), decay)
                            elif stage is not decayed:
                                _decay(band, rows, run, low, high, decay)
                            decayed = None if low == high else stage
                            p.mul_(decay)
                        p.sub_(tile_lse)
                        if low == high:
                            _hide_sinks(p, band, run.at(index), rows)
                        p.exp_()
                        stage.hide()
                        into_v.baddbmm_(stage.p_by_key, tile_grad)
                        torch.bmm(some_v, tile_grad.transpose(1, 2), out=stage.ds_by_key)
                        ds.sub_(tile_delta).mul_(p)
                        if band.alphas is not None:
                            ds.mul_(decay)
                        if band.softcap:
                            ds.mul_(stage.slope)
                        tile_dq.baddbmm_(ds, some_k, beta=kept, alpha=scale)
                        into_k.baddbmm_(stage.ds_by_key, tile_q, alpha=scale)
                        kept = 1
    return dq, dk, dv, dsk, dsv
