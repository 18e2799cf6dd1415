"""The local search: finds the schedules of the lowest predicted loss within a constraint.

A beam search asks the surrogate directly. Every round changes one or two variables of the best schedules so far, and
predicts the new ones in one batch. It starts from the cheapest schedule of every admitted number of full layers, from
random walks that begin there, and from what was trained. The constraint holds exactly. The search is a heuristic: a
schedule of lower prediction may exist. It is seeded: the same arguments give the same answer.

Shape legend: V variables (groups of layers that share a choice), O options of all variables in a row, C changes.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace, Subspace
from layersearch.surrogate.constraint import Constraint
from layersearch.surrogate.gp import Surrogate

SHORTLIST = 5
"""Schedules that are offered to the model that predicts."""
BEAM = 4
"""Schedules that are changed in a round: the best so far of as many numbers of full layers."""
CHANGES = 128
"""Changes of each of them, the most promising: by the sum of what the changes of two variables do alone."""
PATIENCE = 8
"""The search ends after so many rounds without a lower prediction."""
WALKS = 2
"""Random starts for each number of full layers."""
_STEPS = 3
"""Changes of a random walk for each variable."""

Chosen = tuple[int, ...]
"""The option of each variable, as its place among all options."""


def shortlist(
    surrogate: Surrogate,
    space: BoundSpace,
    constraint: Constraint,
    trained: Collection[Schedule],
    n_full: Collection[int],
) -> list[Schedule]:
    """Return the untrained schedules of the lowest predicted loss that were found, `SHORTLIST` at the most, best first.

    Args:
        surrogate: fitted.
        space: the bound space.
        constraint: see `layersearch.surrogate.constraint`.
        trained: schedules to start from; none of them is returned.
        n_full: the numbers of full layers that are admitted.
    """
    known: dict[Schedule, float] = {}
    for part in space.subspaces:
        known |= _Search(surrogate, space, part, constraint, n_full).run(trained)
    untrained = known.keys() - set(trained)
    best = sorted(untrained, key=lambda schedule: (known[schedule], str(schedule)))[:SHORTLIST]
    assert all(map(constraint.admits, best)), "the constraint holds exactly"
    return best


class _Search:
    """Searches one part of a space, in which no choice excludes another."""

    def __init__(
        self, surrogate: Surrogate, space: BoundSpace, part: Subspace, constraint: Constraint, n_full: Collection[int]
    ) -> None:
        self._surrogate, self._groups, self._limit = surrogate, space.groups, constraint.most
        self._layers, self._rng = space.n_layers, np.random.default_rng(0)
        self._spans = [span for options in part for span in options]
        self._of = np.repeat(np.arange(len(part)), [len(options) for options in part])
        """The variable of each option, (O,)."""
        self._options = [np.flatnonzero(self._of == v).tolist() for v in range(len(part))]
        widths = [len(self._groups[v]) for v in self._of]
        self._takes = np.array([constraint.per_span[s] * n for s, n in zip(self._spans, widths, strict=True)])
        self._full = np.array([s.is_full * n for s, n in zip(self._spans, widths, strict=True)])
        self._n_full = np.isin(np.arange(self._layers + 1), list(n_full))
        first, second = np.triu_indices(len(self._of))
        some = (first == second) | (self._of[first] != self._of[second])
        self._first, self._second = first[some], second[some]
        """All changes, (C,): two options of different variables, or one twice, which changes one variable."""
        self._losses: dict[Chosen, float] = {}
        """Predictions, those of schedules that are not admitted too."""

    def run(self, trained: Collection[Schedule]) -> dict[Schedule, float]:
        """Return the predicted loss of every schedule that was looked at."""
        admitted = set(self._starts(trained))
        self._look(admitted)
        changed: set[Chosen] = set()
        waited, lowest = 0, np.inf
        while waited < PATIENCE and (ahead := self._ahead(admitted - changed)):
            changed.update(ahead)
            new = [one for chosen in ahead for one in self._changed(chosen)]
            self._look(new)
            admitted.update(new)
            best = min(self._losses[chosen] for chosen in admitted)
            waited, lowest = (0, best) if best < lowest else (waited + 1, lowest)
        return {self._schedule(chosen): self._losses[chosen] for chosen in admitted}

    def _ahead(self, admitted: Collection[Chosen]) -> list[Chosen]:
        """Return the best schedule of each number of full layers, `BEAM` at the most."""
        best: dict[int, Chosen] = {}
        for chosen in sorted(admitted, key=lambda chosen: (self._losses[chosen], chosen)):
            best.setdefault(int(self._full[list(chosen)].sum()), chosen)
            if len(best) == BEAM:
                break
        return list(best.values())

    def _schedule(self, chosen: Chosen) -> Schedule:
        spans = {layer: self._spans[at] for at, group in zip(chosen, self._groups, strict=True) for layer in group}
        return Schedule(tuple(spans[layer] for layer in range(self._layers)))

    def _look(self, found: Collection[Chosen]) -> None:
        new = [chosen for chosen in dict.fromkeys(found) if chosen not in self._losses]
        if new:
            means, _ = self._surrogate.predict([self._schedule(chosen) for chosen in new])
            self._losses.update(zip(new, means.tolist(), strict=True))

    def _starts(self, trained: Collection[Schedule]) -> list[Chosen]:
        starts = list(self._cheapest().values())
        for start in list(starts):
            for _ in range(WALKS):
                chosen = start
                for _ in range(_STEPS * len(start)):
                    i, j = (
                        int(at[k]) for k in [self._rng.integers(len(self._first))] for at in (self._first, self._second)
                    )
                    changed = self._change(chosen, i, j)
                    chosen = changed if self._admits(changed) else chosen
                starts.append(chosen)
        places = [{self._spans[at]: at for at in options} for options in self._options]
        for schedule in trained:
            spans = [schedule[group[0]] for group in self._groups]
            if all(span in place for span, place in zip(spans, places, strict=True)):
                starts.append(tuple(place[span] for span, place in zip(spans, places, strict=True)))
        return [start for start in starts if self._admits(start)]

    def _cheapest(self) -> dict[int, Chosen]:
        """Return the schedule that takes least for each admitted number of full layers, where one is within the limit.

        By dynamic programming over the variables, so that no such number is missed.
        """
        least: dict[int, tuple[float, Chosen]] = {0: (0, ())}
        for options in self._options:
            longer: dict[int, tuple[float, Chosen]] = {}
            for full, (takes, chosen) in least.items():
                for at in options:
                    key, sum_ = full + int(self._full[at]), takes + self._takes[at].item()
                    if key not in longer or sum_ < longer[key][0]:
                        longer[key] = (sum_, (*chosen, at))
            least = longer
        return {full: chosen for full, (_, chosen) in sorted(least.items()) if self._admits(chosen)}

    def _admits(self, chosen: Chosen) -> bool:
        at = list(chosen)
        return bool(self._takes[at].sum() <= self._limit and self._n_full[self._full[at].sum()])

    def _change(self, chosen: Chosen, *options: int) -> Chosen:
        new = dict(zip(self._of[list(options)].tolist(), options, strict=True))
        return tuple(new.get(v, at) for v, at in enumerate(chosen))

    def _changed(self, chosen: Chosen) -> list[Chosen]:
        """Return what admitted changes make of a schedule: the best by what each of two changes does alone."""
        now, i, j = np.array(chosen), self._first, self._second
        alone = [self._change(chosen, at) for at in range(len(self._of))]
        self._look(alone)
        gains = np.array([self._losses[one] for one in alone]) - self._losses[chosen]
        same = i == j
        takes, full, gain = (
            values[i] + np.where(same, 0, values[j])
            for values in (self._takes - self._takes[now][self._of], self._full - self._full[now][self._of], gains)
        )
        takes, full = takes + self._takes[now].sum(), full + self._full[now].sum()
        stays = np.isin(np.arange(len(self._of)), now)
        admitted = np.flatnonzero((takes <= self._limit) & self._n_full[full] & ~stays[i] & ~stays[j])
        best = admitted[np.argsort(gain[admitted], kind="stable")[:CHANGES]]
        return [self._change(chosen, int(i[at]), int(j[at])) for at in best]
