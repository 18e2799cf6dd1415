"""The integer program: the schedule of the lowest modelled loss within a constraint.

    min   constant + sum_v single_v(x_v) + sum_{v<w} pair_vw(x_v, x_w)
    s.t.  sum_v weight_v(x_v) <= most

One binary z[v,a] per variable and option; a product of two of them is a continuous y[v,a,w,b] whose sums over a and
over b are the binaries (the local polytope, Wainwright and Jordan, "Graphical models, exponential families, and
variational inference", section 4.1; of the linearisations of a product in whole numbers the tightest that looks at
single pairs). Solved by HiGHS through `scipy.optimize.milp`.

Where a model has more pairs than `MOST_PRODUCTS` allows, the program holds those of the largest effect, and a local
search on the whole model starts from its optimum: the best change of one or two variables until there is none, then
again after a few changes at random from the best (iterated local search). What was left out is bounded, so that the gap
is one of the whole model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layersearch.surrogate import Coefficients

Array = NDArray[np.float64]

MOST_PRODUCTS = 6000
"""Products y that a program holds at the most."""
FEWER_PRODUCTS = 1500
"""So many where the whole model would need more than that: then it is a start for the local search, no proof."""
SECONDS = 20.0
"""A program is given up after so many; the best schedule until then is taken."""
UPSETS = 100
"""How often a local search starts again."""
_UPSET = (1, 7)
"""After so many random changes, the last not included."""
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
    """Of which the integer program held so many, the largest."""
    timed_out: bool
    """Whether the program was given up before it had proved its own optimum."""

    @property
    def gap(self) -> float:
        """Return by how much the best schedule may be better, at the most, nats."""
        return max(0.0, self.value - self.bound)


class _Model:
    """The model as one vector and one matrix over all options, pairs freed of what single variables can say."""

    def __init__(
        self,
        coefficients: Coefficients,
        weights: Sequence[Sequence[int]],
        most: int,
        marks: Sequence[Sequence[int]],
        counts: Collection[int],
    ) -> None:
        sizes = [len(values) for values in coefficients.single]
        self.first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.of = np.repeat(np.arange(len(sizes)), sizes)
        """The variable of each option."""
        self.constant = coefficients.constant
        self.single: Array = np.concatenate(coefficients.single).astype(np.float64)
        self.pair: Array = np.zeros((len(self.of), len(self.of)))
        ranges = []
        for (v, w), table in coefficients.pair.items():
            rows, columns, mean = table.mean(axis=1), table.mean(axis=0), float(table.mean())
            self.constant += mean
            self.single[self.part(v)] += rows - mean
            self.single[self.part(w)] += columns - mean
            rest = table - rows[:, None] - columns[None, :] + mean
            self.pair[self.part(v), self.part(w)] = rest
            self.pair[self.part(w), self.part(v)] = rest.T
            ranges.append((float(np.ptp(rest)), (v, w)))
        for v in range(len(sizes)):
            low = float(self.single[self.part(v)].min())
            self.constant += low
            self.single[self.part(v)] -= low
        self.range = float(sum(self.single[self.part(v)].max() for v in range(len(sizes))) + sum(r for r, _ in ranges))
        self.pairs = [place for size, place in sorted(ranges, reverse=True) if size > 1e-13 * max(1.0, self.range)]
        # What the cheapest options take is taken anyway; the rest is divided by what divides all of it.
        least = [min(values) for values in weights]
        over = [value - low for values, low in zip(weights, least, strict=True) for value in values]
        divisor = math.gcd(*over) or 1
        self.weight = np.array([value // divisor for value in over], dtype=np.int64)
        dearest = sum(max(values) for values in weights)
        self.room = (min(most, dearest) - sum(least)) // divisor
        self.mark = np.array([value for values in marks for value in values], dtype=np.int64)
        self.counted = np.zeros(sum(max(values) for values in marks) + 1, dtype=bool)
        """Whether so many marks are admitted."""
        self.counts = [count for count in sorted(counts) if count < len(self.counted)]
        self.counted[self.counts] = True

    def part(self, v: int) -> slice:
        return slice(int(self.first[v]), int(self.first[v + 1]))

    @property
    def variables(self) -> int:
        return len(self.first) - 1

    def parts(self) -> list[tuple[int, slice]]:
        """Return each variable's first option and the slice of all of them."""
        return [(int(self.first[v]), self.part(v)) for v in range(self.variables)]

    def largest(self, products: int) -> list[tuple[int, int]]:
        """Return as many pairs, those of the largest effect first, as so many products can express."""
        sizes = np.diff(self.first)
        taken = np.cumsum([int(sizes[v] * sizes[w]) for v, w in self.pairs])
        return self.pairs[: int(np.searchsorted(taken, products, side="right"))]

    def value(self, options: NDArray[np.int64]) -> float:
        """Return the loss of one option per variable, counted over all variables."""
        return self.constant + float(self.single[options].sum() + self.pair[np.ix_(options, options)].sum() / 2)

    def fits(self, options: NDArray[np.int64]) -> bool:
        return int(self.weight[options].sum()) <= self.room


def minimise(
    coefficients: Coefficients,
    weights: Sequence[Sequence[int]],
    most: int,
    *,
    excluded: Collection[tuple[int, ...]] = (),
    marks: Sequence[Sequence[int]] | None = None,
    counts: Collection[int] = (0,),
    most_products: int = MOST_PRODUCTS,
    seconds: float = SECONDS,
) -> Optimum | None:
    """Return the admitted choice of the lowest modelled loss; None if none is admitted.

    Args:
        coefficients: the model.
        weights: what each option of each variable takes of the constraint, whole numbers.
        most: the largest sum of weights that is admitted, itself included.
        excluded: choices, as indices of options, that are not admitted either.
        marks: a whole number for each option, 0 or more; None: 0 for all.
        counts: the sums of marks that are admitted.
        most_products: products that the integer program holds at the most; see the module's text.
        seconds: see `SECONDS`.
    """
    model = _Model(coefficients, weights, most, marks or [[0] * len(values) for values in weights], counts)
    if model.room < 0 or not model.counts:
        return None
    banned = {tuple(int(o) for o in model.first[:-1] + np.array(chosen)) for chosen in excluded}
    held = model.largest(most_products)
    if len(held) < len(model.pairs):
        held = model.largest(min(most_products, FEWER_PRODUCTS))
    options, low, timed_out = _program(model, held, banned, seconds)
    if options is None and timed_out:  # any admitted choice will do to start from
        options, _, _ = _program(model, (), banned, math.inf)
    if options is None:
        return None
    dropped = model.pairs[len(held) :]
    bound = low + sum(float(model.pair[model.part(v), model.part(w)].min()) for v, w in dropped)
    if dropped or timed_out:
        options = _search(model, options, banned)
    value = model.value(options)
    return Optimum(
        chosen=tuple(int(option) for option in options - model.first[:-1]),
        value=value,
        bound=min(bound, value),
        proven=value - bound <= _EXACT * model.range,
        pairs=len(model.pairs),
        pairs_held=len(held),
        timed_out=timed_out,
    )


def _program(
    model: _Model, held: Sequence[tuple[int, int]], banned: Collection[tuple[int, ...]], seconds: float
) -> tuple[NDArray[np.int64] | None, float, bool]:
    """Solve the program with these pairs: the options, a lower bound, and whether the time was up."""
    from scipy import optimize, sparse

    deadline = time.monotonic() + seconds
    n_options = len(model.of)
    costs = [model.single]
    rows: list[int] = []
    columns: list[int] = []
    entries: list[float] = []
    lower: list[float] = []
    upper: list[float] = []

    def add(indices: Any, values: Any, low: float, high: float) -> None:
        indices = list(indices)
        rows.extend([len(lower)] * len(indices))
        columns.extend(indices)
        entries.extend(values if isinstance(values, list) else [values] * len(indices))
        lower.append(low)
        upper.append(high)

    for v in range(model.variables):
        add(range(model.first[v], model.first[v + 1]), 1.0, 1.0, 1.0)
    after = n_options
    for v, w in held:
        table = model.pair[model.part(v), model.part(w)]
        names = after + np.arange(table.size).reshape(table.shape)
        for a, row in enumerate(names):
            add([*row, int(model.first[v]) + a], [1.0] * len(row) + [-1.0], 0.0, 0.0)
        for b, column in enumerate(names.T):
            add([*column, int(model.first[w]) + b], [1.0] * len(column) + [-1.0], 0.0, 0.0)
        costs.append(table.ravel())
        after += table.size
    room = model.room
    if 0 < room < sum(int(model.weight[model.part(v)].max()) for v in range(model.variables)):
        add(range(n_options), [float(weight) / room for weight in model.weight], -np.inf, 1.0)
    for options in banned:
        add(options, 1.0, -np.inf, model.variables - 1.0)
    if not model.counted.all():
        # One binary for each sum of marks that is admitted.
        sums = range(after, after + len(model.counts))
        add(sums, 1.0, 1.0, 1.0)
        add([*range(n_options), *sums], [*model.mark.astype(float), *(-float(c) for c in model.counts)], 0.0, 0.0)
        costs.append(np.zeros(len(sums)))
        after += len(sums)
    highest = np.ones(after)
    highest[:n_options] = model.weight <= room
    cost = np.concatenate(costs)
    scale = _SCALE / max(float(np.abs(cost).max()), 1e-300)
    integer = np.zeros(after)
    integer[:n_options] = 1
    if not model.counted.all():
        integer[-len(model.counts) :] = 1
    lowest = model.constant + sum(float(model.pair[model.part(v), model.part(w)].min()) for v, w in held)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return None, lowest, True
        found = optimize.milp(
            cost * scale,
            integrality=integer,
            bounds=optimize.Bounds(0, highest),
            constraints=optimize.LinearConstraint(
                sparse.csr_array((entries, (rows, columns)), shape=(len(lower), after)), lower, upper
            ),
            options={"time_limit": left, "mip_rel_gap": 0.0} if math.isfinite(left) else {"mip_rel_gap": 0.0},
        )
        assert found.status in (0, 1, 2), found.message
        if found.status == 2:
            return None, lowest, False
        if found.mip_dual_bound is not None and math.isfinite(found.mip_dual_bound):
            lowest = max(lowest, model.constant + found.mip_dual_bound / scale)
        if found.x is None:
            return None, lowest, True
        chosen = np.array([first + int(found.x[part].argmax()) for first, part in model.parts()])
        if model.fits(chosen):
            return chosen, lowest, found.status == 1
        # HiGHS takes what is over by less than its tolerance for admitted. These options never fit together.
        cover = [int(option) for option in chosen if model.weight[option]]
        add(cover, 1.0, -np.inf, len(cover) - 1.0)


def _search(model: _Model, start: NDArray[np.int64], banned: Collection[tuple[int, ...]]) -> NDArray[np.int64]:
    """Improve an admitted choice on the whole model; the same for the same arguments."""
    rng = np.random.default_rng(0)
    best = _descend(model, start, banned)
    for _ in range(UPSETS):
        options = best
        for _ in range(int(rng.integers(*_UPSET))):
            options = _changed(model, options, int(rng.choice(np.flatnonzero(np.isfinite(_changes(model, options))))))
        found = _descend(model, options, banned)
        if tuple(found) not in banned and model.value(found) < model.value(best):
            best = found
    return best


def _descend(model: _Model, options: NDArray[np.int64], banned: Collection[tuple[int, ...]]) -> NDArray[np.int64]:
    """Make the change that lowers the whole model's loss most, until none does."""
    while True:
        gains = _changes(model, options)
        for at in np.argsort(gains, kind="stable"):
            if not gains[at] < -1e-12 * max(1.0, model.range):
                return options
            changed = _changed(model, options, int(at))
            if tuple(changed) not in banned:
                options = changed
                break
        else:
            return options


def _changes(model: _Model, options: NDArray[np.int64]) -> Array:
    """Return what each change of one or two variables adds to the loss, infinite where it is not admitted.

    Returns:
        [options * options], the first index that of a variable's new option, the second that of another's, or the same.
    """
    now = options[model.of]  # the chosen option of each option's variable
    pair, each = model.pair, model.single + model.pair[:, options].sum(axis=1)
    one, more, marks = each - each[now], model.weight - model.weight[now], model.mark - model.mark[now]
    two = one[:, None] + one[None, :] + pair - pair[:, now] - pair[now, :] + pair[np.ix_(now, now)]
    room = model.room - int(model.weight[options].sum())
    count = int(model.mark[options].sum())
    total = np.clip(count + marks[:, None] + marks[None, :], 0, len(model.counted) - 1)
    admitted = (more[:, None] + more[None, :] <= room) & model.counted[total]
    admitted &= model.of[:, None] != model.of[None, :]
    two[~admitted] = np.inf
    single = (more <= room) & model.counted[count + marks]
    two[np.diag_indices_from(two)] = np.where(single, one, np.inf)
    return two.ravel()


def _changed(model: _Model, options: NDArray[np.int64], change: int) -> NDArray[np.int64]:
    first, second = divmod(change, len(model.of))
    changed = options.copy()
    changed[model.of[first]], changed[model.of[second]] = first, second
    return changed
