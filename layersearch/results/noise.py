"""Signal and noise: the spread of schedules, the spread from the seed alone, and rank correlations.

The range of n losses grows with n even if only the seed differs. So each spread comes with the one from noise alone,
of these schedules' own noise, without the seed effects common to all schedules. See `docs/methods/winner.md`.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import numpy as np

from layersearch.results import stats
from layersearch.results.chosen import chosen_confidence
from layersearch.results.moderated import Prior
from layersearch.results.result import PROPOSED, Entry, Fidelity, Noise, Signal, Spread, not_none
from layersearch.training.record import TrialRecord

ROUND_SIZES = tuple(float(f"{digit}e{power}") for power in range(2, -9, -1) for digit in (5, 2, 1))
"""Differences in nats for which the number of seeds is stated, largest first."""
N_SMALLER = 2  # number of them stated below the smallest difference that the run's own seeds detect
MOST_CONTRASTS = 64  # of many seeds, such as documents
FEWEST_TESTED = 3
"""Shared seeds of a test of equal placements. At two, a schedule that fails to learn at both looks different from one
that learns, without noise: where seeds fail at one in ten, p < 0.01 was found in 2.7% of runs of equal placements."""
SURROGATE = "surrogate, unseen"
"""Leave-one-out predictions of the surrogate, the model behind the sampler `gain` and ``solve``."""


def noise_range(losses: Sequence[Sequence[float]]) -> float:
    """Return the mean range (highest less lowest) of schedules' means over seeds that seed noise alone makes, nats.

    Losses are (schedules, seeds), at least two of each, over the same seeds. A contrast weighs a schedule's losses at
    the seeds so that the weights add up to 0. It holds nothing but noise, and with squares that add up to one part in
    the number of seeds it has the noise of the mean. So its range over the schedules is the range of means of equal
    schedules, without bias, for normal noise and however unequal it is. Seed effects common to all cancel. The mean is
    taken over the contrasts of a cosine transform, which weigh all seeds.

    A range computed from estimated standard deviations (Tippett, Biometrika 17, 1925) is 15% too small with two seeds:
    the estimates are more unequal than the truth, and a root of a mean lies above the mean of roots.

    Example:
        >>> round(noise_range([[2.0, 2.0], [2.1, 2.3]]), 3)
        0.1
    """
    values = np.asarray(losses, dtype=np.float64)
    seeds = values.shape[1]
    orders = np.arange(1, min(seeds - 1, MOST_CONTRASTS) + 1)
    contrasts = np.cos(np.pi * np.outer(np.arange(seeds) + 0.5, orders) / seeds) * math.sqrt(2) / seeds
    return float(np.ptp(values @ contrasts, axis=0).mean())


def measure_signal(entries: Sequence[Entry], seeds: Sequence[int]) -> Signal:
    """Return the spreads of a run's schedules; ``seeds`` are the fresh seeds that confirmed schedules share."""
    confirmed = {entry.schedule: dict(entry.confirm) for entry in entries}
    losses = {s: [by_seed[seed] for seed in seeds] for s, by_seed in confirmed.items() if by_seed.keys() >= set(seeds)}
    if not seeds or len(losses) < 2:
        seeds = ()
        losses = {entry.schedule: [entry.search_loss] for entry in entries if entry.search_loss is not None}
    means = {schedule: fmean(group) for schedule, group in losses.items()}
    measured = [entry for entry in entries if entry.schedule in losses]
    seed_std = stats.pooled_std(losses.values())

    def spread(members: Sequence[Entry]) -> Spread | None:
        if len(members) < 2:
            return None
        schedules = sorted((entry.schedule for entry in members), key=lambda schedule: (means[schedule], schedule))
        nats = means[schedules[-1]] - means[schedules[0]]
        held = [losses[schedule] for schedule in schedules]
        repeated = len(seeds) > 1
        return Spread(
            schedules=tuple(schedules),
            nats=nats,
            seed_stds=nats / seed_std if seed_std else None,
            noise_nats=noise_range(held) if repeated else None,
            noise_chance=_smallest_p(held) if len(seeds) >= FEWEST_TESTED else None,
        )

    alike: dict[tuple[int, int], list[Entry]] = {}
    for entry in measured:
        alike.setdefault((entry.flops, entry.n_full), []).append(entry)
    largest = max(alike.values(), key=lambda group: (len(group), group[0].flops, group[0].n_full), default=[])
    placements = spread(largest)
    return Signal(
        seeds=tuple(seeds),
        seed_std=seed_std,
        placements=placements,
        n_full=largest[0].n_full if placements else None,
        cost=largest[0].cost if placements else None,
        sparse_and_full=spread([e for e in measured if {"all_sparse", "all_full"} & _roles(e)]),
        within_budget=spread([entry for entry in measured if entry.within_budget]),
    )


def _smallest_p(losses: Sequence[Sequence[float]]) -> float:
    """Return the smallest p value of the paired t tests of all pairs, corrected for their number (Bonferroni).

    Not the studentized range, which needs equally noisy schedules: with the spreads of a real run it falls below 1% in
    16% of runs of equal schedules.
    """
    found = [stats.paired_p(a, b) for a, b in itertools.combinations(losses, 2)]
    return min(1.0, len(found) * min(found))


def _roles(entry: Entry) -> set[str]:
    """Return a schedule's names one by one: a baseline with several names has them joined."""
    return {part for name in entry.names for part in name.split(" = ")}


def measure_noise(
    confirmed: Iterable[Mapping[int, float]],
    seeds: int,
    confidence: float,
    comparisons: int = 1,
    prior: Prior | None = None,
) -> Noise:
    """Return the noise of the confirmed losses.

    Args:
        confirmed: one schedule's losses by fresh seed each, nats.
        seeds: number of fresh seeds that the candidates share.
        confidence: of the verdict.
        comparisons: number of choices that the verdict's claims are corrected for.
        prior: of the paired variances, see `layersearch.results.moderated`.
    """
    repeated = [losses for losses in confirmed if len(losses) > 1]
    own = [not_none(stats.mean_interval(losses.values()).std) for losses in repeated]
    paired = stats.paired_std(repeated)
    floor, floor_range, detectable, seeds_for = None, None, None, []
    if paired is not None and seeds > 1:
        floor = stats.half_width(paired, seeds, confidence, prior)
        halves = [
            not_none(stats.paired_difference(a, b, confidence, prior=prior).half_width)
            for a, b in itertools.combinations(repeated, 2)
            if len(a.keys() & b.keys()) > 1
        ]
        floor_range = min(halves), max(halves)
        each, degrees = chosen_confidence(confidence, comparisons), prior.degrees if prior else 0.0
        known = _degrees(repeated)  # the noise is itself estimated
        detectable = stats.detectable_difference(paired, seeds, each, prior_degrees=degrees, std_degrees=known)
        if detectable:
            smaller = [size for size in ROUND_SIZES if size < detectable][:N_SMALLER]
            seeds_for = [(detectable, seeds)]
            seeds_for += [
                (size, stats.seeds_needed(paired, size, each, prior_degrees=degrees, std_degrees=known))
                for size in smaller
            ]
    return Noise(
        schedules=len(repeated),
        seeds=seeds,
        seed_std=stats.pooled_std([list(losses.values()) for losses in repeated]),
        seed_std_range=(min(own), max(own)) if own else None,
        paired_std=paired,
        floor=floor,
        floor_range=floor_range,
        resolvable=detectable,
        seeds_for=tuple(seeds_for),
        comparisons=comparisons,
    )


def _degrees(losses: Sequence[Mapping[int, float]]) -> float:
    """Return the degrees of freedom of `stats.paired_std`, at least 1 (Satterthwaite, Biometrics Bull. 2, 1946).

    A seed that k schedules have gives k - 1 degrees to the residuals, and they count k times: once for each pair of a
    schedule. The means of schedules take those of one seed.
    """
    sizes = sorted(Counter(seed for by_seed in losses for seed in by_seed).values(), reverse=True)[1:]
    squares = sum(k * k * (k - 1) for k in sizes)
    return max(1.0, sum(k * (k - 1) for k in sizes) ** 2 / squares) if squares else 1.0


def rank_fidelities(
    records: Sequence[TrialRecord],
    confirmed: Sequence[tuple[float, float]],
    confidence: float,
    predicted: Sequence[tuple[float, float]] = (),
) -> tuple[Fidelity, ...]:
    """Return the rank correlation of each rung, the surrogate and the search's seed, from all records of a run.

    ``confirmed`` holds (loss at the search's seed, mean at fresh seeds) of every schedule that has both, ``predicted``
    (leave-one-out prediction of the surrogate, last loss) of every complete schedule; all in nats.
    """
    complete = {r.schedule: r for r in records if r.phase == "search" and r.state == "complete"}
    # A rung decides among proposals. Baselines lie far off, and would make any early loss look like a good one.
    baselines = {r.schedule for r in records if r.role != PROPOSED}
    curves = [(dict(r.curve), not_none(r.loss)) for r in complete.values() if r.schedule not in baselines]
    rungs = Counter({r.schedule: r.steps for r in records if r.phase == "search" and r.state == "stopped"}.values())
    full_steps = max((record.full_steps for record in complete.values()), default=0)
    suffix = f" of {full_steps}" if full_steps else ""

    def fidelity(name: str, against: str, pairs: Sequence[tuple[float, float]], stopped: int = 0) -> Fidelity:
        agreement = stats.rank_correlation([a for a, _ in pairs], [b for _, b in pairs], confidence)
        return Fidelity(name=name, against=against, stopped=stopped, agreement=agreement)

    found = [
        fidelity(f"step {at}{suffix}", "last step", [(c[at], loss) for c, loss in curves if at in c], rungs[at])
        for at in sorted(rungs.keys() or {step for curve, _ in curves for step in curve if step < full_steps})
    ]
    if predicted:
        found.append(fidelity(SURROGATE, "last step", predicted))
    if confirmed:
        found.append(fidelity("search seed", "fresh seeds", confirmed))
    return tuple(found)
