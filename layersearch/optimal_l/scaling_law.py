"""Scaling laws of l* with length or depth: two least-squares fits, and the range of their coefficients.

The range is that over all confidence sets of l*, for the reason in `docs/methods/l-star.md`.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

MIN_SIZES = 3  # fewer sizes are not fitted
_MAX_COMBINATIONS = 4096
"""Maximum number of combinations of set ends to fit. If there are more, this many are sampled."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """A fitted scaling law of l*."""

    form: str
    """``a + b*log2(x)`` or ``a*x^b``."""
    a: float
    b: float
    b_low: float
    b_high: float
    """Range of b over the confidence sets of every l*."""
    residual: float
    """Root mean square residual, in layers."""

    @property
    def sign_is_known(self) -> bool:
        """Whether the interval of b excludes 0."""
        return self.b_low > 0 or self.b_high < 0

    def at(self, size: float) -> float:
        """Return the fitted l* at a size."""
        return self.a + self.b * math.log2(size) if "log2" in self.form else self.a * size**self.b


def fit_laws(sizes: Sequence[int], values: Sequence[int], sets: Sequence[tuple[int, int]]) -> tuple[Law, ...]:
    """Fit both laws.

    Args:
        sizes: lengths in tokens, or depths in layers.
        values: l* at each size.
        sets: the ends of the confidence set at each size.

    Returns:
        ``a + b*log2(x)``, and ``a*x^b`` if every l* is above 0 (its logarithm is fitted); empty below three sizes.
    """
    if len(set(sizes)) < MIN_SIZES:
        return ()
    corners = list(itertools.islice(itertools.product(*map(sorted, map(set, sets))), _MAX_COMBINATIONS + 1))
    if len(corners) > _MAX_COMBINATIONS:
        rng = np.random.default_rng(0)
        corners = list(zip(*(rng.choice(ends, size=_MAX_COMBINATIONS).tolist() for ends in sets), strict=True))
    laws = [_fit("a + b*log2(x)", sizes, values, corners)]
    if min(values) > 0 and min(low for low, _ in sets) > 0:
        laws.append(_fit("a*x^b", sizes, values, corners))
    return tuple(laws)


def _fit(form: str, sizes: Sequence[int], values: Sequence[int], corners: Sequence[Sequence[int]]) -> Law:
    logarithm = form == "a*x^b"
    x, y = np.log2(np.asarray(sizes, dtype=np.float64)), np.array([values, *corners], dtype=np.float64)
    y = np.log2(y) if logarithm else y
    # Not np.polyfit: a constant l* must have a slope of exactly 0.
    slopes = ((x - x.mean()) * (y - y.mean(axis=1, keepdims=True))).sum(axis=1) / ((x - x.mean()) ** 2).sum()
    b, intercept = float(slopes[0]), float(y[0].mean() - slopes[0] * x.mean())
    a = 2.0**intercept if logarithm else intercept
    law = Law(form=form, a=a, b=b, b_low=float(slopes.min()), b_high=float(slopes.max()), residual=0.0)
    squares = [(value - law.at(size)) ** 2 for size, value in zip(sizes, values, strict=True)]
    return replace(law, residual=math.sqrt(sum(squares) / len(squares)))
