"""Local search on real losses: single changes and swaps of the best schedules, proposed by the surrogate.

A candidate runs only the layers above its lowest change. It is measured unit by unit against the incumbent, paired,
and stops as soon as it is likely worse. The surrogate (`layersearch.surrogate.gp`) learns what the gates' scores do not
explain: it is fitted to the residuals of a straight line in the scores' sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean, stdev

import numpy as np

from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.selection.measure import Measurement, Scorer
from layersearch.surrogate.gp import Surrogate
from layersearch.surrogate.kernel import Array

MIN_UNITS = 2
"""Units before a candidate may stop."""
STOP_T = 1.0
"""A candidate stops if its mean difference to the incumbent is above this many standard errors."""
MIN_FIT = 6
"""Measured schedules before the surrogate is fitted; until then the gates' scores alone propose."""
DECIMALS = 9
"""Decimals of a loss that count, so that it comes back exactly from the running means of a record."""
PARENTS, N_BEST, N_RANDOM = 3, 200, 100
"""Schedules whose neighbors are candidates; neighbors of each, the best by the prior and random ones."""
EXPLORATION = 0.5
"""Predicted standard deviations below the predicted mean by which candidates are ranked."""


@dataclass(frozen=True)
class Measured:
    """A schedule with its losses on the first units."""

    schedule: Schedule
    losses: tuple[float, ...]
    """Loss on each unit measured, nats."""
    estimate: float
    """Mean loss over all units, nats; if it stopped, the incumbent's mean plus their mean difference so far."""
    complete: bool
    found: tuple[Measurement, ...] = ()


class LocalSearch:
    """A local search within a budget.

    Args:
        scorer: measures schedules; its units are those of the search.
        space: the space.
        budget: largest cost, as a share of all-full's.
        prior: score of a schedule, lower is better, in any unit; for example the sum of the gates' scores.
        on_measured: called with every schedule measured.
        known: losses by unit of schedules that an earlier process measured; they are not measured again.
        seed: of the neighbors that are drawn.
    """

    def __init__(
        self,
        scorer: Scorer,
        space: BoundSpace,
        budget: float,
        prior: Callable[[Schedule], float],
        on_measured: Callable[[Measured], None],
        known: Mapping[Schedule, Sequence[float]],
        seed: int,
    ) -> None:
        self._scorer, self._space, self._budget, self._prior = scorer, space, budget, prior
        self._on_measured, self._known, self._seed = on_measured, dict(known), seed
        self.measured: dict[Schedule, Measured] = {}
        self._start: Schedule | None = None

    @property
    def best(self) -> list[Measured]:
        """Completely measured schedules within the budget, lowest loss first."""
        inside = [m for m in self.measured.values() if m.complete and self._space.cost(m.schedule) <= self._budget]
        return sorted(inside, key=lambda m: (m.estimate, self._space.cost(m.schedule), m.schedule))

    def run(self, first: Iterable[Schedule], candidates: int) -> None:
        """Measure the first schedules on every unit, then so many candidates."""
        for schedule in first:
            if schedule not in self.measured:
                self._measure(schedule, None)
        for number in range(candidates):
            proposal = self._propose(number)
            if proposal is None:
                return
            self._measure(proposal, self.best[0])

    def _measure(self, schedule: Schedule, incumbent: Measured | None) -> None:
        known = self._known.get(schedule)
        if known is None and incumbent is not None and self._start != incumbent.schedule:
            self._scorer.start_from(incumbent.schedule)
            self._start = incumbent.schedule
        units, losses, found = len(self._scorer.units), [], []
        for number in range(units):
            if known is not None:
                if number == len(known):
                    break
                losses.append(known[number])
            else:
                found.append(self._scorer.measure(schedule, number))
                losses.append(round(found[-1].quality(self._scorer.weight), DECIMALS))
            if incumbent is not None and _is_worse(losses, incumbent.losses) and number + 1 < units:
                break
        complete = len(losses) == units
        estimate = fmean(losses)
        if not complete and incumbent is not None:
            estimate += incumbent.estimate - fmean(incumbent.losses[: len(losses)])
        made = Measured(schedule, tuple(losses), estimate, complete, tuple(found))
        self.measured[schedule] = made
        if known is None:
            self._on_measured(made)

    def _propose(self, number: int) -> Schedule | None:
        rng = Random(f"{self._seed}/{number}")
        pool: dict[Schedule, None] = {}
        for parent in self.best[:PARENTS]:
            pool |= dict.fromkeys(self._neighbors(parent.schedule, rng))
        asked = [schedule for schedule in pool if schedule not in self.measured]
        if not asked:
            return None
        scores = self._predict(asked)
        return asked[int(np.argmin(scores))]

    def _predict(self, asked: Sequence[Schedule]) -> Array:
        prior = np.array([self._prior(schedule) for schedule in asked])
        seen = list(self.measured.values())
        if len(seen) < MIN_FIT:
            return prior
        losses = np.array([m.estimate for m in seen])
        known = np.array([self._prior(m.schedule) for m in seen])
        # Only a rising line makes sense of scores; its slope is that of the schedules seen.
        slope = max(0.0, float(np.polyfit(known, losses, 1)[0])) if np.ptp(known) > 0 else 0.0
        surrogate = Surrogate(self._space, pairwise=False).fit(
            [m.schedule for m in seen], (losses - slope * known).tolist()
        )
        mean, std = surrogate.predict(asked, calibrated=False)
        return mean + slope * prior - EXPLORATION * std

    def _neighbors(self, parent: Schedule, rng: Random) -> list[Schedule]:
        """Return schedules within the budget that differ in one or two layers: the best by the prior, and random ones.

        The prior is taken as a sum over layers, so that a pair of changes needs no schedule of its own.
        """
        singles = list(self._space.neighbors(parent))
        at = np.array([next(i for i, (a, b) in enumerate(zip(s, parent, strict=True)) if a != b) for s in singles])
        base, cost = self._prior(parent), self._space.cost(parent)
        gain = np.array([self._prior(s) - base for s in singles])
        more = np.array([self._space.cost(s) - cost for s in singles])
        first, second = np.triu_indices(len(singles))
        some = (first == second) | (at[first] != at[second])
        first, second = first[some], second[some]
        twice = first != second
        # A slip of rounding is caught by the exact cost below.
        fits = cost + more[first] + more[second] * twice <= self._budget + 1e-9
        first, second, twice = first[fits], second[fits], twice[fits]
        order = np.argsort(gain[first] + gain[second] * twice, kind="stable").tolist()
        chosen = order[:N_BEST]
        rest = order[N_BEST:]
        chosen += rng.sample(rest, min(N_RANDOM, len(rest)))
        found = []
        for move in chosen:
            spans = list(singles[first[move]])
            spans[at[second[move]]] = singles[second[move]][at[second[move]]]
            schedule = Schedule(tuple(spans))
            if self._space.cost(schedule) <= self._budget:
                found.append(schedule)
        return found


def _is_worse(losses: Sequence[float], incumbent: Sequence[float]) -> bool:
    """Return whether a candidate lies above the incumbent by more than `STOP_T` standard errors so far."""
    differences = [a - b for a, b in zip(losses, incumbent, strict=False)]
    if len(differences) < MIN_UNITS:
        return False
    return fmean(differences) > STOP_T * stdev(differences) / math.sqrt(len(differences))
