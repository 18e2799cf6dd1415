"""The local search: finds the schedules with the lowest predicted loss within a constraint.

It is a seeded beam search on the surrogate, see docs/methods/surrogate.md: a heuristic under an exact constraint.

Shape legend: V variables (groups of layers that share a choice), O options of all variables in a row, C changes.
"""

import heapq
from collections.abc import Collection

import numpy as np

from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace, Subspace
from layersearch.surrogate.constraint import Constraint
from layersearch.surrogate.gp import Surrogate

SHORTLIST = 5  # Number of schedules to return
BEAM_WIDTH = 4  # Number of schedules to change per round: the best so far of as many numbers of full layers
MAX_CHANGES = 128  # Number of changes of each, ranked by the sum of the gains of its two single changes
PATIENCE = 8  # Rounds without a lower prediction before the search ends
N_WALKS = 2  # Random starts for each number of full layers
_STEPS = 3  # Changes per variable of a random walk

Choice = tuple[int, ...]  # The option of each variable, as its index among all options


def shortlist(
    surrogate: Surrogate,
    space: BoundSpace,
    constraint: Constraint,
    trained: Collection[Schedule],
    n_full: Collection[int],
) -> list[Schedule]:
    """Return up to `SHORTLIST` untrained schedules with the lowest predicted loss found, best first.

    The search starts from ``trained`` schedules and does not return them. ``n_full`` are the admitted numbers of full
    layers.
    """
    known: dict[Schedule, float] = {}
    for part in space.subspaces:
        known |= _Search(surrogate, space, part, constraint, n_full).run(trained)
    best = sorted(known, key=lambda schedule: (known[schedule], str(schedule)))[:SHORTLIST]
    assert all(map(constraint.admits, best)), "the constraint holds exactly"
    return best


class _Search:
    """Searches one subspace, in which every combination of choices is allowed."""

    def __init__(
        self, surrogate: Surrogate, space: BoundSpace, part: Subspace, constraint: Constraint, n_full: Collection[int]
    ) -> None:
        self._surrogate, self._space, self._limit = surrogate, space, constraint.max_total
        self._rng = np.random.default_rng(0)
        self._spans = [span for options in part for span in options]
        self._of = np.repeat(np.arange(len(part)), [len(options) for options in part])  # variable of each option, (O,)
        self._variables: list[int] = self._of.tolist()
        self._options = [np.flatnonzero(self._of == v).tolist() for v in range(len(part))]
        widths = [len(space.groups[v]) for v in self._of]
        self._takes = np.array([constraint.per_span[s] * n for s, n in zip(self._spans, widths, strict=True)])
        self._full = np.array([s.is_full * n for s, n in zip(self._spans, widths, strict=True)])
        self._n_full = np.isin(np.arange(space.n_layers + 1), list(n_full))
        first, second = np.triu_indices(len(self._of))
        some = (first == second) | (self._of[first] != self._of[second])
        # All changes, (C,): two options of different variables, or one option twice to change one variable.
        self._first, self._second = first[some], second[some]
        self._losses: dict[Choice, float] = {}  # Predictions, also of schedules that are not admitted
        self._n_full_of: dict[Choice, int] = {}
        self._codes = np.array([surrogate.code(span) for span in self._spans])

    def run(self, trained: Collection[Schedule]) -> dict[Schedule, float]:
        """Return the predicted loss of the best untrained schedules that were visited, at least `SHORTLIST` of them."""
        known = self._chosen(trained)
        admitted = {start for start in (*self._walks(), *known) if self._admits(start)}
        self._predict(admitted)
        unchanged = set(admitted)
        waited, lowest = 0, np.inf
        while waited < PATIENCE and (ahead := self._ahead(unchanged)):
            unchanged.difference_update(ahead)
            new = {one for chosen in ahead for one in self._changed(chosen)} - admitted
            self._predict(new)
            admitted |= new
            unchanged |= new
            best = min(map(self._losses.__getitem__, new if lowest < np.inf else admitted), default=np.inf)
            waited, lowest = (0, best) if best < lowest else (waited + 1, lowest)
        left = admitted - known
        limit = max(heapq.nsmallest(SHORTLIST, map(self._losses.__getitem__, left)), default=0.0)
        return {self._schedule(chosen): self._losses[chosen] for chosen in left if self._losses[chosen] <= limit}

    def _ahead(self, admitted: Collection[Choice]) -> list[Choice]:
        """Return the best schedule of each number of full layers, at most `BEAM_WIDTH`."""
        best: dict[int, tuple[float, Choice]] = {}
        for chosen in admitted:
            full, found = self._n_full_of[chosen], (self._losses[chosen], chosen)
            if full not in best or found < best[full]:
                best[full] = found
        return [chosen for _, chosen in sorted(best.values())[:BEAM_WIDTH]]

    def _schedule(self, chosen: Choice) -> Schedule:
        return self._space.schedule([self._spans[at] for at in chosen])

    def _predict(self, found: Collection[Choice]) -> None:
        new = [chosen for chosen in dict.fromkeys(found) if chosen not in self._losses]
        if new:
            options = np.array(new)
            self._losses.update(zip(new, self._surrogate.mean(self._codes[options]).tolist(), strict=True))
            self._n_full_of.update(zip(new, self._full[options].sum(axis=1).tolist(), strict=True))

    def _walks(self) -> list[Choice]:
        """Return the cheapest schedule of each number of full layers, and random walks from there."""
        starts = list(self._cheapest().values())
        for start in list(starts):
            for _ in range(N_WALKS):
                chosen = start
                for _ in range(_STEPS * len(start)):
                    at = self._rng.integers(len(self._first))
                    changed = self._change(chosen, int(self._first[at]), int(self._second[at]))
                    chosen = changed if self._admits(changed) else chosen
                starts.append(chosen)
        return starts

    def _chosen(self, schedules: Collection[Schedule]) -> set[Choice]:
        """Return the choices of those schedules that lie in this part."""
        places = [{self._spans[at]: at for at in options} for options in self._options]
        found = set()
        for schedule in schedules:
            spans = [schedule[group[0]] for group in self._space.groups]
            if all(span in place for span, place in zip(spans, places, strict=True)):
                found.add(tuple(place[span] for span, place in zip(spans, places, strict=True)))
        return found

    def _cheapest(self) -> dict[int, Choice]:
        """Return the cheapest admitted schedule of each number of full layers (dynamic programming over variables)."""
        least: dict[int, tuple[float, Choice]] = {0: (0, ())}
        for options in self._options:
            longer: dict[int, tuple[float, Choice]] = {}
            for full, (takes, chosen) in least.items():
                for at in options:
                    key, sum_ = full + int(self._full[at]), takes + self._takes[at].item()
                    if key not in longer or sum_ < longer[key][0]:
                        longer[key] = (sum_, (*chosen, at))
            least = longer
        return {full: chosen for full, (_, chosen) in sorted(least.items()) if self._admits(chosen)}

    def _admits(self, chosen: Choice) -> bool:
        at = list(chosen)
        return bool(self._takes[at].sum() <= self._limit and self._n_full[self._full[at].sum()])

    def _change(self, chosen: Choice, *options: int) -> Choice:
        changed = list(chosen)
        for option in options:
            changed[self._variables[option]] = option
        return tuple(changed)

    def _changed(self, chosen: Choice) -> list[Choice]:
        """Return admitted changes of a schedule, the best by the sum of the gains of their single changes."""
        now, i, j = np.array(chosen), self._first, self._second
        alone = [self._change(chosen, at) for at in range(len(self._of))]
        self._predict(alone)
        gains = np.array([self._losses[one] for one in alone]) - self._losses[chosen]
        same = i == j
        takes, full, gain = (
            values[i] + np.where(same, 0, values[j])
            for values in (self._takes - self._takes[now][self._of], self._full - self._full[now][self._of], gains)
        )
        takes, full = takes + self._takes[now].sum(), full + self._full[now].sum()
        stays = np.isin(np.arange(len(self._of)), now)
        admitted = np.flatnonzero((takes <= self._limit) & self._n_full[full] & ~stays[i] & ~stays[j])
        best = admitted[np.argsort(gain[admitted], kind="stable")[:MAX_CHANGES]]
        return [self._change(chosen, int(i[at]), int(j[at])) for at in best]
