"""Rounds the scores of gates to schedules, one for each price of cost. Nothing here imports torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from layersearch.schedule import Schedule, Span

Array = NDArray[np.float64]
Choices = Sequence[Sequence[Span]]
"""The spans that each layer may have, by layer."""


def round_to_schedules(choices: Choices, scores: Sequence[Array], costs: Sequence[Array]) -> list[Schedule]:
    """Return the schedules of lowest summed score at every price of cost, cheapest first.

    Args:
        choices: by layer.
        scores: by layer and choice; lower is better, for example the logarithm of a mixture with its sign changed.
        costs: by layer and choice, as `keep_to_budget` takes them.
    """
    prices = {0.0}
    for score, cost in zip(scores, costs, strict=True):
        for a in range(len(cost)):
            prices |= {(score[a] - score[b]) / (cost[b] - cost[a]) for b in range(len(cost)) if cost[b] > cost[a]}
    found: dict[Schedule, float] = {}
    edges = sorted(price for price in prices if price >= 0)
    for price in [*edges, *((a + b) / 2 for a, b in itertools.pairwise(edges)), edges[-1] + 1]:
        at = [int(np.argmin(score + price * cost)) for score, cost in zip(scores, costs, strict=True)]
        schedule = Schedule(tuple(spans[i] for spans, i in zip(choices, at, strict=True)))
        found[schedule] = float(sum(cost[i] for cost, i in zip(costs, at, strict=True)))
    return sorted(found, key=lambda schedule: (found[schedule], schedule))
