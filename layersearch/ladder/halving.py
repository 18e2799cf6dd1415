"""Successive halving at equal cost: which trial goes on past a rung.

Optuna cannot prune a study of several objectives, and telling it an early loss as a final one would poison it; so the
rule stands here and the study never sees a stopped trial's loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from layersearch.record import TrialRecord
from layersearch.schedule import Schedule
from layersearch.space import BoundSpace


class Halving:
    """Decides at each rung from trials that were finished before.

    A trial competes only with those that cost no more than it does: a dear schedule cannot end a cheap one, which
    would erase the cheap end of the frontier. Because only earlier generations are looked at, the answer does not
    depend on which worker is quicker.

    Args:
        space: the bound space.
        records: trials of earlier generations, of the same phase and seed.
        reduction: of the trials at a rung that cost no more, one in so many goes on.
    """

    def __init__(self, space: BoundSpace, records: Iterable[TrialRecord], reduction: int) -> None:
        self._space = space
        self._peers: list[tuple[float, Mapping[int, float]]] = [(r.cost, dict(r.curve)) for r in records]
        self._reduction = reduction

    def keep_going(self, schedule: str, step: int, loss: float) -> bool:
        """Tell whether a trial with this loss at this rung is worth its full training."""
        cost = self._space.cost(Schedule.parse(schedule))
        losses = [curve[step] for peer_cost, curve in self._peers if peer_cost <= cost and step in curve]
        if len(losses) < self._reduction:
            return True  # too few to compare with
        places = math.ceil((len(losses) + 1) / self._reduction)
        return sum(other < loss for other in losses) < places
