"""The statistics of l*, held to their promises by simulation: how often a claim is wrong, how often a set holds l*."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mstats

from layersearch.config.recipe import load_recipe
from layersearch.optimal_l.config import OptimalLConfig
from layersearch.optimal_l.knee import best_within, find_knee, knee_index, sample_means
from layersearch.optimal_l.noninferiority import find_l_star, level, p_beyond, p_within
from layersearch.optimal_l.scaling_law import fit_laws
from layersearch.results.failures import clip_losses, failed_seeds
from layersearch.schedule import Schedule
from layersearch.schedule.space import load_space

RUNS = 2000
ENVELOPE = {
    0: Schedule.parse("window:4*4"),
    1: Schedule.parse("full window:4*3"),
    2: Schedule.parse("full*2 window:4*2"),
    3: Schedule.parse("full*3 window:4"),
    4: Schedule.parse("full*4"),
}
ALONE = {l: (text,) for l, text in ENVELOPE.items()}
DELTA = 0.05


def losses(means: list[float], std: float, seeds: int, rng: np.random.Generator) -> dict[Schedule, dict[int, float]]:
    """Return losses of the envelope: what a seed does to all schedules alike, and noise of each."""
    common = rng.normal(0, 3 * std, size=seeds)
    drawn = np.asarray(means) + common[:, None] + rng.normal(0, std, size=(seeds, len(means)))
    return {text: {seed: float(drawn[seed, at]) for seed in range(seeds)} for at, text in ENVELOPE.items()}


def cut_off(held: dict[Schedule, dict[int, float]], reference: Schedule) -> float:
    """Return by how much the cut lowers the mean of the reference, nats."""
    return float(np.mean([held[reference][seed] - loss for seed, loss in clip_losses(held, reference).items()]))


@pytest.mark.slow
@pytest.mark.parametrize("std", [0.005, 0.03, 0.1, 0.5])
@pytest.mark.parametrize("seeds", [3, 6, 8, 12, 16])
def test_p_values_difference_at_delta_rarely_called_within_or_beyond(std: float, seeds: int) -> None:
    rng = np.random.default_rng(1)
    drawn = rng.normal(DELTA, std, size=(RUNS, seeds))
    for p in (p_within, p_beyond):
        wrong = np.mean([p(list(row), DELTA) <= 0.025 for row in drawn])
        # Three standard errors of a share of 0.025.
        assert wrong <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / RUNS)


def test_p_values_small_difference_is_within_and_large_one_beyond() -> None:
    rng = np.random.default_rng(2)
    near, far = rng.normal(0.0, 0.01, size=(400, 5)), rng.normal(0.2, 0.05, size=(400, 5))
    assert np.mean([p_within(list(row), DELTA) <= level(share=1 / 3) for row in near]) > 0.9
    assert np.mean([p_beyond(list(row), DELTA) <= level(share=1 / 3) for row in far]) > 0.9


def test_cut_reference_failing_at_one_seed_hides_nothing() -> None:
    rng = np.random.default_rng(6)
    held = losses([2.5, 0.01, 0.01, 0.01, 0.01], 0.003, 5, rng)
    assert clip_losses(held, ENVELOPE[4]) == held[ENVELOPE[4]]
    held[ENVELOPE[4]][2] = 2.2
    assert p_within([held[ENVELOPE[1]][s] - held[ENVELOPE[4]][s] for s in range(5)], DELTA) > 0.1
    found = find_l_star(ALONE, held, ENVELOPE[4], DELTA)
    assert (found.low, found.value) == (1, 1)


@pytest.mark.parametrize("fails", [1, 4, 7])
def test_cut_reference_failing_at_most_seeds_hides_nothing(fails: int) -> None:
    rng = np.random.default_rng(9)
    held = losses([2.5, 2.2, 0.01, 0.01, 2.2], 0.01, 8, rng)
    failed = [int(seed) for seed in rng.choice(8, size=fails, replace=False)]
    held[ENVELOPE[3]] |= dict.fromkeys(failed, 2.2)
    found = find_l_star(ALONE | {4: (ENVELOPE[3],)}, held, ENVELOPE[3], DELTA)
    assert found.value == 2
    lowered, before = clip_losses(held, ENVELOPE[3]), held[ENVELOPE[3]]
    assert [seed for seed in before if lowered[seed] != pytest.approx(before[seed], abs=1e-12)] == sorted(failed)


@pytest.mark.slow
def test_cut_normal_noise_is_seldom_cut_and_then_by_little() -> None:
    rng, std = np.random.default_rng(10), 0.02
    drawn = [losses([0.01] * 5, std, 12, rng) for _ in range(RUNS)]
    lowered = np.array([cut_off(held, ENVELOPE[3]) for held in drawn]) / std
    share = np.mean(lowered > 1e-9)
    assert abs(share - 1 / 6) <= 3 * np.sqrt(1 / 6 * 5 / 6 / RUNS)
    assert 0.05 < lowered[lowered > 1e-9].mean() < 0.2
    assert lowered.min() >= -1e-9


def test_failures_schedule_failing_at_one_seed_is_not_called_good() -> None:
    held = losses([2.5, 0.01, 0.01, 0.01, 0.01], 0.003, 5, np.random.default_rng(7))
    held[ENVELOPE[1]][2] = 2.2
    found = find_l_star(ALONE, held, ENVELOPE[4], DELTA)
    assert (found.low, found.value) == (1, 2)


@pytest.mark.parametrize(("seeds", "fails", "value"), [(12, 1, 1), (12, 2, 2), (6, 1, 2)])
def test_failures_one_in_twelve_seeds_decides_nothing_and_is_reported(seeds: int, fails: int, value: int) -> None:
    held = losses([2.5, 0.01, 0.01, 0.01, 0.01], 0.003, seeds, np.random.default_rng(11))
    held[ENVELOPE[1]] |= dict.fromkeys(range(fails), 2.2)
    held[ENVELOPE[4]][3] = 1.9  # nor does one of the reference
    star = find_l_star(ALONE, held, ENVELOPE[4], DELTA)
    assert (star.low, star.value) == (1, value)
    found = failed_seeds(held, DELTA)
    assert found[ENVELOPE[1]] == tuple(range(fails))
    assert found[ENVELOPE[4]] == (3,)
    assert found[ENVELOPE[2]] == ()


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_failures_plain_noise_is_not_called_a_failure(seeds: int) -> None:
    rng, std = np.random.default_rng(13), 0.02
    told = [bool(failed_seeds(losses([0.01] * 5, std, seeds, rng), std / 2)[ENVELOPE[3]]) for _ in range(RUNS)]
    assert np.mean(told) < 0.01


@pytest.mark.parametrize(("n", "out"), [(7, 0), (8, 1), (12, 1), (16, 2)])
def test_trimmed_mean_has_the_interval_of_scipy(n: int, out: int) -> None:
    sample = np.random.default_rng(12).normal(0.0, 1.0, n)
    low, high = mstats.trimmed_mean_ci(sample, limits=(out / n + 1e-9, out / n + 1e-9), alpha=0.05)
    center = 10.0  # any delta: moving all values moves the interval
    assert p_within(list(sample + center), center + high) == pytest.approx(0.025, rel=1e-4)
    assert p_beyond(list(sample + center), center + low) == pytest.approx(0.025, rel=1e-4)


def test_p_values_one_seed_shows_nothing_and_equal_losses_are_within() -> None:
    assert p_within([0.0], DELTA) == p_beyond([9.0], DELTA) == 1.0
    assert p_within([0.0, 0.0], DELTA) == 0.0
    assert p_beyond([0.0, 0.0], DELTA) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("means", "truth"),
    [
        ([2.5, 0.01, 0.01, 0.01, 1.6], 1),  # all-full fails to learn
        ([3.0, 2.2, 0.02, 0.01, 2.3], 2),
        ([0.5, 0.5, 0.5, 0.5, 0.5], 0),
        ([0.06, 0.06, 0.06, 0.0, 0.0], 3),  # just beyond delta: seldom decided, never wrongly
        ([0.051, 0.049, 0.0, 0.0, 0.0], 1),
        ([0.5, 0.25, 0.051, 0.0, 0.0], 3),
    ],
)
@pytest.mark.parametrize("std", [0.004, 0.04])
def test_find_l_star_set_holds_the_truth_and_is_rarely_too_low(means: list[float], truth: int, std: float) -> None:
    rng = np.random.default_rng(3)
    outside = too_low = 0
    runs = 400
    # The reference is the best schedule, as the selection seeds would have it; every look at the data counts.
    best = int(np.argmin(means))
    envelope = {l: (ENVELOPE[int(np.argmin(means[: l + 1]))],) for l in ENVELOPE}
    for _ in range(runs):
        drawn = losses(means, std, 12, rng)
        for seeds in (3, 6, 12):
            seen = {text: {s: x for s, x in held.items() if s < seeds} for text, held in drawn.items()}
            found = find_l_star(envelope, seen, ENVELOPE[best], DELTA, share=seeds / 21)
            if found.decided:
                break
        too_low += found.value < truth
        outside += not found.low <= truth <= found.value
    error = 3 * np.sqrt(0.05 * 0.95 / runs)
    assert too_low / runs <= 0.025 + error
    assert outside / runs <= 0.05 + error
    if truth in (1, 2) and std < 0.01 and max(means) > 1:
        assert found.decided
        assert found.value == truth


def test_find_l_star_runner_up_shows_what_the_first_does_not() -> None:
    """The best on the selection seeds fails on some fresh ones; the second best does not, and has its own level."""
    other = Schedule.parse("window:4 full window:4*2")
    held = losses([2.5, 0.01, 0.01, 0.01, 0.01], 0.003, 5, np.random.default_rng(8))
    held[other] = dict(held[ENVELOPE[1]])
    held[ENVELOPE[1]] = {seed: loss + (2.2 if seed < 3 else 0.0) for seed, loss in held[ENVELOPE[1]].items()}
    assert find_l_star(ALONE, held, ENVELOPE[4], DELTA).value == 2
    both = ALONE | {1: (ENVELOPE[1], other)}
    found = find_l_star(both, held, ENVELOPE[4], DELTA)
    assert (found.low, found.value, found.shown_by) == (1, 1, other)
    # Before the runner-up is measured, its l is neither shown nor excluded.
    del held[other]
    held[ENVELOPE[1]] = {seed: 2.2 + 0.01 * seed for seed in range(5)}
    found = find_l_star(both, held, ENVELOPE[4], DELTA)
    assert (found.low, found.value) == (1, 2)
    assert found.undecided == (ENVELOPE[1], other)


def test_level_is_shared_by_the_looks() -> None:
    loaded = load_recipe("recall")
    for seeds, most in ((3, 12), (2, 2), (5, 7)):
        asked = OptimalLConfig(
            recipe=loaded, space=load_space(loaded.default_space), delta=0.05, seeds=seeds, most_seeds=most
        )
        spent = [level(0.95, asked.share(look)) for look in asked.looks]
        assert sum(spent) == pytest.approx(0.025)
        assert spent == sorted(spent)
        assert asked.share(most + 1) == asked.share(most)
        assert asked.share(1) == asked.share(seeds)


def test_find_l_star_undecided_schedules_lie_between_the_ends() -> None:
    held = {text: {0: 0.0, 1: 0.01, 2: -0.01} for text in ENVELOPE.values()}
    held[ENVELOPE[0]] = {0: 3.0, 1: 3.1, 2: 2.9}
    held[ENVELOPE[1]] = {0: 0.2, 1: -0.2, 2: 0.1}
    found = find_l_star(ALONE, held, ENVELOPE[4], DELTA)
    assert (found.low, found.value, found.decided) == (1, 2, False)
    assert found.undecided == (ENVELOPE[1],)
    # The reference is never in doubt against itself.
    assert found.steps[-1].within == 0.0
    assert found.steps[-1].beyond == 1.0


def test_draw_means_have_student_t_intervals() -> None:
    rng = np.random.default_rng(4)
    sample = rng.normal(0, 1, size=(4, 2))
    drawn = sample_means(sample, rng, 40_000)
    difference = drawn[:, 1] - drawn[:, 0]
    paired = sample[:, 1] - sample[:, 0]
    half = 3.182446 * paired.std(ddof=1) / 2  # Student's t of 3 degrees at 97.5%
    assert np.quantile(difference, 0.975) == pytest.approx(paired.mean() + half, rel=0.06)
    assert np.quantile(difference, 0.025) == pytest.approx(paired.mean() - half, rel=0.06)


def test_knee_index_is_farthest_below_the_chord() -> None:
    assert knee_index([0.1, 0.3, 0.5, 0.7, 1.0], [3.0, 1.0, 0.9, 0.8, 0.7]) == 1
    assert knee_index([0.1, 0.3, 0.5, 0.7, 1.0], [3.0, 2.9, 0.5, 0.5, 1.6]) == 2  # more may be left unused


def test_find_knee_small_noise_is_found_and_large_noise_left_open() -> None:
    ls, costs = [0, 1, 2, 3, 4], [0.1, 0.325, 0.55, 0.775, 1.0]
    rng = np.random.default_rng(5)
    means = np.array([3.0, 1.0, 0.95, 0.9, 0.85])
    clear = {l: list(means[l] + rng.normal(0, 0.01, 4)) for l in ls}
    found = find_knee(ls, costs, clear, 0.05)
    assert found.l == 1
    assert found.likely == (1,)
    noisy = {l: list(means[l] + rng.normal(0, 2.0, 3)) for l in ls}
    # With so much noise the curve is not even shown to bend.
    assert find_knee(ls, costs, noisy, 0.05).l is None
    flat = {l: [0.5, 0.51] for l in ls}
    assert find_knee(ls, costs, flat, 0.05).l is None
    assert "delta" in find_knee(ls, costs, flat, 0.05).why
    assert find_knee(ls[:2], costs[:2], clear, 0.05).l is None


def test_best_within_a_budget_costs_no_more() -> None:
    ls, costs = [0, 1, 2], [0.1, 0.4, 0.7]
    held = {0: [2.0, 2.1, 1.9], 1: [1.0, 1.1, 0.9], 2: [0.5, 0.6, 0.4]}
    assert best_within(ls, costs, held, 0.5).l == 1
    assert best_within(ls, costs, held, 0.5).likely == (1,)
    assert best_within(ls, costs, held, 0.05).l is None
    assert "0.1" in best_within(ls, costs, held, 0.05).why


def test_fit_laws_exponent_is_found_and_its_interval_comes_from_the_sets() -> None:
    sizes = [64, 128, 256, 512]
    certain = fit_laws(sizes, [1, 2, 3, 4], [(l, l) for l in (1, 2, 3, 4)])
    assert certain[0].form == "a + b*log2(x)"
    assert certain[0].b == pytest.approx(1.0)
    assert certain[0].residual == pytest.approx(0.0, abs=1e-9)
    assert certain[0].sign_is_known
    assert certain[0].at(1024) == pytest.approx(5.0)
    power = fit_laws(sizes, [1, 2, 4, 8], [(l, l) for l in (1, 2, 4, 8)])[1]
    assert (power.form, power.b) == ("a*x^b", pytest.approx(1.0))
    assert power.at(1024) == pytest.approx(16.0)
    open_ = fit_laws(sizes, [2, 2, 2, 3], [(0, 2), (0, 2), (0, 2), (0, 3)])[0]
    assert open_.b_low < 0 < open_.b_high
    assert not open_.sign_is_known
    assert fit_laws([64, 128], [1, 2], [(1, 1), (2, 2)]) == ()
    assert len(fit_laws(sizes, [0, 0, 0, 0], [(0, 0)] * 4)) == 1  # no power of zero


@pytest.mark.parametrize("shape", [(1.0, 0.95, 0.8, 0.5, 0.0), (1.0, 0.75, 0.5, 0.25, 0.0)])
def test_find_knee_of_a_curve_without_one_names_none(shape: tuple[float, ...]) -> None:
    """A concave curve had "l = 0 (95%)" in every run, a straight one an arbitrary l."""
    rng = np.random.default_rng(5)
    costs, named, runs = [0.1, 0.325, 0.55, 0.775, 1.0], 0, 60
    for _ in range(runs):
        table = 0.1 * np.asarray(shape)[:, None] + rng.normal(0, 0.01, size=(5, 3))
        found = find_knee(range(5), costs, {l: table[l].tolist() for l in range(5)}, 0.02)
        named += found.l is not None
        assert found.l is not None or "straight line" in found.why
    assert named / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
