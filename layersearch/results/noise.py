"""Signal and noise: the spread of schedules, the spread from the seed alone, and rank correlations.

The range of n losses grows with n even if only the seed differs. So each spread comes with the one from noise alone.
The noise of one schedule is the paired-difference standard deviation over the square root of two, since seed effects
common to all schedules cancel. See `docs/methods/winner.md`.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import numpy as np
from scipy import special

from layersearch.results import stats
from layersearch.results.result import Entry, Fidelity, Noise, Signal, Spread, not_none
from layersearch.training.record import TrialRecord

ROUND_SIZES = tuple(float(f"{digit}e{power}") for power in range(2, -9, -1) for digit in (5, 2, 1))
"""Differences in nats for which the number of seeds is stated, largest first."""
N_SMALLER = 2  # number of them stated below the smallest difference that the run's own seeds detect
SURROGATE = "surrogate, unseen"
"""Leave-one-out predictions of the surrogate, the model behind the sampler `gain` and ``solve``."""


@functools.lru_cache(maxsize=64)
def noise_range(n: int) -> float:
    """Return the mean range of n draws from a normal distribution, in standard deviations.

    It is the integral of 1 - P(x)^n - (1 - P(x))^n over all x, with the normal distribution function P (Tippett, "On
    the extreme individuals and the range of samples taken from a normal population", Biometrika 17, 1925).
    """
    from scipy import integrate

    half, _ = integrate.quad(lambda x: 1 - special.ndtr(x) ** n - special.ndtr(-x) ** n, 0, math.inf)
    return 2 * float(half)


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
    paired = stats.paired_std(dict(enumerate(group)) for group in losses.values())
    noise = None if paired is None else paired / math.sqrt(2 * len(seeds))
    degrees = (len(losses) - 1) * (len(seeds) - 1)

    def spread(members: Sequence[Entry]) -> Spread | None:
        if len(members) < 2:
            return None
        schedules = sorted((entry.schedule for entry in members), key=lambda schedule: (means[schedule], schedule))
        nats = means[schedules[-1]] - means[schedules[0]]
        return Spread(
            schedules=tuple(schedules),
            nats=nats,
            seed_stds=nats / seed_std if seed_std else None,
            noise_nats=None if noise is None else noise_range(len(schedules)) * noise,
            noise_chance=range_chance(nats / noise, len(schedules), degrees) if noise else None,
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


def _roles(entry: Entry) -> set[str]:
    """Return a schedule's names one by one: a baseline with several names has them joined."""
    return {part for name in entry.names for part in name.split(" = ")}


def range_chance(ratio: float, n: int, degrees: int) -> float:
    """Return how often the range of n normal draws (2 to about 30), over a std estimated apart, is above a ratio.

    ``degrees`` are those of freedom of the estimate. It is scipy's ``studentized_range.sf``, to 1e-6; importing
    ``scipy.stats`` takes longer than all else that ``show`` does.
    """
    nodes, weights = np.polynomial.legendre.leggauss(128)
    # Over the estimate s, whose degrees * s^2 is chi-square distributed, up to tails of 1e-14.
    half = degrees / 2
    low, high = (math.sqrt(tail(half, 1e-14) / half) for tail in (special.gammaincinv, special.gammainccinv))
    s = low + (high - low) * (nodes + 1) / 2
    log_density = math.log(2) + half * math.log(half) - math.lgamma(half) + (degrees - 1) * np.log(s) - half * s**2
    # Over the highest draw z: the n - 1 others lie within ratio * s below it.
    z = 8.5 * nodes
    others = special.ndtr(z) - special.ndtr(z - ratio * s[:, None])
    normal = 8.5 * weights * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    below = (high - low) / 2 * (weights * np.exp(log_density)) @ (n * others ** (n - 1) @ normal)
    return min(1.0, max(0.0, 1 - float(below)))


def measure_noise(confirmed: Iterable[Mapping[int, float]], seeds: int, confidence: float) -> Noise:
    """Return the noise of the confirmed losses.

    Each mapping holds one schedule's losses by fresh seed. The candidates share ``seeds`` of them.
    """
    repeated = [losses for losses in confirmed if len(losses) > 1]
    own = [not_none(stats.mean_interval(losses.values()).std) for losses in repeated]
    paired = stats.paired_std(repeated)
    floor, detectable, seeds_for = None, None, []
    if paired is not None and seeds > 1:
        floor = stats.half_width(paired, seeds, confidence)
        detectable = stats.detectable_difference(paired, seeds, confidence)
        if detectable:
            smaller = [size for size in ROUND_SIZES if size < detectable][:N_SMALLER]
            seeds_for = [(detectable, seeds)]
            seeds_for += [(size, stats.seeds_needed(paired, size, confidence)) for size in smaller]
    return Noise(
        schedules=len(repeated),
        seeds=seeds,
        seed_std=stats.pooled_std([list(losses.values()) for losses in repeated]),
        seed_std_range=(min(own), max(own)) if own else None,
        paired_std=paired,
        floor=floor,
        resolvable=detectable,
        seeds_for=tuple(seeds_for),
    )


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
    curves = [(dict(record.curve), not_none(record.loss)) for record in complete.values()]
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
