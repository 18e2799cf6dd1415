"""Seeds at which a schedule failed to learn, and how likely that still is where none was seen."""

from collections.abc import Collection, Mapping

import numpy as np
from scipy import special

from layersearch.results.stats import CONFIDENCE
from layersearch.schedule import Schedule

Losses = Mapping[Schedule, Mapping[int, float]]  # validation loss in nats, by schedule and fresh seed

CUT = 4.0  # clip losses this many standard deviations above the schedule's lowest loss
_FAILED = 8.0
"""A loss this many standard deviations plus a margin above the schedule's lowest loss counts as not learned."""


def clip_losses(losses: Losses, schedule: Schedule, stds_above: float = CUT) -> dict[int, float]:
    """Return a schedule's losses by seed, clipped at this many standard deviations above its lowest loss."""
    own = losses.get(schedule, {})
    common, std = _noise(losses, own)
    return dict(own) if std is None else _clipped(own, common, stds_above * std)


def _noise(losses: Losses, seeds: Collection[int]) -> tuple[dict[int, float], float | None]:
    """Return the effect of each of these seeds, and the standard deviation without it, nats; None: it is not known."""
    # The seed effect is common to all schedules. It is estimated from lowest values, not medians: a failure only raises
    # a loss. Where only two schedules got further seeds, half of the values there may be failures.
    lowest = {text: min(found.values()) for text, found in losses.items() if found}
    common = {
        seed: min(found[seed] - lowest[text] for text, found in losses.items() if seed in found) for seed in seeds
    }
    residuals = [
        [found[seed] - lowest[text] - common[seed] for seed in found if seed in common]
        for text, found in losses.items()
    ]
    # The median distance of two normal values is 0.954 standard deviations.
    stds = [float(np.median(_distances(values))) / 0.954 for values in residuals if len(values) > 1]
    return common, float(np.median(stds)) if stds else None


def _clipped(own: Mapping[int, float], common: Mapping[int, float], above: float) -> dict[int, float]:
    highest = min(loss - common[seed] for seed, loss in own.items()) + above
    return {seed: min(loss, highest + common[seed]) for seed, loss in own.items()}


def _distances(values: list[float]) -> np.ndarray:
    found: np.ndarray = np.abs(np.subtract.outer(values, values))[np.triu_indices(len(values), 1)]
    return found


def failed_seeds(losses: Losses, margin: float) -> dict[Schedule, tuple[int, ...]]:
    """Return the seeds at which each schedule failed to learn: its loss is above the noise by over ``margin`` nats."""
    noises: dict[frozenset[int], tuple[dict[int, float], float | None]] = {}  # few schedules have seeds of their own
    found = {}
    for schedule, own in losses.items():
        seeds = frozenset(own)
        if seeds not in noises:
            noises[seeds] = _noise(losses, seeds)
        common, std = noises[seeds]
        clipped = own if std is None or not own else _clipped(own, common, _FAILED * std)
        found[schedule] = tuple(seed for seed, loss in sorted(own.items()) if loss - clipped[seed] > margin)
    return found


def failure_bound(failed: int, seeds: int, confidence: float = CONFIDENCE) -> float:
    """Return the upper confidence bound on the share of seeds at which a schedule fails, one-sided (Clopper-Pearson).

    ``failed`` of ``seeds`` fresh seeds failed. With none it is 1 - (1 - confidence) ** (1 / seeds).

    Example:
        >>> round(failure_bound(0, 3), 2), round(failure_bound(1, 5), 2)
        (0.63, 0.66)
    """
    return 1.0 if failed >= seeds else float(special.betaincinv(failed + 1, seeds - failed, confidence))
