from __future__ import annotations

import itertools

import numpy as np
import pytest

from layersearch.results.analyze import analyze
from layersearch.results.noise import _degrees, noise_range
from layersearch.results.result import Signal, Spread
from layersearch.results.sentences import signal_sentence
from layersearch.results.stats import mean_interval, paired_std
from layersearch.schedule import Schedule
from layersearch.training.record import TrialRecord
from tests.helpers.synthetic import confirmed, record

FULL, SPARSE = map(Schedule.parse, ("full*4", "window:32*4"))
PLACES = tuple(
    Schedule.parse(text)
    for text in ("full window:32*3", "window:32 full window:32*2", "window:32*2 full window:32", "window:32*3 full")
)
STD = 0.01


def spread(found: Spread | None) -> Spread:
    assert found is not None
    return found


def signal(records: list[TrialRecord], budget: float = 0.5) -> Signal:
    return analyze(records, budget).signal


def noisy(rng: np.random.Generator, seeds: int) -> list[TrialRecord]:
    """Return placements that differ by the seed alone, which also moves all of them together."""
    common = rng.normal(0, 5 * STD, seeds)
    return [r for text in PLACES for r in confirmed(text, list(2.4 + common + rng.normal(0, STD, seeds)))]


RANGE_OF_FOUR = 2.05875
"""Mean range of four standard normal values (Tippett, Biometrika 17, 1925)."""


@pytest.mark.parametrize(("n", "known"), [(2, 2 / np.pi**0.5), (3, 3 / np.pi**0.5), (6, 2.53441), (25, 3.93063)])
@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_noise_range_of_pure_noise_has_tippetts_mean_at_any_number_of_seeds(n: int, known: float, seeds: int) -> None:
    losses = np.random.default_rng(seeds).normal(size=(1000, n, seeds))
    assert np.mean([noise_range(table.tolist()) for table in losses]) == pytest.approx(known / seeds**0.5, rel=0.05)


def test_signal_spreads_are_differences_of_means_in_nats_and_seed_stds() -> None:
    records = [
        *confirmed(SPARSE, [2.9, 3.1], role="all_sparse"),
        *confirmed(FULL, [2.4, 2.6], role="all_full"),
        *confirmed(PLACES[0], [2.5, 2.7], role="bottom(1)"),
        *confirmed(PLACES[1], [2.44, 2.66]),
        *confirmed(PLACES[3], [2.1, 2.3], role="top(1)"),
        record(PLACES[2], 1.0),
    ]
    found = signal(records)
    std = np.sqrt((4 * 0.2**2 + 0.22**2) / 2 / 5)
    assert found.seeds == (1, 2)
    assert found.seed_std == pytest.approx(std)
    placed = spread(found.placements)
    # What was trained at the search's seed alone is not compared with means of fresh seeds.
    assert placed.schedules == (PLACES[3], PLACES[1], PLACES[0])
    assert placed.nats == pytest.approx(0.4)
    assert placed.seed_stds == pytest.approx(0.4 / std)
    assert (found.n_full, found.cost) == (1, 0.34)
    ends = spread(found.sparse_and_full)
    assert ends.schedules == (FULL, SPARSE)
    assert ends.nats == pytest.approx(0.5)
    within = spread(found.within_budget)
    assert (within.schedules[0], within.schedules[-1], len(within.schedules)) == (PLACES[3], SPARSE, 4)
    assert within.nats == pytest.approx(0.8)
    said = signal_sentence(found)
    assert "3 placements at equal cost (l = 1, cost 0.340) span 0.40 nats, 2.8 times the seed std" in said
    assert "the loss of all_sparse is higher than that of all_full by 0.50 nats, 3.5 times the seed std" in said


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_signal_pure_noise_is_shown_as_often_as_stated(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    found = [spread(signal(noisy(rng, seeds)).placements) for _ in range(150)]
    # The deviation of the range of four is 0.88 standard deviations (Tippett), against 2.06 for its mean.
    ratio = mean_interval([f.nats / (RANGE_OF_FOUR * STD / seeds**0.5) for f in found], 0.999)
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < 1 < ratio.high
    assert ratio.high - ratio.low < 0.3
    stated = [f.noise_nats or 0.0 for f in found]
    assert np.mean(stated) == pytest.approx(RANGE_OF_FOUR * STD / seeds**0.5, rel=0.1)
    if seeds == 2:
        # A schedule that fails at both seeds would look truly different.
        assert {f.noise_chance for f in found} == {None}
        return
    # Bonferroni: the chance is at most uniform where nothing differs.
    chances = np.array([f.noise_chance for f in found])
    for level in (0.05, 0.1, 0.5):
        assert np.mean(chances <= level) <= level + 3.3 * (level * (1 - level) / 150) ** 0.5


def test_degrees_of_the_noise_are_those_of_the_two_way_layout() -> None:
    """On two rounds they equal the spread of the pooled variance over simulated runs."""
    assert _degrees([dict.fromkeys(range(3), 0.0)] * 8) == 14
    assert _degrees([dict.fromkeys(range(2), 0.0)] * 2) == 1
    rounds = [*[dict.fromkeys(range(5), 0.0)] * 3, *[dict.fromkeys(range(2), 0.0)] * 5]
    rng, variances = np.random.default_rng(4), []
    for _ in range(400):
        drawn = rng.normal(size=(8, 5))
        found = paired_std([{seed: drawn[at, seed] for seed in by_seed} for at, by_seed in enumerate(rounds)])
        variances.append((found or 0.0) ** 2)
    # A chi-square of d degrees has a relative variance of 2 / d.
    assert 2 / (np.std(variances) / np.mean(variances)) ** 2 == pytest.approx(_degrees(rounds), rel=0.25)


UNEQUAL = (0.054, 0.005, 0.005, 0.007)  # of four placements in a real run


def test_noise_range_unequal_schedules_under_a_seed_effect_equals_simulation() -> None:
    rng = np.random.default_rng(0)
    truth = np.ptp(rng.normal(size=(100_000, 4)) * UNEQUAL, axis=1).mean() / 2**0.5
    losses = rng.normal(size=(3000, 4, 2)) * np.array(UNEQUAL)[:, None] + rng.normal(0, 0.1, (3000, 1, 2))
    # With standard deviations estimated from two seeds the ratio is 0.85.
    assert np.mean([noise_range(table.tolist()) for table in losses]) == pytest.approx(truth, rel=0.04)
    assert noise_range([[1.0, 2.0, 4.0], [0.0, 1.0, 3.0]]) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.slow
def test_signal_equal_placements_of_unequal_noise_are_rarely_called_different() -> None:
    """With a studentized range, p < 0.01 is said in 16% of such runs, and the mean of the range is 29% too small."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(120):
        common = rng.normal(0, 0.03, 3)
        others = [
            confirmed(f"window:{size}*4", list(2.5 + common + rng.normal(0, 0.01, 3))) for size in (8, 16, 24, 48)
        ]
        losses = [list(2.4 + common + rng.normal(0, std, 3)) for std in UNEQUAL]
        made = [r for place, values in zip(PLACES, losses, strict=True) for r in confirmed(place, values)]
        found.append(spread(signal([*made, *itertools.chain(*others)]).placements))
    assert {len(f.schedules) for f in found} == {4}
    assert np.mean([f.noise_chance < 0.05 for f in found if f.noise_chance is not None]) < 0.11
    assert sum(f.noise_chance < 0.01 for f in found if f.noise_chance is not None) <= 4
    assert np.mean([f.noise_nats for f in found]) == pytest.approx(np.mean([f.nats for f in found]), rel=0.2)


def test_signal_seed_effect_shared_by_all_schedules_is_no_noise() -> None:
    moves = [0.0, 1.0, 2.0]
    records = [*confirmed(PLACES[0], [2 + m for m in moves]), *confirmed(PLACES[1], [2.1 + m for m in moves])]
    placed = spread(signal(records).placements)
    assert placed.seed_stds == pytest.approx(0.1)
    assert placed.noise_nats == pytest.approx(0, abs=1e-12)


def test_signal_real_difference_is_not_called_chance() -> None:
    rng = np.random.default_rng(0)
    records = [*noisy(rng, 5)[5:], *confirmed(PLACES[0], [2.9, 2.91, 2.92, 2.9, 2.91])]
    placed = spread(signal(records).placements)
    assert placed.noise_chance is not None
    assert placed.noise_chance < 0.01
    assert "paired tests of all pairs, corrected: p < 0.01" in signal_sentence(signal(records))


def test_signal_two_shared_seeds_are_not_tested_and_their_seed_std_is_named_where_noise_has_more() -> None:
    """A loss of 3 at both seeds may be a schedule that fails to learn at one seed in two."""
    records = [
        *confirmed(PLACES[0], [3.0, 3.01]),
        *confirmed(PLACES[1], [2.0, 2.01]),
        *confirmed(PLACES[2], [2.01, 2.02, 2.0, 3.0, 2.03]),
    ]
    result = analyze(records, 0.5)
    assert (result.signal.seeds, spread(result.signal.placements).noise_chance) == ((1, 2), None)
    said = signal_sentence(result.signal, result.noise)
    assert said.startswith("Signal (2 shared seeds, seed std 0.0071): 3 placements")
    assert "paired tests" not in said
    assert f"{result.noise.seed_std:.2g}" != "0.0071"


def test_signal_several_equal_cost_sets_takes_the_largest_then_the_dearest() -> None:
    two = [
        *confirmed("window:16 window:32*3", [2.0, 2.1], cost=0.2),
        *confirmed("window:32*3 window:16", [2.9, 3.1], cost=0.2),
        *confirmed(PLACES[0], [2.5, 2.7]),
        *confirmed(PLACES[1], [2.4, 2.7]),
    ]
    assert spread(signal(two).placements).schedules == (PLACES[1], PLACES[0])
    # Schedules of the same cost with another number of full layers are no placements of one another.
    other = confirmed("window:64*4", [1.0, 1.1], cost=0.34)
    assert spread(signal([*two, *other]).placements).schedules == (PLACES[1], PLACES[0])
    three = [*two, *confirmed("window:32 window:16 window:32*2", [2.2, 2.3], cost=0.2)]
    assert signal(three).n_full == 0


def test_signal_before_confirmation_shows_search_losses_and_claims_no_noise() -> None:
    records = [
        record(SPARSE, 2.5, role="all_sparse"),
        record(FULL, 2.6, role="all_full"),
        record(PLACES[0], 2.45),
        record(PLACES[1], 2.4),
        record(PLACES[2], 1.0, state="stopped", steps=100),
        *confirmed(PLACES[0], [9.0, 9.1]),
    ]
    found = signal(records)
    assert (found.seeds, found.seed_std) == ((), None)
    placed = spread(found.placements)
    assert placed.schedules == (PLACES[1], PLACES[0])
    assert placed.nats == pytest.approx(0.05)
    assert (placed.seed_stds, placed.noise_nats, placed.noise_chance) == (None, None, None)
    said = signal_sentence(found)
    assert said.startswith("Signal (on one seed, the search's own): 2 placements")
    assert "the loss of all_sparse is lower than that of all_full by 0.1000 nats." in said


def test_signal_one_fresh_seed_has_no_noise() -> None:
    found = signal([*confirmed(PLACES[0], [2.4]), *confirmed(PLACES[1], [2.5])])
    assert found.seeds == (1,)
    assert spread(found.placements).noise_nats is None
    assert signal_sentence(found).startswith("Signal (on one fresh seed): 2 placements")


def test_signal_baseline_of_several_names_is_found() -> None:
    records = [
        *confirmed(PLACES[0], [2.4, 2.5], role="all_sparse = bottom(1)"),
        *confirmed(FULL, [2.2, 2.2], role="all_full"),
    ]
    assert spread(signal(records).sparse_and_full).schedules == (FULL, PLACES[0])


@pytest.mark.parametrize("records", [[], [record(FULL, None, state="failed")], [record(FULL, 2.0, role="all_full")]])
def test_signal_without_two_schedules_is_none(records: list[TrialRecord]) -> None:
    found = signal(records)
    assert (found.placements, found.sparse_and_full, found.within_budget, found.n_full) == (None, None, None, None)
    assert signal_sentence(found).startswith("Signal: unknown")
