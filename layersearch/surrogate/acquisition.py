"""The acquisition function: which schedule to train next, and whether to continue a trial.

The cost is exact. So hypervolume improvement is expected improvement summed over the frontier's steps (Emmerich
and others, "Hypervolume-based expected improvement", CEC 2011). See docs/methods/surrogate.md.

Shape legend: M schedules, K steps of the frontier.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from scipy import special

from layersearch.results.pareto import nondominated
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.span import FULL
from layersearch.surrogate.gp import MIN_SCHEDULES, Surrogate
from layersearch.surrogate.kernel import Array

EXPLORATION = 0.5  # Factor on the posterior standard deviation (tuned, see analysis/search_efficiency)
RANDOM_EVERY = 12  # One proposal in this many is random: a search that trusts a wrong model would never end
MOST_OBSERVED = 500  # Trials to learn from: the time of a proposal is cubic in their number
MAX_CHANGES, MAX_NEIGHBORS, N_RANDOM = 2, 1024, 256
"""Candidates: schedules within this many changes of the frontier, at most so many per change, and random ones."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The losses of one trial so far."""

    schedule: Schedule
    seed: int
    curve: tuple[tuple[float, float], ...]  # (share of the training in (0, 1], loss in nats), in order; 1 is the end

    @property
    def complete(self) -> bool:
        """Whether the trial was trained to its end."""
        return bool(self.curve) and self.curve[-1][0] == 1.0


class ExpectedImprovement:
    """Expected hypervolume improvement of schedules, given the trials so far.

    Args:
        space: the bound space.
        budget: largest cost to propose, as a ratio to all-full.
        observations: trials; those outside the space are left out.
        pending: schedules in training, assumed to end as predicted (the kriging believer of Ginsbourger, Le Riche,
            Carraro, "Kriging is well-suited to parallelize optimization", 2010).
    """

    def __init__(
        self, space: BoundSpace, budget: float, observations: Sequence[Observation], pending: Sequence[Schedule] = ()
    ) -> None:
        self._space, self._budget = space, budget
        self._seen = self._thinned([o for o in observations if o.curve and space.holds(o.schedule)])
        self._losses = {o.schedule: o.curve[-1][1] for o in self._seen if o.complete}
        self._surrogate: Surrogate | None = None
        if len({o.schedule for o in self._seen if o.complete}) < MIN_SCHEDULES:
            return
        self._surrogate = self._fit(self._seen)
        if pending:
            means, _ = self._surrogate.predict(pending)
            self._seen += [
                Observation(schedule=schedule, seed=self._seen[0].seed, curve=((1.0, float(mean)),))
                for schedule, mean in zip(pending, means, strict=True)
            ]
            self._surrogate = self._fit(self._seen, like=self._surrogate)
        self._begins, self._levels = self._steps(self._surrogate)

    def _thinned(self, seen: Sequence[Observation]) -> list[Observation]:
        """Return at most `MOST_OBSERVED` observations in order: the frontier, and an even choice of the others."""
        if len(seen) <= MOST_OBSERVED:
            return list(seen)
        ended = [at for at, o in enumerate(seen) if o.complete]
        front = nondominated([(seen[at].curve[-1][1], self._space.cost(seen[at].schedule)) for at in ended])
        kept = {ended[at] for at in _evenly(front, MOST_OBSERVED // 2)}
        others = [at for at in range(len(seen)) if at not in kept]
        return [seen[at] for at in sorted({*kept, *_evenly(others, MOST_OBSERVED - len(kept))})]

    @property
    def ready(self) -> bool:
        """Whether there are enough trials to predict from."""
        return self._surrogate is not None

    def _fit(self, seen: Sequence[Observation], like: Surrogate | None = None) -> Surrogate:
        ended = {share for o in seen if o.complete for share, _ in o.curve}
        rows = [(o.schedule, loss, o.seed, share) for o in seen for share, loss in o.curve if share in ended]
        schedules, losses, seeds, shares = zip(*rows, strict=True)
        return Surrogate(self._space, pairwise=False, by_cost=True).fit(schedules, losses, seeds, shares, like=like)

    def _steps(self, surrogate: Surrogate) -> tuple[Array, Array]:
        """Return the costs at which the frontier's steps begin, and their losses, (K + 1,) each.

        Losses are the surrogate's means of trained schedules, so that one lucky trial does not block the others.
        """
        schedules = list(dict.fromkeys(o.schedule for o in self._seen if o.complete))
        means, costs = surrogate.predict(schedules)[0], [self._space.cost(schedule) for schedule in schedules]
        inside = [at for at, cost in enumerate(costs) if cost <= self._budget]
        front = [inside[at] for at in nondominated([(float(means[at]), costs[at]) for at in inside])]
        self._front = [schedules[at] for at in front]
        return np.array([0.0, *(costs[at] for at in front)]), np.array([means.max(), *means[front]])

    def improvement(self, schedules: Sequence[Schedule], surrogate: Surrogate | None = None) -> Array:
        """Return the expected hypervolume improvement of each schedule, nats times cost, (M,)."""
        surrogate = surrogate or self._surrogate
        assert surrogate is not None
        means, stds = surrogate.predict(schedules, calibrated=False)
        means, stds = means[:, None], EXPLORATION * stds[:, None]
        costs = np.array([[self._space.cost(schedule)] for schedule in schedules])
        widths = np.maximum(np.append(self._begins[1:], self._budget) - np.maximum(self._begins, costs), 0.0)
        # No loss is below 0: a frontier close to 0 leaves little to improve.
        expected = _below(self._levels, means, stds) - _below(0.0, means, stds)
        return (widths * expected).sum(axis=1)

    def propose(self, taken: Collection[Schedule], rng: Random) -> Schedule | None:
        """Return the schedule to train next; None if nothing within the budget is left.

        The `initial_schedules` come first, even after other trials. Random ones follow until there are enough trials
        to predict from. Then the schedule with the largest expected improvement is next, but one in `RANDOM_EVERY` is
        drawn uniformly.

        ``taken`` are schedules not to propose; ``rng`` breaks ties and draws candidates in large spaces.
        """
        initial = initial_schedules(self._space, self._budget, self._losses)
        first = next((s for s in initial if s not in taken), None)
        if first is not None:
            return first
        if not self.ready:
            drawn = self._open((self._space.sample(rng) for _ in range(N_RANDOM)), taken)
            return drawn[0] if drawn else None
        candidates = self._open(self._candidates(rng), taken)
        if not candidates or len(taken) % RANDOM_EVERY == RANDOM_EVERY - 1:
            anywhere = self._space.schedules() if self._space.size <= MAX_NEIGHBORS else candidates
            candidates = self._open(anywhere, taken)
            return rng.choice(candidates) if candidates else None
        return self._best(candidates, rng)[0]

    def best_improvement(self, taken: Collection[Schedule], rng: Random) -> float:
        """Return the largest expected improvement of a schedule not taken; arguments as in `propose`."""
        return self._best(self._open(self._candidates(rng), taken), rng)[1] if self.ready else 0.0

    def _open(self, schedules: Iterable[Schedule], taken: Collection[Schedule]) -> list[Schedule]:
        return [s for s in schedules if s not in taken and self._space.cost(s) <= self._budget]

    def _best(self, candidates: list[Schedule], rng: Random) -> tuple[Schedule | None, float]:
        if not candidates:
            return None, 0.0
        rng.shuffle(candidates)
        values = self.improvement(candidates)
        return candidates[int(values.argmax())], float(values.max())

    def _candidates(self, rng: Random) -> list[Schedule]:
        """Return schedules near the frontier, and random ones."""
        near: dict[Schedule, None] = dict.fromkeys(self._front)
        last = list(near)
        for _ in range(MAX_CHANGES):
            if len(last) * sum(len(options) - 1 for options in self._space.options) <= 4 * MAX_NEIGHBORS:
                changed = [other for schedule in last for other in self._space.neighbors(schedule)]
            else:  # too many to enumerate
                changed = [self._space.neighbor(rng.choice(last), rng) for _ in range(MAX_NEIGHBORS)]
            last = list(dict.fromkeys(other for other in changed if other not in near))
            last = rng.sample(last, min(len(last), MAX_NEIGHBORS))
            near.update(dict.fromkeys(last))
        return list(dict.fromkeys([*near, *(self._space.sample(rng) for _ in range(N_RANDOM))]))

    def keep_going(self, schedule: Schedule, seed: int, curve: Sequence[tuple[float, float]], fresh: float) -> bool:
        """Return whether a trial should continue.

        ``curve`` is that of `Observation`; ``fresh`` is the `best_improvement` of a new schedule.
        """
        if not self.ready or not self._space.holds(schedule) or self._space.cost(schedule) > self._budget:
            return True
        trial = Observation(schedule=schedule, seed=seed, curve=tuple(curve))
        others = [o for o in self._seen if o.schedule != schedule or o.seed != seed]
        surrogate = self._fit([*others, trial], like=self._surrogate)
        return float(self.improvement([schedule], surrogate)[0]) >= fresh * (1.0 - curve[-1][0])


def _evenly(numbers: Sequence[int], most: int) -> list[int]:
    """Return at most so many of the numbers, evenly over their order."""
    places = np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int)
    return [numbers[place] for place in places]


def _below(level: Array | float, means: Array, stds: Array) -> Array:
    """Return the expected improvement of normal variables Y below a level: E max(0, level - Y)."""
    z = (level - means) / stds
    return stds * (z * special.ndtr(z) + np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi))


def initial_schedules(
    space: BoundSpace, budget: float, losses: Mapping[Schedule, float] | None = None
) -> list[Schedule]:
    """Return the first schedules to train: each is known to work on some task, at the least cost.

    The list holds, of those in the space and within the budget:

    1. The cheapest schedule that recalls: one full layer in the middle, the widest sparse span right below it (tokens
       are joined before they are looked up), the cheapest span everywhere else.
    2. The baseline span everywhere.
    3. One full layer in the middle, the baseline span everywhere else: the preset.

    If ``losses``, nats, show that a full layer in the middle (1 or 3) is no better than the baseline span alone (2),
    nothing is looked up there, and the full layer of 3 is the top one (best for plain text). Layers that share a choice
    are full together. A space without a baseline span has the cheapest schedule alone.

    No more are listed: what works is often none of them, and schedules drawn at random tell more of a new task.
    """
    known, cheapest, span = losses or {}, space.cheapest(), space.baseline_span
    found = [cheapest]
    if span is not None:
        at = {layer: number for number, group in enumerate(space.groups) for layer in group}
        last = space.n_layers - 1
        middle = at[last // 2]
        below = next((at[layer] for layer in range(last // 2, -1, -1) if at[layer] != middle), None)
        recalls = [cheapest[group[0]] for group in space.groups]
        recalls[middle] = FULL
        if below is not None:
            sparse = [other for other in space.options[below] if not other.is_full] or space.options[below]
            recalls[below] = max(sparse, key=space.pairs)
        looked_up, alone = space.schedule(recalls), space.schedule([span] * len(space.groups))
        preset, top = (
            space.schedule([FULL if group == one else span for group in range(len(space.groups))])
            for one in (middle, at[last])
        )
        tried = [known[schedule] for schedule in (looked_up, preset) if schedule in known]
        no_recall = tried and alone in known and min(tried) >= known[alone]
        found = [looked_up, alone, top if no_recall else preset]
    return [s for s in dict.fromkeys(found) if space.holds(s) and space.cost(s) <= budget]
