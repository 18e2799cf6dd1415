"""The answer of one setting, from its records alone: l*, the knee, the best l within a budget, placements, layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layersearch.optimal_l.config import Setting
from layersearch.optimal_l.knee import Choice, best_within, find_knee
from layersearch.optimal_l.noninferiority import LStar, failures, find_l_star
from layersearch.optimal_l.placements import full_layers, named, place
from layersearch.optimal_l.protocol import l_star_of, select
from layersearch.results.stats import CONFIDENCE, Interval, mean_interval, paired_difference, pooled_std
from layersearch.schedule import Schedule
from layersearch.schedule.cost import attention_flops
from layersearch.training.record import TrialRecord

BEST = "best found"
ByseedLosses = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A placement of l full layers, measured on fresh seeds."""

    name: str
    """``best found``, or a name of the literature."""
    schedule: str
    loss: Interval
    to_best: Interval | None
    """Paired difference to the best found of the same l, nats, corrected for the number of named placements of that l;
    None for the best itself."""


@dataclass(frozen=True, kw_only=True)
class PerL:
    """What was found for one number of full layers."""

    l: int
    schedule: str
    """The best placement, chosen on the selection seeds."""
    cost: float
    """As a share of all-full's."""
    flops: int
    """Attention FLOPs of one forward pass over one sequence."""
    tried: int
    """Placements trained at the first selection seed."""
    spread: tuple[float, float]
    """Lowest and highest loss of those, nats."""
    placements: tuple[Placed, ...]
    """The best found first."""


@dataclass(frozen=True, kw_only=True)
class Larger:
    """The best placement of more full layers than the reference of l* has, measured on fresh seeds."""

    l: int
    schedule: str
    difference: Interval
    """To the reference, nats, paired; corrected for the number of larger l's."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """How much each layer needs full attention, at the first selection seed, nats. None: not trained."""

    restore: tuple[float | None, ...]
    """By layer: how far the loss falls below all-sparse's where this layer alone is full."""
    remove: tuple[float | None, ...]
    """By layer: how far the loss rises above all-full's where this layer alone is sparse."""
    pairs: tuple[tuple[float | None, ...], ...]
    """[i][j]: how far the loss falls below all-sparse's where layers i and j are full; i = j: `restore`."""
    interaction: tuple[tuple[float | None, ...], ...]
    """[i][j]: the pair's fall less both single ones; positive: the layers need each other."""


@dataclass(frozen=True, kw_only=True)
class SettingAnswer:
    """The answer of one length and depth."""

    name: str
    seq_len: int
    n_layers: int
    span: str
    """Of every layer that is not full."""
    regime: str
    delta: float
    """Nats."""
    l_star: LStar
    """Against the best schedule found."""
    larger: tuple[Larger, ...]
    """Whether the selection seeds chose its reference rightly: every larger l, ascending."""
    l_star_all_full: LStar
    """Against all-full."""
    knee: Choice
    at_budget: Choice | None
    budget: float | None
    curve: tuple[PerL, ...]
    """By l, ascending."""
    effects: Effects
    fresh_seeds: int
    """At the least and, where l* was in doubt, more."""
    most_seeds_spent: int
    """Fresh seeds of the schedule that got most."""
    failed_seeds: Mapping[str, tuple[int, int]]
    """Of the reference and of the schedule that shows l*, where they failed to learn at some fresh seeds: at how many,
    and of how many."""
    seed_std: float | None
    """Of one schedule's loss over fresh seeds, pooled, nats."""
    known_l: int | None
    """The planted truth of a generated task."""
    trials: int
    failed: int
    seconds: float
    """Of all trials, added up."""


def answer_setting(setting: Setting, records: Sequence[TrialRecord], known_l: int | None, failed: int) -> SettingAnswer:
    """Analyse the complete records of a setting.

    Args:
        setting: the setting.
        records: complete trials.
        known_l: of a generated task.
        failed: trials that failed.
    """
    asked = setting.asked
    searched, fresh = _losses(records, "search"), _losses(records, "confirm")
    chosen = select(setting, searched)
    all_full = str(place(setting, range(setting.n_layers)))
    curve = tuple(_per_l(setting, l, text, searched, fresh) for l, text in chosen.best.items() if fresh.get(text))
    shared = _shared(curve, fresh)
    ls, costs = [row.l for row in curve], [row.cost for row in curve]
    by_l = {row.l: [fresh[row.schedule][seed] for seed in shared] for row in curve}
    nothing = Choice(
        l=None, likely=(), confidence=CONFIDENCE, why="the trials at the best schedules share no fresh seed"
    )
    l_star = l_star_of(setting, chosen, fresh)
    share = asked.share(len(fresh.get(all_full, ())))
    decisive = dict.fromkeys((l_star.shown_by, l_star.reference))
    failed_seeds = {
        text: (len(found), len(fresh[text])) for text in decisive if (found := failures(fresh, text, asked.delta))
    }
    return SettingAnswer(
        name=setting.name,
        seq_len=setting.seq_len,
        n_layers=setting.n_layers,
        span=setting.span,
        regime=asked.regime,
        delta=asked.delta,
        l_star=l_star,
        larger=_larger(curve, fresh, chosen.reference),
        l_star_all_full=find_l_star(chosen.envelope, fresh, all_full, asked.delta, share=share),
        knee=find_knee(ls, costs, by_l, asked.delta) if shared else nothing,
        at_budget=None if asked.budget is None else best_within(ls, costs, by_l, asked.budget) if shared else nothing,
        budget=asked.budget,
        curve=curve,
        effects=_effects(setting, {t: found[asked.seed] for t, found in searched.items() if asked.seed in found}),
        fresh_seeds=len(shared),
        most_seeds_spent=max((len(found) for found in fresh.values()), default=0),
        failed_seeds=failed_seeds,
        seed_std=pooled_std([list(found.values()) for found in fresh.values()]),
        known_l=known_l,
        trials=len(records),
        failed=failed,
        seconds=sum(record.seconds for record in records),
    )


def _losses(records: Sequence[TrialRecord], phase: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for record in records:
        if record.phase == phase and record.state == "complete" and record.loss is not None:
            found.setdefault(record.schedule, {})[record.seed] = record.loss
    return found


def _shared(curve: Sequence[PerL], fresh: ByseedLosses) -> list[int]:
    """Return the fresh seeds that the best schedules of all l's share."""
    seeds = [set(fresh[row.schedule]) for row in curve]
    return sorted(set.intersection(*seeds)) if seeds else []


def _per_l(setting: Setting, l: int, text: str, searched: ByseedLosses, fresh: ByseedLosses) -> PerL:
    first = setting.asked.seed
    tried = [found[first] for other, found in searched.items() if Schedule.parse(other).n_full == l and first in found]
    others: dict[str, list[str]] = {}
    for name, schedule in named(setting, l).items():
        if fresh.get(str(schedule)):
            others.setdefault(str(schedule), []).append(name)
    rivals = [other for other in others if other != text]
    names = [BEST, *others.get(text, [])]
    placements = [Placed(name=" = ".join(names), schedule=text, loss=mean_interval(fresh[text].values()), to_best=None)]
    for other in rivals:
        common = fresh[other].keys() & fresh[text].keys()
        difference = paired_difference(fresh[other], fresh[text], comparisons=len(rivals)) if common else None
        loss = mean_interval(fresh[other].values())
        placements.append(Placed(name=" = ".join(others[other]), schedule=other, loss=loss, to_best=difference))
    model, schedule = setting.recipe.model, Schedule.parse(text)
    return PerL(
        l=l,
        schedule=text,
        cost=setting.bound.cost(schedule),
        flops=attention_flops(schedule, seq_len=setting.seq_len, n_heads=model.n_heads, head_dim=model.head_dim),
        tried=len(tried),
        spread=(min(tried), max(tried)) if tried else (float("nan"), float("nan")),
        placements=tuple(placements),
    )


def _larger(curve: Sequence[PerL], fresh: ByseedLosses, reference: str) -> tuple[Larger, ...]:
    theirs = fresh.get(reference, {})
    rows = [row for row in curve if row.l > Schedule.parse(reference).n_full]
    return tuple(
        Larger(
            l=row.l,
            schedule=row.schedule,
            difference=paired_difference(fresh[row.schedule], theirs, comparisons=len(rows)),
        )
        for row in rows
        if fresh[row.schedule].keys() & theirs.keys()
    )


def _effects(setting: Setting, losses: Mapping[str, float]) -> Effects:
    by_set = {full_layers(Schedule.parse(text)): loss for text, loss in losses.items()}
    layers = range(setting.n_layers)
    none, every = by_set.get(frozenset()), by_set.get(frozenset(layers))

    def fall(*full: int) -> float | None:
        loss = by_set.get(frozenset(full))
        return None if none is None or loss is None else none - loss

    def rise(layer: int) -> float | None:
        loss = by_set.get(frozenset(layers) - {layer})
        return None if every is None or loss is None else loss - every

    def together(i: int, j: int) -> float | None:
        pair, one, other = fall(i, j), fall(i), fall(j)
        return None if i == j or pair is None or one is None or other is None else pair - one - other

    return Effects(
        restore=tuple(fall(layer) for layer in layers),
        remove=tuple(rise(layer) for layer in layers),
        pairs=tuple(tuple(fall(i, j) for j in layers) for i in layers),
        interaction=tuple(tuple(together(i, j) for j in layers) for i in layers),
    )
