"""Moderated variances: a paired variance from few seeds, shrunk toward those of all pairs of schedules.

Two or three seeds say little about one pair's variance, but a table of schedules has many pairs. The variances are
taken as scaled chi-square draws around true ones, which follow a scaled inverse chi-square distribution (Smyth, "Linear
models and empirical Bayes methods for assessing differential expression", Stat. Appl. Genet. Mol. Biol. 3, 2004;
limma's ``fitFDist``). `docs/methods/winner.md` says why its weight is capped.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

MAX_DEGREES = 4.0
"""Most degrees of freedom of the prior. Uncapped, a schedule far noisier than the others would get too short intervals:
a plainly pooled variance covers 82% for 95% there."""
MIN_SCHEDULES = 4  # fewer schedules have too few pairs to tell how much variances differ


@dataclass(frozen=True, kw_only=True)
class Prior:
    """The distribution of the paired variances of a table of schedules."""

    variance: float
    """Typical variance over seeds of a paired difference, nats squared."""
    degrees: float
    """Its weight in degrees of freedom, above 0 and at most `MAX_DEGREES`."""

    def std(self, std: float, n: int) -> float:
        """Return the moderated standard deviation, nats, of a sample one from ``n`` seeds."""
        total = self.degrees * self.variance + (n - 1) * std**2
        return math.sqrt(total / (self.degrees + n - 1))


def fit_prior(losses: Iterable[Mapping[int, float]]) -> Prior | None:
    """Return the prior of all pairs of schedules; None for fewer than four schedules on two shared seeds, or no noise.

    Each mapping holds one schedule's losses by seed, nats.
    """
    held = [by_seed for by_seed in losses if len(by_seed) > 1]
    if len(held) < MIN_SCHEDULES:
        return None
    variances, degrees = [], []
    for a, b in itertools.combinations(held, 2):
        common = a.keys() & b.keys()
        if len(common) > 1:
            variances.append(float(np.var([a[seed] - b[seed] for seed in common], ddof=1)))
            degrees.append(len(common) - 1)
    if not variances or not np.median(variances) > 1e-18:  # below: equal differences up to rounding
        return None
    found, df = np.array(variances), np.array(degrees, dtype=np.float64)
    logs = np.log(np.maximum(found, 1e-5 * np.median(found))) - special.digamma(df / 2) + np.log(df / 2)
    mean, excess = float(logs.mean()), float(logs.var(ddof=1) - special.polygamma(1, df / 2).mean())
    if excess <= 0:  # the variances differ by no more than chance
        return Prior(variance=math.exp(mean), degrees=MAX_DEGREES)
    fitted = 2 * _trigamma_inverse(excess)
    variance = math.exp(mean + float(special.digamma(fitted / 2)) - math.log(fitted / 2))
    return Prior(variance=variance, degrees=min(fitted, MAX_DEGREES))


def _trigamma_inverse(x: float) -> float:
    """Return y with trigamma(y) = x > 0, by Newton's method on 1 / trigamma, which is nearly linear (limma)."""
    y = 0.5 + 1 / x
    for _ in range(50):
        trigamma = float(special.polygamma(1, y))
        step = trigamma * (1 - trigamma / x) / float(special.polygamma(2, y))
        y += step
        if abs(step) < 1e-10 * y:
            break
    return y
