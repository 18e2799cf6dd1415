"""Intervals, paired differences, seeds and rank agreement: how far a loss measured on a few seeds may be believed.

Schedules are trained on the same seeds, so a difference between two of them is taken seed by seed: what a seed does
to both cancels. Every interval is Student's t (Student, "The probable error of a mean", Biometrika 6, 1908).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layersearch.errors import UserError

CONFIDENCE = 0.95
POWER = 0.8
MIN_RANKED = 4
"""Fewer pairs than this rank in too few ways for a correlation to say anything."""


def decimals(width: float | None) -> int:
    """Return how many decimals of a loss mean something when it is known to ± ``width`` nats: two digits of it."""
    return 4 if not width else min(5, max(2, 1 - math.floor(math.log10(width))))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds and Student's t confidence interval, in nats."""

    mean: float
    low: float | None
    """Lower end; None with a single seed."""
    high: float | None
    """Upper end; None with a single seed."""
    n: int
    """Number of seeds."""
    std: float | None
    """Sample standard deviation over the seeds (n - 1 in the denominator); None with a single seed."""
    confidence: float
    """Confidence of this very interval, after a correction for several comparisons if there was one."""

    @property
    def half_width(self) -> float | None:
        """Return the number after the ±, in nats; None with a single seed."""
        return None if self.high is None else self.high - self.mean

    def __str__(self) -> str:
        """Return the mean ± half the interval, both to the interval's second digit; the bare mean of a single seed."""
        half = self.half_width
        places = decimals(half)
        return f"{self.mean:.{places}f}" + ("" if half is None else f" ± {half:.{places}f}")

    @property
    def excludes_zero(self) -> bool:
        """Tell whether the mean differs significantly from zero; never true of a single seed."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, kw_only=True)
class RankAgreement:
    """Rank correlations of two measures of the same trials, each with a percentile bootstrap interval."""

    n: int
    spearman: float
    spearman_low: float
    spearman_high: float
    kendall: float
    """Kendall's tau-b."""
    kendall_low: float
    kendall_high: float


@functools.lru_cache(maxsize=1024)
def _t_quantile(confidence: float, degrees: int) -> float:
    from scipy import special  # not scipy.stats, which takes 0.3 s to import

    if not 0 < confidence < 1:
        raise UserError(f"confidence must lie between 0 and 1, not {confidence!r}; use for example 0.95")
    return float(special.stdtrit(degrees, 0.5 + confidence / 2))


def normal_quantile(confidence: float = CONFIDENCE) -> float:
    """Return how many standard deviations of a known error an interval reaches to either side of its middle."""
    from scipy import special

    return float(special.ndtri(0.5 + confidence / 2))


def mean_interval(values: Iterable[float], confidence: float = CONFIDENCE, *, comparisons: int = 1) -> Interval:
    """Return the mean of independent values and its Student t interval.

    Args:
        values: one loss, or one difference, per seed, in nats.
        confidence: wanted for all ``comparisons`` at once.
        comparisons: number of intervals that shall hold together (Bonferroni: each is made at the confidence
            1 - (1 - confidence) / comparisons).

    Raises:
        UserError: without a value, or for a confidence outside (0, 1).
    """
    sample = np.asarray(list(values), dtype=np.float64)
    if sample.size == 0:
        raise UserError("an interval needs at least one value; train the schedule on at least one seed")
    each = 1 - (1 - confidence) / comparisons
    n, mean = int(sample.size), float(sample.mean())
    if n == 1:
        return Interval(mean=mean, low=None, high=None, n=1, std=None, confidence=each)
    std = float(sample.std(ddof=1))
    half = _t_quantile(each, n - 1) * std / math.sqrt(n)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n, std=std, confidence=each)


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], confidence: float = CONFIDENCE, *, comparisons: int = 1
) -> Interval:
    """Return the mean of a - b over the seeds that both have, and its Student t interval.

    Args:
        a: loss by seed of one schedule, in nats.
        b: loss by seed of the other.
        confidence: see `mean_interval`.
        comparisons: see `mean_interval`.

    Raises:
        UserError: if they share no seed.
    """
    common = sorted(a.keys() & b.keys())
    if not common:
        raise UserError("a paired difference needs a seed that both schedules were trained on; train both on one")
    return mean_interval((a[seed] - b[seed] for seed in common), confidence, comparisons=comparisons)


def power_of(std: float, difference: float, seeds: int, confidence: float = CONFIDENCE) -> float:
    """Return the probability that a paired t test on so many seeds finds a true difference.

    Args:
        std: standard deviation of the paired difference over seeds, in nats.
        difference: the true mean difference, in nats.
        seeds: number of seeds, at least 2.
        confidence: 1 minus the two-sided level.
    """
    from scipy import special

    if std == 0:
        return 1.0 if difference else 0.0
    shift = (difference / std) ** 2 * seeds
    if shift < 1e-12:
        return 1 - confidence
    # Noncentral F of the squared statistic: scipy's noncentral t returns NaN in its far tail, for example at (2, 11.3).
    return float(1 - special.ncfdtr(1, seeds - 1, shift, _t_quantile(confidence, seeds - 1) ** 2))


def seeds_needed(std: float, difference: float, confidence: float = CONFIDENCE, power: float = POWER) -> int:
    """Return the number of seeds at which a paired t test finds a true difference with the given power.

    Args:
        std: standard deviation of the paired difference over seeds, in nats.
        difference: the true mean difference to be found, in nats.
        confidence: 1 minus the two-sided level.
        power: probability of finding it.

    Raises:
        UserError: for a difference of zero, which no number of seeds finds, or a power outside (0, 1).
    """
    from scipy import special

    if difference == 0:
        raise UserError("no number of seeds finds a difference of 0; give the smallest difference that matters")
    if not 0 < power < 1:
        raise UserError(f"power must lie between 0 and 1, not {power!r}; use for example 0.8")
    # With the variance known the answer is Gauss's; unknown, it can only be more.
    gauss = (_t_quantile(confidence, 10**9) + float(special.ndtri(power))) * std / abs(difference)
    seeds = max(2, math.floor(gauss**2))
    if seeds > 10**6:
        return seeds
    while power_of(std, difference, seeds, confidence) < power:
        seeds += 1
    return seeds


def resolvable(std: float, seeds: int, confidence: float = CONFIDENCE, power: float = POWER) -> float:
    """Return the smallest true difference that so many seeds find with the given power, in nats.

    Args:
        std: standard deviation of the paired difference over seeds, in nats.
        seeds: number of seeds, at least 2.
        confidence: 1 minus the two-sided level.
        power: probability of finding it.
    """
    from scipy import optimize

    if std == 0:
        return 0.0
    high = 1.0
    while power_of(1.0, high, seeds, confidence) < power:
        high *= 2
    return std * float(optimize.brentq(lambda effect: power_of(1.0, effect, seeds, confidence) - power, 0.0, high))


def half_width(std: float, seeds: int, confidence: float = CONFIDENCE) -> float:
    """Return the mean difference below which a pair with this standard deviation is not significant, in nats."""
    return _t_quantile(confidence, seeds - 1) * std / math.sqrt(seeds)


def pooled_std(groups: Iterable[Sequence[float]]) -> float | None:
    """Return the standard deviation within groups, pooled by their degrees of freedom.

    Args:
        groups: losses of one schedule over its seeds, one group per schedule; groups of one say nothing.

    Returns:
        The standard deviation in nats; None if no group has two values.
    """
    samples = [np.asarray(group, dtype=np.float64) for group in groups if len(group) > 1]
    if not samples:
        return None
    degrees = sum(sample.size - 1 for sample in samples)
    return math.sqrt(sum(float(((sample - sample.mean()) ** 2).sum()) for sample in samples) / degrees)


def paired_std(losses: Iterable[Mapping[int, float]]) -> float | None:
    """Return the standard deviation over seeds of the difference of two schedules, pooled over all pairs of them.

    On a complete layout this is the square root of twice the residual variance of the two-way analysis of variance.

    Args:
        losses: loss by seed, one mapping per schedule.

    Returns:
        The standard deviation in nats; None if no two schedules share two seeds.
    """
    return pooled_std(
        [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())] for a, b in itertools.combinations(list(losses), 2)
    )


def rank_agreement(
    x: Sequence[float],
    y: Sequence[float],
    confidence: float = CONFIDENCE,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> RankAgreement | None:
    """Return Spearman's and Kendall's rank correlation of two measures, with percentile bootstrap intervals.

    Trials are resampled in pairs. With few trials such an interval is rough: it tells 0.9 from 0.3, not from 0.85.

    Args:
        x: the cheap measure of each trial.
        y: the measure it stands for, in the same order.
        confidence: of each interval.
        resamples: bootstrap samples.
        seed: of the bootstrap's draws.

    Returns:
        None with fewer than four trials, or where one measure is constant and so ranks nothing.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    assert first.shape == second.shape, "two measures of the same trials"
    n = first.size
    if n < MIN_RANKED or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    spearman, kendall = _weighted_ranks(
        first, second, np.vstack([np.ones(n), draws])
    )  # each trial once, then resamples
    tail = (1 - confidence) / 2
    # A resample that drew one value only ranks nothing: it is left out.
    low_s, high_s = (float(np.nanquantile(spearman[1:], level)) for level in (tail, 1 - tail))
    low_k, high_k = (float(np.nanquantile(kendall[1:], level)) for level in (tail, 1 - tail))
    return RankAgreement(
        n=n,
        spearman=float(spearman[0]),
        spearman_low=low_s,
        spearman_high=high_s,
        kendall=float(kendall[0]),
        kendall_low=low_k,
        kendall_high=high_k,
    )


def _weighted_ranks(
    x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Spearman's rho and Kendall's tau-b of resamples given as counts.

    Both are sums over the signs of all differences (Daniels, Biometrika 33, 1944), so that one product with the
    counts replaces a ranking of every resample.

    Args:
        x: [trials].
        y: [trials].
        weights: [resamples, trials], how often each trial was drawn.

    Returns:
        Two arrays [resamples]; NaN where all drawn values are equal.
    """
    signs_x, signs_y = (np.sign(values[:, None] - values[None, :]) for values in (x, y))
    ranks_x, ranks_y = weights @ signs_x.T, weights @ signs_y.T

    def correlation(xy: NDArray[np.float64], xx: NDArray[np.float64], yy: NDArray[np.float64]) -> NDArray[np.float64]:
        scale = np.sqrt(xx * yy)
        return np.divide(xy, scale, out=np.full_like(xy, np.nan), where=scale > 0)

    def pairs(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        product: NDArray[np.float64] = ((weights @ matrix) * weights).sum(axis=1)
        return product

    def total(product: NDArray[np.float64]) -> NDArray[np.float64]:
        summed: NDArray[np.float64] = (weights * product).sum(axis=1)
        return summed

    return (
        correlation(total(ranks_x * ranks_y), total(ranks_x**2), total(ranks_y**2)),
        correlation(pairs(signs_x * signs_y), pairs(signs_x**2), pairs(signs_y**2)),
    )
