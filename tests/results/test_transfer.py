"""Rank correlation and regret between two scales, corrected for seed noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from layersearch.results.transfer import corrected_correlation, regret


def planted(spearman: float, n: int, noise: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return losses of two scales at three seeds, whose true losses have this rank correlation."""
    pearson = 2 * math.sin(math.pi * spearman / 6)
    true = rng.multivariate_normal([0, 0], [[1, pearson], [pearson, 1]], n)
    return tuple(true[:, [side]] + noise * rng.standard_normal((n, 3)) for side in (0, 1))  # type: ignore[return-value]


def test_corrected_correlation_recovers_what_seed_noise_hides_and_its_interval_holds_the_truth() -> None:
    rng, plain, corrected, held = np.random.default_rng(0), [], [], 0
    for number in range(40):
        found = corrected_correlation(*planted(0.8, 28, 0.8, rng), resamples=100, seed=number)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        plain.append(found.spearman)
        corrected.append(found.corrected)
        held += found.low <= 0.8 <= found.high
    assert np.mean(plain) < 0.7
    assert np.mean(corrected) == pytest.approx(0.8, abs=0.06)
    assert held >= 35


def test_corrected_correlation_within_groups_ignores_what_the_groups_explain() -> None:
    rng = np.random.default_rng(1)
    groups = [0] * 20 + [1] * 20
    small, large = planted(0.0, 40, 0.1, rng)
    apart = 10 * np.array(groups)[:, None]
    every = corrected_correlation(small + apart, large + apart, resamples=50)
    within = corrected_correlation(small + apart, large + apart, groups=groups, resamples=50)
    assert every is not None
    assert within is not None
    assert every.corrected > 0.6
    assert abs(within.corrected) < 0.35


def test_corrected_correlation_of_few_constant_failed_or_equal_losses() -> None:
    ramp = np.arange(12.0)[:, None]
    assert corrected_correlation(ramp[:3], ramp[:3]) is None
    assert corrected_correlation(ramp, np.ones((12, 1))) is None
    few = corrected_correlation(ramp[:9], ramp[:9][[1, 0, *range(2, 9)]])
    assert few is not None
    assert few.low is None
    assert str(few).endswith("(too few schedules)")
    failed = np.where(ramp > 9, np.inf, ramp)  # a training that failed is the worst
    perfect = corrected_correlation(ramp, failed)
    assert perfect is not None
    assert perfect.spearman > 0.98
    same = corrected_correlation(ramp, ramp)
    assert same is not None
    assert (same.spearman, same.low) == (pytest.approx(1), None)


def test_regret_takes_the_winner_of_the_small_scale_and_fresh_seeds_of_the_large() -> None:
    small = np.array([[0.0], [1.0], [2.0]])
    large = np.array([[1.0, 1.0, 1.0], [0.0, 0.4, 0.8], [0.6, 0.3, 0.6]])
    found = regret(small, large)
    assert (found.picked, found.best) == (0, 1)
    assert found.nats == pytest.approx(0.6)
    assert found.chance == pytest.approx((0.6 + 0.0 + 0.1) / 3)
    # Without seed 0 and without seed 1 the lowest is the third and the second, without seed 2 the second.
    assert found.fresh == pytest.approx(np.mean([1 - 0.6, 1 - 0.4, 1 - 0.8]))
    assert found.interval is not None
    assert found.interval.mean == pytest.approx(found.nats)
    assert regret(small, large[:, :1]).fresh is None
