"""The integer program: the schedule of the lowest modelled loss within a constraint.

    min   constant + sum_v single_v(x_v) + sum_{v<w} pair_vw(x_v, x_w)
    s.t.  sum_v weight_v(x_v) <= most

One binary z[v,a] per variable and option; a product of two of them is a continuous y[v,a,w,b] whose sums over a and
over b are the binaries (the local polytope, Wainwright and Jordan, "Graphical models, exponential families, and
variational inference", section 4.1; of the linearisations of a product in whole numbers the tightest that looks at
single pairs). Products with a variable's first option follow from the others and are left out. Solved by HiGHS through
`scipy.optimize.milp`.

Each admitted sum of marks (the number of full layers) has a program of its own, which is far easier than one for all:
first without whole numbers, whose optimum is a bound, then with them, in the order of the bounds, until the best
schedule found is below those of all others. Schedules that are excluded become rows when one of them is found.

Where a model has more pairs than `MOST_PRODUCTS` allows, one program without whole numbers holds those of the largest
effect. It bounds the loss, with what was left out bounded too, so that the gap is one of the whole model. The schedule
comes from a local search on the whole model (`layersearch.surrogate.local_search`), which starts near that program's optimum and
at the best by single variables of each sum of marks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layersearch.surrogate.gp import Coefficients
from layersearch.surrogate.local_search import LocalSearch
from layersearch.surrogate.quadratic import Array, Choice, PairModel

MOST_PRODUCTS = 6000
"""Products y, those that follow from others counted, that a program holds at the most."""
MOST_RELAXED = 12000
"""So many where it is solved without whole numbers."""
SECONDS = 20.0
"""A program is given up after so many; a local search goes on from the best schedule until then."""
_SCALE = 1000.0
"""The largest coefficient as HiGHS sees it, whose gap of 1e-6 cannot be set."""
_EXACT = 1e-8
"""A gap of so small a share of the model's range is none: it is below what HiGHS resolves."""


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """A schedule and how far it is known to be the best."""

    chosen: tuple[int, ...]
    """The index of each variable's option."""
    value: float
    """Of the whole model, nats."""
    bound: float
    """No admitted schedule has a lower value, nats."""
    proven: bool
    """Whether it is the best of all admitted schedules."""
    pairs: int
    """Pairs of variables whose effect is not the sum of two."""
    pairs_held: int
    """Of which the program held so many, the largest."""
    timed_out: bool
    """Whether the program was given up before it had proved its own optimum."""

    @property
    def gap(self) -> float:
        """Return by how much the best schedule may be better, at the most, nats."""
        return max(0.0, self.value - self.bound)


class Program:
    """Asked again and again for the best of what is left, as a shortlist is made.

    Args:
        coefficients: the model.
        weights: what each option of each variable takes of the constraint, whole numbers.
        most: the largest sum of weights that is admitted, itself included.
        marks: a whole number for each option, 0 or more; None: 0 for all.
        counts: the sums of marks that are admitted.
        most_products: see `MOST_PRODUCTS`.
        most_relaxed: see `MOST_RELAXED`.
    """

    def __init__(
        self,
        coefficients: Coefficients,
        weights: Sequence[Sequence[int]],
        most: int,
        *,
        marks: Sequence[Sequence[int]] | None = None,
        counts: Collection[int] = (0,),
        most_products: int = MOST_PRODUCTS,
        most_relaxed: int = MOST_RELAXED,
    ) -> None:
        self._model = PairModel(coefficients, weights, most, marks or [[0] * len(v) for v in weights], counts)
        self._search = LocalSearch(self._model)
        self._last: Choice | None = None
        self._held = self._model.largest(most_products)
        self._whole = len(self._held) == len(self._model.pairs)
        groups = [[count] for count in self._model.counts]
        if not self._whole:
            self._held, groups = self._model.largest(most_relaxed), [self._model.counts]
        lowest = self._model.constant + self._model.least(self._model.pairs)
        self._groups = [_Group(_Sheet(self._model, self._held, some), lowest) for some in groups]

    def best(self, excluded: Collection[tuple[int, ...]] = (), seconds: float = SECONDS) -> Optimum | None:
        """Return the admitted choice of the lowest modelled loss; None if none is admitted.

        Args:
            excluded: choices, as indices of options, that are not admitted; those of an earlier call among them.
            seconds: see `SECONDS`.
        """
        model = self._model
        if model.room < 0 or not model.counts:
            return None
        deadline = time.monotonic() + seconds
        banned = {tuple(int(option) for option in model.first[:-1] + np.array(chosen)) for chosen in excluded}
        for group in self._groups:
            group.relax(deadline, model.least(model.pairs[len(self._held) :]))
            group.leave_out(banned)
        options = self._solve(banned, deadline) if self._whole else None
        timed_out = any(group.given_up for group in self._groups)
        if not self._whole or timed_out:
            options = self._searched(options, banned)
        if options is None:
            return None
        self._last = options
        value = model.value(options)
        bound = min(value, *(group.bound for group in self._groups))
        return Optimum(
            chosen=tuple(int(option) for option in options - model.first[:-1]),
            value=value,
            bound=bound,
            proven=value - bound <= _EXACT * model.range,
            pairs=len(model.pairs),
            pairs_held=len(self._held),
            timed_out=timed_out,
        )

    def _solve(self, banned: Collection[tuple[int, ...]], deadline: float) -> Choice | None:
        """Solve the groups that may hold the best choice, in the order of their bounds."""
        best: Choice | None = None
        least = math.inf
        for group in sorted(self._groups, key=lambda group: group.bound):
            if group.bound >= least:
                break
            if not group.solved and not group.given_up:
                group.solve(banned, deadline)
            if group.options is not None and (value := self._model.value(group.options)) < least:
                best, least = group.options, value
        return best

    def _searched(self, found: Choice | None, banned: Collection[tuple[int, ...]]) -> Choice | None:
        """Return the best choice of a local search, from what a program found, if anything, and other starts."""
        starts = [options for options in (found, self._last) if options is not None]
        if self._last is None:
            model = self._model
            alone = [_Sheet(model, (), [count]) for count in model.counts]
            near = [
                _Sheet(model, (), model.counts, -group.shares) for group in self._groups if group.shares is not None
            ]
            rounded = [sheet.optimum((), math.inf)[0] for sheet in (*alone, *near)]
            starts += [options for options in rounded if options is not None]
        best = self._search.improve(starts, banned)
        # Changes of one or two variables may lead nowhere.
        return best if best is not None else _Sheet(self._model, (), self._model.counts).optimum(banned, math.inf)[0]


def minimise(
    coefficients: Coefficients,
    weights: Sequence[Sequence[int]],
    most: int,
    *,
    excluded: Collection[tuple[int, ...]] = (),
    marks: Sequence[Sequence[int]] | None = None,
    counts: Collection[int] = (0,),
    most_products: int = MOST_PRODUCTS,
    most_relaxed: int = MOST_RELAXED,
    seconds: float = SECONDS,
) -> Optimum | None:
    """Ask a `Program` once; the arguments are its own and those of `Program.best`."""
    sizes = {"most_products": most_products, "most_relaxed": most_relaxed}
    return Program(coefficients, weights, most, marks=marks, counts=counts, **sizes).best(excluded, seconds)


class _Sheet:
    """A program's columns and rows.

    Args:
        model: what is minimised.
        held: the pairs that it holds.
        counts: the sums of marks that it admits.
        single: what is minimised in place of the model's single variables, (O,).
    """

    def __init__(
        self,
        model: PairModel,
        held: Sequence[tuple[int, int]],
        counts: Sequence[int],
        single: Array | None = None,
    ) -> None:
        self.model, n_options = model, len(model.of)
        self._columns: list[int] = []
        self._rows: list[int] = []
        self._entries: list[float] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        single = model.single.copy() if single is None else single.copy()
        products: list[Array] = []
        self.constant = model.constant
        for v in range(model.variables):
            self.add(range(model.first[v], model.first[v + 1]), 1.0, 1.0, 1.0)
        after = n_options
        for v, w in held:
            first, second = int(model.first[v]), int(model.first[w])
            table = model.pair[model.part(v), model.part(w)]
            rows, columns, corner = table[:, 0], table[0], float(table[0, 0])
            single[model.part(v)] += rows
            single[model.part(w)] += columns - corner
            table = (table - rows[:, None] - columns + corner)[1:, 1:]
            names = after + np.arange(table.size).reshape(table.shape)
            for a, row in enumerate(names, start=1):
                self.add([*row, first + a], [1.0] * len(row) + [-1.0], -np.inf, 0.0)
            for b, column in enumerate(names.T, start=1):
                self.add([*column, second + b], [1.0] * len(column) + [-1.0], -np.inf, 0.0)
            self.add([*names.ravel(), first, second], 1.0, 1.0, np.inf)  # the product of both first options
            products.append(table.ravel())
            after += table.size
        room = model.room
        if 0 < room < sum(int(model.weight[model.part(v)].max()) for v in range(model.variables)):
            self.add(range(n_options), [float(weight) / room for weight in model.weight], -np.inf, 1.0)
        sums = range(0)
        if len(counts) < len(model.counted):
            # One binary for each sum of marks that is admitted.
            sums = range(after, after + len(counts))
            self.add(sums, 1.0, 1.0, 1.0)
            values = [*model.mark.astype(float), *(-float(count) for count in counts)]
            self.add([*range(n_options), *sums], values, 0.0, 0.0)
            after += len(sums)
        self._cost = np.concatenate([single, *products, np.zeros(len(sums))])
        self._highest = np.ones(after)
        self._highest[:n_options] = model.weight <= room
        self._integer = np.zeros(after)
        self._integer[:n_options] = 1
        self._integer[sums] = 1

    def add(self, columns: Any, entries: Any, low: float, high: float) -> None:
        """Add a row."""
        columns = list(columns)
        self._rows.extend([len(self._lower)] * len(columns))
        self._columns.extend(columns)
        self._entries.extend(entries if isinstance(entries, list) else [entries] * len(columns))
        self._lower.append(low)
        self._upper.append(high)

    def leave_out(self, choice: Choice) -> None:
        """Add a row that no longer admits a choice."""
        self.add(choice, 1.0, -np.inf, self.model.variables - 1.0)

    def relaxed(self, deadline: float) -> tuple[Array | None, float, bool]:
        """Solve it without whole numbers: each option's share (O,), a lower bound, and whether the time was up."""
        found = self._run(np.zeros_like(self._integer), deadline)
        if found is None or found.status == 1:
            return None, -math.inf, True
        if found.status == 2:
            return None, math.inf, False
        return found.x[: len(self.model.of)], self._value(found.fun), False

    def optimum(self, banned: Collection[tuple[int, ...]], deadline: float) -> tuple[Choice | None, float, bool]:
        """Solve it: the best choice that is not banned, a lower bound, and whether the time was up."""
        model, bound = self.model, -math.inf
        while True:
            found = self._run(self._integer, deadline)
            if found is None:
                return None, bound, True
            if found.status == 2:
                return None, math.inf, False
            if found.mip_dual_bound is not None and math.isfinite(found.mip_dual_bound):
                bound = max(bound, self._value(found.mip_dual_bound))
            if found.x is None:
                return None, bound, True
            parts = map(model.part, range(model.variables))
            chosen = np.array([part.start + int(found.x[part].argmax()) for part in parts])
            if not model.fits(chosen):
                # HiGHS takes what is over by less than its tolerance for admitted. These options never fit together.
                cover = [int(option) for option in chosen if model.weight[option]]
                self.add(cover, 1.0, -np.inf, len(cover) - 1.0)
            elif tuple(chosen) in banned:
                self.leave_out(chosen)
            else:
                return chosen, bound, found.status == 1

    def _run(self, integer: Array, deadline: float) -> Any:
        from scipy import optimize, sparse

        left = deadline - time.monotonic()
        if left <= 0:
            return None
        shape = (len(self._lower), len(self._cost))
        found = optimize.milp(
            self._cost * self._scale,
            integrality=integer,
            bounds=optimize.Bounds(0, self._highest),
            constraints=optimize.LinearConstraint(
                sparse.csr_array((self._entries, (self._rows, self._columns)), shape=shape), self._lower, self._upper
            ),
            options={"mip_rel_gap": 0.0} | ({"time_limit": left} if math.isfinite(left) else {}),
        )
        assert found.status in (0, 1, 2), found.message
        return found

    @property
    def _scale(self) -> float:
        return _SCALE / max(float(np.abs(self._cost).max()), 1e-300)

    def _value(self, objective: float) -> float:
        return self.constant + objective / self._scale


@dataclass
class _Group:
    """The choices of some sums of marks, and what is known of them."""

    sheet: _Sheet
    bound: float
    """Nothing of it is below."""
    options: Choice | None = None
    """Its best choice, or the best found in time."""
    shares: Array | None = None
    """The optimum without whole numbers."""
    relaxed: bool = False
    solved: bool = False
    given_up: bool = False

    def relax(self, deadline: float, dropped: float) -> None:
        """Bound it without whole numbers; ``dropped`` is what the pairs that it does not hold add at the least."""
        if not self.relaxed and not self.given_up:
            self.shares, bound, self.given_up = self.sheet.relaxed(deadline)
            self.relaxed = not self.given_up
            self.bound = max(self.bound, bound + dropped)

    def leave_out(self, banned: Collection[tuple[int, ...]]) -> None:
        """Forget its best choice if that is banned by now."""
        if self.options is not None and tuple(self.options) in banned:
            self.sheet.leave_out(self.options)
            self.options, self.solved = None, False

    def solve(self, banned: Collection[tuple[int, ...]], deadline: float) -> None:
        """Find its best choice that is not banned, if it holds all pairs."""
        self.options, bound, self.given_up = self.sheet.optimum(banned, deadline)
        self.bound = max(self.bound, bound)
        self.solved = not self.given_up
