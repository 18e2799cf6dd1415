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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layersearch import stats
from layersearch.trust import Strict

if TYPE_CHECKING:
    from layersearch.result import Entry


@dataclass(frozen=True, kw_only=True)
class Spread(Strict):
    """The highest loss of some schedules less the lowest."""

    schedules: tuple[str, ...]
    """Text forms, lowest loss first."""
    nats: float
    seed_stds: float | None
    """The same in standard deviations of one schedule's loss over seeds; None if that is unknown or zero."""
    noise_nats: float | None
    """What it would be on average if the seed alone set them apart; None where no noise could be measured."""
    noise_chance: float | None
    """How often the seed alone would spread them at least as far, in [0, 1]: the studentized range's tail, if the noise
    of all schedules is as wide."""


@dataclass(frozen=True, kw_only=True)
class Signal(Strict):
    """How far schedules lie apart, from the means over the fresh seeds that they share."""

    seeds: tuple[int, ...]
    """Those seeds; empty before two schedules are confirmed: the losses are then the search's, on its one seed."""
    seed_std: float | None
    """Of one schedule's loss over seeds, pooled over the schedules that are compared, nats."""
    placements: Spread | None
    """The largest set of schedules of equal cost with equally many full layers (of equals, the most expensive)."""
    n_full: int | None
    """Full layers of each of those."""
    cost: float | None
    """Attention FLOPs of each of those, over all-full's."""
    sparse_and_full: Spread | None
    """all_sparse and all_full."""
    within_budget: Spread | None
    """Every schedule that costs at most the budget."""


@functools.lru_cache(maxsize=64)
def noise_range(n: int) -> float:
    """Return the mean of the highest less the lowest of n draws from a normal distribution, in standard deviations.

    It is the integral of 1 - P(x)^n - (1 - P(x))^n over all x, with the normal distribution function P (Tippett, "On
    the extreme individuals and the range of samples taken from a normal population", Biometrika 17, 1925).
    """
    from scipy import integrate, stats

    half, _ = integrate.quad(lambda x: 1 - stats.norm.cdf(x) ** n - stats.norm.sf(x) ** n, 0, math.inf)
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
            noise_chance=_chance(nats / noise, len(texts), degrees) if noise else None,
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


def _chance(ratio: float, n: int, degrees: int) -> float:
    from scipy import stats

    # The integral may miss its ends by a rounding error.
    return min(1.0, max(0.0, float(stats.studentized_range.sf(ratio, n, degrees))))
