"""The keys of spans that join several parts. `Span.visible` calls these; arguments and results are as there."""

from __future__ import annotations

from typing import Any, Protocol


class Fields(Protocol):
    """The fields of a `Span` that say its keys."""

    @property
    def kind(self) -> Any: ...
    @property
    def size(self) -> int | None: ...
    @property
    def offset(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def random_blocks(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def memory(self) -> int: ...
    @property
    def far_heads(self) -> int | None: ...
    @property
    def global_first(self) -> int: ...
    @property
    def global_marked(self) -> int: ...


_PRIME = 46_337  # The largest whose square fits 32 bits, which is what FlexAttention counts with


def union(span: Fields, i: Any, j: Any, head: Any) -> Any:
    """Tell whether a query sees a key in a causal model, but for their order."""
    assert span.size is not None
    block, other = i // span.size, j // span.size
    if span.kind == "memory":
        return j >= block * span.size - span.memory
    if span.kind == "bigbird":
        seen = (block - other <= 1) | (other == 0)
        for at in range(span.random_blocks):
            seen = seen | (other == random_block(span, block, at))
        return seen
    if span.kind == "strided":
        near, far = i - j < span.size, (i - j) % span.size == 0
    else:
        near, far = block == other, j % span.size >= span.size - span.columns
    if span.far_heads is None:
        return near | far
    # A head of columns alone would leave the first tokens without a key: each token sees itself too.
    return (near & (head >= span.far_heads)) | ((far | (i == j)) & (head < span.far_heads))


def both_ways(span: Fields, i: Any, j: Any, tokens: int | None) -> Any:
    """Tell whether a query sees a key in an encoder; BigBird's last block is that of a text of so many tokens."""
    if span.kind == "full":
        return (i == i) & (j == j)
    assert span.size is not None
    if span.kind == "window":
        near = (i - j <= span.size) & (j - i <= span.size)
    elif span.kind == "block":
        near = (i + span.offset) // span.size == (j + span.offset) // span.size
    else:
        assert tokens is not None, "BigBird's last block depends on the length of the text"
        block, other, last = i // span.size, j // span.size, (tokens - 1) // span.size
        near = (block - other <= 1) & (other - block <= 1)
        near = near | (block == 0) | (other == 0) | (block == last) | (other == last)
        for at in range(span.random_blocks):
            near = near | (other == random_block(span, block, at, last))
    first = span.global_first or span.global_marked
    return near | (i < first) | (j < first) if first else near


def random_block(span: Fields, block: Any, at: int, last: int | None = None) -> Any:
    """Return the random block number ``at`` < R that a block of queries sees; 0 where there is none left.

    The blocks to choose from are cut into R equal parts, and one is drawn from each: so no block is drawn twice. In a
    causal model (``last`` None) they are the blocks 1 ... ``block`` - 2, in an encoder all but the first, the ``last``
    and the neighbors. The draw is arithmetic of 32 bits, the same for every head and text, and on every device.
    """
    below = (block > 2) * (block - 2)
    choices = below if last is None else below + (block < last - 2) * (last - 2 - block)
    first = at * choices // span.random_blocks
    width = (at + 1) * choices // span.random_blocks - first
    salt = ((at + 1) * 7919 + span.seed * 10_007) % _PRIME
    drawn = (block + salt) % _PRIME
    for factor in (30_269, 20_011):
        drawn = (drawn * factor + salt) % _PRIME
        drawn = drawn * drawn % _PRIME
    some = (choices > 0) & (width > 0)
    place = 1 + first + drawn % (width + (width == 0))
    if last is not None:  # those beyond the neighbors
        place = place + (place > below) * (block + 1 - below)
    return place * some
