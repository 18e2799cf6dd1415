"""Recall: what is planted, decoded by rules that know only what a key is."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from layersearch.data.source import IGNORE, Batch
from tests.helpers.tasks import open_task


def recall(seq_len: int, vocab_size: int = 64, pairs: int = 4, queries: int = 2, distance: int = 16):
    return open_task("recall", seq_len, vocab_size=vocab_size, pairs=pairs, queries=queries, distance=distance)


def decode(batch: Batch) -> list[list[tuple[int, int, int]]]:
    """Return (distance to the value, key, answer) of every query: the key's only earlier use tells the answer."""
    found = []
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        row = []
        for query in np.flatnonzero(targets != IGNORE):
            (earlier,) = np.flatnonzero(tokens[:query] == tokens[query])
            assert tokens[earlier + 1] == targets[query]
            if query + 1 < len(tokens):
                assert tokens[query + 1] == targets[query]
            row.append((int(query - (earlier + 1)), int(tokens[query]), int(targets[query])))
        found.append(row)
    return found


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.integers(1, 12),
    share=st.floats(0, 1),
    distance=st.integers(1, 60),
    slack=st.integers(0, 40),
    spare=st.integers(0, 100),
    seed=st.integers(0, 2**31),
)
def test_recall_every_query_lies_beyond_the_distance(pairs, share, distance, slack, spare, seed):
    queries = max(1, round(share * pairs))
    source = recall(2 * pairs + distance + 2 * queries - 2 + slack, 3 * pairs + 6 + spare, pairs, queries, distance)
    batch = source.train(seed=seed, step=0, batch_size=3)
    assert batch.tokens.shape == batch.targets.shape == (3, source.seq_len)
    assert batch.tokens.dtype == batch.targets.dtype == np.int64
    assert 0 <= batch.tokens.min() <= batch.tokens.max() < source.vocab_size
    for row in decode(batch):
        assert len(row) == queries == len({key for _, key, _ in row})
        assert all(apart >= distance for apart, _, _ in row)


def test_recall_least_distance_occurs_and_values_are_unpredictable():
    source = recall(40, pairs=4, queries=4, distance=16)
    rows = [query for row in decode(source.train(seed=0, step=0, batch_size=2000)) for query in row]
    assert min(apart for apart, _, _ in rows) == 16
    values, counts = np.unique([value for _, _, value in rows], return_counts=True)
    # 8000 draws of 28 values: 286 each, standard deviation 17.
    assert len(values) == 28
    assert counts.min() > 200
    assert counts.max() < 372
