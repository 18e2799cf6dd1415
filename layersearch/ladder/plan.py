"""The plan: what a search will train, known before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from layersearch.recipe import Recipe
from layersearch.schedule import Schedule
from layersearch.screening import Screening, make_screening
from layersearch.shared import refuse_sharded_weights
from layersearch.space import BoundSpace


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search will train, known before it starts."""

    budget: float
    seed: int
    recipe: Recipe
    baselines: tuple[tuple[str, str], ...]
    """(name, schedule), distinct schedules."""
    proposals: int
    """Distinct schedules to be proposed, at the most."""
    screening: Screening | None
    """What one network with shared weights is trained under and scores before the search, if that is asked for."""

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Steps at which a trial is validated and may be stopped."""
        steps = self.recipe.training.steps
        return tuple(sorted({max(1, round(rung * steps)) for rung in self.recipe.search.rungs} - {steps}))

    @property
    def confirm_trials(self) -> int:
        """Full trials of the confirming phase."""
        finalists = min(self.recipe.search.finalists, self.proposals)
        return (finalists + len(self.baselines)) * self.recipe.search.confirm_seeds

    @property
    def confirm_seeds(self) -> tuple[int, ...]:
        """Fresh seeds; never the search's own."""
        return tuple(self.seed + 1 + index for index in range(self.recipe.search.confirm_seeds))

    @property
    def trials(self) -> int:
        """All trials, stopped ones and a screening included."""
        return len(self.baselines) + self.proposals + self.confirm_trials + (self.screening is not None)

    def full_trials(self) -> float:
        """Return the expected training in full-trial equivalents, if each rung keeps one in ``reduction``."""
        search = self.recipe.search
        share, alive, before = 0.0, 1.0, 0.0
        for rung in (*search.rungs, 1.0):
            share += alive * (rung - before)
            alive, before = alive / search.reduction, rung
        screening = 0.0 if self.screening is None else len(self.screening.steps) / self.recipe.training.steps
        return len(self.baselines) + self.proposals * share + self.confirm_trials + screening


def make_plan(
    recipe: Recipe, space: BoundSpace, budget: float, seed: int, further: Mapping[str, str] | None = None
) -> Plan:
    """Return what a search with these settings trains.

    Args:
        recipe: what one trial runs.
        space: the bound space.
        budget: of the search.
        seed: of the search.
        further: schedules by name to stand among the baselines; one that is there already gets the name besides.

    Raises:
        UserError: if the budget is out of range or below what the space can reach, or a screening that is asked for
            does not suit the space or the recipe.
    """
    named = {str(schedule): name for name, schedule in space.named_baselines(budget).items()}
    for name, text in (further or {}).items():
        named[text] = f"{named[text]} = {name}" if text in named else name
    baselines = tuple((name, text) for text, name in named.items())
    inside = sum(space.encode(Schedule.parse(text)) is not None for _, text in baselines)
    proposals = max(0, min(recipe.search.trials - len(baselines), space.size - inside))
    screening = None
    if recipe.search.screening:
        refuse_sharded_weights(recipe)
        screening = make_screening(recipe, space, budget, seed, named)
    return Plan(budget=budget, seed=seed, recipe=recipe, baselines=baselines, proposals=proposals, screening=screening)
