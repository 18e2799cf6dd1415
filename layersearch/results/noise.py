"""Signal against noise: how far schedules lie apart, and how far those that do not differ would.

The highest of several losses less the lowest grows with their number even where nothing but the seed differs: for n
independent draws of a normal distribution it is d(n) standard deviations on average, 1.13 for two, 2.53 for six. So no
spread is given without the one that noise alone would make. What a seed does to all schedules alike cancels in it; what
is left has the paired-difference standard deviation over the square root of two, and a mean over k seeds has that over
the square root of k.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from layersearch.results import stats
from layersearch.results.result import Noise, Signal, Spread, known

if TYPE_CHECKING:
    from layersearch.results.result import Entry


@functools.lru_cache(maxsize=64)
def noise_range(n: int) -> float:
    """Return the mean of the highest less the lowest of n draws from a normal distribution, in standard deviations.

    It is the integral of 1 - P(x)^n - (1 - P(x))^n over all x, with the normal distribution function P (Tippett, "On
    the extreme individuals and the range of samples taken from a normal population", Biometrika 17, 1925).
    """
    from scipy import integrate, special

    half, _ = integrate.quad(lambda x: 1 - special.ndtr(x) ** n - special.ndtr(-x) ** n, 0, math.inf)
    return 2 * float(half)


def measure_signal(entries: Sequence[Entry], seeds: Sequence[int]) -> Signal:
    """Return how far schedules lie apart.

    Args:
        entries: every schedule of a run.
        seeds: the fresh seeds that confirmed schedules share.
    """
    losses = {entry.schedule: dict(entry.confirm) for entry in entries if seeds and _has(entry, seeds)}
    if len(losses) < 2:
        seeds = ()
        losses = {entry.schedule: {0: entry.search_loss} for entry in entries if entry.search_loss is not None}
    else:
        losses = {text: {seed: by_seed[seed] for seed in seeds} for text, by_seed in losses.items()}
    means = {text: math.fsum(by_seed.values()) / len(by_seed) for text, by_seed in losses.items()}
    measured = [entry for entry in entries if entry.schedule in losses]
    seed_std = stats.pooled_std([list(by_seed.values()) for by_seed in losses.values()])
    paired = stats.paired_std(losses.values())

    def spread(members: Sequence[Entry]) -> Spread | None:
        if len(members) < 2:
            return None
        texts = sorted((entry.schedule for entry in members), key=lambda text: (means[text], text))
        nats = means[texts[-1]] - means[texts[0]]
        noise = None if paired is None else paired / math.sqrt(2 * len(seeds))
        degrees = (len(losses) - 1) * (len(seeds) - 1)
        return Spread(
            schedules=tuple(texts),
            nats=nats,
            seed_stds=nats / seed_std if seed_std else None,
            noise_nats=None if noise is None else noise_range(len(texts)) * noise,
            noise_chance=range_chance(nats / noise, len(texts), degrees) if noise else None,
        )

    alike: dict[tuple[int, int], list[Entry]] = {}
    for entry in measured:
        alike.setdefault((entry.flops, entry.n_full), []).append(entry)
    most = max(alike.values(), key=lambda group: (len(group), group[0].flops, group[0].n_full), default=[])
    placements = spread(most)
    return Signal(
        seeds=tuple(seeds),
        seed_std=seed_std,
        placements=placements,
        n_full=most[0].n_full if placements else None,
        cost=most[0].cost if placements else None,
        sparse_and_full=spread([e for e in measured if {"all_sparse", "all_full"} & _roles(e)]),
        within_budget=spread([entry for entry in measured if entry.within_budget]),
    )


def _has(entry: Entry, seeds: Sequence[int]) -> bool:
    return set(seeds) <= dict(entry.confirm).keys()


def _roles(entry: Entry) -> set[str]:
    """Return a schedule's names one by one: a baseline that is several has them joined."""
    return {part for name in entry.names for part in name.split(" = ")}


def range_chance(ratio: float, n: int, degrees: int) -> float:
    """Return how often the range of n normal draws, over a std estimated apart, is above a ratio: scipy's
    ``studentized_range.sf``, to 1e-6. Importing ``scipy.stats`` takes longer than all else that ``show`` does.

    Args:
        ratio: the range in estimated standard deviations.
        n: draws, from 2 to about 30.
        degrees: degrees of freedom of the estimate.
    """
    from scipy import special

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


ROUND_SIZES = tuple(float(f"{digit}e{power}") for power in range(2, -9, -1) for digit in (5, 2, 1))
"""Differences in nats for which the number of seeds is stated, largest first."""


SMALLER = 2
"""How many of them below what a run's own seeds resolve."""


def measure_noise(confirmed: Iterable[Mapping[int, float]], seeds: int, confidence: float) -> Noise:
    """Return the noise that the confirmed losses show.

    Args:
        confirmed: losses by fresh seed, one mapping a schedule.
        seeds: fresh seeds that the candidates share.
        confidence: of the floor.
    """
    repeated = [losses for losses in confirmed if len(losses) > 1]
    own = [known(stats.mean_interval(losses.values()).std) for losses in repeated]
    paired = stats.paired_std(repeated)
    usable = paired is not None and seeds > 1
    resolvable = stats.resolvable(known(paired), seeds, confidence) if usable else None
    seeds_for = []
    if resolvable:
        smaller = [size for size in ROUND_SIZES if size < resolvable][:SMALLER]
        seeds_for = [(size, stats.seeds_needed(known(paired), size, confidence)) for size in smaller]
        seeds_for.insert(0, (resolvable, seeds))
    return Noise(
        schedules=len(repeated),
        seeds=seeds,
        seed_std=stats.pooled_std([list(losses.values()) for losses in repeated]),
        seed_std_range=(min(own), max(own)) if own else None,
        paired_std=paired,
        floor=stats.half_width(known(paired), seeds, confidence) if usable else None,
        resolvable=resolvable,
        seeds_for=tuple(seeds_for),
    )
