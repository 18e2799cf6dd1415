"""ListOps as the Long Range Arena's published generator draws it: 500 to 2,000 tokens, without duplicates.

A node at the innermost level is a digit; any other is an operator with probability 0.25 (MIN, MAX, MED: the median,
rounded down, SM: the sum modulo 10) of 2 to 10 nodes, else a digit. An expression is kept if its length is over
``list_min`` and under ``list_max`` tokens, where an operator counts as its bracket, its end and its arguments. Equal
expressions are one. The class is the value: always naming the most frequent one is right for 16.6%.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from layersearch.config.data import DataConfig
from layersearch.data.classes.examples import CONTENT, Example, Maker
from layersearch.data.source import require

MIN, MAX, MED, SM, END = range(CONTENT + 10, CONTENT + 15)
"""Token ids after those of the ten digits."""
OPERATOR_PROBABILITY = 0.25
SEED = 2011_04006
"""The set of expressions is fixed, as a published one would be."""


class Lists(Maker):
    """Nested lists of digits; see the module."""

    name = "lra_listops"
    published = 96_000
    contents = 15

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        super().__init__(config, seq_len)
        self.held_out = min(2000, max(1, self.examples // 10))
        low, high = config.list_min, config.list_max
        require(low + 1 < high, f"data.list_min {low} must lie below data.list_max {high}, and more than one token")
        # The longest expression has list_max - 1 tokens; the first token stands before it.
        require(
            seq_len >= high,
            f"training.seq_len {seq_len} is too short for lists of up to {high - 1} tokens: raise it to {high}, or "
            "lower data.list_max",
        )
        longest = 1
        for _ in range(config.list_depth - 1):
            longest = min(2 + config.list_args * longest, 10**9)
        require(longest > low, f"data.list_depth {config.list_depth} gives no list of over {low} tokens; raise it")

    def identity(self) -> list[int]:
        one = self.config
        return [one.list_depth, one.list_args, one.list_min, one.list_max]

    def make(self) -> tuple[Iterable[Example], Iterable[Example]]:
        drawn = self._distinct()
        train = [next(drawn) for _ in range(self.examples)]
        return train, drawn

    def _distinct(self) -> Iterator[Example]:
        draws = _draws(np.random.Generator(np.random.Philox(SEED)))
        seen: set[bytes] = set()
        while True:
            tokens: list[int] = []
            value = self._node(draws, tokens, 1)
            if not self.config.list_min < len(tokens) < self.config.list_max:
                continue
            key = bytes(tokens)
            if key not in seen:
                seen.add(key)
                yield Example(tokens, value)

    def _node(self, draws: Iterator[float], written: list[int], depth: int) -> int:
        """Write one node and return its value; what is too long anyway is not worth its end."""
        if depth == self.config.list_depth or next(draws) > OPERATOR_PROBABILITY:
            digit = int(next(draws) * 10)
            written.append(CONTENT + digit)
            return digit
        place = len(written)
        written.append(END)
        count = 2 + int(next(draws) * (self.config.list_args - 1))
        values = sorted(self._node(draws, written, depth + 1) for _ in range(count))
        written[place] = operator = (MIN, MAX, MED, SM)[int(next(draws) * 4)]
        written.append(END)
        if operator == SM:
            return sum(values) % 10
        middle = (values[(count - 1) // 2] + values[count // 2]) // 2
        return {MIN: values[0], MAX: values[-1], MED: middle}[operator]


def _draws(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(4096).tolist()
