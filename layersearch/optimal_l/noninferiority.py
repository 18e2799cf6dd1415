"""l*: the smallest number of full layers shown non-inferior to a reference schedule, and its confidence set.

d(l) is the paired difference to the reference of e(l), the best schedule with at most l full layers. l* is the
smallest l with a mean of d(l) below the margin delta. The upper end comes from one-sided t tests in the fixed order
l = L, L-1, ... (Maurer, Hothorn and Lehmacher 1995), the lower end from tests of inferiority in the order 0, 1, ....
`docs/methods/l-star.md` has the hypotheses, the reasons and the limits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from layersearch.results.failures import Losses, clip_losses
from layersearch.results.stats import CONFIDENCE, Interval, paired_difference
from layersearch.schedule import Schedule

_TRIMMED = 8  # the trimmed mean leaves out one difference in eight at each end
SHARES = (0.8, 0.2)  # shares of alpha in the non-inferiority test: the best schedule of an l, and its runner-up


def level(confidence: float = CONFIDENCE, share: float = 1.0) -> float:
    """Return the one-sided alpha of one test, at a look that may spend this share of alpha."""
    return (1 - confidence) / 2 * share


def p_within(differences: Sequence[float], delta: float) -> float:
    """Return the one-sided p value of H0 "the mean difference is at least ``delta``" (non-inferiority test).

    Differences are schedule minus reference, one per seed, in nats. The margin ``delta`` is above 0 nats.
    """
    return _p_below_zero(np.asarray(differences, dtype=np.float64) - delta)


def p_beyond(differences: Sequence[float], delta: float) -> float:
    """Return the one-sided p value of H0 "the mean difference is at most ``delta``". See `p_within`."""
    return _p_below_zero(delta - np.asarray(differences, dtype=np.float64))


def _p_below_zero(values: np.ndarray) -> float:
    """Return the p value of H0 "the mean is at least 0": Student's t test, trimmed from eight values on."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return 1.0
    # Not scipy's ttest_1samp or trimmed_mean_ci: neither has a one-sided trimmed test, and equal values need a rule.
    out = n // _TRIMMED
    winsorized = np.sort(values)
    mean = float(winsorized[out : n - out].mean())
    winsorized[:out], winsorized[n - out :] = winsorized[out], winsorized[n - out - 1]
    std = float(winsorized.std(ddof=1))
    if std <= 1e-12 * max(1.0, abs(mean)):
        return 0.0 if mean < 0 else 1.0
    kept = n - 2 * out
    return float(stats.t.cdf(mean * kept / (std * math.sqrt(n)), kept - 1))


@dataclass(frozen=True, kw_only=True)
class Step:
    """Test results of one l."""

    l: int
    """Maximum number of full layers."""
    schedule: Schedule
    """e(l), the best schedule with at most l full layers."""
    runner_up: Schedule | None
    """The second best with the same number of full layers, if its selection loss is within delta; else None."""
    n_full: int
    """Full layers of both."""
    difference: Interval | None
    """Paired difference of e(l) to the reference, nats; None if they share no seed."""
    within: float
    """p value of H0 "e(l) is delta or more above the reference"; 0 for the reference itself."""
    within_runner_up: float
    """The same p value for the runner-up; 1 if it was not measured."""
    beyond: float
    """p value of H0 "e(l) or its runner-up is within delta"; 1 if one of them was not measured."""


@dataclass(frozen=True, kw_only=True)
class LStar:
    """l*, the smallest l shown to be within delta of the reference, and its confidence set."""

    reference: Schedule
    delta: float
    """Margin, nats."""
    value: int
    """l*, also the upper end of the confidence set."""
    shown_by: Schedule
    """The schedule with l* full layers that is shown to be within delta."""
    low: int
    """Lower end of the confidence set. Every smaller l is shown to be worse by more than delta."""
    confidence: float
    steps: tuple[Step, ...]
    """One per l, ascending."""

    @property
    def decided(self) -> bool:
        """Whether the confidence set holds a single l."""
        return self.low == self.value

    @property
    def undecided(self) -> tuple[Schedule, ...]:
        """The schedules, runners-up included, whose tests need more seeds."""
        open_ = [step for step in self.steps if self.low <= step.n_full < self.value]
        return tuple(dict.fromkeys(one for s in open_ for one in (s.schedule, s.runner_up) if one is not None))


def find_l_star(
    envelope: Mapping[int, Sequence[Schedule]],
    losses: Losses,
    reference: Schedule,
    delta: float,
    confidence: float = CONFIDENCE,
    share: float = 1.0,
) -> LStar:
    """Test every l from both ends.

    Args:
        envelope: by l, the best schedule with at most l full layers on the selection seeds, then its runner-up if any.
        losses: losses on fresh seeds, nats.
        reference: the schedule to compare with, fixed before the fresh seeds were used.
        delta: the margin, above 0 nats.
        confidence: confidence of the set of l's.
        share: share of alpha for this look; the shares of all looks add up to 1.
    """
    alpha = level(confidence, share)
    clipped = clip_losses(losses, reference)
    theirs = losses.get(reference, {})

    def p_values(schedule: Schedule) -> tuple[float, float]:
        own = losses.get(schedule, {})
        seeds = sorted(own.keys() & theirs.keys())
        within = 0.0 if schedule == reference else p_within([own[seed] - clipped[seed] for seed in seeds], delta)
        return within, p_beyond([own[seed] - theirs[seed] for seed in seeds], delta)

    steps = []
    for l in sorted(envelope):
        best, *others = envelope[l]
        runner_up = others[0] if others and best != reference else None
        own, p = losses.get(best, {}), p_values(best)
        p_other = (1.0, 0.0) if runner_up is None else p_values(runner_up)
        steps.append(
            Step(
                l=l,
                schedule=best,
                runner_up=runner_up,
                n_full=best.n_full,
                difference=paired_difference(own, theirs, confidence) if own.keys() & theirs.keys() else None,
                within=p[0],
                within_runner_up=p_other[0],
                beyond=1.0 if reference in (best, runner_up) else max(p[1], p_other[1]),
            )
        )
    value, shown_by = reference.n_full, reference
    for step in reversed(steps):
        if step.within <= SHARES[0] * alpha:
            shown = step.schedule
        elif step.runner_up is not None and step.within_runner_up <= SHARES[1] * alpha:
            shown = step.runner_up
        else:
            break
        if step.n_full < value:
            value, shown_by = step.n_full, shown
    low = min(value, steps[0].n_full)
    for step in steps:
        if step.n_full >= value or step.beyond > alpha:
            break
        low = min(value, next((other.n_full for other in steps if other.n_full > step.n_full), value))
    return LStar(
        reference=reference,
        delta=delta,
        value=value,
        shown_by=shown_by,
        low=low,
        confidence=confidence,
        steps=tuple(steps),
    )
