"""Intervals of what was chosen by the losses that measure it: they hold, and are no wider than they must be."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from layersearch.results import stats
from layersearch.results.chosen import chosen_confidence, chosen_difference, chosen_mean
from layersearch.results.moderated import Prior, fit_prior

STDS = (0.016, 0.0043, 0.0535, 0.0046, 0.0052, 0.0071, 0.0066, 0.0038)  # of the schedules of a real run


def tables(rng: np.random.Generator, seeds: int, runs: int, effect: float = 0.0) -> list[list[dict[int, float]]]:
    """Return runs of equal schedules, unequally noisy, with an effect of the seed common to all."""
    return [
        [dict(enumerate(common + rng.normal(0, std, seeds))) for std in STDS]
        for common in rng.normal(0, effect, (runs, seeds))
    ]


def lowest(table: list[dict[int, float]]) -> int:
    return min(range(1, len(table)), key=lambda at: sum(table[at].values()))


def test_chosen_confidence_of_one_difference_is_its_own_and_of_many_less_strict_than_bonferroni() -> None:
    assert chosen_confidence(0.95, 1) == pytest.approx(0.95)
    for comparisons in (2, 7, 40):
        each = chosen_confidence(0.95, comparisons)
        assert 0.95 < each < stats.corrected_confidence(0.95, comparisons)
        # Both errors of the choice together are those of the interval.
        assert (comparisons + 1) * (1 - each) / 2 == pytest.approx(0.05)


def test_chosen_difference_misses_in_the_direction_of_the_choice_alone() -> None:
    """Of ten equal means with a known variance the lowest is chosen: the level is kept, and used."""
    rng, each = np.random.default_rng(0), chosen_confidence(0.95, 10)
    z = float(special.ndtri(0.5 + each / 2))
    chosen = rng.standard_normal((40_000, 10)).min(axis=1)
    assert np.mean(chosen < -z) == pytest.approx(1 - (1 - 0.05 / 11) ** 10, abs=0.004)
    assert np.mean(chosen > z) < 1e-4
    # Differences to a reference share its noise, which makes fewer of them miss.
    found = [chosen_difference({1: 1.0, 2: 1.1, 3: 1.3}, {1: 1.0, 2: 1.0, 3: 1.0}, comparisons=n) for n in (1, 10)]
    assert (found[0].half_width or 0.0) < (found[1].half_width or 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "effect"), [(3, 0.0), (3, 0.03), (5, 0.0)])
def test_chosen_mean_holds_the_truth_where_students_t_does_not(seeds: int, effect: float) -> None:
    rng, held, plain = np.random.default_rng(seeds), [], []
    for table in tables(rng, seeds, 300, effect):
        at = lowest(table)
        found = chosen_mean(table, at, candidates=7, prior=fit_prior(table))
        own = stats.mean_interval(table[at].values())
        wide = stats.mean_interval(table[at].values(), chosen_confidence(0.95, 7))
        assert found.half_width is not None
        assert (own.half_width or 0.0) <= found.half_width + 1e-12
        assert found.half_width <= (wide.half_width or 0.0) + 1e-12
        assert (found.mean, found.n, found.std) == (own.mean, own.n, own.std)
        held.append((found.low or 0.0) <= 0 <= (found.high or 0.0))
        plain.append(not own.excludes_zero)
    assert np.mean(held) >= 0.93
    assert np.mean(held) >= np.mean(plain)


def test_chosen_mean_of_one_seed_or_one_candidate_or_without_a_prior() -> None:
    table = [{1: 2.0, 2: 2.1, 3: 2.05}, {1: 2.2, 2: 2.1, 3: 2.0}]
    prior = Prior(variance=1e-4, degrees=4.0)
    assert chosen_mean([{1: 2.0}, {1: 2.1}], 0, candidates=2, prior=prior).low is None
    assert chosen_mean(table, 0, candidates=1, prior=prior) == stats.mean_interval(table[0].values())
    alone = chosen_mean(table, 0, candidates=2, prior=None)
    assert alone == stats.mean_interval(table[0].values(), chosen_confidence(0.95, 2))
