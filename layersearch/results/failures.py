"""Seeds at which a schedule failed to learn, and how likely that still is where none was seen."""

from collections.abc import Mapping

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
    # The seed effect is common to all schedules. It is estimated from lowest values, not medians: a failure only raises
    # a loss. Where only two schedules got further seeds, half of the values there may be failures.
    lowest = {text: min(found.values()) for text, found in losses.items() if found}
    common = {seed: min(found[seed] - lowest[text] for text, found in losses.items() if seed in found) for seed in own}
    residuals = [
        [found[seed] - lowest[text] - common[seed] for seed in found if seed in common]
        for text, found in losses.items()
    ]
    # The median distance of two normal values is 0.954 standard deviations.
    stds = [float(np.median(_distances(values))) / 0.954 for values in residuals if len(values) > 1]
    if not stds:
        return dict(own)
    highest = min(loss - common[seed] for seed, loss in own.items()) + stds_above * float(np.median(stds))
    return {seed: min(loss, highest + common[seed]) for seed, loss in own.items()}


def _distances(values: list[float]) -> np.ndarray:
    found: np.ndarray = np.abs(np.subtract.outer(values, values))[np.triu_indices(len(values), 1)]
    return found


def failed_seeds(losses: Losses, schedule: Schedule, margin: float) -> tuple[int, ...]:
    """Return the seeds at which a schedule failed to learn: its loss is above the noise by over ``margin`` nats."""
    clipped = clip_losses(losses, schedule, _FAILED)
    return tuple(seed for seed, loss in sorted(losses.get(schedule, {}).items()) if loss - clipped[seed] > margin)


def failure_bound(failed: int, seeds: int, confidence: float = CONFIDENCE) -> float:
    """Return the upper confidence bound on the share of seeds at which a schedule fails, one-sided (Clopper-Pearson).

    ``failed`` of ``seeds`` fresh seeds failed. With none it is 1 - (1 - confidence) ** (1 / seeds).

    Example:
        >>> round(failure_bound(0, 3), 2), round(failure_bound(1, 5), 2)
        (0.63, 0.66)
    """
    return 1.0 if failed >= seeds else float(special.betaincinv(failed + 1, seeds - failed, confidence))
