"""Foresight: a trial goes on past a rung while its end is expected to be worth the training that is left."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from random import Random

from layersearch.outlook import Observation, Outlook
from layersearch.record import TrialRecord
from layersearch.schedule import Schedule
from layersearch.space import BoundSpace


def observation(record: TrialRecord) -> Observation:
    """Return what a trial has shown, by share of its training."""
    curve = tuple((step / record.full_steps, loss) for step, loss in record.curve)
    return Observation(schedule=record.parsed(), seed=record.seed, curve=curve)


class Foresight:
    """Decides at each rung from what earlier generations let expect. See `Outlook.keep_going`.

    Like `Halving` it looks at earlier generations only, so that no answer depends on which worker is quicker.

    Args:
        space: the bound space.
        budget: of the search.
        records: trials of earlier generations, of the same phase and seed.
        members: schedules of the generation in training.
        steps: of a full trial.
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
        self._outlook, self._steps = Outlook(space, budget, seen), steps
        self._seed = seen[0].seed if seen else 0
        self._curves: dict[str, list[tuple[float, float]]] = {str(schedule): [] for schedule in members}
        taken = {*members, *(o.schedule for o in seen)}
        self._fresh = self._outlook.fresh_gain(taken, Random(self._seed))

    def keep_going(self, schedule: str, step: int, loss: float) -> bool:
        """Tell whether a trial with this loss at this rung is worth its full training."""
        curve = self._curves[schedule]
        curve.append((step / self._steps, loss))
        return self._outlook.keep_going(Schedule.parse(schedule), self._seed, curve, self._fresh)
