"""The Pareto frontier of loss and cost, both minimized.

The algorithms are moocore's (Fonseca, Paquete, López-Ibáñez, "An improved dimension-sweep algorithm for the
hypervolume indicator", CEC 2006).
"""

from collections.abc import Sequence

import moocore
import numpy as np


def nondominated(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the (loss, cost) points that no other dominates, cheapest first; equal points stay."""
    if not points:
        return []
    kept = np.flatnonzero(moocore.is_nondominated(np.asarray(points, dtype=np.float64), keep_weakly=True))
    return sorted((int(index) for index in kept), key=lambda index: (points[index][1], points[index][0], index))


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the area that the (loss, cost) points dominate up to the reference point, nats times cost.

    A point that is not better than the reference in both adds nothing.
    """
    if not points:
        return 0.0
    return float(moocore.hypervolume(np.asarray(points, dtype=np.float64), ref=np.asarray(reference, np.float64)))
