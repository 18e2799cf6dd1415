"""The cost of a schedule, in closed form: exact integers, no tensors, any length.

A query at position i multiplies its vector with every key it may see (QK^T) and mixes as many values
(AV): one multiply-add per dimension each. One multiply-add = one FLOP, as in fvcore; others count two. Masked pairs
cost nothing. Softmax, decay and pooling are not counted: they are no matrix products.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from layersearch.errors import require
from layersearch.schedule.schedule import Schedule
from layersearch.schedule.span import FULL, Span


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """The cost of one layer; one multiply-add = one FLOP."""

    layer: int  # counted from 0
    span: Span
    pairs: int  # visible (query, key) pairs over all query heads
    flops: int  # FLOPs of QK^T and AV of one sequence
    share: float  # of the schedule's attention FLOPs, in [0, 1]
    ratio: float  # FLOPs relative to a full layer of the same length and heads, in (0, 1]
    cache_bytes: int  # keys and values that a decoder keeps at that length; 0 for an encoder


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def _window_pairs(seq_len: int, size: int, dilation: int, sink: int) -> int:
    """Count one head's pairs of a dilated window with sinks."""
    tokens, longer = divmod(seq_len, dilation)
    pairs = 0
    # The tokens of one residue mod D see each other as an undilated window: sum of min(i+1, W) over m tokens.
    for m, times in ((tokens + 1, longer), (tokens, dilation - longer)):
        keys = min(size, m)
        pairs += times * (keys * m - _triangle(keys - 1))
    # Sinks among the keys already counted: key j is seen by min(W, ceil((n-j)/D)) queries of its window.
    whole = min(max(seq_len - (size - 1) * dilation, 0), sink)
    counted = whole * size + _ceilings(seq_len - whole, dilation) - _ceilings(seq_len - sink, dilation)
    return pairs + _sink_pairs(seq_len, sink) - counted


def _ceilings(last: int, divisor: int) -> int:
    """Return the sum of ceil(u / divisor) over u = 1 ... last."""
    times, rest = divmod(last, divisor)
    return divisor * _triangle(times) + rest * (times + 1)


def _block_pairs(seq_len: int, size: int, offset: int, sink: int) -> int:
    """Count one head's pairs of a block-diagonal layer with sinks; the first block holds size - offset tokens."""
    first = min(seq_len, size - offset)
    inside = min(sink, first)
    pairs = _aligned_block_pairs(seq_len - first, size, sink - inside)
    # Sinks among the first block's keys are counted there: key j is seen by the block's tokens from j on.
    return pairs + _triangle(first) - (inside * first - _triangle(inside - 1)) + _sink_pairs(seq_len, sink)


def _aligned_block_pairs(seq_len: int, size: int, sink: int) -> int:
    """Count one head's pairs within blocks, without those of the first ``sink`` keys."""
    blocks, rest = divmod(seq_len, size)
    pairs = blocks * _triangle(size) + _triangle(rest)
    # Sinks among the keys already counted: key j is seen by the queries from j to the end of its block.
    blocks, rest = divmod(sink, size)
    last = min(size, seq_len - blocks * size)
    counted = blocks * _triangle(size) + rest * last - _triangle(rest - 1)
    return pairs - counted


def _both_ways_pairs(span: Span, seq_len: int) -> int:
    """Count one head's pairs in an encoder; tokens that the task marks are taken to be the first ones."""
    first = min(span.global_first or span.global_marked, seq_len)
    if span.size is None:
        return seq_len * seq_len
    if span.kind == "bigbird":
        return _bigbird_both_ways(seq_len, span.size, span.random_blocks)
    near, rows = (_side_pairs, _side_rows) if span.kind == "window" else (_square_pairs, _square_rows)
    size, offset = span.size, span.offset
    # Rows and columns of the global tokens, without those of their pairs that are near and so counted already.
    twice = 2 * rows(seq_len, size, offset, first) - near(first, size, offset)
    return near(seq_len, size, offset) + 2 * first * seq_len - first * first - twice


def _least(tokens: int, most: int) -> int:
    """Return the sum of min(u, most) over u = 0 ... tokens-1."""
    short = min(tokens, most + 1)
    return _triangle(short - 1) + most * (tokens - short)


def _side_pairs(seq_len: int, size: int, _: int) -> int:
    """Count the pairs at most ``size`` tokens apart."""
    return seq_len + 2 * _least(seq_len, size)


def _side_rows(seq_len: int, size: int, _: int, first: int) -> int:
    """Count those of them whose query is one of the first."""
    return first + _least(first, size) + _least(seq_len, size) - _least(seq_len - first, size)


def _square_pairs(seq_len: int, size: int, offset: int) -> int:
    """Count the pairs within a block."""
    return _square_rows(seq_len, size, offset, seq_len)


def _square_rows(seq_len: int, size: int, offset: int, first: int) -> int:
    """Count those of them whose query is one of the first."""
    edge = min(seq_len, size - offset)
    rows, left = min(first, edge), max(0, first - edge)
    whole = (seq_len - edge) // size * size
    return rows * edge + min(left, whole) * size + max(0, left - whole) * (seq_len - edge - whole)


def _bigbird_both_ways(seq_len: int, size: int, count: int) -> int:
    """Count BigBird's pairs: the first and the last block see all, each other one some whole ones and the last."""
    blocks = -(-seq_len // size)
    last = seq_len - (blocks - 1) * size
    if blocks <= 3:
        return seq_len * seq_len
    ends = 3 + min(count, blocks - 4)  # whole blocks that the second and the last but one see
    inner = 4 + min(count, blocks - 5) if blocks > 4 else 0
    rows = 2 * (ends * size + last) + (blocks - 4) * (inner * size + last)
    return (size + last) * seq_len + size * rows


def marked_pairs(span: Span, seq_len: int, marked: Sequence[int]) -> int:
    """Return one head's exact pairs in an encoder whose task marks these tokens, counted from 0; each once.

    `span_pairs` takes the marked tokens to be the first ones. There the near keys are fewest, so other places of a
    single token cost no more.
    """
    plain = span.plain
    near = _both_ways_pairs(plain, seq_len)
    inside = sum(plain.visible(i, j, bidirectional=True, tokens=seq_len) for i in marked for j in marked)
    beside = sum(_near_keys(plain, token, seq_len) for token in marked)
    return near + 2 * len(marked) * seq_len - len(marked) ** 2 - 2 * beside + inside


def _near_keys(span: Span, token: int, seq_len: int) -> int:
    """Return the keys that a token of an encoder sees."""
    size = span.size or seq_len
    if span.kind == "block":
        first = (token + span.offset) // size * size - span.offset
        return min(first + size, seq_len) - max(first, 0)
    return min(token + size, seq_len - 1) - max(token - size, 0) + 1


def _union_pairs(span: Span, size: int, seq_len: int) -> int:
    """Count one head's pairs of a span that joins two parts."""
    blocks, rest = divmod(seq_len, size)
    earlier = size * _triangle(blocks - 1) + rest * blocks  # the sum of floor(i / size): earlier blocks of each query
    if span.kind == "memory":  # segment s sees min(M, s S) tokens before it
        short = min(blocks, span.memory // size + 1)
        before = size * _triangle(short - 1) + span.memory * (blocks - short)
        return _block_pairs(seq_len, size, 0, 0) + size * before + rest * min(span.memory, blocks * size)
    if span.kind == "strided":
        return _window_pairs(seq_len, size, 1, 0) + earlier
    own = blocks * _triangle(size) + _triangle(rest)
    if span.kind == "fixed":
        return own + span.columns * earlier

    # Block b sees b others whole, all there are, up to the one before it, the first and R random ones.
    few = min(blocks, span.random_blocks + 3)
    whole = _triangle(few - 1) + (blocks - few) * (span.random_blocks + 2)
    return own + size * size * whole + rest * size * min(blocks, span.random_blocks + 2)


def _far_pairs(span: Span, size: int, seq_len: int) -> int:
    """Count the pairs of a head that sees strides or columns, and itself."""
    blocks, rest = divmod(seq_len, size)
    earlier = size * _triangle(blocks - 1) + rest * blocks
    if span.kind == "strided":
        return earlier + seq_len
    others = size - span.columns  # the first tokens of a block, which see themselves and no column of it
    own = blocks * (others + _triangle(span.columns)) + min(rest, others) + _triangle(max(0, rest - others))
    return own + span.columns * earlier


def _sink_pairs(seq_len: int, sink: int) -> int:
    """Count the pairs of every query with those of the first ``sink`` <= seq_len tokens that it sees."""
    return sink * seq_len - _triangle(sink - 1)


@functools.lru_cache(maxsize=4096)  # a run counts the same few spans for every layer of every record
def span_pairs(span: Span, seq_len: int, n_heads: int, *, bidirectional: bool = False) -> int:
    """Return the visible (query, key) pairs of one layer, summed over its query heads; summaries are keys too."""
    if bidirectional:
        return n_heads * (_both_ways_pairs(span, seq_len) + seq_len * span.summaries(seq_len))
    if span.kind == "full":
        return n_heads * _triangle(seq_len)
    assert span.size is not None
    size, sink = span.size, min(span.sink, seq_len)
    if span.far_heads is not None:
        far = min(span.far_heads, n_heads)
        near = _window_pairs(seq_len, size, 1, 0) if span.kind == "strided" else _block_pairs(seq_len, size, 0, 0)
        return far * _far_pairs(span, size, seq_len) + (n_heads - far) * near
    if span.is_union:
        return n_heads * _union_pairs(span, size, seq_len)
    if span.summary:  # the sum of floor(i / G): the finished blocks of each query
        blocks, rest = divmod(seq_len, span.summary)
        finished = span.summary * _triangle(blocks - 1) + rest * blocks
        return n_heads * finished + span_pairs(span.plain, seq_len, n_heads)
    if span.kind == "block":
        return n_heads * _block_pairs(seq_len, size, span.offset, sink)
    dilated = n_heads if span.dilated_heads is None else min(span.dilated_heads, n_heads)
    undilated = (n_heads - dilated) * _window_pairs(seq_len, size, 1, sink)
    return dilated * _window_pairs(seq_len, size, span.dilation, sink) + undilated


def check_cost(spans: Iterable[Span], seq_len: int, *, bidirectional: bool = False) -> None:
    """Refuse summaries that make a span more expensive than full attention."""
    for span in spans:
        own, full = (span_pairs(each, seq_len, 1, bidirectional=bidirectional) for each in (span, FULL))
        require(own <= full, f"{span} costs more than 'full' at {seq_len} tokens; use that, or longer summaries")


def attention_flops(
    schedule: Schedule, *, seq_len: int, n_heads: int, head_dim: int, bidirectional: bool = False
) -> int:
    """Return the FLOPs of QK^T and AV over all layers, for one sequence; one multiply-add = one FLOP.

    Each visible pair costs head_dim for its logit and head_dim for its value. That is the causal form of 2 n^2 d per
    layer (2302.06461; 2205.14135, section 3.1).

    Args:
        schedule: one span per layer.
        seq_len: tokens in the sequence.
        n_heads: query heads.
        head_dim: width of one head.
        bidirectional: whether the model is an encoder: its full layer has n^2 pairs per head.

    Example:
        >>> from layersearch import Schedule, attention_flops
        >>> attention_flops(Schedule.parse("full window:2"), seq_len=4, n_heads=1, head_dim=8)
        272
    """
    return 2 * head_dim * _pairs(schedule, seq_len, n_heads, bidirectional)


def _pairs(schedule: Schedule, seq_len: int, n_heads: int, bidirectional: bool) -> int:
    """Return the visible pairs of all layers."""
    counted = schedule.counts.items()
    return sum(times * span_pairs(span, seq_len, n_heads, bidirectional=bidirectional) for span, times in counted)


def budget_ratio(schedule: Schedule, *, seq_len: int, n_heads: int, bidirectional: bool = False) -> float:
    """Return the attention FLOPs relative to the all-full schedule, at the same length and number of heads.

    Example:
        >>> from layersearch import Schedule, budget_ratio
        >>> round(budget_ratio(Schedule.parse("full*4 block:1024*20"), seq_len=8192, n_heads=16), 3)
        0.271
    """
    full = len(schedule) * span_pairs(FULL, seq_len, n_heads, bidirectional=bidirectional)
    return _pairs(schedule, seq_len, n_heads, bidirectional) / full


def cache_tokens(span: Span, seq_len: int, *, dilated: bool = True) -> int:
    """Return the most tokens whose keys and values a decoder of ``seq_len`` tokens keeps for one head.

    ``dilated`` is False for a head that the span leaves undilated, or that sees no strides and columns. A summary
    counts as one token.
    """
    if span.kind == "full":
        return seq_len
    assert span.size is not None
    if span.far_heads is not None and not dilated:
        return min(seq_len, span.size)
    if span.kind == "fixed":  # the columns of earlier blocks and the newest block, which is whole for a moment
        blocks, rest = divmod(seq_len - 1, span.size)
        whole = seq_len // span.size
        return max(blocks * span.columns + rest + 1, (whole - 1) * span.columns + span.size if whole else 0)
    if span.kind == "memory":
        return min(seq_len, span.memory + span.size)
    if span.is_union:  # a later token may see any earlier one
        return seq_len
    # Pooling reaches back to P-1 values before the first visible token.
    reach = (span.size - 1) * (span.dilation if dilated else 1) + 1
    return min(seq_len, reach + span.sink + span.pool - 1) + span.summaries(seq_len)


def _span_cache(span: Span, seq_len: int, n_heads: int, n_kv_heads: int) -> int:
    """Return the tokens kept by one layer, summed over key-value heads: each keeps what its neediest query needs."""
    first = span.dilated_heads or span.far_heads
    cut = n_heads if first is None else min(first, n_heads)
    dilated = -(-cut // (n_heads // n_kv_heads))
    return dilated * cache_tokens(span, seq_len) + (n_kv_heads - dilated) * cache_tokens(span, seq_len, dilated=False)


def kv_cache_bytes(
    schedule: Schedule, *, seq_len: int, n_heads: int, n_kv_heads: int, head_dim: int, bytes_per_value: int = 2
) -> int:
    """Return the bytes of keys and values that a decoder keeps for one sequence.

    Args:
        schedule: one span per layer.
        seq_len: tokens decoded.
        n_heads: query heads.
        n_kv_heads: key and value heads, a divisor of n_heads.
        head_dim: width of one head.
        bytes_per_value: 2 for bf16.

    Example:
        >>> from layersearch import Schedule, kv_cache_bytes
        >>> kv_cache_bytes(Schedule.parse("full window:64"), seq_len=1024, n_heads=8, n_kv_heads=2, head_dim=64)
        557056
    """
    tokens = sum(times * _span_cache(span, seq_len, n_heads, n_kv_heads) for span, times in schedule.counts.items())
    return 2 * tokens * head_dim * bytes_per_value


def layer_costs(
    schedule: Schedule,
    *,
    seq_len: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    bytes_per_value: int = 2,
    bidirectional: bool = False,
) -> tuple[LayerCost, ...]:
    """Return each layer's cost; arguments as in `kv_cache_bytes`, one multiply-add = one FLOP.

    An encoder (``bidirectional``) keeps no keys and values.
    """
    pairs = [span_pairs(span, seq_len, n_heads, bidirectional=bidirectional) for span in schedule]
    full = span_pairs(FULL, seq_len, n_heads, bidirectional=bidirectional)
    kept = [0 if bidirectional else _span_cache(span, seq_len, n_heads, n_kv_heads) for span in schedule]
    return tuple(
        LayerCost(
            layer=layer,
            span=span,
            pairs=pairs[layer],
            flops=2 * head_dim * pairs[layer],
            share=pairs[layer] / sum(pairs),
            ratio=pairs[layer] / full,
            cache_bytes=2 * kept[layer] * head_dim * bytes_per_value,
        )
        for layer, span in enumerate(schedule)
    )
