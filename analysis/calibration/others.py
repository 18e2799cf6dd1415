"""Rank correlations, l*, the knee, a page of placements, and predictions, held against a known truth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from levels import KNEES, L_STARS, NO_KNEES
from noises import DELTA, TOLERANCE, draw

from layersearch.optimal_l.knee import find_knee, knee_index
from layersearch.optimal_l.noninferiority import find_l_star
from layersearch.results import stats
from layersearch.results.noise import rank_fidelities
from layersearch.schedule import Schedule
from layersearch.surrogate.solve import solve
from layersearch.training.record import TrialRecord

Claims = Iterator[tuple[str, float]]


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
_L_STARS = dict(zip(L_STARS, (((0.5, 0.2, 0.01, 0.0, 0.0), 2), ((0.5, 0.2, 0.04, 0.0, 0.0), 2)), strict=True))


def l_star(rng: np.random.Generator, noise: str, seeds: str) -> Claims:
    """The confidence set of l*, at one look."""
    for name, (means, truth) in _L_STARS.items():
        held = np.array(means)[:, None] + draw(rng, noise, 5, int(seeds))
        losses = {ENVELOPE[at]: dict(enumerate(row.tolist())) for at, row in enumerate(held)}
        found = find_l_star({at: (one,) for at, one in ENVELOPE.items()}, losses, ENVELOPE[3], DELTA)
        yield f"set of l*, {name}", found.low <= truth <= found.value


_SHAPES = {
    "exponential": tuple(float(np.exp(-1.2 * at)) for at in range(5)),
    "two steps": (1.0, 0.55, 0.5, 0.05, 0.0),
    "concave": (1.0, 0.95, 0.8, 0.5, 0.0),
    "straight": (1.0, 0.75, 0.5, 0.25, 0.0),
}
FAINT, CLEAR = 0.1, 0.3
"""Fall of the loss over the curve, nats: a faint knee is seldom named at three seeds, a clear one mostly."""


def knee(rng: np.random.Generator, noise: str, seeds: str) -> Claims:
    """The knee of loss against cost."""
    ls, costs = list(range(5)), [0.1 + 0.225 * at for at in range(5)]

    def find(name: str, fall: float) -> tuple[bool, bool]:
        """Return whether a knee is named, and whether its set holds the truth."""
        means = fall * np.array(_SHAPES[name])
        table = means[:, None] + draw(rng, noise, 5, int(seeds))
        found = find_knee(ls, costs, {at: table[at].tolist() for at in ls}, TOLERANCE)
        return found.l is not None, knee_index(costs, means.tolist()) in found.likely

    for name in KNEES:
        named, holds = find(name, CLEAR)
        if named:
            yield f"set of the knee, {name}", holds
        named, holds = find(name, FAINT)
        yield f"false set of the knee, {name}", named and not holds
    for name in NO_KNEES:
        yield f"knee of a {name} curve", find(name, FAINT)[0]


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
    bench = _BENCHES.get(corpus) or _BENCHES.setdefault(corpus, load_bench(corpus))
    truth = dict(zip(bench.schedules, bench.means.tolist(), strict=True))
    known = solve_check.records(bench, int(count), int(rng.integers(10**6)))
    for budget in solve_check.BUDGETS:
        if min(cost for cost in map(bench.cost, bench.schedules)) > budget:
            continue
        found = solve(known, bench.space, cost_limit(bench.space, budget)).proposal
        if found is not None and found.state == "untrained":
            yield "interval of a prediction of solve", found.low <= truth[found.schedule] <= found.high


_BENCHES: dict = {}
