"""The claims that are held against a known truth: how each is simulated, and its nominal level."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layersearch.optimal_l.knee import find_knee, knee_index
from layersearch.optimal_l.noninferiority import find_l_star
from layersearch.results import stats
from layersearch.results.analyze import analyze
from layersearch.results.moderated import MAX_DEGREES
from layersearch.results.noise import rank_fidelities
from layersearch.results.result import Result
from layersearch.schedule import Schedule
from layersearch.study.confirmation import second_round
from layersearch.surrogate.solve import solve
from layersearch.training.record import TrialRecord

Array = NDArray[np.float64]
Claims = Iterator[tuple[str, float]]

STD, TOLERANCE, DELTA, FAILS = 0.01, 0.02, 0.05, 0.1
FIRST_RUN = (0.016, 0.0043, 0.0535, 0.0046, 0.0052, 0.0071, 0.0066, 0.0038)
"""Standard deviations over seeds of the schedules of ``analysis/first_run``, all_full and all_sparse first."""
UNEQUAL = (0.01, 0.001, 0.05, 0.002, 0.03, 0.005, 0.02, 0.04)
NOISES = ("normal", "heavy tails", "shared seed effect", "unequal", "first run", "fails 1 in 10")
SEEDS = ("3", "5", "8", "2+3")

SCHEDULES = (
    ("full*4", "all_full", 1.0),
    ("window:32*4", "all_sparse", 0.12),
    ("full window:32*3", "bottom(1)", 0.34),
    ("window:32 full window:32*2", "middle(1)", 0.34),
    ("window:32*2 full window:32", "interleaved(1)", 0.34),
    ("window:32*3 full", "top(1)", 0.34),
    ("window:64*3 full", "proposed", 0.40),
    ("window:16*3 full", "proposed", 0.30),
)
EQUAL = (2.4,) * 8
GRADED = (2.45, 2.60, 2.50, 2.47, 2.44, 2.433, 2.40, 2.43)
"""The best schedule is a proposal; a cheaper proposal is truly 0.03 nats worse, more than the tolerance."""


def draw(rng: np.random.Generator, noise: str, count: int, seeds: int) -> Array:
    """Return the deviations of losses from the truth, (schedules, seeds); under failures the truth is the mean."""
    normal: Array = rng.standard_normal((count, seeds))
    if noise == "heavy tails":
        return STD * rng.standard_t(3, (count, seeds)) / np.sqrt(3)
    if noise in ("unequal", "first run"):
        stds = np.resize(UNEQUAL if noise == "unequal" else FIRST_RUN, count)
        return normal * stds[:, None]
    found = STD * normal
    if noise == "shared seed effect":
        found += 0.03 * rng.standard_normal(seeds)
    if noise == "fails 1 in 10":
        found += (rng.random((count, seeds)) < FAILS) - FAILS
    return found


def trial(at: int, seed: int, loss: float) -> TrialRecord:
    """Return the record of one confirmed training."""
    text, role, cost = SCHEDULES[at]
    flops = round(1_000_000 * cost)
    return TrialRecord(
        schedule=Schedule.parse(text),
        seed=seed,
        phase="confirm",
        role=role,
        state="complete",
        flops=flops,
        cost=cost,
        steps=400,
        full_steps=400,
        loss=loss,
        curve=((400, loss),),
    )


def confirmed(rng: np.random.Generator, means: tuple[float, ...], noise: str, seeds: str) -> Result:
    """Return the result of a confirmation, in one round or in two."""
    number, first = (5, 2) if seeds == "2+3" else (int(seeds), 0)
    losses = np.array(means)[:, None] + draw(rng, noise, len(means), number)
    records = [[trial(at, seed, float(x)) for seed, x in enumerate(row, 1)] for at, row in enumerate(losses)]
    if not first:
        return analyze([r for row in records for r in row], 0.5, tolerance=TOLERANCE)
    begun = [r for row in records for r in row[:first]]
    chosen = second_round(analyze(begun, 0.5, tolerance=TOLERANCE, first_round=first))
    further = [r for row in records for r in row[first:] if r.schedule in chosen]
    return analyze([*begun, *further], 0.5, tolerance=TOLERANCE, first_round=first)


def _verdict(result: Result, means: tuple[float, ...], noise: str) -> Claims:
    winner = result.winner
    assert winner is not None
    truth = {Schedule.parse(text): mean for (text, *_), mean in zip(SCHEDULES, means, strict=True)}
    within = {entry.schedule: truth[entry.schedule] for entry in result.entries if entry.within_budget}
    mine = truth[winner.schedule]
    for name, found in (("all_full", winner.to_all_full), ("the best baseline", winner.to_best_baseline)):
        if found is None:
            continue
        true, gap = mine - truth[found.schedule], found.corrected
        assert gap.low is not None
        assert gap.high is not None
        yield f"interval against {name}", gap.low <= true <= gap.high
        yield f"false better or worse than {name}", gap.excludes_zero and (true == 0 or (true > 0) != (gap.mean > 0))
    mean = result.entry(winner.schedule).mean
    assert mean is not None
    assert mean.low is not None
    assert mean.high is not None
    yield "mean loss of the winner", mean.low <= mine <= mean.high
    alone = winner.not_separated == 1 and winner.to_leader is None
    yield (
        "false significantly below the others",
        alone and mine >= min(v for s, v in within.items() if s != winner.schedule),
    )
    shown = winner.to_leader is not None
    yield "false shown within the tolerance", shown and mine > min(within.values()) + TOLERANCE
    assert winner.failure_bound is not None
    yield "bound of the share of failing seeds", winner.failure_bound >= (FAILS if "fails" in noise else 0.0)


def run_equal(rng: np.random.Generator, noise: str, seeds: str) -> Claims:
    """All schedules are equal: whatever is claimed is false."""
    result = confirmed(rng, EQUAL, noise, seeds)
    yield from _verdict(result, EQUAL, noise)
    placements = result.signal.placements
    assert placements is not None
    assert placements.noise_chance is not None
    assert placements.noise_nats is not None
    yield "p < 0.01 of placements", placements.noise_chance < 0.01
    yield "p < 0.05 of placements", placements.noise_chance < 0.05
    yield "spread of placements from noise alone", placements.noise_nats
    yield "spread of placements", placements.nats


def run_graded(rng: np.random.Generator, noise: str, seeds: str) -> Claims:
    """The schedules differ; see `GRADED`."""
    yield from _verdict(confirmed(rng, GRADED, noise, seeds), GRADED, noise)


def run_power(rng: np.random.Generator, noise: str, seeds: str) -> Claims:
    """The winner leads all_full by the difference of which the run says that its verdict finds it in 80%."""
    number = 5 if seeds == "2+3" else int(seeds)
    std = STD * np.sqrt(2)
    each = stats.corrected_confidence(stats.CONFIDENCE, 7)
    lead = stats.detectable_difference(std, number, each, prior_degrees=MAX_DEGREES)
    means = (2.40 + lead, *(2.7 + at / 10 for at in range(5)), 2.40, 2.69)
    winner = confirmed(rng, means, noise, seeds).winner
    assert winner is not None
    assert winner.to_all_full is not None
    yield "difference said to be found in 80%", winner.to_all_full.corrected.high < 0  # type: ignore[operator]


def ranks(rng: np.random.Generator, noise: str, seeds: str) -> Claims:
    """Spearman's correlation of two measures of n trials; ``noise`` is ``n, correlation``."""
    count, rho = int(noise.split(",")[0]), float(noise.split(",")[1])
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman of a bivariate normal
    x = rng.standard_normal(count)
    y = rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(count)
    found = stats.rank_correlation(x.tolist(), y.tolist())
    assert found is not None
    if found.spearman_low is not None and found.spearman_high is not None:
        yield "interval of a rank correlation", found.spearman_low <= truth <= found.spearman_high


def early(rng: np.random.Generator, noise: str, seeds: str) -> Claims:
    """Rank correlation of an early loss over 24 proposals of which the worse half stops; ``kept`` go on anyhow."""
    kept, rho, count = int(noise.split()[1]), 0.7, 24
    truth = 6 / np.pi * np.arcsin(rho / 2)
    x = rng.standard_normal(count)
    y = rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(count)
    records = []
    for at in range(count):
        before = np.sort(x[:at])
        stays = at < 2 or x[at] <= before[(at - 1) // 2] or (at + 1) * kept // count > at * kept // count
        schedule = Schedule.parse(f"window:{8 + at}*4")
        curve = ((100, 10 + x[at]), *(((200, 10 + y[at]),) if stays else ()))
        records.append(
            TrialRecord(
                schedule=schedule,
                seed=0,
                phase="search",
                role="proposed",
                state="complete" if stays else "stopped",
                flops=1000,
                cost=0.1,
                steps=200 if stays else 100,
                full_steps=200,
                loss=curve[-1][1],
                curve=curve,
            )
        )
    (found,) = rank_fidelities(records, (), stats.CONFIDENCE)
    if found.agreement is not None:
        yield "rank correlation of an early loss, of the truth", found.agreement.spearman / truth
        low, high = found.agreement.spearman_low, found.agreement.spearman_high
        if low is not None and high is not None:
            yield "interval of the rank correlation of an early loss", low <= truth <= high


ENVELOPE = {
    at: Schedule.parse(text)
    for at, text in enumerate(("window:4*4", "full window:4*3", "full*2 window:4*2", "full*3 window:4", "full*4"))
}
L_STARS = {"clear": ((0.5, 0.2, 0.01, 0.0, 0.0), 2), "close": ((0.5, 0.2, 0.04, 0.0, 0.0), 2)}


def l_star(rng: np.random.Generator, noise: str, seeds: str) -> Claims:
    """The confidence set of l*, at one look."""
    for name, (means, truth) in L_STARS.items():
        held = np.array(means)[:, None] + draw(rng, noise, 5, int(seeds))
        losses = {ENVELOPE[at]: dict(enumerate(row.tolist())) for at, row in enumerate(held)}
        found = find_l_star({at: (one,) for at, one in ENVELOPE.items()}, losses, ENVELOPE[3], DELTA)
        yield f"set of l*, {name}", found.low <= truth <= found.value


KNEES = {
    "exponential": tuple(float(np.exp(-1.2 * at)) for at in range(5)),
    "two steps": (1.0, 0.55, 0.5, 0.05, 0.0),
    "concave": (1.0, 0.95, 0.8, 0.5, 0.0),
    "straight": (1.0, 0.75, 0.5, 0.25, 0.0),
}


def knee(rng: np.random.Generator, noise: str, seeds: str) -> Claims:
    """The knee of loss against cost."""
    ls, costs = list(range(5)), [0.1 + 0.225 * at for at in range(5)]
    for name, shape in KNEES.items():
        means = 0.1 * np.array(shape)
        table = means[:, None] + draw(rng, noise, 5, int(seeds))
        found = find_knee(ls, costs, {at: table[at].tolist() for at in ls}, TOLERANCE)
        if name in ("concave", "straight"):
            yield f"knee of a {name} curve", found.l is not None
        else:
            if found.l is not None:
                yield f"set of the knee, {name}", knee_index(costs, means.tolist()) in found.likely


def page(rng: np.random.Generator, noise: str, seeds: str) -> Claims:
    """Equal placements on a page of `optimal-l`: six l's of two to four named placements each, 17 comparisons."""
    sizes = (3, 4, 4, 4, 4, 4)
    losses = 2.4 + draw(rng, noise, sum(sizes), int(seeds))
    rows = [dict(enumerate(row.tolist())) for row in losses]
    said, start = False, 0
    for size in sizes:
        best, *others = rows[start : start + size]
        start += size
        for other in others:
            said |= stats.paired_difference(other, best, comparisons=sum(sizes) - len(sizes)).excludes_zero
    yield "any placement of a page falsely called worse or better", said


def solved(rng: np.random.Generator, noise: str, seeds: str) -> Claims:
    """Predictions of `solve` for untrained schedules of a benchmark; ``noise`` is ``corpus, schedules trained``."""
    import solve_check

    from layersearch.study.benchmark import load_bench
    from layersearch.surrogate.constraint import cost_limit

    corpus, count = noise.split(",")
    bench = load_bench(corpus)
    truth = dict(zip(bench.schedules, bench.means.tolist(), strict=True))
    known = solve_check.records(bench, int(count), int(rng.integers(10**6)))
    for budget in solve_check.BUDGETS:
        found = solve(known, bench.space, cost_limit(bench.space, budget)).proposal
        if found is not None and found.state == "untrained":
            yield "interval of a prediction of solve", found.low <= truth[found.schedule] <= found.high


GROUPS: dict[str, Callable[[np.random.Generator, str, str], Claims]] = {
    "equal": run_equal,
    "graded": run_graded,
    "power": run_power,
    "ranks": ranks,
    "early": early,
    "l*": l_star,
    "knee": knee,
    "page": page,
    "solve": solved,
}
SCENARIOS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "equal": (NOISES, SEEDS),
    "graded": (NOISES, SEEDS),
    "power": (("normal", "shared seed effect", "heavy tails"), SEEDS),
    "ranks": (("10, 0.7", "10, 0.95", "24, 0.7"), ("-",)),
    "early": (("kept 0", "kept 6"), ("-",)),
    "l*": (NOISES, SEEDS[:3]),
    "knee": (NOISES[:5], SEEDS[:3]),
    "page": (NOISES, SEEDS[:3]),
    "solve": (("recall, 12", "recall, 24", "mix, 24"), ("-",)),
}
SLOWER = {"solve": 10, "l*": 2, "knee": 2}
"""Groups with so many times fewer repetitions in a chunk."""


@dataclass(frozen=True)
class Nominal:
    """The level of a claim, and the shares that keep it."""

    text: str
    said: str
    low: float = 0.0
    high: float = 1.0
    ratio: bool = False


def _holds(text: str) -> Nominal:
    return Nominal(text, "at least 95%", 0.93, 1.0)


def _false(text: str, level: float = 0.05) -> Nominal:
    return Nominal(text, f"at most {level:.0%}", 0.0, level)


_RUN = {
    "interval against all_full": _holds("interval of the winner less all_full"),
    "interval against the best baseline": _holds("interval of the winner less the best baseline"),
    "false better or worse than all_full": _false("false better or worse than all_full"),
    "false better or worse than the best baseline": _false("false better or worse than the best baseline"),
    "mean loss of the winner": _holds("interval of the winner's mean loss"),
    "false significantly below the others": _false('false "significantly below the others"'),
    "false shown within the tolerance": _false('false "shown to lie within the tolerance"'),
    "bound of the share of failing seeds": _holds("bound of the share of failing seeds"),
}
NOMINAL: dict[str, Nominal] = {
    **{f"equal: {name}": Nominal(f"equal schedules: {n.text}", n.said, n.low, n.high) for name, n in _RUN.items()},
    **{f"graded: {name}": Nominal(f"unequal schedules: {n.text}", n.said, n.low, n.high) for name, n in _RUN.items()},
    "power: difference said to be found in 80%": Nominal(
        "a difference said to be found in 80%, is found", "80%", 0.75, 0.95
    ),
    "equal: p < 0.01 of placements": _false("equal placements: p < 0.01", 0.01),
    "equal: p < 0.05 of placements": _false("equal placements: p < 0.05"),
    "equal: spread ratio": Nominal("equal placements: spread, of the spread said of noise alone", "1", ratio=True),
    "ranks: interval of a rank correlation": _holds("rank correlation of n trials, at a true correlation: interval"),
    "early: rank correlation of an early loss, of the truth": Nominal(
        "rank correlation of an early loss where half stop: of the truth", "1", ratio=True
    ),
    "early: interval of the rank correlation of an early loss": _holds(
        "rank correlation of an early loss where half stop: interval"
    ),
    **{f"l*: set of l*, {name}": _holds(f"set of l*, {name} truth") for name in L_STARS},
    **{f"knee: set of the knee, {n}": _holds(f"set of the knee, {n}") for n in ("exponential", "two steps")},
    **{
        f"knee: knee of a {n} curve": _false(f"a knee named for a {n} curve, which has none")
        for n in ("concave", "straight")
    },
    "page: any placement of a page falsely called worse or better": _false(
        "equal placements of an optimal-l page: any called worse or better"
    ),
    "solve: interval of a prediction of solve": _holds("prediction of solve, corpus and schedules trained: interval"),
}
