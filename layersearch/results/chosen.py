"""Intervals of a schedule that was chosen by the same losses that measure it.

The lowest of several mean losses is low partly by luck. This luck has one direction: the schedule that is chosen is
truly worse than it looks, hardly ever better. So the error of its own direction is counted for every schedule that
could have been chosen, and the error of the other direction once. `docs/methods/winner.md` has the argument, and
`analysis/calibration` what the intervals hold.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from layersearch.results import stats
from layersearch.results.moderated import Prior


def chosen_confidence(confidence: float, comparisons: int) -> float:
    """Return the confidence of an interval of one of several differences that was chosen, alone.

    Each end is missed in (1 - ``confidence``) / (``comparisons`` + 1). The chosen estimate is too low by chance in at
    most ``comparisons`` times that, which is Bonferroni. It is too high in at most once that: being the lowest makes
    an estimate that is too high less likely, not more. Bonferroni of both ends takes twice the number.

    Example:
        >>> round(chosen_confidence(0.95, 7), 4), round(chosen_confidence(0.95, 1), 4)
        (0.9875, 0.95)
    """
    return 1 - 2 * (1 - confidence) / (comparisons + 1)


def chosen_difference(
    a: Mapping[int, float],
    b: Mapping[int, float],
    confidence: float = stats.CONFIDENCE,
    *,
    comparisons: int,
    prior: Prior | None = None,
) -> stats.Interval:
    """Return the paired difference a - b, one of ``comparisons`` that was chosen. See `stats.paired_difference`."""
    return stats.paired_difference(a, b, chosen_confidence(confidence, comparisons), prior=prior)


def chosen_mean(
    losses: Sequence[Mapping[int, float]],
    chosen: int,
    confidence: float = stats.CONFIDENCE,
    *,
    candidates: int,
    prior: Prior | None = None,
) -> stats.Interval:
    """Return the mean loss of the schedule that was chosen among ``candidates``, nats.

    Student's t of its own few losses at `chosen_confidence` is wide. So the loss is split into two independent parts:
    the mean of all schedules, which nobody chose, by Student's t over seeds; and the schedule's distance to it, at
    `chosen_confidence` and with a moderated variance. Half widths of independent parts add in squares (Zou and Donner,
    "Construction of confidence limits about effect measures", Stat. Med. 27, 2008). Where schedules are unequally
    noisy the two are no longer independent. So the interval is never shorter than Student's t of its own losses
    without a correction for the choice, nor longer than the one with it.

    Args:
        losses: one schedule's losses by seed each, nats, of all schedules that have the seeds of the chosen one.
        chosen: its index.
        confidence: of the interval, whatever was chosen.
        candidates: number of schedules that could have been chosen.
        prior: of the paired variances; None: Student's t of its own losses is taken.
    """
    each = chosen_confidence(confidence, candidates)
    seeds = sorted(losses[chosen])
    values = [losses[chosen][seed] for seed in seeds]
    alone, own = (stats.mean_interval(values, level) for level in (confidence, each))
    if prior is None or own.half_width is None or alone.half_width is None or candidates < 2 or len(losses) < 2:
        return own
    table = np.array([[by_seed[seed] for seed in seeds] for by_seed in losses])
    common = table.mean(axis=0)
    # The prior is one of differences of two schedules; a distance to the mean of all has a smaller variance.
    scaled = Prior(variance=prior.variance / 2 * (1 - 1 / len(losses)), degrees=prior.degrees)
    parts = (
        stats.mean_interval(common, confidence).half_width,
        stats.mean_interval(table[chosen] - common, each, prior=scaled).half_width,
    )
    half = min(own.half_width, max(alone.half_width, math.hypot(*(part or 0.0 for part in parts))))
    return dataclasses.replace(alone, low=own.mean - half, high=own.mean + half)
