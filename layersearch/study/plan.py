"""The plan of a search, known before it starts, and its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from layersearch.config.recipe import Recipe
from layersearch.schedule import Schedule, Span
from layersearch.schedule.bound_space import BoundSpace
from layersearch.study.confirmation import DECIDING
from layersearch.training.record import TrialRecord
from layersearch.training.stages import check_choices

GENERATION = 4
"""Proposals per generation; constant, so records do not depend on the number of workers."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The trials of a search."""

    budget: float
    seed: int
    recipe: Recipe
    baselines: tuple[tuple[str, Schedule], ...]
    """(name, schedule), distinct schedules."""
    proposals: int
    """Maximum number of distinct proposals."""

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Steps before the last at which a trial is validated and may be stopped."""
        steps = self.recipe.training.steps
        return tuple(sorted({max(1, round(rung * steps)) for rung in self.recipe.search.rungs} - {steps}))

    @property
    def confirm_trials(self) -> int:
        """Maximum number of full trials in the confirmation phase."""
        search = self.recipe.search
        schedules = min(search.finalists, self.proposals) + len(self.baselines)
        return schedules * search.confirm_seeds + min(DECIDING, schedules) * search.second_round_seeds

    @property
    def confirm_seeds(self) -> tuple[int, ...]:
        """Fresh seeds of all finalists and baselines, without the search's."""
        return tuple(self.seed + 1 + index for index in range(self.recipe.search.confirm_seeds))

    @property
    def further_seeds(self) -> tuple[int, ...]:
        """Fresh seeds of the second round."""
        first = self.seed + 1 + self.recipe.search.confirm_seeds
        return tuple(first + index for index in range(self.recipe.search.second_round_seeds))

    @property
    def kept_trials(self) -> int:
        """Number of proposals that no pruner stops."""
        return min(self.recipe.search.kept_trials, self.proposals // 3)

    def keeps(self, number: int) -> bool:
        """Return whether the proposal of this number, from 0, is one that no pruner stops."""
        return bool(self.proposals) and (
            (number + 1) * self.kept_trials // self.proposals > number * self.kept_trials // self.proposals
        )

    @property
    def trials(self) -> int:
        """Number of trials, including stopped ones."""
        return len(self.baselines) + self.proposals + self.confirm_trials

    def full_trials(self) -> float:
        """Return the expected training in full trials: a rung keeps 1/``reduction``, ``expected_gain`` about half."""
        search = self.recipe.search
        reduction = 1 if search.pruner == "none" else search.reduction or 2
        share, alive, before = 0.0, 1.0, 0.0
        for rung in (*search.rungs, 1.0):
            share += alive * (rung - before)
            alive, before = alive / reduction, rung
        kept = self.kept_trials
        return len(self.baselines) + kept + (self.proposals - kept) * share + self.confirm_trials


def make_plan(
    recipe: Recipe, space: BoundSpace, budget: float, seed: int, further: Mapping[str, Schedule] | None = None
) -> Plan:
    """Return the plan of a search. ``further`` are more baselines by name; an existing baseline gets the name too.

    Raises:
        ConfigError: if the budget is out of range or below the space's cheapest schedule, or a choice does not fit the
            texts of a stage.
    """
    check_choices([Span.parse(text) for text in space.space.choices], recipe)
    named = {schedule: name for name, schedule in space.named_baselines(budget).items()}
    for name, schedule in (further or {}).items():
        named[schedule] = f"{named[schedule]} = {name}" if schedule in named else name
    baselines = tuple((name, schedule) for schedule, name in named.items())
    inside = sum(map(space.holds, named))
    proposals = max(0, min(recipe.search.trials - len(baselines), space.size - inside))
    return Plan(budget=budget, seed=seed, recipe=recipe, baselines=baselines, proposals=proposals)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a search."""

    phase: str
    """``baselines``, ``search``, ``confirm`` or ``done``."""
    done: int
    """Finished trials of this and of earlier calls."""
    planned: int
    """Total number of trials."""
    best: TrialRecord | None
    """The complete search trial within the budget with the lowest loss so far."""
    last: TrialRecord | None
    """The trial that just finished."""
    seconds_left: float | None
    """Estimate from the trials of this call; None before the first."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The progress of a selection on a pre-trained model."""

    phase: str
    """``loading``, ``gates``, ``search``, ``confirm`` or ``done``."""
    done: int
    planned: int
    note: str
    """The work at hand, or the best schedule so far."""
    seconds_left: float | None = None
    """Estimate for this phase; None at its beginning."""


Listener = Callable[[Progress], None]


def no_listener(progress: Progress) -> None:
    """Ignore the progress."""


def no_stage_listener(stage: Stage) -> None:
    """Ignore the progress."""
