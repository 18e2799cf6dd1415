"""Which placements of l full layers are tried: those of the literature, all of a small model, or a search's proposals.

A placement is a schedule of full layers and one sparse span. Where an l has more placements than are to be tried, the
named ones come first. The surrogate of the search (`layersearch.surrogate.gp`) proposes the others. It is fitted to all
selection trials so far, those of other l's too. Restoring one layer of all-sparse and removing one of all-full are its
anchors, and tell how much each layer needs full attention.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from random import Random

from layersearch.optimal_l.config import SEARCHED, Setting
from layersearch.schedule import Schedule, presets
from layersearch.surrogate.gp import MIN_SCHEDULES, Surrogate

_DRAWN = 400
"""Placements among which the surrogate chooses, where there are more."""
_HOPE = 1.0
"""Standard deviations below the predicted loss by which placements are ranked: untried ones get a chance."""


def count(setting: Setting, l: int) -> int:
    """Return how many placements there are."""
    return math.comb(setting.n_layers, l)


def place(setting: Setting, full: Collection[int]) -> Schedule:
    """Return the schedule that is full in these layers, counted from 0 at the bottom."""
    span = setting.bound.baseline_span
    assert span is not None
    return Schedule(tuple(presets.FULL if layer in full else span for layer in range(setting.n_layers)))


def named(setting: Setting, l: int) -> dict[str, Schedule]:
    """Return the placements of the literature that were asked for, by name; none at the two ends."""
    if l in (0, setting.n_layers):
        return {}
    places = [name for name in setting.asked.placements if name != SEARCHED]
    return {name: getattr(presets, name)(setting.n_layers, l, setting.span) for name in places}


def role(setting: Setting, schedule: Schedule) -> str:
    """Return the role of a schedule in its record: its names, as a search's baselines have them, or ``proposed``."""
    l = schedule.n_full
    if l == setting.n_layers:
        return "all_full"
    if l == 0:
        return "all_sparse"
    names = [
        f"{name}({l})"
        for name in ("bottom", "top", "middle", "interleaved")
        if getattr(presets, name)(setting.n_layers, l, setting.span) == schedule
    ]
    return " = ".join(names) or "proposed"


def first_round(setting: Setting) -> list[Schedule]:
    """Return what is trained whatever comes out: both ends, named placements, anchors, and every placement of few."""
    found: dict[Schedule, None] = {}
    searched = SEARCHED in setting.asked.placements
    ls = set(setting.ls)
    if searched:
        ls |= {0, min(1, setting.n_layers), setting.n_layers - 1}  # the anchors
    for l in sorted(ls):
        few = count(setting, l) <= setting.asked.per_l or l in (0, 1, setting.n_layers - 1)
        if l in (0, setting.n_layers):
            found[place(setting, range(l))] = None
            continue
        found |= dict.fromkeys(named(setting, l).values())
        if searched and few:
            combinations = itertools.combinations(range(setting.n_layers), l)
            found |= dict.fromkeys(place(setting, full) for full in combinations)
    return list(found)


def proposals(setting: Setting, l: int, losses: Mapping[Schedule, float], number: int) -> list[Schedule]:
    """Return placements of l full layers that were not tried, the most promising first.

    Args:
        setting: the setting.
        l: full layers.
        losses: of the selection's first seed by schedule, nats; all l's.
        number: at the most.
    """
    rng = Random(f"{setting.asked.seed}/{l}/{len(losses)}")
    open_ = [schedule for schedule in _candidates(setting, l, losses, rng) if schedule not in losses]
    if len(losses) < MIN_SCHEDULES:
        return open_[:number]
    surrogate = Surrogate(setting.bound, pairwise=False).fit(list(losses), list(losses.values()))
    means, stds = surrogate.predict(open_) if open_ else ((), ())
    order = sorted(range(len(open_)), key=lambda at: (means[at] - _HOPE * stds[at], open_[at]))
    return [open_[at] for at in order[:number]]


def _candidates(setting: Setting, l: int, losses: Mapping[Schedule, float], rng: Random) -> list[Schedule]:
    layers = range(setting.n_layers)
    if count(setting, l) <= _DRAWN:
        return [place(setting, full) for full in itertools.combinations(layers, l)]
    found = {place(setting, rng.sample(layers, l)): None for _ in range(_DRAWN)}
    # Beside random ones, those next to the best of this l and of one layer fewer.
    for near in (l, l - 1):
        best = min((s for s in losses if s.n_full == near), key=losses.__getitem__, default=None)
        if best is None:
            continue
        full = set(best.full_layers)
        for layer in sorted(set(layers) - full):
            for gone in sorted(full) if near == l else [-1]:
                found[place(setting, (full | {layer}) - {gone})] = None
    return list(found)
