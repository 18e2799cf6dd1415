"""l*: the smallest number of full layers that is as good as a reference, by a test, and the numbers not excluded.

On the selection seeds the best schedule with at most l full layers, e(l), is fixed for every l. On fresh seeds d(l) is
its paired difference to the reference. l* is the smallest l for which the mean of d(l) is below delta.

- From above: one-sided paired t tests of e(l) in the fixed order l = L, L-1, ..., each at the full level
  (fixed-sequence test: Maurer, Hothorn and Lehmacher 1995; Bretz et al., Statistics in Medicine 28, 2009).
- From below: the same in the order l = 0, 1, ..., that e(l) lies more than delta above.
- From eight seeds on the mean is trimmed by an eighth at either end (Tukey and McLaughlin, Sankhya A 25, 1963), and the
  losses of the reference are cut far above its lowest: a failure to learn at one seed decides nothing then.

`docs/methods/l-star.md` has the hypotheses, the reasons and the limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from layersearch.results.stats import CONFIDENCE, Interval, paired_difference
from layersearch.schedule import Schedule

_CUT = 4.0
"""Cut the other losses of a schedule this many standard deviations above its lowest loss."""
_FAILED = 8.0
"""A loss this many standard deviations and delta above the lowest of a schedule counts as not learned."""
_TRIMMED = 8
"""The trimmed mean leaves out one difference in eight at either end."""

SHARES = (0.8, 0.2)
"""Shares of the level from above: for the first candidate of an l, and for its runner-up."""

Losses = Mapping[Schedule, Mapping[int, float]]
"""Validation loss in nats by schedule and fresh seed."""


def level(confidence: float = CONFIDENCE, share: float = 1.0) -> float:
    """Return the one-sided level of a single test, at a look that may spend such a share of the error."""
    return (1 - confidence) / 2 * share


def p_within(differences: Sequence[float], delta: float) -> float:
    """Return the one-sided p value of "the mean difference is at least delta".

    Args:
        differences: of a schedule to the reference, one per seed, nats.
        delta: the margin, nats, above 0.
    """
    return _p_below(np.asarray(differences, dtype=np.float64) - delta)


def p_beyond(differences: Sequence[float], delta: float) -> float:
    """Return the one-sided p value of "the mean difference is at most delta". See `p_within`."""
    return _p_below(delta - np.asarray(differences, dtype=np.float64))


def cut(losses: Losses, schedule: Schedule, stds_above: float = _CUT) -> dict[int, float]:
    """Return a schedule's losses by seed, cut so many standard deviations above the lowest. See the module's text."""
    from scipy.spatial.distance import pdist

    held = losses.get(schedule, {})
    # What a seed does to all schedules alike. Lowest values rather than medians, for failures only raise a loss, and
    # where seeds were added for two schedules alone, half of what is there may have failed.
    lowest = {text: min(found.values()) for text, found in losses.items() if found}
    common = {seed: min(found[seed] - lowest[text] for text, found in losses.items() if seed in found) for seed in held}
    left = [
        [found[seed] - lowest[text] - common[seed] for seed in found if seed in common]
        for text, found in losses.items()
    ]
    # Of normal noise the median distance of two values is 0.954 standard deviations.
    stds = [float(np.median(pdist(np.array(values)[:, None]))) / 0.954 for values in left if len(values) > 1]
    if not stds:
        return dict(held)
    highest = min(loss - common[seed] for seed, loss in held.items()) + stds_above * float(np.median(stds))
    return {seed: min(loss, highest + common[seed]) for seed, loss in held.items()}


def failures(losses: Losses, schedule: Schedule, delta: float) -> tuple[int, ...]:
    """Return the seeds at which a schedule failed to learn: far beyond the noise, and ``delta`` nats more."""
    lowered = cut(losses, schedule, _FAILED)
    return tuple(seed for seed, loss in sorted(losses.get(schedule, {}).items()) if loss - lowered[seed] > delta)


def _p_below(values: np.ndarray) -> float:
    """Return the p value of "the mean is at least 0" by Student's t, of many values that of the trimmed mean."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return 1.0
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
    """What the tests say of one l."""

    l: int
    """Full layers allowed."""
    schedule: Schedule
    """The best with at most l full layers, e(l)."""
    runner_up: Schedule | None
    """Another of as many layers that the selection seeds could not tell from it; None: there is none."""
    n_full: int
    """Full layers that they have."""
    difference: Interval | None
    """Of e(l) to the reference over the seeds both have, nats; None if they share no seed."""
    within: float
    """p of "e(l) lies delta or more above"; 0 for the reference itself."""
    within_runner_up: float
    """The same of the runner-up; 1 where it was not measured."""
    beyond: float
    """p of "e(l) or its runner-up lies within delta"; 1 where one of them was not measured."""


@dataclass(frozen=True, kw_only=True)
class LStar:
    """The smallest l that is shown to be within delta of the reference, and the l's that are not excluded."""

    reference: Schedule
    delta: float
    """Nats."""
    value: int
    """l*: the smallest l shown to be within delta. It is the upper end of the set too."""
    shown_by: Schedule
    """The schedule with so many full layers that is within delta."""
    low: int
    """The lower end of the set: every smaller l is shown to lie beyond delta."""
    confidence: float
    """Of the set."""
    steps: tuple[Step, ...]
    """By l, ascending."""

    @property
    def decided(self) -> bool:
        """Tell whether the set holds a single l."""
        return self.low == self.value

    @property
    def undecided(self) -> tuple[Schedule, ...]:
        """The schedules on which more seeds would tell, runners-up included."""
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
    """Test every l from both ends. See the module's text.

    Args:
        envelope: by l, the schedule with at most l full layers that was best on the selection seeds, and its runner-up
            if it has one.
        losses: on fresh seeds.
        reference: the schedule to compare with, fixed before the fresh seeds were looked at.
        delta: the margin, nats, above 0.
        confidence: of the set of l's.
        share: of the error, for this look at the data; those of all looks add up to 1.
    """
    each = level(confidence, share)
    lowered = cut(losses, reference)
    theirs = losses.get(reference, {})
    steps = []
    for at in sorted(envelope):
        best, *others = envelope[at]
        other = others[0] if others and best != reference else None
        mine = losses.get(best, {})
        p = {t: _both(losses.get(t, {}), theirs, lowered, delta) for t in (best, other) if t is not None}
        itself = reference in p
        steps.append(
            Step(
                l=at,
                schedule=best,
                runner_up=other,
                n_full=best.n_full,
                difference=paired_difference(mine, theirs, confidence) if mine.keys() & theirs.keys() else None,
                within=0.0 if best == reference else p[best][0],
                within_runner_up=1.0 if other is None else 0.0 if other == reference else p[other][0],
                beyond=1.0 if itself else max(found for _, found in p.values()),
            )
        )
    value, by = reference.n_full, reference
    for step in reversed(steps):
        if step.within <= SHARES[0] * each:
            shown = step.schedule
        elif step.runner_up is not None and step.within_runner_up <= SHARES[1] * each:
            shown = step.runner_up
        else:
            break
        if step.n_full < value:
            value, by = step.n_full, shown
    low = min(value, steps[0].n_full)
    for step in steps:
        if step.n_full >= value or step.beyond > each:
            break
        low = min(value, next((other.n_full for other in steps if other.n_full > step.n_full), value))
    return LStar(
        reference=reference,
        delta=delta,
        value=value,
        shown_by=by,
        low=low,
        confidence=confidence,
        steps=tuple(steps),
    )


def _both(
    mine: Mapping[int, float], theirs: Mapping[int, float], lowered: Mapping[int, float], delta: float
) -> tuple[float, float]:
    """Return `p_within` and `p_beyond` over the seeds both have."""
    seeds = sorted(mine.keys() & theirs.keys())
    return (
        p_within([mine[seed] - lowered[seed] for seed in seeds], delta),
        p_beyond([mine[seed] - theirs[seed] for seed in seeds], delta),
    )
