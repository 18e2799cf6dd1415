"""The placements of l full layers to try: those of the literature, all of a small model, or proposals of a search.

A placement is a schedule of full layers and one sparse span. If an l has more placements than may be tried, the named
ones come first, and the search's surrogate proposes the others (`docs/methods/l-star.md`).
"""

import itertools
import math
from collections.abc import Collection, Mapping
from random import Random

from layersearch.optimal_l.config import SEARCHED, Setting
from layersearch.schedule import Schedule, presets
from layersearch.surrogate.gp import MIN_SCHEDULES, Surrogate

_N_CANDIDATES = 400  # maximum number of placements that the surrogate ranks
_EXPLORATION = 1.0
"""Candidates are ranked by predicted loss minus this many standard deviations (lower confidence bound)."""


def count(setting: Setting, l: int) -> int:
    """Return the number of placements of l full layers."""
    return math.comb(setting.n_layers, l)


def placement(setting: Setting, full: Collection[int]) -> Schedule:
    """Return the schedule with full attention in these layers, counted from 0 at the bottom."""
    span = setting.bound.baseline_span
    assert span is not None
    return presets.place(setting.n_layers, full, span)


def _all_placements(setting: Setting, l: int) -> list[Schedule]:
    return [placement(setting, full) for full in itertools.combinations(range(setting.n_layers), l)]


def named_placements(setting: Setting, l: int) -> dict[str, Schedule]:
    """Return the configured placements of the literature by name; none for l = 0 and for all layers full."""
    if l in (0, setting.n_layers):
        return {}
    names = [name for name in setting.config.placements if name != SEARCHED]
    return {name: getattr(presets, name)(setting.n_layers, l, setting.span) for name in names}


def role_of(setting: Setting, schedule: Schedule) -> str:
    """Return the role of a schedule in its record: its names, as those of a search's baselines, or ``proposed``."""
    l = schedule.n_full
    if l in (0, setting.n_layers):
        return "all_full" if l else "all_sparse"
    names = [
        f"{name}({l})"
        for name in ("bottom", "top", "middle", "interleaved")
        if getattr(presets, name)(setting.n_layers, l, setting.span) == schedule
    ]
    return " = ".join(names) or "proposed"


def first_round(setting: Setting) -> list[Schedule]:
    """Return the placements that are always trained: both ends, named ones, anchors, and all where an l has few."""
    found: dict[Schedule, None] = {}
    searched = SEARCHED in setting.config.placements
    anchors = {0, min(1, setting.n_layers), setting.n_layers - 1} if searched else set()
    for l in sorted({*setting.ls, *anchors}):
        if l in (0, setting.n_layers):
            found[placement(setting, range(l))] = None
            continue
        found |= dict.fromkeys(named_placements(setting, l).values())
        if searched and (count(setting, l) <= setting.config.per_l or l in (1, setting.n_layers - 1)):
            found |= dict.fromkeys(_all_placements(setting, l))
    return list(found)


def proposals(setting: Setting, l: int, losses: Mapping[Schedule, float], number: int) -> list[Schedule]:
    """Return at most ``number`` untried placements of l full layers, the most promising first.

    Losses are those of the first selection seed, of every l, in nats.
    """
    rng = Random(f"{setting.config.seed}/{l}/{len(losses)}")
    untried = [schedule for schedule in _candidates(setting, l, losses, rng) if schedule not in losses]
    if len(losses) < MIN_SCHEDULES:
        return untried[:number]
    surrogate = Surrogate(setting.bound, pairwise=False).fit(list(losses), list(losses.values()))
    means, stds = surrogate.predict(untried) if untried else ((), ())
    order = sorted(range(len(untried)), key=lambda at: (means[at] - _EXPLORATION * stds[at], untried[at]))
    return [untried[at] for at in order[:number]]


def _candidates(setting: Setting, l: int, losses: Mapping[Schedule, float], rng: Random) -> list[Schedule]:
    if count(setting, l) <= _N_CANDIDATES:
        return _all_placements(setting, l)
    layers = range(setting.n_layers)
    found = {placement(setting, rng.sample(layers, l)): None for _ in range(_N_CANDIDATES)}
    # Besides random placements: the neighbors of the best with l full layers and with one fewer.
    for near in (l, l - 1):
        best = min((s for s in losses if s.n_full == near), key=losses.__getitem__, default=None)
        if best is None:
            continue
        full = set(best.full_layers)
        for layer in sorted(set(layers) - full):
            for removed in sorted(full) if near == l else [-1]:
                found[placement(setting, (full | {layer}) - {removed})] = None
    return list(found)
