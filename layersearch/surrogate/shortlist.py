"""The shortlist: the best schedules that were not trained, by single layers and pairs of layers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence

import numpy as np

from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace, Part
from layersearch.surrogate.constraint import Constraint
from layersearch.surrogate.gp import Coefficients, Surrogate
from layersearch.surrogate.milp import Optimum, Program

SHORTLIST = 5
"""Schedules that the integer program offers to the model that predicts."""


def shortlist(
    surrogate: Surrogate,
    space: BoundSpace,
    constraint: Constraint,
    trained: Sequence[Schedule],
    n_full: Sequence[int],
    seconds: float,
) -> dict[Schedule, Optimum]:
    """Return the best untrained schedules within a constraint, `SHORTLIST` at the most, best first.

    Args:
        surrogate: a pairwise one, fitted.
        space: the bound space.
        constraint: see `layersearch.surrogate.constraint`.
        trained: schedules that are left out.
        n_full: the numbers of full layers that are admitted.
        seconds: for the integer programs; what is not proven by then is searched for.
    """
    coefficients = surrogate.coefficients()
    parts = [_Part(coefficients, space, part, constraint, n_full) for part in space.parts]
    excluded = {tuple(surrogate.index(schedule)) for schedule in trained}
    optima: dict[Schedule, Optimum] = {}
    end = time.monotonic() + seconds
    while len(optima) < SHORTLIST:
        each = [part.best(excluded, (end - time.monotonic()) / (len(parts) - at)) for at, part in enumerate(parts)]
        optimal = [one for one in each if one is not None]
        if not optimal:
            break
        found = min(optimal, key=lambda one: one.value)
        if len(optimal) > 1:  # the best of all parts is known as far as each part's is
            bound = min(one.bound for one in optimal)
            found = dataclasses.replace(
                found,
                bound=bound,
                proven=found.proven and all(one.proven or one.bound >= found.value for one in optimal),
                timed_out=any(one.timed_out for one in optimal),
            )
        schedule = _schedule(space, found)
        assert constraint.admits(schedule), "the constraint holds exactly"
        optima[schedule] = found
        excluded.add(tuple(found.chosen))
    return optima


class _Part:
    """A part of the space, which is a product of choices, and its program."""

    def __init__(
        self,
        coefficients: Coefficients,
        space: BoundSpace,
        part: Part,
        constraint: Constraint,
        n_full: Sequence[int],
    ) -> None:
        self._kept = [
            [at for at, span in enumerate(options) if span in some]
            for options, some in zip(space.options, part, strict=True)
        ]
        choices = [
            (len(group), [options[at] for at in indices])
            for group, options, indices in zip(space.groups, space.options, self._kept, strict=True)
        ]
        self._program = Program(
            _restricted(coefficients, self._kept),
            [[constraint.per_span[span] * layers for span in options] for layers, options in choices],
            constraint.most,
            marks=[[span.is_full * layers for span in options] for layers, options in choices],
            counts=n_full,
        )

    def best(self, excluded: Collection[tuple[int, ...]], seconds: float) -> Optimum | None:
        """Return its best schedule, by the indices of the space's options; see `Program.best`."""
        inside = [chosen for chosen in excluded if all(at in some for at, some in zip(chosen, self._kept, strict=True))]
        own = [tuple(some.index(at) for at, some in zip(chosen, self._kept, strict=True)) for chosen in inside]
        found = self._program.best(own, seconds)
        if found is None:
            return None
        return dataclasses.replace(
            found, chosen=tuple(some[at] for at, some in zip(found.chosen, self._kept, strict=True))
        )


def _restricted(coefficients: Coefficients, kept: Sequence[Sequence[int]]) -> Coefficients:
    """Return the model of some options of each variable."""
    single = [values[list(indices)] for values, indices in zip(coefficients.single, kept, strict=True)]
    pair = {(v, w): table[np.ix_(kept[v], kept[w])] for (v, w), table in coefficients.pair.items()}
    return Coefficients(constant=coefficients.constant, single=single, pair=pair)


def _schedule(space: BoundSpace, optimum: Optimum) -> Schedule:
    spans = {
        layer: options[at]
        for group, options, at in zip(space.groups, space.options, optimum.chosen, strict=True)
        for layer in group
    }
    return Schedule(tuple(spans[layer] for layer in range(space.n_layers)))
