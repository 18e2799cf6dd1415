from __future__ import annotations

import numpy as np
import pytest

from layersearch.results import pareto


def test_nondominated_keeps_what_no_other_point_beats() -> None:
    points = [(3.0, 0.1), (2.0, 0.3), (2.5, 0.3), (2.5, 0.2), (2.0, 0.9), (1.9, 1.0), (2.0, 0.3)]
    assert [points[index] for index in pareto.nondominated(points)] == [
        (3.0, 0.1),
        (2.5, 0.2),
        (2.0, 0.3),
        (2.0, 0.3),
        (1.9, 1.0),
    ]
    assert pareto.nondominated([]) == []


def test_nondominated_equals_all_pairs_compared() -> None:
    points = [tuple(map(float, row)) for row in np.random.default_rng(0).integers(0, 20, size=(60, 2))]
    beaten = [any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in points) for a in points]
    assert sorted(pareto.nondominated(points)) == [index for index, out in enumerate(beaten) if not out]


def test_hypervolume_equals_the_area_of_the_stairs() -> None:
    points = [(2.0, 0.2), (1.0, 0.5), (2.5, 0.6)]
    assert pareto.hypervolume(points, (3.0, 1.0)) == pytest.approx(1.0 * 0.8 + 1.0 * 0.5)
    assert pareto.hypervolume([(3.0, 1.0), (4.0, 0.1)], (3.0, 1.0)) == 0.0
    assert pareto.hypervolume([], (3.0, 1.0)) == 0.0
