"""The plan of a search: what it will train, known before it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from layersearch.config.recipe import Recipe
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.training.record import TrialRecord

GENERATION = 4
"""Proposals of one generation; fixed, so that records do not depend on the number of workers."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search will train, known before it starts."""

    budget: float
    seed: int
    recipe: Recipe
    baselines: tuple[tuple[str, Schedule], ...]
    """(name, schedule), distinct schedules."""
    proposals: int
    """Distinct schedules to be proposed, at the most."""

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
        """All trials, stopped ones included."""
        return len(self.baselines) + self.proposals + self.confirm_trials

    def full_trials(self) -> float:
        """Return the expected training in full trials: a rung keeps one trial in ``reduction``.

        ``expected_gain`` has no such factor. It is counted as if it kept every second trial.
        """
        search = self.recipe.search
        reduction = 1 if search.pruner == "none" else search.reduction or 2
        share, alive, before = 0.0, 1.0, 0.0
        for rung in (*search.rungs, 1.0):
            share += alive * (rung - before)
            alive, before = alive / reduction, rung
        return len(self.baselines) + self.proposals * share + self.confirm_trials


def make_plan(
    recipe: Recipe, space: BoundSpace, budget: float, seed: int, further: Mapping[str, Schedule] | None = None
) -> Plan:
    """Return what a search with these settings trains.

    Args:
        recipe: what one trial runs.
        space: the bound space.
        budget: of the search.
        seed: of the search.
        further: schedules by name to stand among the baselines; one that is there already gets the name besides.

    Raises:
        LayersearchError: if the budget is out of range or below what the space can reach.
    """
    named = {schedule: name for name, schedule in space.named_baselines(budget).items()}
    for name, schedule in (further or {}).items():
        named[schedule] = f"{named[schedule]} = {name}" if schedule in named else name
    baselines = tuple((name, schedule) for schedule, name in named.items())
    inside = sum(space.encode(schedule) is not None for schedule in named)
    proposals = max(0, min(recipe.search.trials - len(baselines), space.size - inside))
    return Plan(budget=budget, seed=seed, recipe=recipe, baselines=baselines, proposals=proposals)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a search is."""

    phase: str
    """``baselines``, ``search``, ``confirm`` or ``done``."""
    done: int
    """Trials finished, of this and of earlier calls."""
    planned: int
    """Trials in all."""
    best: TrialRecord | None
    """The lowest search loss within the budget so far, of complete trials."""
    last: TrialRecord | None
    """The trial that just finished."""
    seconds_left: float | None
    """Estimated from the trials of this call; None before the first."""


Listener = Callable[[Progress], None]


def no_listener(progress: Progress) -> None:
    """Ignore the progress."""
