"""A screening: one network with shared weights that is trained under many schedules at once and then ranks them.

Spans carry no weights, so the sequences of one batch may follow different schedules. Each step draws several from the
whole space, uniformly, for an equal share of the batch each; afterwards every schedule that is asked about is scored on
the validation set.

With two choices a layer the scores ranked plain text well (Spearman 0.83 to 0.87 at one trial's steps), two hops nearly
as another seed's search does (0.70 to 0.81), and recall poorly at one trial's steps (0.09 to 0.35), unevenly at two
(0.40 to 0.88). With three or more they reached 0.5 to 0.7 at best, so that a screening of such a space is refused.
The study is analysis/signal/SHARED_WEIGHTS.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from random import Random

from layersearch.errors import UserError
from layersearch.frontier import hypervolume
from layersearch.recipe import Recipe, TrainingConfig
from layersearch.schedule import Schedule
from layersearch.space import BoundSpace

CHOICES = 2
"""Most choices of a layer with which shared weights were seen to rank schedules as trials do, if not everywhere."""
DRAWN = 8
"""Schedules of one step, at the most."""
SCORED = 256
"""Schedules that are scored, at the most, the baselines apart."""
_NOTHING = 1e-12
"""Areas this small, nats times cost, are rounding."""
_LOOKED_AT = 2**16
"""Spaces up to this size are looked through for all schedules within the budget."""


@dataclass(frozen=True, kw_only=True)
class Screening:
    """What one network is trained under, and which schedules it then scores. Explicit: no space is needed to run it."""

    steps: tuple[tuple[str, ...], ...]
    """The schedules of each optimiser step, in their text form: as many for every step, a divisor of the batch size;
    each for an equal run of the batch's sequences."""
    scored: tuple[str, ...]
    """The schedules whose validation loss is wanted."""

    def training(self, training: TrainingConfig) -> TrainingConfig:
        """Return how the network trains: as a trial, but with as many steps as there are here."""
        steps = len(self.steps)
        return dataclasses.replace(training, steps=steps, warmup_steps=min(training.warmup_steps, steps))


def screening_steps(recipe: Recipe) -> int:
    """Return the optimiser steps of a recipe's screening; 0: it has none."""
    share = recipe.search.screening
    return max(1, round(share * recipe.training.steps)) if share else 0


def make_screening(recipe: Recipe, space: BoundSpace, budget: float, seed: int, baselines: Iterable[str]) -> Screening:
    """Return the screening of a search; the same for the same arguments.

    Args:
        recipe: with ``search.screening`` above 0.
        space: the bound space.
        budget: of the search.
        seed: of the search; with the step it decides what is drawn.
        baselines: schedules that are scored whatever they cost; one outside the space is not, since the network has not
            been trained under its spans.

    Raises:
        UserError: if a layer has more choices than `CHOICES`.
    """
    most = max(len(options) for options in space.options)
    if most > CHOICES:
        raise UserError(
            f"search.screening: search space {space.space.name!r} gives a layer {most} choices; with more than two, "
            "shared weights ranked schedules too loosely (Spearman 0.5 to 0.7, up to 0.9 with two): set "
            "search.screening=0, or name a space with two 'choices'"
        )
    batch = recipe.training.batch_size
    drawn = max(number for number in range(1, DRAWN + 1) if batch % number == 0)
    steps = []
    for step in range(screening_steps(recipe)):
        rng = Random(f"{seed}/{step}")
        steps.append(tuple(str(space.sample(rng)) for _ in range(drawn)))
    known = [text for text in baselines if space.encode(Schedule.parse(text)) is not None]
    scored = dict.fromkeys([*known, *map(str, _within(space, budget, Random(f"{seed}/scored")))])
    return Screening(steps=tuple(steps), scored=tuple(scored))


def _within(space: BoundSpace, budget: float, rng: Random) -> list[Schedule]:
    """Return the schedules within the budget if they are few, else `SCORED` of them."""
    if space.size <= _LOOKED_AT:
        inside = [schedule for schedule in space.schedules() if space.cost(schedule) <= budget]
        return inside if len(inside) <= SCORED else rng.sample(inside, SCORED)
    # Drawn from everywhere almost all of a large space has half of its layers full: each is repaired to a cost that is
    # drawn itself, so that cheap ones are not rare.
    cheapest = space.cost_range[0]
    found: dict[Schedule, None] = {}
    for _ in range(4 * SCORED):
        params = space.encode(space.sample(rng))
        assert params is not None
        found[space.repair(params, min(budget, rng.uniform(cheapest, budget)), rng)] = None
        if len(found) == SCORED:
            break
    return list(found)


def most_promising(
    space: BoundSpace, budget: float, losses: Mapping[Schedule, float], taken: Collection[Schedule]
) -> Schedule | None:
    """Return the schedule that adds the most area under the frontier of those taken; None where none adds any.

    Args:
        space: the bound space.
        budget: the largest cost that counts, as a share of the all-full schedule's.
        losses: screened, in nats; schedules outside the space or over the budget are passed over.
        taken: schedules that are trained or about to be.
    """
    points = {
        schedule: (loss, space.cost(schedule))
        for schedule, loss in losses.items()
        if space.encode(schedule) is not None and space.cost(schedule) <= budget
    }
    if not points:
        return None
    reference = (max(loss for loss, _ in points.values()), budget)
    known = [point for schedule, point in points.items() if schedule in taken]
    least = hypervolume(known, reference) + _NOTHING
    added = {s: hypervolume([*known, point], reference) for s, point in points.items() if s not in taken}
    best = min(added, key=lambda s: (-added[s], points[s], str(s)), default=None)
    return best if best is not None and added[best] > least else None
