"""The keys of a union span that lie farther back than its window or block, as strips of queries against keys.

A union span is a near span (a window or a block), which the other kernels serve, and far keys, which are disjoint from
it. Both share one softmax: their outputs are joined by log-sum-exp (FlashAttention-2, 2307.08691, section 3.1), and
each computes its own gradients from the joined output and log-sum-exp (Ring Attention, 2310.01889).

Shape legend: N batch rows (batch and head), T tokens, D head width.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layersearch.model.attention import products, strips, tiled
from layersearch.model.attention.product_tiles import masked_queries
from layersearch.model.attention.strips import FEWEST_QUERIES, MOST_QUERIES, BothWays, Steps, StripGroup
from layersearch.schedule import Span
from layersearch.schedule.span_keys import random_block

FEWEST_STEP_QUERIES = tiled.MOST_QUERIES
"""Fewest queries that see one prefix of the columns without a mask: as many as a window's tile has, not measured."""
FEWEST_TILED = 2048
"""Keys of a causal window from which on tiles are as fast as products."""
FEWEST_STEP_KEYS = 16
"""Fewest columns by which such prefixes grow: fewer make many small products (see analysis/span_speed)."""


@dataclass(frozen=True)
class Far:
    """Far keys: the strips of queries and keys, and how tokens become rows of keys."""

    plan: tuple[StripGroup, ...]
    columns: tuple[int, int] | None = None  # the keys are the last C of each of so many tokens
    tail: int = 0  # and the first of those of the text's last block, which is not whole
    blocks: tuple[int, tuple[int, ...]] | None = None  # the keys are these blocks of so many tokens, one after another

    def keys(self, x: Tensor) -> Tensor:
        """Return the rows of keys or values of (N, T, D), contiguous."""
        rows, _, width = x.shape
        if self.columns is not None:
            size, count = self.columns
            whole = x.shape[1] // size
            some = x[:, : whole * size].view(rows, whole, size, width)[:, :, size - count :].reshape(rows, -1, width)
            return torch.cat((some, x[:, x.shape[1] - self.tail :]), dim=1) if self.tail else some.contiguous()
        if self.blocks is not None:
            size, chosen = self.blocks
            blocks = x[:, : x.shape[1] // size * size].view(rows, -1, size, width)
            return blocks[:, list(chosen)].reshape(rows, -1, width).contiguous()
        return x

    def give(self, into: Tensor, some: Tensor) -> None:
        """Add gradients of the rows of `keys` to those of the tokens, (N, T, D)."""
        rows, tokens, width = into.shape
        if self.columns is not None:
            size, count = self.columns
            whole = tokens // size
            wide = into[:, : whole * size].view(rows, whole, size, width)
            wide[:, :, size - count :] += some[:, : whole * count].view(rows, whole, count, width)
            if self.tail:
                into[:, tokens - self.tail :] += some[:, whole * count :]
        elif self.blocks is not None:
            size, chosen = self.blocks
            wide = into[:, : tokens // size * size].view(rows, -1, size, width)
            parts = some.view(rows, len(chosen), size, width).unbind(1)
            for block, part in zip(chosen, parts, strict=True):
                wide[:, block] += part
        else:
            into += some


def near_span(span: Span) -> Span:
    """Return the window or block of a union span, and any other span itself."""
    if span.far_heads is not None:  # these heads see columns, and themselves
        return Span(kind="window", size=1)
    if span.kind == "strided":
        return Span(kind="window", size=span.size)
    if span.is_union:
        return Span(kind="block", size=span.size)
    return span


@functools.lru_cache(maxsize=64)
def far_keys(span: Span, tokens: int) -> tuple[Far, ...]:
    """Return the far keys of a span, as `effective_span` returns it, in a text of so many tokens."""
    if not span.is_union:
        return ()
    assert span.size is not None
    if span.kind == "strided":
        return (Far(_strides(span.size, tokens)),)
    if span.kind == "fixed" and span.far_heads is not None:
        tail = max(0, tokens % span.size - span.size + span.columns)
        return (Far(_own_steps(span.size, span.columns, tokens), columns=(span.size, span.columns), tail=tail),)
    if span.kind == "fixed":
        return (Far(steps(span.size, span.columns, tokens), columns=(span.size, span.columns)),)
    if span.kind == "memory":
        return (Far(_memory(span.memory, span.size, tokens)),)
    return _bigbird(span, span.size, tokens)


def _memory(memory: int, size: int, tokens: int) -> tuple[StripGroup, ...]:
    """Cut the tokens before each segment into strips: the first segments have fewer than a whole memory."""
    whole, rest = divmod(tokens, size)
    first = -(-memory // size)  # the first segment with a whole memory
    cut = []
    for segment in range(1, min(first, -(-tokens // size))):
        start = segment * size
        cut.append(StripGroup(start, 1, min(size, tokens - start), 0, start, 0, None, False))
    if whole > first:
        start = first * size
        cut.append(StripGroup(start, whole - first, size, start - memory, memory, size, None, False))
    if rest and whole >= first:
        cut.append(StripGroup(whole * size, 1, rest, whole * size - memory, memory, 0, None, False))
    return tuple(cut)


def _strides(size: int, tokens: int) -> tuple[StripGroup, ...]:
    """Cut the keys one or more strides back into strips, one for each residue: the first ones may be longer by one."""
    length, longer = divmod(tokens, size)
    cut = []
    for first, residues, count in ((0, longer, length), (longer, size - longer, length - 1)):
        if residues and count:
            cut.append(StripGroup(first + size, residues, count, first, count, 1, None, True, stride=size))
    return tuple(cut)


def steps(size: int, columns: int, tokens: int) -> tuple[StripGroup, ...]:
    """Cut the columns of earlier blocks into strips: a rectangle for several blocks of queries, and its corner."""
    several = max(1, FEWEST_STEP_QUERIES // size, FEWEST_STEP_KEYS // columns)
    queries, mask = several * size, Steps(size, columns)
    cut: list[StripGroup] = []
    if several > 1:
        # The blocks of a tile see the columns of its own earlier blocks.
        tiles, rest = divmod(tokens, queries)
        corner, step = (several - 1) * columns, several * columns
        if tiles:
            cut.append(StripGroup(0, tiles, queries, 0, corner, step, mask, False))
        if rest > size:
            cut.append(StripGroup(tiles * queries, 1, rest, tiles * step, (rest - 1) // size * columns, 0, mask, False))
    covered = sum(part.strips * part.queries for part in cut)
    for first in range(queries, tokens, queries):
        last = min(first + queries, tokens)
        cut.append(StripGroup(first, 1, last - first, 0, first // size * columns, 0, None, False, last <= covered))
    return tuple(cut)


def _own_steps(size: int, columns: int, tokens: int) -> tuple[StripGroup, ...]:
    """Cut the columns of earlier blocks, and those of a query's own block before it, into strips."""
    several = max(1, FEWEST_STEP_QUERIES // size, FEWEST_STEP_KEYS // columns)
    queries, step, mask = several * size, several * columns, Steps(size, columns, own=True)
    tiles, rest = divmod(tokens, queries)
    keys = rest // size * columns + max(0, rest % size - size + columns)  # columns of the rest
    cut: list[StripGroup] = []
    if tiles:
        cut.append(StripGroup(0, tiles, queries, 0, step, step, mask, False))
    if keys:
        cut.append(StripGroup(tiles * queries, 1, rest, tiles * step, keys, 0, mask, False))
    covered = tokens if keys else tiles * queries
    for first in range(queries, tokens, queries):
        last = min(first + queries, tokens)
        cut.append(StripGroup(first, 1, last - first, 0, first // size * columns, 0, None, False, last <= covered))
    return tuple(cut)


def _bigbird(span: Span, size: int, tokens: int) -> tuple[Far, ...]:
    """Cut the block before each query's own, the first block and the random ones into strips."""
    whole, rest, count = tokens // size, tokens % size, span.random_blocks
    cut = [StripGroup(size, whole - 1, size, 0, size, size, None, False)] if whole > 1 else []
    if rest:
        cut.append(StripGroup(whole * size, 1, rest, (whole - 1) * size, size, 0, None, False))
    cut.append(StripGroup(2 * size, 1, tokens - 2 * size, 0, size, 0, None, False, True))
    if not count:
        return (Far(tuple(cut)),)
    # The first blocks have no more to choose from than they take: all of it, side by side.
    for block in range(3, min(count + 2, -(-tokens // size))):
        queries = min(size, tokens - block * size)
        cut.append(StripGroup(block * size, 1, queries, size, (block - 2) * size, 0, None, False, True))
    first, keys = count + 2, count * size
    chosen = [random_block(span, block, at) for block in range(first, -(-tokens // size)) for at in range(count)]
    drawn = []
    if whole > first:
        drawn.append(StripGroup(first * size, whole - first, size, 0, keys, keys, None, False))
    if rest and whole >= first:
        drawn.append(StripGroup(whole * size, 1, rest, (whole - first) * keys, keys, 0, None, False))
    return Far(tuple(cut)), Far(tuple(drawn), blocks=(size, tuple(chosen)))


@functools.lru_cache(maxsize=64)
def whole(span: Span, tokens: int, bidirectional: bool) -> tuple[Far, ...]:
    """Return all keys of a span, near ones too, for products that take them at once; empty where near ones go alone."""
    if bidirectional:
        # A strip of one tile: all tiles of a window then follow one another, and their keys stay in the cache.
        plan = both_ways(span, tokens, masked_queries(2 * (span.size or 0)))
        squares = all(part.mask is None and not part.joins and part.queries >= MOST_QUERIES for part in plan)
        return () if squares else (Far(plan), *both_ways_far(span, tokens))
    if span.kind not in ("memory", "bigbird"):
        near = near_span(span)
        if near.kind == "window" and (near.size or 0) >= FEWEST_TILED:
            return ()
        own = None if near.covers(tokens) else strips.strip_groups(near, tokens, masked_queries(near.size or 0))
        return () if own is None else (Far(own), *far_keys(span, tokens))
    assert span.size is not None
    far, later, size = far_keys(span, tokens), Span(kind="full"), min(span.size, tokens)
    # The keys before a block and those of the block itself are neighbors.
    plan = tuple(x if x.joins else replace(x, keys=x.keys + x.queries, mask=later) for x in far[0].plan)
    return (Far((StripGroup(0, 1, size, 0, size, 0, None, True), *plan)), *far[1:])


@functools.lru_cache(maxsize=64)
def both_ways(span: Span, tokens: int, most: int = MOST_QUERIES) -> tuple[StripGroup, ...]:
    """Cut a span of an encoder, as `effective_span` returns it, into strips that hold every query.

    Those of a window have at most ``most`` queries.
    """
    if span.size is None:
        return (StripGroup(0, 1, tokens, 0, tokens, 0, None, False),)
    if span.kind == "bigbird":
        return _bigbird_both_ways(span.size, tokens)
    near = Span(kind=span.kind, size=span.size, offset=span.offset)
    cut = _sides(near, span.size, tokens, most) if span.kind == "window" else _squares(near, span.size, tokens)
    return (*cut, *global_strips(span, tokens))


def global_strips(span: Span, tokens: int) -> list[StripGroup]:
    """Cut the pairs with a global token that an encoder's window or block does not see, into strips."""
    first, cut = span.global_first, list[StripGroup]()
    if not first:
        return cut
    assert span.size is not None
    near = Span(kind=span.kind, size=span.size, offset=span.offset)
    # The global tokens' near pairs end here; those beyond need no mask.
    end = first - 1 + span.size if span.kind == "window" else _block_end(near, first - 1)
    edge, far = min(end + 1, tokens), BothWays(near, outside=True)
    for queries, keys in (((0, first), (0, edge)), ((0, first), (edge, tokens)), ((first, edge), (0, first))):
        if queries[0] < queries[1] and keys[0] < keys[1]:
            mask = far if keys[0] == 0 else None
            cut.append(
                StripGroup(queries[0], 1, queries[1] - queries[0], keys[0], keys[1] - keys[0], 0, mask, False, True)
            )
    if edge < tokens:
        cut.append(StripGroup(edge, 1, tokens - edge, 0, first, 0, None, False, True))
    return cut


def _bigbird_both_ways(size: int, tokens: int) -> tuple[StripGroup, ...]:
    """Cut BigBird's window and its first and last block into strips, for 5 blocks or more."""
    last = -(-tokens // size) - 1
    end, rows = last * size, (last - 2) * size
    return (
        StripGroup(0, 1, size, 0, tokens, 0, None, False),
        StripGroup(end, 1, tokens - end, 0, tokens, 0, None, False),
        StripGroup(size, last - 2, size, 0, 3 * size, size, None, False),
        StripGroup(end - size, 1, size, rows, tokens - rows, 0, None, False),
        StripGroup(2 * size, 1, rows, 0, size, 0, None, False, True),
        StripGroup(size, 1, rows, end, tokens - end, 0, None, False, True),
    )


@functools.lru_cache(maxsize=64)
def both_ways_far(span: Span, tokens: int) -> tuple[Far, ...]:
    """Return BigBird's random blocks in an encoder, for a span that does not cover the text; empty for other spans."""
    if not span.random_blocks:
        return ()
    assert span.size is not None
    last, size = -(-tokens // span.size) - 1, span.size
    chosen = [random_block(span, block, at, last) for block in range(1, last) for at in range(span.random_blocks)]
    keys = span.random_blocks * size
    return (Far((StripGroup(size, last - 1, size, 0, keys, keys, None, False),), blocks=(size, tuple(chosen))),)


def _block_end(span: Span, token: int) -> int:
    """Return the last token of a token's block."""
    assert span.size is not None
    return ((token + span.offset) // span.size + 1) * span.size - span.offset - 1


def _sides(span: Span, size: int, tokens: int, most: int) -> list[StripGroup]:
    """Cut a window with keys on both sides: the first queries, equal strips, and the last queries."""
    mask = BothWays(span)
    queries = max(FEWEST_QUERIES, min(most, size // 2 // 16 * 16))
    strips = max(0, tokens - 2 * size) // queries
    if not strips:
        return [StripGroup(0, 1, tokens, 0, tokens, 0, mask, False)]
    end = size + strips * queries
    return [
        StripGroup(0, 1, size, 0, 2 * size, 0, mask, False),
        StripGroup(size, strips, queries, 0, queries + 2 * size, queries, mask, False),
        StripGroup(end, 1, tokens - end, end - size, tokens - end + size, 0, mask, False),
    ]


def _squares(span: Span, size: int, tokens: int) -> list[StripGroup]:
    """Cut blocks without an order: the rest of one, strips of equal blocks, and the rest."""
    first, cut = min((size - span.offset) % size, tokens), []
    if first:
        cut.append(StripGroup(0, 1, first, 0, first, 0, None, False))
    queries = size * max(1, FEWEST_QUERIES // size)
    mask = BothWays(Span(kind="block", size=size)) if queries > size else None
    strips, rest = divmod(tokens - first, queries)
    if strips:
        cut.append(StripGroup(first, strips, queries, first, queries, queries, mask, False))
    if rest:
        cut.append(StripGroup(tokens - rest, 1, rest, tokens - rest, rest, 0, mask, False))
    return cut


def sources(
    far: tuple[Far, ...], k: Tensor, v: Tensor, into: tuple[Tensor, Tensor] | None = None
) -> list[products.Source]:
    """Return keys and values (N, T, D) for products; their gradients are added to ``into``, where it is given."""
    found = []
    for part in far:
        keys, values, gradients = k, v, into
        if part.columns is not None:
            keys, values = part.keys(k), part.keys(v)
            gradients = None if into is None else (torch.zeros_like(keys), torch.zeros_like(values))
        found.append(products.Source(part.plan, keys, values, part.blocks, gradients))
    return found


def whole_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    far: tuple[Far, ...],
    scale: float,
    begun: tuple[Tensor, Tensor, Tensor] | None = None,
    more: Sequence[products.Source] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, (N, T, D), by products; ``begun``, over other keys, is added to.

    ``more`` are other keys beside all of these, whose gradients are added to their own.
    """
    dk, dv = (torch.zeros_like(k), torch.zeros_like(v)) if begun is None else begun[1:]
    given = sources(far, k, v, (dk, dv))
    dq = products.backward(grad, q, out, lse, [*given, *more], scale, None if begun is None else begun[0])
    for part, source in zip(far, given, strict=True):
        if part.columns is not None and source.gradients is not None:
            for target, some in zip((dk, dv), source.gradients, strict=True):
                part.give(target, some)
    return dq, dk, dv


def forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, far: tuple[Far, ...], scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """Join far keys to the output of near ones, which changes: q, k, v and ``out`` are (N, T, D), ``lse`` is (N, T)."""
    if far and products.serves(q, softcap):
        found = products.forward(q, sources(far, k, v), scale, (out, lse))
        if found is not None:
            return found
    for part in far:
        rows = q, part.keys(k), part.keys(v)
        some, sums = strips.forward(*rows, part.plan, scale, softcap=softcap, covered=False)
        out, lse = join(out, lse, some, sums)
    return out, lse


def join(out: Tensor, lse: Tensor, some: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Join the outputs over two sets of keys, (N, T, D), by their log-sum-exp, (N, T); ``out`` changes."""
    joined = torch.logaddexp(lse, sums)
    # In place: fresh memory costs more than the arithmetic.
    out.mul_((lse - joined).exp_().unsqueeze(-1)).addcmul_(some, (sums - joined).exp_().unsqueeze(-1))
    return out, joined


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    into: tuple[Tensor, Tensor, Tensor],
    far: tuple[Far, ...],
    scale: float,
    softcap: float,
) -> None:
    """Add the far keys' share of the gradients of q, k and v to ``into``, all (N, T, D); ``lse`` is (N, T)."""
    dq, dk, dv = into
    if far and products.serves(q, softcap):
        whole_backward(grad, q, k, v, out, lse, far, scale, into)
        return
    for part in far:
        rows = grad, q, part.keys(k), part.keys(v), out
        some_q, some_k, some_v = strips.backward(*rows, lse, part.plan, scale, softcap=softcap, covered=False)
        dq += some_q
        part.give(dk, some_k)
        part.give(dv, some_v)
