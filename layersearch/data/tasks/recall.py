"""Multi-query associative recall. Each query is at least ``distance`` tokens away from its pair.

A stream is a run of key-value pairs, at least ``distance - 1`` tokens of filler, and a run of queries. More filler is
spread evenly between all of them::

    . k3 v3 . . k1 v1 k2 v2 . . . . . . . . . . k1 [v1] . k3 [v3] .

A query is a key again, followed by its value; only those values are scored. The task is MQAR of Zoology (2312.04927,
sec. 3.2) with a least distance in place of their power law.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layersearch.config.data import DataConfig
from layersearch.data.source import Batch, KnownAnswer
from layersearch.data.tasks.base import Task, Uniform, choose, next_token, spread, to_integers


class Recall(Task):
    """Multi-query associative recall; see the module."""

    name = "recall"
    keys = ("pairs", "queries", "distance", "fillers")

    def plan(self, config: DataConfig) -> tuple[Sequence[int], KnownAnswer]:
        pairs, queries, distance = config.pairs, config.queries, config.distance
        # Keys are one half of the vocabulary beside the filler, values the other. Recall needs two values or more.
        self.need_vocabulary(max(2 * pairs, 3), f"data.pairs {pairs}")
        cause = f"data.pairs {pairs}, data.queries {queries} and data.distance {distance}"
        self.slack = self.need_length(2 * pairs + distance - 2 + 2 * queries, cause, " or lower one of them")
        answer = KnownAnswer(
            optimal_l=1,
            note=f"one full layer above a local one is needed and enough while the local layers' reaches add up to "
            f"less than {distance} tokens: the local layer joins a key to its value, the full one finds the key",
            source="induction heads (2209.11895); associative recall (2312.04927, sec. 4)",
        )
        assert config.fillers is not None
        self.first_key = config.fillers
        self.first_value = self.first_key + (self.vocab_size - self.first_key) // 2
        # Filler, positions, keys, values, queried pairs.
        keys = self.first_value - self.first_key
        return (self.seq_len + 1, pairs + queries, keys, pairs, pairs), answer

    def generate(self, parts: Sequence[Uniform], evaluating: bool) -> Batch:
        filler, positions, keys, values, queried = parts
        pairs, queries = self.config.pairs, self.config.queries
        rows = np.arange(len(filler))[:, None]
        stream = to_integers(filler, self.first_key)

        compact = 2 * np.arange(pairs + queries)
        compact[pairs:] += self.config.distance - 1
        position = spread(compact, positions, self.slack)
        pair, query = position[:, :pairs], position[:, pairs:]

        key = self.first_key + choose(keys, pairs)
        value = self.first_value + to_integers(values, self.vocab_size - self.first_value)
        chosen = choose(queried, queries)

        stream[rows, pair], stream[rows, pair + 1] = key, value
        stream[rows, query], stream[rows, query + 1] = key[rows, chosen], value[rows, chosen]
        answers = np.zeros(stream.shape, dtype=bool)
        answers[rows, query + 1] = True
        return next_token(stream, answers)
