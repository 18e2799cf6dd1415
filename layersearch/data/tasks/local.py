"""Sequences like text, whose next token depends only on tokens within reach.

A token is drawn with probability proportional to exp(a[x1, y] + b[xr, y]). Here x1 is the last token, xr the one
``reach`` tokens back, and a and b are tables of normal random numbers that all sequences share. Tokens farther back add
no information, so the loss cannot fall below the chain's own conditional entropy, with full layers or without.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from layersearch.config.data import DataConfig
from layersearch.data.source import Batch, KnownAnswer, generator
from layersearch.data.tasks.base import Task, Uniform, next_token, to_integers

TABLES = 2
"""First word of the key of the tables' generator."""
SHARPNESS = 1.5
"""Standard deviation of the tables, in nats."""


class Local(Task):
    """A Markov chain of order ``reach``; see the module."""

    name = "local"
    keys = ("reach",)

    def plan(self, config: DataConfig) -> tuple[Sequence[int], KnownAnswer]:
        reach = config.reach
        self.need_length(2 * reach, f"data.reach {reach}")
        self.near, self.far = generator(TABLES).normal(scale=SHARPNESS, size=(2, self.vocab_size, self.vocab_size))
        answer = KnownAnswer(
            optimal_l=0,
            note=f"no token depends on one more than {reach} tokens back: local layers whose reaches add up to "
            f"{reach - 1} tokens see all there is to see",
            source="Markov chains: the past beyond the order is independent of the next token given the order",
        )
        return (self.seq_len + 1,), answer

    def conditional(self, last: npt.NDArray[np.int64], far: npt.NDArray[np.int64]) -> Uniform:
        """Return the next token's probabilities, [..., vocab_size], given the last token and the far one."""
        scores = np.exp(self.near[last] + self.far[far])
        result: Uniform = scores / scores.sum(axis=-1, keepdims=True)
        return result

    def generate(self, parts: Sequence[Uniform], evaluating: bool) -> Batch:
        (uniform,), reach = parts, self.config.reach
        stream = to_integers(uniform, self.vocab_size)  # the first ``reach`` tokens stay uniform
        for place in range(reach, stream.shape[1]):
            probabilities = self.conditional(stream[:, place - 1], stream[:, place - reach])
            drawn = (probabilities.cumsum(axis=1) < uniform[:, place, None]).sum(axis=1)
            stream[:, place] = np.minimum(drawn, self.vocab_size - 1)  # rounding may leave the sum below 1
        scored = np.broadcast_to(np.arange(stream.shape[1]) >= reach, stream.shape)
        return next_token(stream, scored)
