"""The curve of loss against l: where it bends, and where it is lowest within a budget.

How sure that is comes from draws of all mean losses at once: a Student t distribution around the measured means with
the seeds' covariance, so that each difference of two means has the paired t interval (the posterior under a flat prior;
Box and Tiao, "Bayesian Inference in Statistical Analysis", section 8.4). Resampling three seeds with replacement would
claim too much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layersearch.results.stats import CONFIDENCE

Array = NDArray[np.float64]
DRAWS = 4000


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An l that was picked from the curve, and which others the data leave open."""

    l: int | None
    """None: there is no such l."""
    likely: tuple[int, ...]
    """The fewest l's that hold ``confidence`` of the draws, ascending; empty where nothing could be drawn."""
    confidence: float
    why: str
    """Why there is none; empty if there is one."""

    @property
    def decided(self) -> bool:
        """Tell whether one l is left."""
        return self.l is not None and self.likely == (self.l,)


def draw_means(losses: Array, rng: np.random.Generator, draws: int = DRAWS) -> Array:
    """Return draws of the mean losses.

    Args:
        losses: (seeds, schedules), nats; at least two seeds.
        rng: the generator.
        draws: how many.

    Returns:
        (draws, schedules), nats.
    """
    n = len(losses)
    mean = losses.mean(axis=0)
    residuals = (losses - mean) / np.sqrt(n * (n - 1))
    scale = np.sqrt((n - 1) / rng.chisquare(n - 1, size=(draws, 1)))
    found: Array = mean + scale * (rng.standard_normal((draws, n)) @ residuals)
    return found


def knee_index(costs: Sequence[float], losses: Sequence[float]) -> int:
    """Return the index of the knee of a falling curve: the point farthest below the chord between its ends.

    Both axes are scaled to [0, 1] (Satopää et al., "Finding a 'kneedle' in a haystack", ICDCSW 2011, for a convex
    falling curve and without smoothing). The losses are replaced by the lowest so far, as more attention may be left
    unused.

    Args:
        costs: ascending.
        losses: nats.
    """
    x, y = np.asarray(costs, dtype=np.float64), np.minimum.accumulate(np.asarray(losses, dtype=np.float64))
    x = (x - x[0]) / max(x[-1] - x[0], 1e-300)
    y = (y - y[-1]) / max(y[0] - y[-1], 1e-300)
    return int(np.argmax(1 - x - y))


def find_knee(
    ls: Sequence[int], costs: Sequence[float], losses: Mapping[int, Sequence[float]], delta: float, seed: int = 0
) -> Choice:
    """Return the knee of loss against cost.

    Args:
        ls: numbers of full layers, ascending.
        costs: of the best schedule at each, as shares of all-full's.
        losses: at each l, one loss per seed, the same seeds for all.
        delta: a curve that falls by less, in nats, has no knee.
        seed: of the draws.
    """
    table = np.array([losses[l] for l in ls], dtype=np.float64).T
    if len(ls) < 3:
        return Choice(l=None, likely=(), confidence=CONFIDENCE, why="a knee needs losses at three l's")
    means = table.mean(axis=0)
    if float(means[0] - means.min()) <= delta:
        why = f"from l = {ls[0]} on the loss falls by no more than delta ({delta:g} nats)"
        return Choice(l=None, likely=(), confidence=CONFIDENCE, why=why)
    return _pick(ls, table, lambda row: knee_index(costs, [float(loss) for loss in row]), seed)


def best_within(
    ls: Sequence[int], costs: Sequence[float], losses: Mapping[int, Sequence[float]], budget: float, seed: int = 0
) -> Choice:
    """Return the l of lowest mean loss whose schedule costs at most the budget. See `find_knee`."""
    held = [at for at, cost in enumerate(costs) if cost <= budget]
    if not held:
        why = f"no l costs {budget:g} of all-full or less; the cheapest costs {min(costs):.4g}"
        return Choice(l=None, likely=(), confidence=CONFIDENCE, why=why)
    inside = [ls[at] for at in held]
    table = np.array([losses[l] for l in inside], dtype=np.float64).T
    return _pick(inside, table, lambda row: int(np.argmin(row)), seed)


def _pick(ls: Sequence[int], table: Array, index: Callable[[Array], int], seed: int) -> Choice:
    chosen = ls[index(table.mean(axis=0))]
    if len(table) < 2:
        return Choice(l=chosen, likely=tuple(ls), confidence=CONFIDENCE, why="")
    drawn = Counter(ls[index(row)] for row in draw_means(table, np.random.default_rng(seed)))
    likely: list[int] = []
    for l, _ in drawn.most_common():
        likely.append(l)
        if sum(drawn[at] for at in likely) >= CONFIDENCE * DRAWS:
            break
    return Choice(l=chosen, likely=tuple(sorted({*likely, chosen})), confidence=CONFIDENCE, why="")
