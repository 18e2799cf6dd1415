"""The model of layers and pairs as arrays: what a choice of one option per variable is predicted to lose, and takes.

Options of all variables stand in one row, O of them; a choice is one index of that row for each of V variables.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from layersearch.surrogate.gp import Coefficients

Array = NDArray[np.float64]
Choice = NDArray[np.int64]


class PairModel:
    """A vector and a matrix over all options, pairs freed of what single variables can say.

    Args:
        coefficients: the model.
        weights: what each option of each variable takes of the constraint, whole numbers.
        most: the largest sum of weights that is admitted, itself included.
        marks: a whole number for each option, 0 or more.
        counts: the sums of marks that are admitted.
    """

    def __init__(
        self,
        coefficients: Coefficients,
        weights: Sequence[Sequence[int]],
        most: int,
        marks: Sequence[Sequence[int]],
        counts: Collection[int],
    ) -> None:
        sizes = [len(values) for values in coefficients.single]
        self.first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.of = np.repeat(np.arange(len(sizes)), sizes)
        """The variable of each option."""
        self.constant = coefficients.constant
        self.single: Array = np.concatenate(coefficients.single).astype(np.float64)
        self.pair: Array = np.zeros((len(self.of), len(self.of)))
        ranges = []
        for (v, w), table in coefficients.pair.items():
            rows, columns, mean = table.mean(axis=1), table.mean(axis=0), float(table.mean())
            self.constant += mean
            self.single[self.part(v)] += rows - mean
            self.single[self.part(w)] += columns - mean
            rest = table - rows[:, None] - columns[None, :] + mean
            self.pair[self.part(v), self.part(w)] = rest
            self.pair[self.part(w), self.part(v)] = rest.T
            ranges.append((float(np.ptp(rest)), (v, w)))
        for v in range(len(sizes)):
            low = float(self.single[self.part(v)].min())
            self.constant += low
            self.single[self.part(v)] -= low
        self.range = float(sum(self.single[self.part(v)].max() for v in range(len(sizes))) + sum(r for r, _ in ranges))
        self.pairs = [place for size, place in sorted(ranges, reverse=True) if size > 1e-13 * max(1.0, self.range)]
        # What the cheapest options take is taken anyway; the rest is divided by what divides all of it.
        least = [min(values) for values in weights]
        over = [value - low for values, low in zip(weights, least, strict=True) for value in values]
        divisor = math.gcd(*over) or 1
        self.weight = np.array([value // divisor for value in over], dtype=np.int64)
        dearest = sum(max(values) for values in weights)
        self.room = (min(most, dearest) - sum(least)) // divisor
        self.mark = np.array([value for values in marks for value in values], dtype=np.int64)
        self.counted = np.zeros(sum(max(values) for values in marks) + 1, dtype=bool)
        """Whether so many marks are admitted."""
        self.counts = [count for count in sorted(counts) if count < len(self.counted)]
        self.counted[self.counts] = True

    def part(self, v: int) -> slice:
        """Return where the options of a variable stand."""
        return slice(int(self.first[v]), int(self.first[v + 1]))

    @property
    def variables(self) -> int:
        """The number V of variables."""
        return len(self.first) - 1

    def largest(self, products: int) -> list[tuple[int, int]]:
        """Return as many pairs, those of the largest effect first, as have so many products of options."""
        sizes = np.diff(self.first)
        taken = np.cumsum([int(sizes[v] * sizes[w]) for v, w in self.pairs])
        return self.pairs[: int(np.searchsorted(taken, products, side="right"))]

    def value(self, options: Choice) -> float:
        """Return the loss of one option per variable, counted over all variables."""
        return self.constant + float(self.single[options].sum() + self.pair[np.ix_(options, options)].sum() / 2)

    def fits(self, options: Choice) -> bool:
        """Tell whether a choice is within the constraint."""
        return int(self.weight[options].sum()) <= self.room

    def least(self, pairs: Collection[tuple[int, int]]) -> float:
        """Return what these pairs add to any choice at the least."""
        return sum(float(self.pair[self.part(v), self.part(w)].min()) for v, w in pairs)
