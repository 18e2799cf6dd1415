"""The result of one setting, from its records alone: l*, the knee, the best l within a budget, placements, layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layersearch.optimal_l.config import OptimalLConfig, Setting
from layersearch.optimal_l.knee import Choice, best_within, find_knee
from layersearch.optimal_l.noninferiority import LStar, find_l_star
from layersearch.optimal_l.placements import named_placements, placement
from layersearch.optimal_l.protocol import Selection, l_star_of, losses_of, select
from layersearch.optimal_l.scaling_law import Law, fit_laws
from layersearch.results.failures import Losses, failed_seeds
from layersearch.results.stats import Interval, mean_interval, paired_difference, pooled_std
from layersearch.schedule import Schedule
from layersearch.schedule.files import plain
from layersearch.training.record import TrialRecord

BEST = "best found"


@dataclass(frozen=True, kw_only=True)
class PlacementResult:
    """A placement of l full layers, measured on fresh seeds."""

    name: str
    """``best found``, or a name of the literature."""
    schedule: Schedule
    loss: Interval
    to_best: Interval | None
    """Paired difference to the best found of the same l, nats; None for the best itself. Bonferroni-corrected for all
    named placements of the page."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """The results of one number of full layers."""

    l: int
    schedule: Schedule
    """The best placement on the selection seeds."""
    cost: float
    """Attention cost as a share of all-full's."""
    flops: int
    """Attention FLOPs of one forward pass over one sequence."""
    tried: int
    """Placements trained at the first selection seed."""
    spread: tuple[float, float] | tuple[None, None]
    """Lowest and highest loss of these, nats; None if there is none."""
    placements: tuple[PlacementResult, ...]
    """The best found first."""


@dataclass(frozen=True, kw_only=True)
class LargerL:
    """The best placement with more full layers than the reference of l*, measured on fresh seeds."""

    l: int
    schedule: Schedule
    difference: Interval
    """Paired difference to the reference, nats; Bonferroni-corrected for the number of larger l's."""


@dataclass(frozen=True, kw_only=True)
class LayerEffects:
    """The effect of full attention in each layer, at the first selection seed, nats. None: not trained."""

    restore: tuple[float | None, ...]
    """Loss of all-sparse minus the loss with one layer full, by layer."""
    remove: tuple[float | None, ...]
    """Loss with one layer sparse minus the loss of all-full, by layer."""
    pairs: tuple[tuple[float | None, ...], ...]
    """[i][j]: loss of all-sparse minus the loss with layers i and j full; i = j: `restore`."""
    interaction: tuple[tuple[float | None, ...], ...]
    """[i][j]: the pair's effect minus both single effects. Positive: the layers need each other."""


@dataclass(frozen=True, kw_only=True)
class SettingAnswer:
    """The result of one sequence length and depth."""

    name: str
    seq_len: int
    n_layers: int
    span: str
    """Span of every layer that is not full."""
    regime: str
    delta: float
    """Margin, nats."""
    l_star: LStar
    """l* against the best schedule found."""
    larger: tuple[LargerL, ...]
    """Check of the reference of `l_star`: all larger l's, ascending."""
    l_star_all_full: LStar
    """l* against all-full."""
    knee: Choice
    at_budget: Choice | None
    budget: float | None
    curve: tuple[CurvePoint, ...]
    """One point per l, ascending."""
    effects: LayerEffects
    fresh_seeds: int
    """Minimum number of fresh seeds per schedule."""
    most_seeds_spent: int
    """Maximum number of fresh seeds per schedule."""
    failed_seeds: Mapping[Schedule, tuple[int, int]]
    """(failed seeds, fresh seeds) of the reference and of the schedule that shows l*."""
    seed_std: float | None
    """Standard deviation of one schedule's loss over fresh seeds, pooled over schedules, nats."""
    known_l: int | None
    """The true l of a generated task."""
    trials: int
    failed: int
    seconds: float
    """Total time of all trials."""


def answer_setting(
    setting: Setting, records: Sequence[TrialRecord], known_l: int | None, failed: int, settings: int = 1
) -> SettingAnswer:
    """Analyze the complete trials of a setting.

    ``known_l`` is the true l of a generated task; ``settings`` is the number of settings on one page.
    """
    config = setting.config
    searched, fresh = losses_of(records, "search"), losses_of(records, "confirm")
    chosen = select(setting, searched)
    all_full = placement(setting, range(setting.n_layers))
    curve = _curve(setting, chosen, searched, fresh, settings)
    shared = sorted(set.intersection(*(set(fresh[row.schedule]) for row in curve))) if curve else []
    ls, costs = [row.l for row in curve], [row.cost for row in curve]
    by_l = {row.l: [fresh[row.schedule][seed] for seed in shared] for row in curve}
    undefined = Choice(why="the trials at the best schedules share no fresh seed")
    at_budget = None
    if config.budget is not None:
        at_budget = best_within(ls, costs, by_l, config.budget) if shared else undefined
    l_star = l_star_of(setting, chosen, fresh)
    unlearned = failed_seeds(fresh, config.delta)
    share = config.share(len(fresh.get(all_full, ())))
    return SettingAnswer(
        name=setting.name,
        seq_len=setting.seq_len,
        n_layers=setting.n_layers,
        span=setting.span,
        regime=config.regime,
        delta=config.delta,
        l_star=l_star,
        larger=_larger(curve, fresh, chosen.reference),
        l_star_all_full=find_l_star(chosen.envelope, fresh, all_full, config.delta, share=share),
        knee=find_knee(ls, costs, by_l, config.delta) if shared else undefined,
        at_budget=at_budget,
        budget=config.budget,
        curve=curve,
        effects=_effects(setting, {s: found[config.seed] for s, found in searched.items() if config.seed in found}),
        fresh_seeds=len(shared),
        most_seeds_spent=max((len(found) for found in fresh.values()), default=0),
        failed_seeds={
            schedule: (len(unlearned[schedule]), len(fresh[schedule]))
            for schedule in dict.fromkeys((l_star.shown_by, l_star.reference))
            if fresh.get(schedule)
        },
        seed_std=pooled_std([list(found.values()) for found in fresh.values()]),
        known_l=known_l,
        trials=len(records),
        failed=failed,
        seconds=sum(record.seconds for record in records),
    )


def _curve(
    setting: Setting, chosen: Selection, searched: Losses, fresh: Losses, settings: int
) -> tuple[CurvePoint, ...]:
    names: dict[int, dict[Schedule, list[str]]] = {}
    for l, best in chosen.best.items():
        if fresh.get(best):
            names[l] = {best: [BEST]}
            for name, schedule in named_placements(setting, l).items():
                if fresh.get(schedule):
                    names[l].setdefault(schedule, []).append(name)
    # The page says which of all placements are worse, so its level is that of all of them together.
    comparisons = settings * max(1, sum(len(here) - 1 for here in names.values()))
    return tuple(_point(setting, l, here, searched, fresh, comparisons) for l, here in names.items())


def _point(
    setting: Setting,
    l: int,
    names: Mapping[Schedule, Sequence[str]],
    searched: Losses,
    fresh: Losses,
    comparisons: int,
) -> CurvePoint:
    first, best = setting.config.seed, next(iter(names))
    tried = [found[first] for other, found in searched.items() if other.n_full == l and first in found]
    placements = []
    for schedule, own in names.items():
        difference = None
        if schedule != best and fresh[schedule].keys() & fresh[best].keys():
            difference = paired_difference(fresh[schedule], fresh[best], comparisons=comparisons)
        loss = mean_interval(fresh[schedule].values())
        placements.append(PlacementResult(name=" = ".join(own), schedule=schedule, loss=loss, to_best=difference))
    model = setting.recipe.model
    return CurvePoint(
        l=l,
        schedule=best,
        cost=setting.bound.cost(best),
        flops=2 * model.head_dim * setting.bound.work.total(best),
        tried=len(tried),
        spread=(min(tried), max(tried)) if tried else (None, None),
        placements=tuple(placements),
    )


def _larger(curve: Sequence[CurvePoint], fresh: Losses, reference: Schedule) -> tuple[LargerL, ...]:
    theirs = fresh.get(reference, {})
    rows = [row for row in curve if row.l > reference.n_full]
    return tuple(
        LargerL(
            l=row.l,
            schedule=row.schedule,
            difference=paired_difference(fresh[row.schedule], theirs, comparisons=len(rows)),
        )
        for row in rows
        if fresh[row.schedule].keys() & theirs.keys()
    )


def _effects(setting: Setting, losses: Mapping[Schedule, float]) -> LayerEffects:
    by_set = {frozenset(schedule.full_layers): loss for schedule, loss in losses.items()}
    layers = range(setting.n_layers)

    def minus(one: float | None, *others: float | None) -> float | None:
        for other in others:
            one = None if one is None or other is None else one - other
        return one

    def restore(*full: int) -> float | None:
        return minus(by_set.get(frozenset()), by_set.get(frozenset(full)))

    def remove(layer: int) -> float | None:
        return minus(by_set.get(frozenset(layers) - {layer}), by_set.get(frozenset(layers)))

    return LayerEffects(
        restore=tuple(restore(layer) for layer in layers),
        remove=tuple(remove(layer) for layer in layers),
        pairs=tuple(tuple(restore(i, j) for j in layers) for i in layers),
        interaction=tuple(
            tuple(None if i == j else minus(restore(i, j), restore(i), restore(j)) for j in layers) for i in layers
        ),
    )


@dataclass(frozen=True, kw_only=True)
class OptimalL:
    """The result of a study."""

    settings: tuple[SettingAnswer, ...]
    laws: dict[str, tuple[Law, ...]]
    """Scaling laws by what varies: ``length``, ``depth``."""
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as in ``answer.json``."""
        found: dict[str, Any] = plain(self)
        return found


def find_laws(config: OptimalLConfig, answers: Sequence[SettingAnswer]) -> dict[str, tuple[Law, ...]]:
    """Return the scaling laws of l* over each size that varies, ``length`` or ``depth``."""
    depth, length = config.recipe.model.n_layers, config.recipe.training.seq_len
    varied = {
        "length": [a for a in answers if a.n_layers == depth and a.seq_len in config.lengths],
        "depth": [a for a in answers if a.seq_len == length and a.n_layers in config.depths],
    }
    return {
        name: fit_laws(
            [size_of(a, name) for a in varied[name]],
            [a.l_star.value for a in varied[name]],
            [(a.l_star.low, a.l_star.value) for a in varied[name]],
        )
        for name, sizes in (("length", config.lengths), ("depth", config.depths))
        if len(sizes) > 1
    }


def size_of(answer: SettingAnswer, name: str) -> int:
    """Return a setting's length in tokens or depth in layers."""
    return answer.seq_len if name == "length" else answer.n_layers
