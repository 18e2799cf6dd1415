"""ListOps: nested lists of digits; the target is their value, after the last token.

    [MAX 4 [SM 7 8 ] 2 ]        → 5

The task is that of Nangia and Bowman (1804.06028), as the Long Range Arena generates it (2011.04006, sec. 2.2.1, and
its published generator). A node is an operator with probability 0.25 and a digit otherwise; at the innermost level it
is a digit. An operator is MIN, MAX, MED (the median, rounded down) or SM (the sum modulo 10), of 2 to ``list_args``
nodes. Expressions too short or too long for the task are drawn again. The published bounds are 500 and 2,000 tokens;
here the upper one is the sequence length, and the lower one a quarter of it. Padding comes before an expression, so
that the last token of a sequence is its last bracket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from layersearch.config.data import DataConfig
from layersearch.data.source import IGNORE, Batch, KnownAnswer, require
from layersearch.data.tasks.base import Task, Uniform

PADDING, END, MIN, MAX, MED, SM = range(10, 16)
"""Token ids; a digit is its own id."""
TOKENS = 16
OPERATOR_PROBABILITY = 0.25


class ListOps(Task):
    """Nested lists of digits; see the module."""

    name = "listops"
    keys = ("list_depth", "list_args")

    def plan(self, config: DataConfig) -> tuple[Sequence[int], KnownAnswer]:
        depth, args, vocab_size = config.list_depth, config.list_args, self.vocab_size
        require(vocab_size >= TOKENS, f"data.vocab_size {vocab_size} is too small for listops: raise it to {TOKENS}")
        require(depth >= 2, "data.list_depth 1 leaves no room for an operator: raise it to at least 2")
        self.need_length(4, "a list")
        self.shortest = max(4, self.seq_len // 4)
        longest = 1
        for _ in range(depth - 1):
            longest = min(2 + args * longest, 1_000_000)  # larger numbers make no difference
        require(
            2 * self.shortest <= longest,
            f"data.list_depth {depth} and data.list_args {args} give at most {longest} tokens, too few for "
            f"training.seq_len {self.seq_len}: raise one of them, or lower training.seq_len to {2 * longest}",
        )
        answer = KnownAnswer(
            optimal_l=1,
            exact=False,
            stepwise_l=depth - 1,
            note="the root's arguments are spread over the sequence, which local layers alone cannot cross while their "
            "reaches add up to less; evaluating one level of nesting a layer takes a full layer for each, and whether "
            "fewer are enough is not known",
            source="ListOps (1804.06028); Long Range Arena (2011.04006, sec. 2.2.1)",
        )
        return (1,), answer

    def generate(self, parts: Sequence[Uniform], evaluating: bool) -> Batch:
        (uniform,) = parts
        tokens = np.full((len(uniform), self.seq_len), PADDING, dtype=np.int64)
        targets = np.full_like(tokens, IGNORE)
        for row, (number,) in enumerate(uniform):
            # An expression needs an unknown number of draws: the row's own number seeds them.
            draws = _draws(np.random.Generator(np.random.Philox(int(number * (1 << 53)))))
            expression: list[int] = []
            while (value := self._node(draws, expression, 1)) is None or len(expression) < self.shortest:
                expression = []
            tokens[row, -len(expression) :] = expression
            targets[row, -1] = value
        return Batch(tokens, targets)

    def _node(self, draws: Iterator[float], written: list[int], level: int) -> int | None:
        """Write one node; return its value, or None as soon as the expression is too long."""
        if level == self.config.list_depth or next(draws) > OPERATOR_PROBABILITY:
            written.append(int(next(draws) * 10))
            return written[-1] if len(written) <= self.seq_len else None
        place = len(written)
        written.append(PADDING)
        values = []
        for _ in range(2 + int(next(draws) * (self.config.list_args - 1))):
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
