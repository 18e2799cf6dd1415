"""The local search: finds the schedules with the lowest predicted loss within a constraint.

It is a seeded beam search on the surrogate, see docs/methods/surrogate.md: a heuristic under an exact constraint.

Shape legend: V variables (groups of layers that share a choice), O options of all variables in a row, C changes.
"""

import heapq
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace, Subspace
from layersearch.surrogate.constraint import Constraint
from layersearch.surrogate.gp import Surrogate
from layersearch.surrogate.kernel import Codes

SHORTLIST = 5  # Number of schedules to return
BEAM_WIDTH = 4  # Number of schedules to change per round: the best so far of as many numbers of full layers
MAX_CHANGES = 128  # Number of changes of each, ranked by the sum of the gains of its two single changes
PATIENCE = 8  # Rounds without a lower prediction before the search ends
N_WALKS = 2  # Random starts for each number of full layers
_STEPS = 3  # Changes per variable of a random walk

Choice = bytes  # The option of each variable, as its index among all options: four bytes each, the highest first


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
        self._options = [np.flatnonzero(self._of == v).tolist() for v in range(len(part))]
        widths = [len(space.groups[v]) for v in self._of]
        self._takes = np.array([constraint.per_span[s] * n for s, n in zip(self._spans, widths, strict=True)])
        self._full = np.array([s.is_full * n for s, n in zip(self._spans, widths, strict=True)])
        self._n_full = np.isin(np.arange(space.n_layers + 1), list(n_full))
        first, second = np.triu_indices(len(self._of))
        some = (first == second) | (self._of[first] != self._of[second])
        # All changes, (C,): two options of different variables, or one option twice to change one variable.
        self._first, self._second = first[some], second[some]
        self._losses: dict[Choice, float] = {}
        self._ahead: dict[int, list[tuple[float, Choice]]] = {}  # a heap of unchanged ones for each number of full
        self._codes = np.array([surrogate.code(span) for span in self._spans])

    def run(self, trained: Collection[Schedule]) -> dict[Schedule, float]:
        """Return the predicted loss of the best untrained schedules that were visited, at least `SHORTLIST` of them."""
        known = self._chosen(trained)
        starts = np.array([*self._walks(), *known.tolist()], dtype=np.intp).reshape(-1, len(self._options))
        self._enter(starts[self._admits(starts)])
        waited, lowest = 0, np.inf
        while waited < PATIENCE and (ahead := self._next()):
            new = self._enter(np.concatenate([self._changed(chosen) for chosen in ahead]))
            best = min(new if lowest < np.inf else self._losses.values(), default=np.inf)
            waited, lowest = (0, best) if best < lowest else (waited + 1, lowest)
        untrained = self._losses.keys() - set(_keys(known))
        limit = max(heapq.nsmallest(SHORTLIST, map(self._losses.__getitem__, untrained)), default=0.0)
        return {self._schedule(chosen): self._losses[chosen] for chosen in untrained if self._losses[chosen] <= limit}

    def _next(self) -> list[Choice]:
        """Return the best unchanged schedule of each number of full layers, at most `BEAM_WIDTH`."""
        best = sorted((heap[0], full) for full, heap in self._ahead.items() if heap)[:BEAM_WIDTH]
        return [heapq.heappop(self._ahead[full])[1] for _, full in best]

    def _enter(self, rows: Codes) -> list[float]:
        """Predict the schedules that are new, (rows, V), and return their losses."""
        keys = _keys(rows)
        new = [row for key, row in {key: row for row, key in enumerate(keys)}.items() if key not in self._losses]
        losses = self._surrogate.mean(self._codes[rows[new]]).tolist() if new else []
        for row, loss, full in zip(new, losses, self._full[rows[new]].sum(axis=1).tolist(), strict=True):
            self._losses[keys[row]] = loss
            heapq.heappush(self._ahead.setdefault(full, []), (loss, keys[row]))
        return losses

    def _schedule(self, chosen: Choice) -> Schedule:
        return self._space.schedule([self._spans[at] for at in _row(chosen)])

    def _walks(self) -> list[list[int]]:
        """Return the cheapest schedule of each number of full layers, and random walks from there."""
        starts = list(self._cheapest().values())
        takes, full, n_full = self._takes.tolist(), self._full.tolist(), self._n_full.tolist()
        of, first, second = self._of.tolist(), self._first.tolist(), self._second.tolist()
        for start in list(starts):
            for _ in range(N_WALKS):
                chosen = start
                for at in self._rng.integers(len(first), size=_STEPS * len(start)).tolist():
                    changed = list(chosen)
                    changed[of[first[at]]] = first[at]
                    changed[of[second[at]]] = second[at]
                    if sum([takes[o] for o in changed]) <= self._limit and n_full[sum([full[o] for o in changed])]:
                        chosen = changed
                starts.append(chosen)
        return starts

    def _chosen(self, schedules: Collection[Schedule]) -> Codes:
        """Return the choices of those schedules that lie in this part, (M, V)."""
        options = np.full((len(self._options), 1 + self._codes.max()), -1)
        options[self._of, self._codes] = np.arange(len(self._of))
        codes = self._surrogate.codes(list(schedules))
        inside = codes < options.shape[1]
        chosen = np.where(inside, options[np.arange(len(options)), np.where(inside, codes, 0)], -1)
        return chosen[(chosen >= 0).all(axis=1)]

    def _cheapest(self) -> dict[int, list[int]]:
        """Return the cheapest admitted schedule of each number of full layers (dynamic programming over variables)."""
        least: dict[int, tuple[float, list[int]]] = {0: (0, [])}
        for options in self._options:
            longer: dict[int, tuple[float, list[int]]] = {}
            for full, (takes, chosen) in least.items():
                for at in options:
                    key, sum_ = full + int(self._full[at]), takes + self._takes[at].item()
                    if key not in longer or sum_ < longer[key][0]:
                        longer[key] = (sum_, [*chosen, at])
            least = longer
        return {full: chosen for full, (_, chosen) in sorted(least.items()) if self._admits(np.array([chosen]))[0]}

    def _admits(self, rows: Codes) -> NDArray[np.bool_]:
        admitted: NDArray[np.bool_] = self._takes[rows].sum(axis=1) <= self._limit
        return admitted & self._n_full[self._full[rows].sum(axis=1)]

    def _changed(self, chosen: Choice) -> Codes:
        """Return admitted changes of a schedule, the best by the sum of the gains of their single changes."""
        now, i, j = _row(chosen), self._first, self._second
        gains = self._surrogate.changed_means(self._codes[now])[self._of, self._codes] - self._losses[chosen]
        same = i == j
        takes, full, gain = (
            values[i] + np.where(same, 0, values[j])
            for values in (self._takes - self._takes[now][self._of], self._full - self._full[now][self._of], gains)
        )
        takes, full = takes + self._takes[now].sum(), full + self._full[now].sum()
        stays = np.isin(np.arange(len(self._of)), now)
        admitted = np.flatnonzero((takes <= self._limit) & self._n_full[full] & ~stays[i] & ~stays[j])
        if len(admitted) > MAX_CHANGES:  # sorting all takes longer than all else here
            found = gain[admitted]
            admitted = admitted[found <= np.partition(found, MAX_CHANGES)[MAX_CHANGES]]
        best = admitted[np.argsort(gain[admitted], kind="stable")[:MAX_CHANGES]]
        changed, rows = np.tile(now, (len(best), 1)), np.arange(len(best))
        for option in (i[best], j[best]):
            changed[rows, self._of[option]] = option
        return changed


def _keys(rows: Codes) -> list[Choice]:
    """Return each row of options as bytes, whose order is that of the rows."""
    width, held = 4 * rows.shape[-1], rows.astype(">u4").tobytes()
    return [held[at : at + width] for at in range(0, len(held), width)]


def _row(chosen: Choice) -> Codes:
    return np.frombuffer(chosen, dtype=">u4").astype(np.intp)
