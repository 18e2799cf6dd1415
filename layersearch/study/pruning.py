"""Pruners stop trials early, at a rung.

Optuna cannot prune a study of several objectives, and an early loss told as a final one would mislead its sampler. So
the pruners are here, and the study never gets a stopped trial's loss.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from random import Random

from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.surrogate.acquisition import ExpectedImprovement, Observation
from layersearch.training.record import TrialRecord


class SuccessiveHalvingPruner:
    """Successive halving among trials of equal or lower cost.

    An expensive schedule cannot stop a cheap one, which would erase the cheap end of the Pareto front. Only earlier
    generations count, so no decision depends on worker speed.
    At a rung, 1/``reduction`` of the trials with equal or lower cost continue. Records are those of earlier
    generations, of the same phase and seed.
    """

    def __init__(self, space: BoundSpace, records: Iterable[TrialRecord], reduction: int) -> None:
        self._space = space
        self._peers: list[tuple[float, Mapping[int, float]]] = [(r.cost, dict(r.curve)) for r in records]
        self._reduction = reduction

    def keep_going(self, schedule: Schedule, step: int, loss: float) -> bool:
        """Return whether a trial with this loss at this rung continues."""
        cost = self._space.cost(schedule)
        losses = [curve[step] for peer_cost, curve in self._peers if peer_cost <= cost and step in curve]
        if len(losses) < self._reduction:
            return True  # too few to compare with
        places = math.ceil((len(losses) + 1) / self._reduction)
        return sum(other < loss for other in losses) < places


def observation(record: TrialRecord) -> Observation:
    """Return a trial's loss curve by share of its full training."""
    curve = tuple((step / record.full_steps, loss) for step, loss in record.curve)
    return Observation(schedule=record.schedule, seed=record.seed, curve=curve)


class ExpectedGainPruner:
    """Stop a trial whose expected gain no longer pays for its remaining steps. See `ExpectedImprovement.keep_going`.

    It looks at earlier generations only, as `SuccessiveHalvingPruner` does. So no answer depends on worker speed.
    Records are those of earlier generations, of the same phase and seed; ``members`` are the schedules of the current
    generation; ``steps`` are those of a full trial.
    """

    def __init__(
        self,
        space: BoundSpace,
        budget: float,
        records: Iterable[TrialRecord],
        members: Collection[Schedule],
        steps: int,
    ) -> None:
        seen = [observation(record) for record in records if record.state != "failed"]
        self._acquisition, self._steps = ExpectedImprovement(space, budget, seen), steps
        self._seed = seen[0].seed if seen else 0
        self._curves: dict[Schedule, list[tuple[float, float]]] = {schedule: [] for schedule in members}
        taken = {*members, *(o.schedule for o in seen)}
        self._fresh = self._acquisition.best_improvement(taken, Random(self._seed))

    def keep_going(self, schedule: Schedule, step: int, loss: float) -> bool:
        """Return whether a trial with this loss at this rung continues."""
        # A trial that goes on from its checkpoint, or begins again, passes its rungs again.
        curve = [(share, before) for share, before in self._curves[schedule] if share < step / self._steps]
        curve.append((step / self._steps, loss))
        self._curves[schedule] = curve
        return self._acquisition.keep_going(schedule, self._seed, curve, self._fresh)


TrialPruner = SuccessiveHalvingPruner | ExpectedGainPruner
