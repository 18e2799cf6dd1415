from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from layersearch.errors import LayersearchError
from layersearch.results import stats


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_mean_interval_nominal_95_percent_covers_the_truth_as_often(n: int) -> None:
    draws = np.random.default_rng(n).normal(2.5, 0.01, size=(8000, n))
    covered = 0
    for sample in draws:
        interval = stats.mean_interval(sample)
        covered += interval.low <= 2.5 <= interval.high  # type: ignore[operator]
    assert 0.93 < covered / len(draws) < 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5])
def test_paired_interval_shared_seed_effect_covers_the_true_difference(n: int) -> None:
    rng = np.random.default_rng(n)
    covered, width, unpaired = 0, 0.0, 0.0
    trials = 5000
    for _ in range(trials):
        common = rng.normal(0, 0.1, n)
        a = dict(enumerate(2.53 + common + rng.normal(0, 0.01, n)))
        b = dict(enumerate(2.50 + common + rng.normal(0, 0.01, n)))
        interval = stats.paired_difference(a, b)
        covered += interval.low <= 0.03 <= interval.high  # type: ignore[operator]
        width += interval.half_width or 0.0
        unpaired += stats.mean_interval(a.values()).half_width or 0.0
    assert 0.93 < covered / trials < 0.97
    assert width < unpaired / 3


@pytest.mark.slow
def test_corrected_interval_after_choosing_the_best_still_covers() -> None:
    rng = np.random.default_rng(0)
    n, choices, trials = 3, 6, 2000
    plain = corrected = 0
    for _ in range(trials):
        reference = dict(enumerate(rng.normal(0, 0.01, n)))
        others = [dict(enumerate(rng.normal(0, 0.01, n))) for _ in range(choices)]
        # The choice that hurts most: the candidate that looks furthest from the reference.
        intervals = [stats.paired_difference(other, reference) for other in others]
        pick = int(np.argmax([abs(i.mean) / (i.std or 1.0) for i in intervals]))
        plain += intervals[pick].excludes_zero
        corrected += stats.paired_difference(others[pick], reference, comparisons=choices).excludes_zero
    assert plain / trials > 0.10
    assert corrected / trials < 0.06


def test_mean_interval_equals_scipy() -> None:
    a, b = {1: 2.5, 2: 2.7, 3: 2.6, 9: 5.0}, {1: 2.4, 2: 2.65, 3: 2.45, 8: 1.0}
    found = stats.paired_difference(a, b, 0.9)
    expected = scipy_stats.ttest_rel([2.5, 2.7, 2.6], [2.4, 2.65, 2.45]).confidence_interval(0.9)
    assert found.n == 3
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert stats.paired_difference(a, b, 0.9, comparisons=5).confidence == pytest.approx(0.98)


def test_mean_interval_one_seed_has_a_mean_only() -> None:
    found = stats.mean_interval([2.5])
    assert (found.mean, found.n, found.low, found.high, found.std) == (2.5, 1, None, None, None)
    assert not found.excludes_zero
    assert str(found) == "2.5000"


@pytest.mark.parametrize(
    ("values", "text"), [([0.1, 0.3], "0.2 ± 1.3"), ([0.031, 0.035, 0.027], "0.0310 ± 0.0099"), ([1.0, 1.0], "1.0000")]
)
def test_interval_text_shows_significant_digits_only(values: list[float], text: str) -> None:
    assert str(stats.mean_interval(values)).startswith(text.replace("0.2 ± 1.3", "0.20 ± 1.27"))


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.mean_interval([]),
        lambda: stats.mean_interval([1.0, 2.0], 1.5),
        lambda: stats.paired_difference({1: 1.0}, {2: 1.0}),
        lambda: stats.seeds_needed(0.01, 0.0),
        lambda: stats.seeds_needed(0.01, 0.1, power=1.0),
    ],
)
def test_stats_undefined_input_is_refused_in_one_line(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(LayersearchError) as error:
        call()
    assert "\n" not in str(error.value)


def test_seeds_needed_reach_the_power_in_simulation_and_one_fewer_does_not() -> None:
    std, difference = 0.01, 0.012
    n = stats.seeds_needed(std, difference)
    rng = np.random.default_rng(0)

    def found(seeds: int) -> float:
        draws = rng.normal(difference, std, size=(100_000, seeds))
        return float(np.mean(scipy_stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05))

    assert found(n) > 0.79
    assert found(n - 1) < 0.80


def test_detectable_difference_of_an_estimated_noise_is_detected_as_often_as_said() -> None:
    """With the estimate taken for the truth, 72% are found."""
    rng, seeds, degrees = np.random.default_rng(1), 4, 7
    estimates = 0.01 * np.sqrt(rng.chisquare(degrees, 250) / degrees)
    found = []
    for std in estimates:
        difference = stats.detectable_difference(std, seeds, std_degrees=degrees)
        draws = rng.normal(difference, 0.01, size=(200, seeds))
        found.append(np.mean(scipy_stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05))
    assert np.mean(found) == pytest.approx(0.8, abs=0.02)
    assert stats.seeds_needed(0.01, 0.012, std_degrees=degrees) > stats.seeds_needed(0.01, 0.012)


def test_seeds_needed_and_detectable_difference_are_inverse() -> None:
    for seeds in (2, 3, 5, 20):
        smallest = stats.detectable_difference(0.01, seeds)
        assert stats.seeds_needed(0.01, smallest * 1.001) == seeds
        assert stats.seeds_needed(0.01, smallest * 0.999) == seeds + 1
    assert stats.seeds_needed(0.01, 1e-9) > 10**12
    assert stats.seeds_needed(0.0, 0.1) == 2
    assert stats.detectable_difference(0.0, 3) == 0.0


def test_pooled_and_paired_std_find_planted_values() -> None:
    rng = np.random.default_rng(3)
    common = rng.normal(0, 0.05, 200)
    losses = [dict(enumerate(level + common + rng.normal(0, 0.01, 200))) for level in (1.0, 2.0, 3.0, 4.0)]
    assert stats.pooled_std([list(by_seed.values()) for by_seed in losses]) == pytest.approx(
        math.hypot(0.05, 0.01), 0.1
    )
    assert stats.paired_std(losses) == pytest.approx(0.01 * math.sqrt(2), 0.1)
    assert stats.pooled_std([[1.0], [2.0]]) is None
    assert stats.paired_std([{1: 1.0, 2: 2.0}, {2: 1.0, 3: 2.0}]) is None
    assert stats.pooled_std([[0.0, 2.0], [5.0], [1.0, 1.0, 1.0]]) == pytest.approx(math.sqrt(2 / 3))


def test_rank_correlation_and_each_resample_equal_scipy() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 8, 20).astype(float)
    y = x + rng.normal(0, 2, 20)
    found = stats.rank_correlation(x, y)
    assert found is not None
    assert found.spearman == pytest.approx(scipy_stats.spearmanr(x, y).statistic)
    assert found.kendall == pytest.approx(scipy_stats.kendalltau(x, y).statistic)
    assert found.spearman_low < found.spearman < found.spearman_high
    assert found.kendall_low < found.kendall < found.kendall_high
    counts = rng.multinomial(20, np.full(20, 1 / 20), size=5)
    spearman, kendall = stats._resampled_correlations(x, y, counts.astype(float))
    for row, a, b in zip(counts, spearman, kendall, strict=True):
        drawn = np.repeat(np.arange(20), row)
        assert a == pytest.approx(scipy_stats.spearmanr(x[drawn], y[drawn]).statistic)
        assert b == pytest.approx(scipy_stats.kendalltau(x[drawn], y[drawn]).statistic)


@pytest.mark.slow
def test_rank_correlation_of_many_trials_equals_scipy_and_has_the_interval_of_a_whole_bootstrap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200, 900).astype(float)
    y = x + rng.normal(0, 60, 900)
    found = stats.rank_correlation(x, y)
    assert found is not None
    assert found.spearman == pytest.approx(scipy_stats.spearmanr(x, y).statistic)
    assert found.kendall == pytest.approx(scipy_stats.kendalltau(x, y).statistic)
    monkeypatch.setattr(stats, "MOST_RESAMPLED", 10_000)
    whole = stats.rank_correlation(x, y, resamples=500)
    assert whole is not None
    for name in ("spearman", "kendall"):
        low, high, wide, wanted = (getattr(one, f"{name}_{end}") for one in (found, whole) for end in ("low", "high"))
        assert low < getattr(found, name) < high
        assert high - low == pytest.approx(wanted - wide, rel=0.35)
    same = stats.rank_correlation(x, x)
    assert same is not None
    assert (same.spearman, same.spearman_low) == (1.0, None)


def test_rank_correlation_repeats_and_is_none_without_ranking() -> None:
    x = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert stats.rank_correlation(x, [2.0, 1.0, 3.0, 5.0, 4.0]) == stats.rank_correlation(x, [2.0, 1.0, 3.0, 5.0, 4.0])
    assert stats.rank_correlation(x[:3], x[:3]) is None
    assert stats.rank_correlation(x, [1.0] * 5) is None


@pytest.mark.slow
def test_rank_correlation_bootstrap_interval_covers_at_twenty_trials() -> None:
    rng = np.random.default_rng(1)
    rho = 0.7
    truth = 6 / math.pi * math.asin(rho / 2)  # Spearman of a bivariate normal
    covered = 0
    for _ in range(400):
        x = rng.normal(size=20)
        y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=20)
        found = stats.rank_correlation(x, y, resamples=400)
        assert found is not None
        covered += found.spearman_low <= truth <= found.spearman_high
    assert 0.88 < covered / 400 < 0.99
