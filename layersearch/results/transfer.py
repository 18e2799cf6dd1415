"""Does one set of losses rank schedules as another does? Rank correlation and regret, corrected for seed noise.

The noise of few seeds lowers a rank correlation. It is divided by the square root of both sides' reliabilities
(Spearman, "The proof and measurement of association between two things", Am. J. Psychol. 15, 1904). A reliability is
the mean correlation between single seeds, stepped up to their number (Spearman-Brown). Schedules are resampled for the
interval, each with its own noise; it is the wider, at each end, of their percentiles and of Student's interval of
Fisher's z. `analysis/transfer/coverage.md` has the coverage that was found by simulation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from layersearch.results import stats
from layersearch.results.moderated import fit_prior

Array = NDArray[np.float64]

_NEAR_ONE = 0.995  # where Fisher's z, infinite at 1, is cut
GOAL = 0.8
"""Spearman's correlation from which a small model is said to rank schedules as the larger one does."""


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's rank correlation of two measures, corrected for seed noise."""

    n: int
    """Number of schedules."""
    spearman: float
    """As measured, between mean losses."""
    corrected: float
    """Corrected for the noise of the sides with two seeds or more, at most 1."""
    low: float | None
    """Ends of the interval of ``corrected``; None for fewer than `layersearch.results.stats.MIN_BOUNDED` schedules, or
    in a perfect order, of which every resample is perfect."""
    high: float | None
    reliability_small: float | None
    """Correlation to expect between these means and those of other seeds; None with a single seed."""
    reliability_large: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.corrected:.2f} ({'too few schedules' if self.n < stats.MIN_BOUNDED else 'no bound'})"
        return f"{self.corrected:.2f} ({self.low:.2f} to {self.high:.2f})"


def corrected_correlation(
    small: Array,
    large: Array,
    *,
    groups: Sequence[int] | None = None,
    confidence: float = stats.CONFIDENCE,
    resamples: int = 2000,
    seed: int = 0,
) -> Correlation | None:
    """Return how one set of losses ranks schedules, against another.

    It is None for fewer than four schedules, or where one side is constant or is not reliable at all. The seeds of both
    sides must be independent: not two lengths of one training.

    Args:
        small: losses, nats, [schedules, seeds]; infinity where a training failed.
        large: those of the other scale, [schedules, its seeds].
        groups: a number for each schedule; only schedules of one group are then compared with each other.
        confidence: of the interval.
        resamples: of the bootstrap over schedules.
        seed: of the bootstrap.
    """
    n = len(small)
    assert n == len(large), "two measures of the same schedules"
    if n < stats.MIN_RANKED:
        return None
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    weights = np.vstack([np.ones(n), draws])  # the first row: each schedule once
    labels = np.zeros(n) if groups is None else np.asarray(groups)
    same = (labels[:, None] == labels[None]).astype(np.float64)

    def ranks(values: Array) -> Array:
        return weights @ (_signs(values) * same).T  # [resamples, schedules]

    def correlation(a: Array, b: Array) -> Array:
        scale = np.sqrt((weights * a * a).sum(1) * (weights * b * b).sum(1))
        return np.divide((weights * a * b).sum(1), scale, out=np.full(len(scale), np.nan), where=scale > 0)

    def reliability(losses: Array) -> Array | None:
        seeds = losses.shape[1]
        if seeds < 2:
            return None
        each = [ranks(losses[:, number]) for number in range(seeds)]
        one = np.mean([correlation(a, b) for a, b in itertools.combinations(each, 2)], axis=0)
        return np.asarray(seeds * one / (1 + (seeds - 1) * one))

    observed = correlation(ranks(small.mean(1)), ranks(large.mean(1)))
    reliabilities = [reliability(small), reliability(large)]
    found = observed.copy()
    for each in reliabilities:
        if each is not None:
            found = np.divide(found, np.sqrt(np.maximum(each, 0)), out=np.full_like(found, np.nan), where=each > 0)
    found = found.clip(-1, 1)
    if np.isnan(found[0]):
        return None
    # Percentiles of so few schedules lie too high in 11% of cases, Student intervals of Fisher's z near 1 in 13%.
    z = np.arctanh(found.clip(-_NEAR_ONE, _NEAR_ONE))
    spread = float(np.nanstd(z[1:], ddof=1)) if resamples > 1 else 0.0
    half = float(special.stdtrit(n - 2, 0.5 + confidence / 2)) * spread
    tail = (1 - confidence) / 2
    percentiles = np.nanquantile(found[1:], [tail, 1 - tail])
    low = float(min(np.tanh(z[0] - half), percentiles[0]))
    high = float(max(np.tanh(z[0] + half), percentiles[1]))
    bounded = n >= stats.MIN_BOUNDED and spread > 1e-9
    first, second = (None if each is None else float(each[0]) for each in reliabilities)
    return Correlation(
        n=n,
        spearman=float(observed[0]),
        corrected=float(found[0]),
        low=low if bounded else None,
        high=high if bounded else None,
        reliability_small=first,
        reliability_large=second,
    )


def _signs(values: Array) -> Array:
    """Return the sign of each difference, [schedules, schedules]; equal infinities are equal."""
    order = np.unique(values, return_inverse=True)[1].astype(np.float64)
    return np.sign(np.subtract.outer(order, order))


@dataclass(frozen=True, kw_only=True)
class Regret:
    """How much is lost by taking the schedule of the lowest loss on one side, measured on the other."""

    picked: int
    """Number of the picked schedule."""
    best: int
    """That of the schedule of the lowest mean loss on the other side."""
    nats: float
    """Mean loss of the picked one above the best one. The best of many is partly luck: it reads too high."""
    fresh: float | None
    """The same against the one that is best at the other seeds, mean over the seeds that are left out; free of that
    luck. None with a single seed."""
    interval: stats.Interval | None
    """Picked minus best, paired by seed, moderated and corrected for the choice of the best (Bonferroni). None with a
    single seed or a failed training."""
    chance: float
    """Mean of ``nats`` over all schedules: of a pick at random."""


def regret(small: Array, large: Array) -> Regret:
    """Return what the winner of the small scale loses at the large one; arguments are losses, [schedules, seeds]."""
    means = large.mean(1)
    picked, best = int(small.mean(1).argmin()), int(means.argmin())
    seeds = large.shape[1]
    fresh: float | None = None
    interval: stats.Interval | None = None
    if seeds > 1 and np.isfinite(large[[picked, best]]).all():
        others = [int(np.delete(large, seed, axis=1).mean(1).argmin()) for seed in range(seeds)]
        fresh = float(np.mean([large[picked, seed] - large[others[seed], seed] for seed in range(seeds)]))
        tables = [dict(enumerate(row)) for row in large.tolist() if np.isfinite(row).all()]
        if picked != best:
            interval = stats.mean_interval(
                large[picked] - large[best], comparisons=max(1, len(large) - 1), prior=fit_prior(tables)
            )
    return Regret(
        picked=picked,
        best=best,
        nats=float(means[picked] - means[best]),
        fresh=fresh,
        interval=interval,
        chance=float(means.mean() - means[best]),
    )
