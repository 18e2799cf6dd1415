"""Noise over seeds of known kinds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STD, TOLERANCE, DELTA, FAILS = 0.01, 0.02, 0.05, 0.1
FIRST_RUN = (0.016, 0.0043, 0.0535, 0.0046, 0.0052, 0.0071, 0.0066, 0.0038)
"""Standard deviations over seeds of the schedules of ``analysis/first_run``, all_full and all_sparse first."""
UNEQUAL = (0.01, 0.001, 0.05, 0.002, 0.03, 0.005, 0.02, 0.04)
ALL_FAIL, BEST_FAILS = "fails 1 in 10", "best fails 1 in 10"
NOISES = ("normal", "heavy tails", "shared seed effect", "unequal", "first run", ALL_FAIL, BEST_FAILS)
SEEDS = ("3", "5", "8", "2+3")
BEST = 6
"""Index of the schedule with the lowest loss of `claims.GRADED`."""


def failing(noise: str, count: int) -> Array:
    """Return the share of seeds at which each schedule fails to learn."""
    shares = np.zeros(count)
    if noise == ALL_FAIL:
        shares[:] = FAILS
    if noise == BEST_FAILS:
        shares[BEST] = FAILS
    return shares


def draw(rng: np.random.Generator, noise: str, count: int, seeds: int) -> Array:
    """Return the deviations of losses from the truth of seeds that learn, (schedules, seeds), nats."""
    normal: Array = rng.standard_normal((count, seeds))
    if noise == "heavy tails":
        return STD * rng.standard_t(3, (count, seeds)) / np.sqrt(3)
    if noise in ("unequal", "first run"):
        stds = np.resize(UNEQUAL if noise == "unequal" else FIRST_RUN, count)
        return normal * stds[:, None]
    found = STD * normal
    if noise == "shared seed effect":
        found += 0.03 * rng.standard_normal(seeds)
    # A failure costs one nat.
    return found + (rng.random((count, seeds)) < failing(noise, count)[:, None])
