"""Sequences like text, whose next token depends on tokens within reach only.

A token is drawn with probability proportional to exp(a[x1, y] + b[xr, y]), where x1 is the last token, xr the one
``reach`` tokens back, and a and b are tables of normal numbers that all sequences share. What lies farther back tells
nothing more, so that the loss cannot fall below the chain's own conditional entropy, with full layers or without.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from layersearch.config.recipe import DataConfig
from layersearch.data.source import Batch, KnownAnswer, generator, require
from layersearch.data.tasks.base import Task, below, next_token

TABLES = 2
"""First word of the generator's key of the tables."""
SHARPNESS = 1.5
"""Standard deviation of the tables, in nats."""


class Local(Task):
    """See the module; ``reach`` and ``vocab_size`` come from the recipe's data section."""

    name = "local"

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        super().__init__(config, seq_len)
        self.reach = config.reach
        require(
            seq_len >= 2 * config.reach,
            f"training.seq_len {seq_len} is too short for data.reach {config.reach}: raise it to {2 * config.reach}",
        )
        tables = generator(TABLES).normal(scale=SHARPNESS, size=(2, config.vocab_size, config.vocab_size))
        self.near, self.far = tables
        self.draws = seq_len + 1
        self.answer = KnownAnswer(
            optimal_l=0,
            note=f"no token depends on one more than {config.reach} tokens back: local layers whose reaches add up to "
            f"{config.reach - 1} tokens see all there is to see",
            source="Markov chains: the past beyond the order is independent of the next token given the order",
        )

    def parameters(self, config: DataConfig) -> dict[str, Any]:
        return {"reach": config.reach}

    def conditional(self, last: npt.NDArray[np.int64], far: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the next token's probabilities, [..., vocab_size], given the last token and the far one."""
        scores = np.exp(self.near[last] + self.far[far])
        result: npt.NDArray[np.float64] = scores / scores.sum(axis=-1, keepdims=True)
        return result

    def generate(self, uniform: npt.NDArray[np.float64], judged: bool) -> Batch:
        stream = below(uniform, self.vocab_size)  # the first ones stay uniform
        for place in range(self.reach, stream.shape[1]):
            chances = self.conditional(stream[:, place - 1], stream[:, place - self.reach])
            drawn = (chances.cumsum(axis=1) < uniform[:, place, None]).sum(axis=1)
            stream[:, place] = np.minimum(drawn, self.vocab_size - 1)  # rounding may leave the sum below 1
        scored = np.zeros(stream.shape, dtype=bool)
        scored[:, self.reach :] = True
        return next_token(stream, scored)
