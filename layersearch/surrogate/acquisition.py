"""The outlook of a search: which schedule is worth training next, and whether a trial is worth its end.

Worth is the area that a schedule is expected to add under the cost-quality frontier: cost is exact and known, so only
the loss is uncertain, and the expected hypervolume improvement has a closed form in the surrogate's mean and standard
deviation (expected improvement, summed over the frontier's steps; Emmerich, Deutz, Klinkenberg, "Hypervolume-based
expected improvement", CEC 2011). A trial goes on past a checkpoint while what its end is expected to add, for the
training that is left, is no less than what the best fresh schedule adds for a whole training.

Shape legend: M schedules, K steps of the frontier.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from layersearch.results.pareto import nondominated
from layersearch.schedule import Schedule, Span, presets
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.cost import span_pairs
from layersearch.surrogate.gp import FEWEST, Surrogate

Array = NDArray[np.float64]

EXPLORATION = 0.5
"""Standard deviations are taken this much smaller than they are: a gain that only ignorance promises is worth less."""
AT_RANDOM = 12
"""Every so many proposals one is drawn at random: a search that trusts a wrong model would go on for ever."""
CHANGES, NEAREST, DRAWN = 2, 1024, 256
"""Candidates are schedules within so many changes of the frontier, so many of them at the most, and so many drawn."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one trial has shown so far."""

    schedule: Schedule
    seed: int
    curve: tuple[tuple[float, float], ...]
    """(share of the training, validation loss in nats), rising; a share of 1 is the end."""

    @property
    def complete(self) -> bool:
        """Whether the trial was trained to its end."""
        return bool(self.curve) and self.curve[-1][0] == 1.0


class Outlook:
    """What is known and expected, given the trials so far.

    Args:
        space: the bound space.
        budget: the largest cost that is of interest, as a share of the all-full schedule's.
        observations: trials; those outside the space are left out.
        pending: schedules in training, taken to end as predicted (the kriging believer of Ginsbourger, Le Riche,
            Carraro, "Kriging is well-suited to parallelize optimization", 2010).
    """

    def __init__(
        self, space: BoundSpace, budget: float, observations: Sequence[Observation], pending: Sequence[Schedule] = ()
    ) -> None:
        self._space, self._budget = space, budget
        self._seen = [o for o in observations if o.curve and space.encode(o.schedule) is not None]
        self._surrogate: Surrogate | None = None
        if len({o.schedule for o in self._seen if o.complete}) < FEWEST:
            return
        self._surrogate = self._fit(self._seen)
        if pending:
            means, _ = self._surrogate.predict(pending)
            believed = [
                Observation(schedule=schedule, seed=self._seen[0].seed, curve=((1.0, float(mean)),))
                for schedule, mean in zip(pending, means, strict=True)
            ]
            self._seen = [*self._seen, *believed]
            self._surrogate = self._fit(self._seen, like=self._surrogate)
        self._levels = self._steps(self._surrogate)

    @property
    def ready(self) -> bool:
        """Whether there are trials enough to predict from."""
        return self._surrogate is not None

    def _fit(self, seen: Sequence[Observation], like: Surrogate | None = None) -> Surrogate:
        ended = {share for o in seen if o.complete for share, _ in o.curve}
        rows = [(o.schedule, loss, o.seed, share) for o in seen for share, loss in o.curve if share in ended]
        schedules, losses, seeds, shares = zip(*rows, strict=True)
        return Surrogate(self._space, pairwise=False).fit(schedules, losses, seeds, shares, like=like)

    def _steps(self, surrogate: Surrogate) -> tuple[Array, Array]:
        """Return where the frontier's steps begin in cost, and their losses, (K + 1,) each.

        Losses are the surrogate's means of what was trained, so that one lucky trial does not stand in the way.
        """
        schedules = list(dict.fromkeys(o.schedule for o in self._seen if o.complete))
        means, _ = surrogate.predict(schedules)
        costs = [self._space.cost(schedule) for schedule in schedules]
        inside = [at for at, cost in enumerate(costs) if cost <= self._budget]
        front = [inside[at] for at in nondominated([(float(means[at]), costs[at]) for at in inside])]
        self._front = [schedules[at] for at in front]
        begins, levels = [0.0, *(costs[at] for at in front)], [float(means.max()), *(float(means[at]) for at in front)]
        return np.array(begins), np.array(levels)

    def _gain(self, means: Array, stds: Array, costs: Array) -> Array:
        """Return the expected area that schedules add under the frontier, nats times cost, (M,)."""
        begins, levels = self._levels
        ends = np.append(begins[1:], self._budget)
        widths = np.maximum(ends[None, :] - np.maximum(begins[None, :], costs[:, None]), 0.0)
        # No loss is below 0: where the frontier is almost there, nothing much is left to gain.
        expected = _below(levels[None, :], means[:, None], stds[:, None]) - _below(0.0, means[:, None], stds[:, None])
        result: Array = (widths * expected).sum(axis=1)
        return result

    def gain(self, schedules: Sequence[Schedule]) -> Array:
        """Return the expected area that each schedule adds under the frontier, nats times cost, (M,)."""
        assert self._surrogate is not None
        means, stds = self._surrogate.predict(schedules, stretched=False)
        return self._gain(means, EXPLORATION * stds, np.array([self._space.cost(schedule) for schedule in schedules]))

    def propose(self, taken: Collection[Schedule], rng: Random) -> Schedule | None:
        """Return the schedule to be trained next; None where nothing within the budget is left.

        First come the first `FEWEST` of `anchors` that are open, whatever was trained before; until there are trials
        enough to predict from the other anchors, then random ones; then the schedule of the largest expected gain, but
        one in `AT_RANDOM` is drawn uniformly.

        Args:
            taken: schedules not to be proposed.
            rng: decides between equals and draws candidates in large spaces.
        """
        known = anchors(self._space, self._budget)
        begin = next((s for s in (known[:FEWEST] if self.ready else known) if s not in taken), None)
        if begin is not None:
            return begin
        if not self.ready:
            drawn = self._open((self._space.sample(rng) for _ in range(DRAWN)), taken)
            return drawn[0] if drawn else None
        candidates = self._open(self._candidates(rng), taken)
        if not candidates or len(taken) % AT_RANDOM == AT_RANDOM - 1:
            anywhere = self._space.schedules() if self._space.size <= NEAREST else candidates
            candidates = self._open(anywhere, taken)
            return rng.choice(candidates) if candidates else None
        return self._best(candidates, rng)[0]

    def fresh_gain(self, taken: Collection[Schedule], rng: Random) -> float:
        """Return the largest expected gain of a schedule that is not taken; arguments as in `propose`."""
        return self._best(self._open(self._candidates(rng), taken), rng)[1] if self.ready else 0.0

    def _open(self, schedules: Iterable[Schedule], taken: Collection[Schedule]) -> list[Schedule]:
        return [s for s in schedules if s not in taken and self._space.cost(s) <= self._budget]

    def _best(self, candidates: list[Schedule], rng: Random) -> tuple[Schedule | None, float]:
        if not candidates:
            return None, 0.0
        rng.shuffle(candidates)
        gains = self.gain(candidates)
        return candidates[int(gains.argmax())], float(gains.max())

    def _candidates(self, rng: Random) -> list[Schedule]:
        """Return schedules near the frontier, and some from anywhere."""
        near: dict[Schedule, None] = dict.fromkeys(self._front)
        last = list(near)
        for _ in range(CHANGES):
            if len(last) * sum(len(options) - 1 for options in self._space.options) <= 4 * NEAREST:
                changed = [other for schedule in last for other in self._space.neighbors(schedule)]
            else:  # too many to be made and then thrown away
                changed = [self._space.neighbor(rng.choice(last), rng) for _ in range(NEAREST)]
            last = list(dict.fromkeys(other for other in changed if other not in near))
            last = rng.sample(last, min(len(last), NEAREST))
            near.update(dict.fromkeys(last))
        drawn = [self._space.sample(rng) for _ in range(DRAWN)]
        return list(dict.fromkeys([*near, *drawn]))

    def keep_going(self, schedule: Schedule, seed: int, curve: Sequence[tuple[float, float]], fresh: float) -> bool:
        """Tell whether a trial is worth the rest of its training.

        Args:
            schedule: in training.
            seed: of the trial.
            curve: (share of the training, validation loss) at its checkpoints so far.
            fresh: the gain of the best schedule that could be trained instead, `fresh_gain`.
        """
        if not self.ready or self._space.encode(schedule) is None:
            return True
        cost = np.array([self._space.cost(schedule)])
        if cost[0] > self._budget:
            return True
        trial = Observation(schedule=schedule, seed=seed, curve=tuple(curve))
        others = [o for o in self._seen if o.schedule != schedule or o.seed != seed]
        means, stds = self._fit([*others, trial], like=self._surrogate).predict([schedule], stretched=False)
        left = 1.0 - curve[-1][0]
        return float(self._gain(means, EXPLORATION * stds, cost)[0]) >= fresh * left


def _below(level: Array | float, means: Array, stds: Array) -> Array:
    """Return how far normal variables are expected to fall below a level: E max(0, level - Y)."""
    z = (level - means) / stds
    result: Array = stds * (z * stats.norm.cdf(z) + stats.norm.pdf(z))
    return result


def anchors(space: BoundSpace, budget: float) -> list[Schedule]:
    """Return schedules to begin with: what is known to be of use in some task, at the least cost that it can have.

    Those within the budget that the space can express: the least that recalls (the cheapest everywhere but one full
    layer in the middle and the widest sparse span right below it, where tokens are joined before they are looked up);
    that full layer in the baselines' span, which is the preset; the baselines' span everywhere; the cheapest; one full
    layer on top, where plain text wants it, and one at the bottom.
    """
    cheapest, span, layers = space.cheapest(), space.baseline_span, space.n_layers
    found = [cheapest]
    if span is not None:
        middle = presets.middle(layers, 1, span)
        at = next(layer for layer, held in enumerate(middle) if held.is_full)
        least = list(cheapest)
        least[at] = middle[at]
        if at > 0:
            least[at - 1] = _widest(space)[at - 1]
        found = [Schedule(tuple(least)), middle, presets.all_sparse(layers, span)]
        found += [cheapest, presets.top(layers, 1, span), presets.bottom(layers, 1, span)]
    return [s for s in dict.fromkeys(found) if space.encode(s) is not None and space.cost(s) <= budget]


def _widest(space: BoundSpace) -> list[Span]:
    """Return each layer's dearest choice that is not full, or full where it must be."""
    chosen: dict[int, Span] = {}
    for group, options in zip(space.groups, space.options, strict=True):
        sparse = [span for span in options if not span.is_full] or list(options)
        chosen |= dict.fromkeys(group, max(sparse, key=lambda span: span_pairs(span, space.seq_len, space.n_heads)))
    return [chosen[layer] for layer in range(space.n_layers)]
