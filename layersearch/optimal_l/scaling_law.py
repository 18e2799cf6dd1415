"""How l* moves with length or depth: two laws fitted by least squares, and what the l's not excluded leave of them.

The interval of a coefficient is the range it takes while every l* runs through its own set (`noninferiority.LStar`). It
is wide, and honest: l* is a small whole number that most resamples of a few seeds repeat exactly, so that a bootstrap
over seeds would call any slope certain. Where every set holds its l*, the interval holds the least-squares coefficient
of the true ones. It says nothing of whether the law holds between or beyond the sizes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 3
"""Sizes below which nothing is fitted."""
_CORNERS = 4096
"""Combinations of ends that are tried, at the most; beyond them, so many are drawn."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """A fitted law of l*."""

    form: str
    """``a + b*log2(x)`` or ``a*x^b``."""
    a: float
    b: float
    b_low: float
    b_high: float
    """The range of b over the sets of every l*."""
    residual: float
    """Root mean square of what it misses, in layers."""

    @property
    def tells(self) -> bool:
        """Tell whether the sign of b is known."""
        return self.b_low > 0 or self.b_high < 0

    def at(self, size: float) -> float:
        """Return the fitted l* at a size."""
        return self.a + self.b * math.log2(size) if "log2" in self.form else self.a * size**self.b


def fit_laws(sizes: Sequence[int], values: Sequence[int], sets: Sequence[tuple[int, int]]) -> tuple[Law, ...]:
    """Fit both laws.

    Args:
        sizes: lengths in tokens, or depths in layers.
        values: l* at each.
        sets: the lowest and the highest l not excluded, at each.

    Returns:
        ``a + b*log2(x)``, and ``a*x^b`` where every l* is above 0 (its logarithm is fitted); none with fewer than
        three sizes.
    """
    if len(set(sizes)) < LEAST:
        return ()
    x = np.log2(np.asarray(sizes, dtype=np.float64))
    corners = list(itertools.islice(itertools.product(*[sorted({low, high}) for low, high in sets]), _CORNERS + 1))
    if len(corners) > _CORNERS:
        rng = np.random.default_rng(0)
        drawn = np.array([rng.choice(ends, size=_CORNERS) for ends in sets]).T
        corners = [tuple(int(value) for value in row) for row in drawn]
    laws = [_law("a + b*log2(x)", x, sizes, values, corners)]
    if min(values) > 0 and min(low for low, _ in sets) > 0:
        laws.append(_law("a*x^b", x, sizes, values, corners))
    return tuple(laws)


def _law(
    form: str, x: np.ndarray, sizes: Sequence[int], values: Sequence[int], corners: Sequence[Sequence[int]]
) -> Law:
    logarithm = form == "a*x^b"

    def line(found: Sequence[int]) -> tuple[float, float]:
        y = np.log2(np.asarray(found, dtype=np.float64)) if logarithm else np.asarray(found, dtype=np.float64)
        slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
        start = float(y.mean() - slope * x.mean())
        return (2.0**start if logarithm else start), slope

    a, b = line(values)
    slopes = [line(corner)[1] for corner in corners]
    law = Law(form=form, a=a, b=b, b_low=min([b, *slopes]), b_high=max([b, *slopes]), residual=0.0)
    missed = [value - law.at(size) for size, value in zip(sizes, values, strict=True)]
    return Law(**{**law.__dict__, "residual": math.sqrt(sum(m * m for m in missed) / len(missed))})
