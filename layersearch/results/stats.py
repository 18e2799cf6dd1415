"""Confidence intervals, paired differences, power and rank correlation of losses over a few seeds.

Schedules are trained on the same seeds, so their difference is taken seed by seed: seed effects common to both cancel.
Every interval is Student's t (Student, "The probable error of a mean", Biometrika 6, 1908); with a prior of the
variances it is the moderated t of `layersearch.results.moderated`.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special  # not scipy.stats, which takes 0.3 s to import

from layersearch.errors import LayersearchError
from layersearch.results.moderated import Prior

Array = NDArray[np.float64]

CONFIDENCE = 0.95
POWER = 0.8
MIN_RANKED = 4  # fewer pairs have too few rankings for a correlation to mean anything
MOST_RESAMPLED, BAG = 400, 200
"""Most pairs that a bootstrap resamples as a whole, in the square of their number; of more, up to four bags of this
many."""
MIN_BOUNDED = 10
"""Fewest pairs for an interval of a rank correlation: of nominal 95% intervals of five to eight, 46 to 93% hold it."""


def decimals(width: float | None) -> int:
    """Return the number of decimals to show of a loss known to ± ``width`` nats: two digits of the width."""
    return 4 if not width else min(5, max(2, 1 - math.floor(math.log10(width))))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds and Student's t confidence interval, nats; the ends are None with a single seed."""

    mean: float
    low: float | None
    high: float | None
    n: int
    """Number of seeds."""
    std: float | None
    """Sample standard deviation over the seeds (n - 1 in the denominator); None with a single seed."""
    confidence: float
    """Confidence of this interval, after any correction for several comparisons."""

    @property
    def half_width(self) -> float | None:
        """The number after the ±, nats; None with a single seed."""
        return None if self.high is None else self.high - self.mean

    def __str__(self) -> str:
        """Return mean ± half width, to two digits of the half width; only the mean of a single seed."""
        half = self.half_width
        places = decimals(half)
        return f"{self.mean:.{places}f}" + ("" if half is None else f" ± {half:.{places}f}")

    @property
    def excludes_zero(self) -> bool:
        """Whether the mean differs significantly from zero; never true of a single seed."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Rank correlations of two measures of the same trials, each with a percentile bootstrap interval.

    The ends are None for fewer than `MIN_BOUNDED` trials, and in a perfect order, of which every resample is perfect.
    """

    n: int
    spearman: float
    spearman_low: float | None
    spearman_high: float | None
    kendall: float
    """Kendall's tau-b."""
    kendall_low: float | None
    kendall_high: float | None

    @property
    def spearman_text(self) -> str:
        """Spearman's correlation with its interval, or why it has none."""
        return f"{self.spearman:.2f} ({self.bounds(self.spearman_low, self.spearman_high)})"

    def bounds(self, low: float | None, high: float | None) -> str:
        """Return an interval of this correlation in words, or why it has none."""
        if low is None or high is None:
            return "too few trials" if self.n < MIN_BOUNDED else "no bound"
        return f"{low:.2f} to {high:.2f}"


@functools.lru_cache(maxsize=1024)
def _t_quantile(confidence: float, degrees: float) -> float:
    if not 0 < confidence < 1:
        raise LayersearchError(f"confidence must lie between 0 and 1, not {confidence!r}; use for example 0.95")
    return float(special.stdtrit(degrees, 0.5 + confidence / 2))


def normal_quantile(confidence: float = CONFIDENCE) -> float:
    """Return the half width of a two-sided normal interval, in standard deviations."""
    return float(special.ndtri(0.5 + confidence / 2))


def corrected_confidence(confidence: float, comparisons: int) -> float:
    """Return the confidence of each interval if ``confidence`` is joint for all of them (Bonferroni)."""
    return 1 - (1 - confidence) / comparisons


def mean_interval(
    values: Iterable[float], confidence: float = CONFIDENCE, *, comparisons: int = 1, prior: Prior | None = None
) -> Interval:
    """Return the mean of independent values and its Student t interval.

    ``confidence`` is joint for all ``comparisons``, see `corrected_confidence`. Values are losses or differences,
    one per seed, nats. With a prior, which is one of differences, the standard deviation in the interval is moderated.

    Raises:
        LayersearchError: without a value, or for a confidence outside (0, 1).
    """
    sample = np.asarray(list(values), dtype=np.float64)
    if sample.size == 0:
        raise LayersearchError("an interval needs at least one value; train the schedule on at least one seed")
    each = corrected_confidence(confidence, comparisons)
    n, mean = int(sample.size), float(sample.mean())
    if n == 1:
        return Interval(mean=mean, low=None, high=None, n=1, std=None, confidence=each)
    std = float(sample.std(ddof=1))
    half = half_width(std, n, each, prior)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n, std=std, confidence=each)


def paired_difference(
    a: Mapping[int, float],
    b: Mapping[int, float],
    confidence: float = CONFIDENCE,
    *,
    comparisons: int = 1,
    prior: Prior | None = None,
) -> Interval:
    """Return the mean of a - b over the seeds that both have, and its Student t interval.

    Losses are by seed, in nats; the other arguments are those of `mean_interval`.

    Raises:
        LayersearchError: if they share no seed.
    """
    common = sorted(a.keys() & b.keys())
    if not common:
        raise LayersearchError("a paired difference needs a seed of both schedules; train both on one")
    return mean_interval((a[seed] - b[seed] for seed in common), confidence, comparisons=comparisons, prior=prior)


def paired_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p value of the paired t test, on the same seeds in the same order; 1 for a single seed."""
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    n, mean = differences.size, float(differences.mean())
    if n < 2:
        return 1.0
    std = float(differences.std(ddof=1))
    if std <= 1e-12 * abs(mean):
        return 0.0 if mean else 1.0
    return 2 * float(special.stdtr(n - 1, -abs(mean) * math.sqrt(n) / std))


def t_test_power(
    std: float,
    difference: float,
    seeds: int,
    confidence: float = CONFIDENCE,
    prior_degrees: float = 0.0,
    std_degrees: float = math.inf,
) -> float:
    """Return the probability that a paired t test detects a true mean difference, nats, on 2 seeds or more.

    ``std`` is that of the paired difference over seeds, nats; ``confidence`` is 1 minus the two-sided level;
    ``prior_degrees`` are those of a moderated test's prior. ``std_degrees`` are the degrees of freedom of the estimate
    ``std``: the power is then the mean over the true ones that such an estimate leaves open.
    """
    if std == 0:
        return 1.0 if difference else 0.0
    shift = (difference / std) ** 2 * seeds
    if shift < 1e-12:
        return 1 - confidence
    degrees = seeds - 1 + prior_degrees
    shifts = shift * _open_variances(std_degrees)
    # Noncentral F of the squared statistic: scipy's noncentral t returns NaN in its far tail, for example at (2, 11.3).
    return float(np.mean(1 - special.ncfdtr(1, degrees, shifts, _t_quantile(confidence, degrees) ** 2)))


@functools.lru_cache(maxsize=64)
def _open_variances(degrees: float) -> Array:
    """Return equally likely quotients of an estimated variance and the true one, by chi-square."""
    if degrees == math.inf:
        return np.ones(1)
    found: Array = special.chdtri(degrees, 1 - (np.arange(24) + 0.5) / 24) / degrees
    return found


def seeds_needed(
    std: float,
    difference: float,
    confidence: float = CONFIDENCE,
    power: float = POWER,
    prior_degrees: float = 0.0,
    std_degrees: float = math.inf,
) -> int:
    """Return the number of seeds at which a paired t test detects a true difference with the given power.

    Arguments are those of `t_test_power`.

    Raises:
        LayersearchError: for a difference of zero, which no number of seeds detects, or a power outside (0, 1).
    """
    if difference == 0:
        raise LayersearchError("no number of seeds finds a difference of 0; give the smallest difference that matters")
    if not 0 < power < 1:
        raise LayersearchError(f"power must lie between 0 and 1, not {power!r}; use for example 0.8")
    # The z test, which knows the variance, needs the fewest seeds: a lower bound.
    z_test = (_t_quantile(confidence, 10**9) + float(special.ndtri(power))) * std / abs(difference)
    low = max(2, math.floor(z_test**2)) - 1
    if low >= 10**6:
        return low + 1

    def enough(seeds: int) -> bool:
        return t_test_power(std, difference, seeds, confidence, prior_degrees, std_degrees) >= power

    high = low + 1
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def detectable_difference(
    std: float,
    seeds: int,
    confidence: float = CONFIDENCE,
    power: float = POWER,
    prior_degrees: float = 0.0,
    std_degrees: float = math.inf,
) -> float:
    """Return the smallest true difference, nats, that a paired t test detects with this power. See `t_test_power`."""
    from scipy import optimize

    if std == 0:
        return 0.0
    high = 1.0

    def missing(effect: float) -> float:
        return t_test_power(1.0, effect, seeds, confidence, prior_degrees, std_degrees) - power

    while missing(high) < 0:
        high *= 2
    return std * float(optimize.brentq(missing, 0.0, high))


def half_width(std: float, seeds: int, confidence: float = CONFIDENCE, prior: Prior | None = None) -> float:
    """Return the smallest mean that is significant for this standard deviation over seeds, nats."""
    degrees = seeds - 1 + (0.0 if prior is None else prior.degrees)
    return _t_quantile(confidence, degrees) * (std if prior is None else prior.std(std, seeds)) / math.sqrt(seeds)


def pooled_std(groups: Iterable[Sequence[float]]) -> float | None:
    """Return the standard deviation within groups, pooled by degrees of freedom; None if no group has two values."""
    samples = [np.asarray(group, dtype=np.float64) for group in groups if len(group) > 1]
    if not samples:
        return None
    degrees = sum(sample.size - 1 for sample in samples)
    return math.sqrt(sum(float(((sample - sample.mean()) ** 2).sum()) for sample in samples) / degrees)


def paired_std(losses: Iterable[Mapping[int, float]]) -> float | None:
    """Return the standard deviation over seeds of the difference of two schedules, pooled over all pairs, nats.

    On a complete layout this is the square root of twice the residual variance of the two-way analysis of variance. It
    is None if no two schedules share two seeds. Each mapping holds one schedule's loss by seed.
    """
    return pooled_std(
        [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())] for a, b in itertools.combinations(list(losses), 2)
    )


def rank_correlation(
    x: Sequence[float], y: Sequence[float], confidence: float = CONFIDENCE, *, resamples: int = 2000, seed: int = 0
) -> RankCorrelation | None:
    """Return Spearman's and Kendall's rank correlation of two measures, with percentile bootstrap intervals.

    It is None with fewer than four trials, or if one measure is constant. Trials are resampled in pairs. The interval
    is None with fewer than ten trials. With few it is rough: it tells 0.9 from 0.3, not from 0.85.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    assert first.shape == second.shape, "two measures of the same trials"
    n = first.size
    if n < MIN_RANKED or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    rng, tail = np.random.default_rng(seed), (1 - confidence) / 2
    if n <= MOST_RESAMPLED:
        draws = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
        # The first row weighs each trial once: the correlation itself.
        found = _resampled_correlations(first, second, np.vstack([np.ones(n), draws]))
        # A resample of one distinct value has no ranks (NaN). scipy.stats.bootstrap would return NaN for the interval.
        ends = np.nanquantile(found[:, 1:], [tail, 1 - tail], axis=1)
    else:
        found = _correlations(first, second)
        offsets = _bag_of_little_bootstraps(first, second, [tail, 1 - tail], resamples, rng)
        ends = np.clip(found.T + offsets, -1.0, 1.0)

    def bounds(which: int) -> tuple[float | None, float | None]:
        low, high = ends[:, which].tolist()
        return (None, None) if n < MIN_BOUNDED or low == high else (low, high)

    (spearman_low, spearman_high), (kendall_low, kendall_high) = bounds(0), bounds(1)
    return RankCorrelation(
        n=n,
        spearman=float(found[0, 0]),
        spearman_low=spearman_low,
        spearman_high=spearman_high,
        kendall=float(found[1, 0]),
        kendall_low=kendall_low,
        kendall_high=kendall_high,
    )


def _correlations(x: Array, y: Array) -> Array:
    """Return `_resampled_correlations` of the trials themselves, [2, 1], in little memory."""
    sums = np.zeros((2, 3))
    for at in range(0, len(x), MOST_RESAMPLED):
        a, b = (np.sign(np.subtract.outer(values[at : at + MOST_RESAMPLED], values)) for values in (x, y))
        ranks = a.sum(1), b.sum(1)
        for column, (i, j) in enumerate(((0, 1), (0, 0), (1, 1))):
            sums[:, column] += ranks[i] @ ranks[j], np.vdot((a, b)[i], (a, b)[j])
    return sums[:, :1] / np.sqrt(sums[:, 1:2] * sums[:, 2:])


def _bag_of_little_bootstraps(
    x: Array, y: Array, tails: Sequence[float], draws: int, rng: np.random.Generator
) -> Array:
    """Return the ends of both correlations' intervals minus the correlations, [ends, 2]. `draws` are of all bags.

    Resamples of all n trials are drawn from small subsets, so no table of n x n signs is needed (Kleiner, Talwalkar,
    Sarkar, Jordan, "A scalable bootstrap for massive data", J. R. Stat. Soc. B 76, 2014).
    """
    order, ends, bags = rng.permutation(len(x)), [], min(4, len(x) // BAG)
    for bag in range(bags):
        some = order[bag * BAG : (bag + 1) * BAG]
        weights = rng.multinomial(len(x), np.full(BAG, 1 / BAG), size=draws // bags).astype(np.float64)
        found = _resampled_correlations(x[some], y[some], np.vstack([np.ones(BAG), weights]))
        ends.append(np.nanquantile(found[:, 1:], tails, axis=1) - found[:, 0])
    return np.mean(ends, axis=0)


def _resampled_correlations(x: Array, y: Array, weights: Array) -> Array:
    """Return Spearman's rho and Kendall's tau-b of resamples, [2, resamples]; NaN if all drawn values are equal.

    Both are sums over the signs of all differences (Daniels, Biometrika 33, 1944), so no resample is ranked.
    ``weights`` holds how often each trial was drawn, [resamples, trials].
    """
    signs = [np.sign(np.subtract.outer(values, values)) for values in (x, y)]
    ranks = [weights @ sign.T for sign in signs]

    def products(i: int, j: int) -> Array:
        """Return the sums of products of ranks (Spearman) and of signs (Kendall), [2, resamples]."""
        return np.stack([(weights * ranks[i] * ranks[j]).sum(1), (weights * (weights @ (signs[i] * signs[j]))).sum(1)])

    scale = np.sqrt(products(0, 0) * products(1, 1))
    return np.divide(products(0, 1), scale, out=np.full_like(scale, np.nan), where=scale > 0)
