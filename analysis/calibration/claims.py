"""The claims of a run that are held against a known truth, and the scenarios of all claims."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from levels import NOMINAL, Nominal
from noises import ALL_FAIL, NOISES, SEEDS, TOLERANCE, draw, failing
from others import early, knee, l_star, page, ranks, solved

from layersearch.results import stats
from layersearch.results.analyze import Decision, analyze, decide
from layersearch.results.result import Comparison, Result
from layersearch.schedule import Schedule
from layersearch.study.confirmation import second_round
from layersearch.training.record import TrialRecord

__all__ = ["NOMINAL", "SEEDS", "Nominal"]
Claims = Iterator[tuple[str, float]]

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
PARSED = tuple(Schedule.parse(text) for text, *_ in SCHEDULES)
BUDGET = 0.5
EQUAL = (2.4,) * 8
GRADED = (2.45, 2.60, 2.50, 2.47, 2.44, 2.433, 2.40, 2.43)
"""The best schedule is a proposal; a cheaper proposal is truly 0.03 nats worse, more than the tolerance."""


def trial(at: int, seed: int, loss: float) -> TrialRecord:
    """Return the record of one confirmed training."""
    _, role, cost = SCHEDULES[at]
    return TrialRecord(
        schedule=PARSED[at],
        seed=seed,
        phase="confirm",
        role=role,
        state="complete",
        flops=round(1_000_000 * cost),
        cost=cost,
        steps=400,
        full_steps=400,
        loss=loss,
        curve=((400, loss),),
    )


def confirmed(rng: np.random.Generator, means: tuple[float, ...], noise: str, seeds: str) -> tuple[list, int]:
    """Return the records of a confirmation, in one round or in two, and the number of seeds of the first of two."""
    number, first = (5, 2) if seeds == "2+3" else (int(seeds), 0)
    losses = np.array(means)[:, None] + draw(rng, noise, len(means), number)
    records = [[trial(at, seed, float(x)) for seed, x in enumerate(row, 1)] for at, row in enumerate(losses)]
    if not first:
        return [r for row in records for r in row], 0
    begun = [r for row in records for r in row[:first]]
    # The second round needs the winner and the entries only, which are `decide`'s.
    chosen = second_round(decide(begun, BUDGET, tolerance=TOLERANCE, first_round=first))  # type: ignore[arg-type]
    return [*begun, *(r for row in records for r in row[first:] if r.schedule in chosen)], first


def _differences(decided: Decision | Result, means: tuple[float, ...], noise: str) -> Claims:
    winner = decided.winner
    assert winner is not None
    learned = dict(zip(PARSED, means, strict=True))
    lost = dict(zip(PARSED, failing(noise, len(means)), strict=True))

    def check(name: str, found: Comparison) -> Claims:
        true, gap = learned[winner.schedule] - learned[found.schedule], found.corrected
        assert gap.low is not None
        assert gap.high is not None
        yield f"interval against {name}", gap.low <= true <= gap.high
        yield f"false better or worse than {name}", gap.excludes_zero and (true == 0 or (true > 0) != (gap.mean > 0))
        if any(lost.values()) and name == "all_full":
            true += lost[winner.schedule] - lost[found.schedule]
            yield f"interval against {name} over all seeds", gap.low <= true <= gap.high

    for name, found in (("all_full", winner.to_all_full), ("the best baseline", winner.to_best_baseline)):
        if found is not None:
            yield from check(name, found)


def _widths(decided: Decision, means: tuple[float, ...]) -> Claims:
    """Yield half widths and power, and those of the rules before: Bonferroni, and no correction of the mean loss."""
    winner = decided.winner
    assert winner is not None
    shared = {s: {seed: x[seed] for seed in winner.seeds if seed in x} for s, x in decided.confirmed.items()}
    for name, found in (("all_full", winner.to_all_full), ("the best baseline", winner.to_best_baseline)):
        if found is None:
            continue
        pair = shared[winner.schedule], shared[found.schedule]
        old = stats.paired_difference(*pair, comparisons=found.comparisons, prior=decided.prior)
        for suffix, gap in (("", found.corrected), (", before", old)):
            yield f"half width against {name}{suffix}", gap.half_width or 0.0
            yield f"{name}: a true difference is said{suffix}", gap.excludes_zero
    (mean,) = (entry.mean for entry in decided.entries if entry.schedule == winner.schedule)
    assert mean is not None
    yield "half width of the winner's mean loss", mean.half_width or 0.0
    plain = stats.mean_interval(shared[winner.schedule].values())
    yield "half width of the winner's mean loss, before", plain.half_width or 0.0


def _verdict(decided: Decision | Result, means: tuple[float, ...], noise: str) -> Claims:
    yield from _differences(decided, means, noise)
    winner = decided.winner
    assert winner is not None
    learned = dict(zip(PARSED, means, strict=True))
    lost = dict(zip(PARSED, failing(noise, len(means)), strict=True))
    within = {entry.schedule: learned[entry.schedule] for entry in decided.entries if entry.within_budget}
    mine = learned[winner.schedule]

    def holds(schedule: Schedule, truth: float) -> bool:
        (mean,) = (entry.mean for entry in decided.entries if entry.schedule == schedule)
        assert mean is not None
        assert mean.low is not None
        assert mean.high is not None
        return mean.low <= truth <= mean.high

    yield "mean loss of the winner", holds(winner.schedule, mine)
    yield "mean loss of all_full", holds(PARSED[0], learned[PARSED[0]])
    if any(lost.values()):
        yield "mean loss of the winner over all seeds", holds(winner.schedule, mine + lost[winner.schedule])
    alone = winner.not_separated == 1 and winner.to_leader is None
    others = min(v for s, v in within.items() if s != winner.schedule)
    yield "false significantly below the others", alone and mine >= others
    # A schedule whose failure was seen is measured with it, and is the lowest no longer.
    seen = {entry.schedule: lost[entry.schedule] * bool(entry.unlearned_seeds) for entry in decided.entries}
    lowest = min(loss + seen[schedule] for schedule, loss in within.items())
    yield "false shown within the tolerance", winner.to_leader is not None and mine > lowest + TOLERANCE
    assert winner.failure_bound is not None
    yield "bound of the share of failing seeds", winner.failure_bound >= lost[winner.schedule]


def run_equal(rng: np.random.Generator, noise: str, seeds: str) -> Claims:
    """All schedules are equal: whatever is claimed is false."""
    records, first = confirmed(rng, EQUAL, noise, seeds)
    result = analyze(records, BUDGET, tolerance=TOLERANCE, first_round=first)
    yield from _verdict(result, EQUAL, noise)
    placements = result.signal.placements
    assert placements is not None
    assert placements.noise_nats is not None
    if placements.noise_chance is not None:
        yield "p < 0.01 of placements", placements.noise_chance < 0.01
        yield "p < 0.05 of placements", placements.noise_chance < 0.05
    yield "spread of placements from noise alone", placements.noise_nats
    yield "spread of placements", placements.nats
    yield "spread ratio squared", (placements.nats - placements.noise_nats) ** 2


def run_graded(rng: np.random.Generator, noise: str, seeds: str) -> Claims:
    """The schedules differ; see `GRADED`."""
    records, first = confirmed(rng, GRADED, noise, seeds)
    decided = decide(records, BUDGET, tolerance=TOLERANCE, first_round=first)
    yield from _verdict(decided, GRADED, noise)
    yield from _widths(decided, GRADED)


def run_power(rng: np.random.Generator, noise: str, seeds: str) -> Claims:
    """The winner leads all_full by the difference of which a run says that its verdict finds it in 80%."""
    records, first = confirmed(rng, EQUAL, noise, seeds)
    noted = analyze(records, BUDGET, first_round=first).noise
    (lead, number), *_ = noted.seeds_for
    assert number == (5 if first else int(seeds))
    means = (2.40 + lead, *(2.7 + at / 10 for at in range(5)), 2.40, 2.69)
    records, first = confirmed(rng, means, noise, seeds)
    winner = decide(records, BUDGET, first_round=first).winner
    assert winner is not None
    assert winner.to_all_full is not None
    high = winner.to_all_full.corrected.high
    yield "difference said to be found in 80%", high is not None and high < 0


GROUPS: dict[str, Callable[[np.random.Generator, str, str], Claims]] = {
    "equal": run_equal,
    "graded": run_graded,
    "power": run_power,
    "ranks": ranks,
    "early": early,
    "survivors": early,
    "l*": l_star,
    "knee": knee,
    "page": page,
    "solve": solved,
}
TABLES = ("recall", "deep", "mix", "text", "prose")
SCENARIOS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "equal": (NOISES, SEEDS),
    "graded": (NOISES, SEEDS),
    "power": (("normal", "shared seed effect", "heavy tails"), SEEDS),
    "ranks": (("10, 0.7", "10, 0.95", "24, 0.7"), ("-",)),
    "early": (("kept 6",), ("-",)),
    "survivors": (("kept 0",), ("-",)),
    "l*": (NOISES[: NOISES.index(ALL_FAIL) + 1], SEEDS[:3]),
    "knee": (NOISES[: NOISES.index(ALL_FAIL)], SEEDS[:3]),
    "page": (NOISES[: NOISES.index(ALL_FAIL) + 1], SEEDS[:3]),
    "solve": (tuple(f"{corpus}, {count}" for corpus in TABLES for count in (12, 24)), ("-",)),
}
REPETITIONS = {"solve": 2, "l*": 10, "knee": 10, "page": 40}
"""Repetitions of a cell in a chunk; 20 for the other groups."""
