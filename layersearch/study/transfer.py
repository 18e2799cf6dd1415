"""Does one run rank schedules as another does, for example a small proxy's run and a larger one's?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from layersearch.config.recipe import Recipe
from layersearch.errors import ConfigError
from layersearch.results import stats
from layersearch.results.analyze import analyze
from layersearch.results.sentences import MIN_SPEARMAN
from layersearch.results.transfer import GOAL, Correlation, Regret, corrected_correlation, regret
from layersearch.schedule import Schedule
from layersearch.schedule.stretch import stretch
from layersearch.study.saved_run import load_records, load_request

Losses = Mapping[Schedule, Mapping[int, float]]
"""Loss of each schedule by seed, nats."""
Phase = Literal["confirm", "search"]

STUDIED = (
    "In a study of scales, proxies of 64 tokens ranked schedules as models of 256 tokens do with Spearman 0.69 to "
    "0.94 on text, 0.45 to 0.92 on mix; their winner on mix was mostly a poor choice there. layersearch transfer "
    "compares two."
)
"""What analysis/transfer/tables.md says of the scales of 64 tokens, against middle and deep-middle."""


@dataclass(frozen=True, kw_only=True)
class RunTransfer:
    """How the smaller of two runs ranks the schedules that both trained."""

    small: str
    """What the run trained: layers, width, tokens and steps."""
    large: str
    phase: Phase
    """``confirm``: losses at the fresh seeds; ``search``: at the search's one seed, with no correction for noise."""
    schedules: tuple[tuple[Schedule, Schedule], ...]
    """Each schedule of the small run, and the one that it stands for in the large run."""
    seeds: tuple[int, int]
    """Number of seeds of the small run and of the large one."""
    correlation: Correlation | None
    """None for fewer than four shared schedules, or where a run cannot tell them apart."""
    cost_alone: float | None
    """Spearman's correlation of the rule that the dearer schedule is better with the large run."""
    regret: Regret | None
    """None without a shared schedule."""
    verdict: str


def compare_runs(small: Path, large: Path) -> RunTransfer:
    """Compare two run folders; schedules match by their text, or by relative depth (`layersearch.schedule.stretch`).

    Confirmed losses are taken if ten schedules or more have them in both runs, or if the searches share no more.

    Raises:
        ConfigError: if both are one folder, or one of them is a selection of a pre-trained model.
        RunFolderError: if one is no run folder, or has no trial.
    """
    if small.resolve() == large.resolve():
        raise ConfigError(f"{small} is given twice; give the run of a small model, then the run of a larger one")
    (recipe, _, first_budget), (other, _, second_budget) = load_request(small), load_request(large)
    for path, each in ((small, recipe), (large, other)):
        if each.selection is not None:
            raise ConfigError(f"{path} selects layers of a pre-trained model; give runs that train proxies")
    # Not `load_result`: it also fits the surrogate, which takes seconds and tells nothing here.
    results = tuple(
        analyze(load_records(path), budget) for path, budget in ((small, first_budget), (large, second_budget))
    )
    scale = other.training.seq_len / recipe.training.seq_len
    found: dict[Phase, tuple[list[tuple[Schedule, Schedule]], Losses, Losses]] = {}
    phases: tuple[Phase, ...] = ("confirm", "search")
    for phase in phases:
        sides = []
        for result in results:
            losses = {
                entry.schedule: dict(entry.confirm)
                if phase == "confirm"
                else {}
                if entry.search_loss is None
                else {0: entry.search_loss}
                for entry in result.entries
            }
            sides.append({schedule: by_seed for schedule, by_seed in losses.items() if by_seed})
        found[phase] = matched(sides[0], sides[1], scale), sides[0], sides[1]
    enough = len(found["confirm"][0]) >= min(stats.MIN_BOUNDED, len(found["search"][0]))
    taken: Phase = "confirm" if enough else "search"
    pairs, first, second = found[taken]
    a = _table({key: first[key] for key, _ in pairs})
    b = _table({key: second[key] for _, key in pairs})
    correlation = corrected_correlation(a, b) if pairs else None
    costs = {entry.schedule: entry.cost for entry in results[1].entries}
    dearer = np.array([[-costs[key]] for _, key in pairs])
    alone = corrected_correlation(dearer, b) if pairs else None
    return RunTransfer(
        small=scale_text(recipe),
        large=scale_text(other),
        phase=taken,
        schedules=tuple(pairs),
        seeds=(a.shape[1], b.shape[1]) if pairs else (0, 0),
        correlation=correlation,
        cost_alone=None if alone is None else alone.corrected,
        regret=regret(a, b) if pairs else None,
        verdict=verdict(len(pairs), correlation),
    )


def matched(small: Losses, large: Losses, scale: float) -> list[tuple[Schedule, Schedule]]:
    """Return pairs of schedules that stand for each other, in order of the small run's text forms.

    A schedule stands for the same text; or for itself at the other depth with windows that keep their tokens, or their
    share of the text (``scale`` is the ratio of the lengths).
    """
    depths = {len(schedule) for schedule in large}
    pairs: list[tuple[Schedule, Schedule]] = []
    taken: set[Schedule] = set()
    for schedule in sorted(small):
        stretched = (stretch(schedule, depth=depth, scale=by) for depth in depths for by in (1.0, scale))
        for other in (schedule, *stretched):
            if other in large and other not in taken:
                pairs.append((schedule, other))
                taken.add(other)
                break
    return pairs


def _table(losses: Losses) -> NDArray[np.float64]:
    """Return losses, [schedules, seeds], at the seeds that all share; infinity where none is shared by all."""
    if not losses:
        return np.empty((0, 0))
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in losses.values())))
    if shared:
        return np.array([[by_seed[seed] for seed in shared] for by_seed in losses.values()])
    return np.array([[float(np.mean(list(by_seed.values())))] for by_seed in losses.values()])


def scale_text(recipe: Recipe) -> str:
    """Return the scale of a recipe's proxies in words."""
    model, training = recipe.model, recipe.training
    return (
        f"{model.n_layers} layers of width {model.d_model}, {training.seq_len:,} tokens, {training.steps:,} steps of "
        f"{training.batch_size} sequences"
    )


def scale_sentence(recipe: Recipe) -> str:
    """Say which scale a run stands for, and what is known of larger ones (``analysis/transfer``)."""
    said = f"Scale: {scale_text(recipe)}."
    if recipe.pretrained:
        return said
    return f"{said} {STUDIED}"


def verdict(n: int, found: Correlation | None) -> str:
    """Say in a sentence whether the small run ranks schedules as the large one does."""
    if n < stats.MIN_BOUNDED:
        return (
            f"Too few schedules to say: the runs share {n}, and an interval needs {stats.MIN_BOUNDED}. Search the same "
            "space with both, or train the first run's schedules in the second one (layersearch confirm)."
        )
    if found is not None and found.low is None and found.spearman > 1 - 1e-12:
        return "The small run ranks the shared schedules exactly as the large one does."
    if found is None or found.low is None or found.high is None:
        return "Nothing to say: one of the runs does not tell the shared schedules apart."
    small = "The small run ranks schedules"
    if found.low >= GOAL:
        return f"{small} as the large one does (Spearman shown to be at least {GOAL:g})."
    if found.high < MIN_SPEARMAN:
        return f"The small run ranks schedules DIFFERENTLY (Spearman shown to be below {MIN_SPEARMAN:g})."
    if found.low >= MIN_SPEARMAN:
        return f"{small} much as the large one does (Spearman shown to be at least {MIN_SPEARMAN:g})."
    return "It is not shown whether the small run ranks schedules as the large one does."
