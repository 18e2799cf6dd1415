"""Multi-query associative recall, its pairs planted beyond the reach of local layers.

A stream is a run of key-value pairs, at least ``distance - 1`` tokens of filler, and a run of queries, with more filler
spread evenly between all of them::

    . k3 v3 . . k1 v1 k2 v2 . . . . . . . . . . k1 [v1] . k3 [v3] .

A query is a key again, followed by its value; only those values are scored. The task is MQAR of Zoology (2312.04927,
sec. 3.2) with a least distance in place of their power law.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from layersearch.config.recipe import DataConfig
from layersearch.data.source import Batch, KnownAnswer, require
from layersearch.data.tasks.base import Task, below, filler_kinds, next_token, spread


def _split(config: DataConfig, vocab_size: int) -> tuple[int, int]:
    """Return the first key's id and the first value's id: below is filler, keys and values share the rest."""
    filler = filler_kinds(config, vocab_size)
    return filler, filler + (vocab_size - filler) // 2


class Recall(Task):
    """See the module; ``pairs``, ``queries``, ``distance`` and ``vocab_size`` come from the recipe's data section."""

    name = "recall"

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        super().__init__(config, seq_len)
        self.pairs, self.queries, self.distance = config.pairs, config.queries, config.distance
        self.first_key, self.first_value = _split(config, config.vocab_size)
        keys = self.first_value - self.first_key
        # Fewer than two values would leave nothing to recall.
        enough = next(size for size in itertools.count(2) if _fits(config, size))
        require(
            _fits(config, config.vocab_size),
            f"data.vocab_size {config.vocab_size} is too small for data.pairs {self.pairs}: raise it to {enough}",
        )
        least = 2 * self.pairs + self.distance - 1 + 2 * self.queries
        require(
            seq_len + 1 >= least,
            f"training.seq_len {seq_len} is too short for data.pairs {self.pairs}, data.queries {self.queries} and "
            f"data.distance {self.distance}: raise it to {least - 1} or lower one of them",
        )
        self.slack = seq_len + 1 - least
        items = self.pairs + self.queries
        # Filler, places, keys, values, which pairs are asked for.
        self.widths = (seq_len + 1, items, keys, self.pairs, self.pairs)
        self.draws = sum(self.widths)
        self.answer = KnownAnswer(
            optimal_l=1,
            note=f"one full layer above a local one is needed and enough while the local layers' reaches add up to "
            f"less than {self.distance} tokens: the local layer joins a key to its value, the full one finds the key",
            source="induction heads (2209.11895); associative recall (2312.04927, sec. 4)",
        )

    def parameters(self, config: DataConfig) -> dict[str, Any]:
        return {
            "pairs": config.pairs,
            "queries": config.queries,
            "distance": config.distance,
            "fillers": filler_kinds(config, config.vocab_size),
        }

    def generate(self, uniform: npt.NDArray[np.float64], judged: bool) -> Batch:
        filler, places, keys, values, asked = np.split(uniform, np.cumsum(self.widths)[:-1], axis=1)
        rows = np.arange(len(uniform))[:, None]
        stream = below(filler, self.first_key)

        compact = 2 * np.arange(self.pairs + self.queries)
        compact[self.pairs :] += self.distance - 1
        place = spread(compact, places, self.slack)
        pair, query = place[:, : self.pairs], place[:, self.pairs :]

        key = self.first_key + np.argsort(keys, axis=1)[:, : self.pairs]
        value = self.first_value + below(values, self.vocab_size - self.first_value)
        chosen = np.argsort(asked, axis=1)[:, : self.queries]

        stream[rows, pair], stream[rows, pair + 1] = key, value
        stream[rows, query], stream[rows, query + 1] = key[rows, chosen], value[rows, chosen]
        answers = np.zeros(stream.shape, dtype=bool)
        answers[rows, query + 1] = True
        return next_token(stream, answers)


def _fits(config: DataConfig, vocab_size: int) -> bool:
    first_key, first_value = _split(config, vocab_size)
    return first_value - first_key >= config.pairs and vocab_size - first_value >= 2
