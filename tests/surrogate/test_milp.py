"""The integer program against all schedules counted out: the optimum, the border of the constraint, and what it says of
itself where it cannot hold the whole model."""

from __future__ import annotations

import itertools
from collections.abc import Collection

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layersearch.surrogate.gp import Coefficients
from layersearch.surrogate.local_search import Place
from layersearch.surrogate.milp import Optimum, Program, minimise
from layersearch.surrogate.quadratic import PairModel


def random_model(sizes: list[int], rng: np.random.Generator, pairwise: float) -> Coefficients:
    return Coefficients(
        constant=float(rng.normal()),
        single=[rng.normal(0, 0.1, size) for size in sizes],
        pair={
            (v, w): pairwise * rng.normal(0, 0.1, (sizes[v], sizes[w]))
            for v, w in itertools.combinations(range(len(sizes)), 2)
        },
    )


def total(table: list[list[int]], chosen: tuple[int, ...]) -> int:
    return sum(table[v][a] for v, a in enumerate(chosen))


def counted_out(
    model: Coefficients,
    weights: list[list[int]],
    most: int,
    excluded: Collection[tuple[int, ...]] = (),
    marks: list[list[int]] | None = None,
    counts: Collection[int] = (),
) -> float | None:
    """Return the lowest loss of all admitted choices, looked at one by one."""
    losses = [
        model(chosen)
        for chosen in itertools.product(*(range(len(values)) for values in weights))
        if total(weights, chosen) <= most
        and chosen not in excluded
        and (marks is None or total(marks, chosen) in counts)
    ]
    return min(losses, default=None)


def admitted(found: Optimum, weights: list[list[int]], most: int) -> bool:
    return total(weights, found.chosen) <= most


@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_minimise_finds_the_best_of_all_schedules(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    model = random_model(sizes, rng, data.draw(st.sampled_from([0.0, 0.1, 1.0, 3.0])))
    size = data.draw(st.sampled_from([5, 1000, 10**14]))
    weights = [[int(value) for value in rng.integers(1, size, options)] for options in sizes]
    every = list(itertools.product(*(range(options) for options in sizes)))
    totals = sorted(total(weights, chosen) for chosen in every)
    most = totals[data.draw(st.integers(0, len(totals) - 1))]  # what some schedule takes, to the last unit
    excluded = data.draw(st.sets(st.sampled_from(every), max_size=4))
    marks = [[int(value) for value in rng.integers(0, 3, options)] for options in sizes]
    counts = data.draw(st.none() | st.sets(st.integers(0, 6), max_size=3))
    if counts is None:
        best = counted_out(model, weights, most, excluded)
        found = minimise(model, weights, most, excluded=excluded)
    else:
        best = counted_out(model, weights, most, excluded, marks, counts)
        found = minimise(model, weights, most, excluded=excluded, marks=marks, counts=counts)
        assert found is None or total(marks, found.chosen) in counts
    if best is None:
        assert found is None
        return
    assert found is not None
    assert found.chosen not in excluded
    assert admitted(found, weights, most)
    assert found.value == pytest.approx(best, abs=1e-7)
    assert found.value == pytest.approx(model(found.chosen), abs=1e-9)
    assert found.proven
    assert found.bound <= best + 1e-7


@pytest.mark.parametrize("scale", [1, 10**6, 10**12])
def test_minimise_limit_one_unit_apart_decides(scale: int) -> None:
    model = Coefficients(constant=2.0, single=[np.array([0.0, -1.0]), np.array([0.0, -1.0])], pair={})
    weights = [[1, 3 * scale], [1, 5 * scale]]
    both = minimise(model, weights, 8 * scale)
    one = minimise(model, weights, 8 * scale - 1)
    assert both is not None
    assert both.chosen == (1, 1)
    assert one is not None
    assert sorted(one.chosen) == [0, 1]
    assert minimise(model, weights, 1) is None


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), products=st.sampled_from([0, 9, 27]))
def test_minimise_too_large_model_is_searched_and_its_gap_holds_the_truth(seed: int, products: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [3] * 5
    model = random_model(sizes, rng, 1.0)
    weights = [[1, 4, 9]] * 5
    most = int(rng.integers(5, 46))
    excluded = {tuple(int(a) for a in rng.integers(0, 3, 5)) for _ in range(3)}
    marks = [[0, 0, 1]] * 5
    counts = {1, 3}
    best = counted_out(model, weights, most, excluded, marks, counts)
    held = {"most_products": products, "most_relaxed": products}
    found = minimise(model, weights, most, excluded=excluded, marks=marks, counts=counts, **held)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert found.pairs == 10
    assert found.pairs_held == products // 9
    assert found.chosen not in excluded
    assert admitted(found, weights, most)
    assert found.value == pytest.approx(model(found.chosen), abs=1e-9)
    assert found.bound - 1e-7 <= best <= found.value + 1e-9
    assert found.proven is (found.gap < 1e-7)
    # No change of one variable is better: what the program left out has been looked at.
    for v, a in itertools.product(range(5), range(3)):
        other = (*found.chosen[:v], a, *found.chosen[v + 1 :])
        if total(weights, other) <= most and other not in excluded and total(marks, other) in counts:
            assert model(other) >= found.value - 1e-9


@pytest.mark.parametrize("products", [6000, 18])
@pytest.mark.parametrize("seed", range(4))
def test_minimise_asked_again_gives_the_next_best(seed: int, products: int) -> None:
    rng = np.random.default_rng(seed)
    model, weights, marks, counts = random_model([3] * 5, rng, 1.0), [[1, 4, 9]] * 5, [[0, 0, 1]] * 5, [0, 1, 2]
    held = {"most_products": products, "most_relaxed": products}
    program = Program(model, weights, 25, marks=marks, counts=counts, **held)
    excluded: list[tuple[int, ...]] = []
    for _ in range(6):
        found, best = program.best(excluded), counted_out(model, weights, 25, excluded, marks, counts)
        assert found is not None
        assert best is not None
        assert found.chosen not in excluded
        assert admitted(found, weights, 25)
        assert total(marks, found.chosen) in counts
        assert found.bound - 1e-7 <= best <= found.value + 1e-9
        assert found.proven or products == 18
        assert found.value == pytest.approx(best, abs=1e-7)  # by the local search too, in a space so small
        excluded.append(found.chosen)


def test_local_search_change_adds_what_the_model_says() -> None:
    """From one place to the next: every change of one or two variables, and none that is not admitted."""
    rng = np.random.default_rng(7)
    sizes, weights = [3, 1, 2, 4, 3], [[1, 4, 9], [2], [3, 5], [1, 2, 6, 7], [1, 4, 9]]
    marks = [[0, 1, 2], [0], [0, 3], [0, 0, 1, 1], [1, 0, 2]]
    model = PairModel(random_model(sizes, rng, 1.0), weights, 22, marks, [1, 2, 4, 5])
    place = Place(model, model.first[:-1].copy())
    for _ in range(12):
        gains = place.gains()
        for change, gain in enumerate(gains.ravel()):
            first, second = divmod(change, len(model.of))
            options = place.changed(change)
            same = model.of[first] == model.of[second] and first != second
            if same or not model.fits(options) or not model.counted[model.mark[options].sum()]:
                assert gain == np.inf
            else:
                assert gain == pytest.approx(model.value(options) - model.value(place.options), abs=1e-9)
        place.change(int(rng.choice(np.flatnonzero(np.isfinite(gains)))))


def test_minimise_without_time_admits_it_and_says_so() -> None:
    rng = np.random.default_rng(3)
    model = random_model([3] * 5, rng, 1.0)
    weights = [[1, 4, 9]] * 5
    found = minimise(model, weights, 20, excluded={(0, 0, 0, 0, 0)}, seconds=0.0)
    assert found is not None
    assert found.timed_out
    assert not found.proven
    assert admitted(found, weights, 20)
    assert found.chosen != (0, 0, 0, 0, 0)
    best = counted_out(model, weights, 20, {(0, 0, 0, 0, 0)})
    assert best is not None
    assert found.bound <= best <= found.value + 1e-9


def test_coefficients_pairs_that_are_sums_of_singles_vanish() -> None:
    table = np.add.outer([0.1, 0.4], [0.2, -0.3, 0.5])
    model = Coefficients(constant=0.0, single=[np.zeros(2), np.zeros(3)], pair={(0, 1): table})
    found = minimise(model, [[1, 1], [1, 1, 1]], 2, most_products=0)
    assert found is not None
    assert (found.pairs, found.chosen) == (0, (0, 1))
    assert found.proven
    assert found.value == pytest.approx(-0.2)
