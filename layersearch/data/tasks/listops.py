"""ListOps: nested lists of digits, classified by their value after the last token.

    [MAX 4 [SM 7 8 ] 2 ]        → 5

The task is that of Nangia and Bowman (1804.06028) as the Long Range Arena generates it (2011.04006, sec. 2.2.1, and
its published generator): a node is an operator with probability 0.25 and a digit otherwise, a digit at the innermost
level; an operator is MIN, MAX, MED (the median, rounded down) or SM (the sum modulo 10), of 2 to ``list_args`` lists;
expressions too short or too long for the task are drawn again. There the bounds are 500 and 2,000 tokens: here the
upper one is the sequence length and the lower one a quarter of it. Padding comes before an expression, so that the
last token of a sequence is its last bracket.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from layersearch.config.recipe import DataConfig
from layersearch.data.source import IGNORE, Batch, KnownAnswer, require
from layersearch.data.tasks.base import Task

PADDING, END, MIN, MAX, MED, SM = range(10, 16)
"""Token ids; a digit is its own id."""
TOKENS = 16
OPERATOR_SHARE = 0.25


class ListOps(Task):
    """See the module; ``list_depth`` and ``list_args`` come from the recipe's data section."""

    name = "listops"

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        super().__init__(config, seq_len)
        self.depth, self.args = config.list_depth, config.list_args
        require(
            config.vocab_size >= TOKENS,
            f"data.vocab_size {config.vocab_size} is too small for listops: raise it to {TOKENS}",
        )
        require(self.depth >= 2, "data.list_depth 1 leaves no room for an operator: raise it to at least 2")
        self.shortest = max(4, seq_len // 4)
        require(seq_len >= 4, f"training.seq_len {seq_len} is too short for a list: raise it to at least 4")
        longest = _longest(self.depth, self.args)
        require(
            2 * self.shortest <= longest,
            f"data.list_depth {self.depth} and data.list_args {self.args} give at most {longest} tokens, too few for "
            f"training.seq_len {seq_len}: raise one of them, or lower training.seq_len to {2 * longest}",
        )
        self.draws = 1
        self.answer = KnownAnswer(
            optimal_l=1,
            exact=False,
            stepwise_l=self.depth - 1,
            note="the root's arguments are spread over the sequence, which local layers alone cannot cross while their "
            "reaches add up to less; evaluating one level of nesting a layer takes a full layer for each, and whether "
            "fewer are enough is not known",
            source="ListOps (1804.06028); Long Range Arena (2011.04006, sec. 2.2.1)",
        )

    def parameters(self, config: DataConfig) -> dict[str, Any]:
        return {"list_depth": config.list_depth, "list_args": config.list_args}

    def generate(self, uniform: npt.NDArray[np.float64], judged: bool) -> Batch:
        tokens = np.full((len(uniform), self.seq_len), PADDING, dtype=np.int64)
        targets = np.full_like(tokens, IGNORE)
        for row, (number,) in enumerate(uniform):
            # A list needs a number of draws that is not known before: the row's own number seeds them.
            rng = np.random.Generator(np.random.Philox(int(number * (1 << 53))))
            expression, value = self._expression(rng)
            tokens[row, -len(expression) :] = expression
            targets[row, -1] = value
        return Batch(tokens, targets)

    def _expression(self, rng: np.random.Generator) -> tuple[list[int], int]:
        draws = _draws(rng)
        while True:
            expression: list[int] = []
            value = self._node(draws, expression, 1)
            if value is not None and self.shortest <= len(expression):
                return expression, value

    def _node(self, draws: Iterator[float], written: list[int], level: int) -> int | None:
        """Write one node; return its value, or None as soon as the expression is too long."""
        if level == self.depth or next(draws) > OPERATOR_SHARE:
            written.append(int(next(draws) * 10))
            return written[-1] if len(written) <= self.seq_len else None
        place = len(written)
        written.append(PADDING)
        values = []
        for _ in range(2 + int(next(draws) * (self.args - 1))):
            value = self._node(draws, written, level + 1)
            if value is None:
                return None
            values.append(value)
        written[place] = (MIN, MAX, MED, SM)[int(next(draws) * 4)]
        written.append(END)
        if len(written) > self.seq_len:
            return None
        if written[place] == SM:
            return sum(values) % 10
        ordered = sorted(values)
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2
        return {MIN: ordered[0], MAX: ordered[-1], MED: middle}[written[place]]


def _draws(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(256).tolist()


def _longest(depth: int, args: int) -> int:
    """Return the tokens of the largest expression, or a million where it is larger."""
    tokens = 1
    for _ in range(depth - 1):
        tokens = min(2 + args * tokens, 1_000_000)
    return tokens
