"""What a schedule costs, in closed form: exact integers, no tensors, any length.

A query at position i of a causal layer multiplies its vector with every key it may see (QK^T) and mixes as many
values (AV): one multiply-add a dimension each. One multiply-add = one FLOP, as in fvcore; others count two. Masked
pairs cost nothing. Softmax, decay and pooling are not counted: they grow with the same pairs, or only with the tokens,
and are no matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from layersearch.schedule import Schedule, Span

FULL = Span(kind="full")


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer's part of a schedule's cost."""

    layer: int
    """Counted from 0."""
    span: Span
    pairs: int
    """Visible (query, key) pairs over all query heads."""
    flops: int
    """FLOPs of QK^T and AV of one sequence; one multiply-add = one FLOP."""
    share: float
    """Of the schedule's attention FLOPs, in [0, 1]."""
    ratio: float
    """To a full layer of the same length and heads, in (0, 1]."""
    cache_bytes: int
    """Keys and values a decoder keeps at that length."""


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def _window_pairs(seq_len: int, size: int, dilation: int, sink: int) -> int:
    """Count one head's pairs of a dilated window with sinks."""
    longer, residues_longer = divmod(seq_len, dilation)
    pairs = 0
    # The tokens of one residue mod D see each other as an undilated window: sum of min(i+1, W) over m tokens.
    for tokens, times in ((longer + 1, residues_longer), (longer, dilation - residues_longer)):
        keys = min(size, tokens)
        pairs += times * (keys * tokens - _triangle(keys - 1))
    sink = min(sink, seq_len)
    if not sink:
        return pairs
    # Sinks among the keys already counted: key j is seen by min(W, ceil((n-j)/D)) queries of its window.
    whole = min(max(seq_len - (size - 1) * dilation, 0), sink)
    counted = whole * size + _ceilings(seq_len - whole, dilation) - _ceilings(seq_len - sink, dilation)
    return pairs + _sink_pairs(seq_len, sink) - counted


def _ceilings(upto: int, divisor: int) -> int:
    """Return the sum of ceil(u / divisor) over u = 1 ... upto."""
    times, rest = divmod(upto, divisor)
    return divisor * _triangle(times) + rest * (times + 1)


def _block_pairs(seq_len: int, size: int, sink: int) -> int:
    """Count one head's pairs of a block-diagonal layer with sinks."""
    blocks, rest = divmod(seq_len, size)
    pairs = blocks * _triangle(size) + _triangle(rest)
    sink = min(sink, seq_len)
    if not sink:
        return pairs
    # Sinks among the keys already counted: key j is seen by the queries from j to the end of its block.
    blocks, rest = divmod(sink, size)
    last = min(size, seq_len - blocks * size)
    counted = blocks * _triangle(size) + rest * last - _triangle(rest - 1)
    return pairs + _sink_pairs(seq_len, sink) - counted


def _sink_pairs(seq_len: int, sink: int) -> int:
    """Count the pairs of every query with the first ``sink`` <= seq_len tokens up to itself."""
    return sink * seq_len - _triangle(sink - 1)


def span_pairs(span: Span, seq_len: int, n_heads: int) -> int:
    """Return the visible (query, key) pairs of one layer, summed over query heads.

    Args:
        span: what the layer sees.
        seq_len: tokens in the sequence.
        n_heads: query heads.
    """
    if span.kind == "full":
        return n_heads * _triangle(seq_len)
    assert span.size is not None
    if span.kind == "block":
        return n_heads * _block_pairs(seq_len, span.size, span.sink)
    dilated = n_heads if span.dilated_heads is None else min(span.dilated_heads, n_heads)
    return dilated * _window_pairs(seq_len, span.size, span.dilation, span.sink) + (n_heads - dilated) * _window_pairs(
        seq_len, span.size, 1, span.sink
    )


def attention_flops(schedule: Schedule, *, seq_len: int, n_heads: int, head_dim: int) -> int:
    """Return the FLOPs of QK^T and AV over all layers, for one sequence; one multiply-add = one FLOP.

    Each visible pair costs head_dim for its logit and head_dim for its value: 2 head_dim pairs (the causal form of
    2 n^2 d a layer, 2302.06461 and 2205.14135, section 3.1).

    Args:
        schedule: one span per layer.
        seq_len: tokens in the sequence.
        n_heads: query heads.
        head_dim: width of one head.
    """
    return 2 * head_dim * sum(span_pairs(span, seq_len, n_heads) for span in schedule)


def budget_ratio(schedule: Schedule, *, seq_len: int, n_heads: int) -> float:
    """Return the attention FLOPs relative to the all-full schedule's, at the same length and number of heads."""
    full = len(schedule) * span_pairs(FULL, seq_len, n_heads)
    return sum(span_pairs(span, seq_len, n_heads) for span in schedule) / full


def cache_tokens(span: Span, seq_len: int, *, dilated: bool = True) -> int:
    """Return how many tokens' keys and values a decoder keeps for one head, at most, up to ``seq_len`` tokens.

    Args:
        span: what the layer sees.
        seq_len: tokens decoded.
        dilated: False for a head that the span leaves undilated.
    """
    if span.kind == "full":
        return seq_len
    assert span.size is not None
    # Pooling reaches back to P-1 values before the first visible token.
    reach = (span.size - 1) * (span.dilation if dilated else 1) + 1
    return min(seq_len, reach + span.sink + span.pool - 1)


def _span_cache(span: Span, seq_len: int, n_heads: int, n_kv_heads: int) -> int:
    """Return the tokens kept by one layer, summed over key-value heads: each keeps what its neediest query needs."""
    cut = n_heads if span.dilated_heads is None else min(span.dilated_heads, n_heads)
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
    """
    tokens = sum(_span_cache(span, seq_len, n_heads, n_kv_heads) for span in schedule)
    return 2 * tokens * head_dim * bytes_per_value


def layer_costs(
    schedule: Schedule, *, seq_len: int, n_heads: int, n_kv_heads: int, head_dim: int, bytes_per_value: int = 2
) -> tuple[LayerCost, ...]:
    """Return each layer's cost; arguments as in `kv_cache_bytes`."""

    def rows() -> Iterator[LayerCost]:
        total = sum(span_pairs(span, seq_len, n_heads) for span in schedule)
        full = span_pairs(FULL, seq_len, n_heads)
        for layer, span in enumerate(schedule):
            pairs = span_pairs(span, seq_len, n_heads)
            yield LayerCost(
                layer=layer,
                span=span,
                pairs=pairs,
                flops=2 * head_dim * pairs,
                share=pairs / total,
                ratio=pairs / full,
                cache_bytes=2 * _span_cache(span, seq_len, n_heads, n_kv_heads) * head_dim * bytes_per_value,
            )

    return tuple(rows())
