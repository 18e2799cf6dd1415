"""The curve of loss against l: its knee, and its minimum within a budget.

The uncertainty comes from joint samples of all mean losses under a flat prior (`docs/methods/l-star.md`).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layersearch.results.stats import CONFIDENCE

Array = NDArray[np.float64]
DRAWS = 4000
_HELD = 0.5 + CONFIDENCE / 2
"""Share of the samples that the likely l's hold. Where two l's tie, either may look better: two tails of 2.5%."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An l picked from the curve, and the l's that the data cannot exclude."""

    l: int | None = None
    """None: there is no such l."""
    likely: tuple[int, ...] = ()
    """The fewest l's that hold 97.5% of the samples, ascending; empty if nothing could be sampled."""
    confidence: float = CONFIDENCE
    why: str = ""
    """Why there is none; empty if there is one."""


def sample_means(losses: Array, rng: np.random.Generator, draws: int = DRAWS) -> Array:
    """Return samples (draws, schedules) of the mean losses, nats, from losses (seeds, schedules) at 2 seeds or more.

    They are Student t around the measured means, with the seeds' covariance (Box and Tiao, "Bayesian Inference in
    Statistical Analysis", section 8.4).
    """
    n = len(losses)
    mean = losses.mean(axis=0)
    residuals = (losses - mean) / np.sqrt(n * (n - 1))
    scale = np.sqrt((n - 1) / rng.chisquare(n - 1, size=(draws, 1)))
    found: Array = mean + scale * (rng.standard_normal((draws, n)) @ residuals)
    return found


def knee_index(costs: Sequence[float], losses: Sequence[float]) -> int:
    """Return the index of the knee of a falling curve: the point farthest below the chord between its ends.

    Costs are ascending, losses are in nats. Both axes are scaled to [0, 1] (Satopää et al., "Finding a 'kneedle' in a
    haystack", ICDCSW 2011, for a convex falling curve, without smoothing). Each loss is replaced by the lowest loss so
    far, because a schedule need not use all of its attention.
    """
    return int(_knees(costs, np.asarray([losses], dtype=np.float64))[0])


def _knees(costs: Sequence[float], losses: Array) -> NDArray[np.intp]:
    """Return `knee_index` of each row of losses, (curves, l's)."""
    x, y = np.asarray(costs, dtype=np.float64), np.minimum.accumulate(losses, axis=1)
    x = (x - x[0]) / max(x[-1] - x[0], 1e-300)
    y = (y - y[:, -1:]) / np.maximum(y[:, :1] - y[:, -1:], 1e-300)
    return np.argmax(1 - x - y, axis=1)


def find_knee(ls: Sequence[int], costs: Sequence[float], losses: Mapping[int, Sequence[float]], delta: float) -> Choice:
    """Return the knee of loss against cost.

    Args:
        ls: numbers of full layers, ascending.
        costs: cost of the best schedule at each l, as a share of all-full's.
        losses: one loss per seed at each l, with the same seeds for all.
        delta: a curve that falls by no more than this, in nats, has no knee.
    """
    if len(ls) < 3:
        return Choice(why="a knee needs losses at three l's")
    table = _table(ls, losses)
    means = table.mean(axis=0)
    if float(means[0] - means.min()) <= delta:
        return Choice(why=f"from l = {ls[0]} on the loss falls by no more than delta ({delta:g} nats)")
    if not _bends(costs, table, knee_index(costs, means.tolist())):
        return Choice(why="the curve is not shown to fall below the straight line between its ends")
    return _pick(ls, table, lambda rows: _knees(costs, rows))


def _bends(costs: Sequence[float], table: Array, at: int) -> bool:
    """Return whether the curve is shown to lie below its chord at the knee, which is one of several places to look."""
    if at in (0, len(costs) - 1):
        return False  # the argmax of a curve that lies above its chord is an end
    if len(table) < 2:
        return True
    x = (np.asarray(costs) - costs[0]) / (costs[-1] - costs[0])
    means = np.minimum.accumulate(sample_means(table, np.random.default_rng(0)), axis=1)
    chord = means[:, 0] + x[at] * (means[:, -1] - means[:, 0])
    return float(np.mean(means[:, at] >= chord)) <= (1 - CONFIDENCE) / 2 / (len(costs) - 2)


def best_within(
    ls: Sequence[int], costs: Sequence[float], losses: Mapping[int, Sequence[float]], budget: float
) -> Choice:
    """Return the l with the lowest mean loss whose cost is at most the budget. See `find_knee`."""
    inside = [l for l, cost in zip(ls, costs, strict=True) if cost <= budget]
    if not inside:
        return Choice(why=f"no l costs {budget:g} of all-full or less; the cheapest costs {min(costs):.4g}")
    return _pick(inside, _table(inside, losses), lambda rows: np.argmin(rows, axis=1))


def _table(ls: Sequence[int], losses: Mapping[int, Sequence[float]]) -> Array:
    return np.array([losses[l] for l in ls], dtype=np.float64).T


def _pick(ls: Sequence[int], table: Array, indices: Callable[[Array], NDArray[np.intp]]) -> Choice:
    chosen = ls[int(indices(table.mean(axis=0, keepdims=True))[0])]
    if len(table) < 2:
        return Choice(l=chosen, likely=tuple(ls))
    drawn = Counter(ls[at] for at in indices(sample_means(table, np.random.default_rng(0))).tolist())
    likely: set[int] = set()
    for l, _ in drawn.most_common():
        likely.add(l)
        if sum(drawn[at] for at in likely) >= _HELD * DRAWS:
            break
    return Choice(l=chosen, likely=tuple(sorted({*likely, chosen})))
