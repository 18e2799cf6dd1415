"""A space in which all sparse layers of a schedule share one span, against the filtered space without that rule."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from layersearch.errors import UserError
from layersearch.export.families import FAMILIES
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space, load_space
from layersearch.surrogate.constraint import cost_limit
from layersearch.surrogate.solve import solve
from tests.helpers.synthetic import record

CHOICES = ("full", "window:2", "window:4", "block:8")
SHAPES: list[dict[str, Any]] = [{}, {"layers": {0: ("full", "window:4")}}, {"tied": ((0, 2),)}, {"pattern": 2}]


def bound(one_sparse: bool = True, **given: Any) -> BoundSpace:
    space = Space(**({"name": "one", "choices": CHOICES, "one_sparse": one_sparse} | given))
    return BoundSpace(space, n_layers=4, seq_len=32, n_heads=2)


def sparse(schedule: Schedule) -> set[str]:
    return {str(span) for span in schedule if not span.is_full}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_sparse_schedules_are_those_with_one_sparse_span(shape: dict[str, Any]) -> None:
    space, free = bound(**shape), bound(False, **shape)
    wanted = {schedule for schedule in free.schedules() if len(sparse(schedule)) <= 1}
    found = list(space.schedules())
    assert set(found) == wanted
    assert len(found) == len(wanted) == space.size < free.size
    assert all((space.encode(s) is not None) == (s in wanted) for s in free.schedules())
    costs = [space.cost(schedule) for schedule in wanted]
    assert space.cost_range == (min(costs), max(costs))
    assert space.cost(space.cheapest()) == min(costs)
    assert space.cheapest() in wanted


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_sparse_neighbours_lie_in_the_space_and_lead_everywhere(shape: dict[str, Any]) -> None:
    space = bound(**shape)
    every = set(space.schedules())
    reached, todo = {space.cheapest()}, [space.cheapest()]
    while todo:
        start = todo.pop()
        near = list(space.neighbors(start))
        assert len(near) == len(set(near))
        assert set(near) <= every - {start}
        assert {space.neighbor(start, Random(seed)) for seed in range(20)} <= set(near)
        todo += [schedule for schedule in near if schedule not in reached]
        reached |= set(near)
    assert reached == every


def test_one_sparse_samples_are_uniform() -> None:
    space, rng = bound(), Random(0)
    counts = Counter(space.sample(rng) for _ in range(100 * space.size))
    assert set(counts) == set(space.schedules())
    # A count of mean 100 lies within five standard deviations of it.
    assert all(50 < count < 150 for count in counts.values())


@pytest.mark.parametrize("budget", [0.15, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_one_sparse_proposal_is_repaired_into_space_and_budget(seed: int, budget: float) -> None:
    space, free = bound(), bound(False)
    proposal = free.sample(Random(seed))
    params = free.encode(proposal)
    assert params is not None
    found = space.repair(params, budget, Random(1))
    assert space.encode(found) is not None
    assert space.cost(found) <= budget
    if space.encode(proposal) is not None and space.cost(proposal) <= budget:
        assert found == proposal
    fitting = [s for s in space.schedules() if space.cost(s) <= budget]
    changes = {s: sum(a != b for a, b in zip(s, proposal, strict=True)) for s in fitting}
    assert changes[found] == min(changes.values())


def test_one_sparse_baselines_lie_in_the_space() -> None:
    space = bound()
    for name, schedule in space.named_baselines(0.5).items():
        assert name == "all_full" or space.encode(schedule) is not None


@pytest.mark.parametrize("seed", range(3))
def test_one_sparse_solve_proposes_only_what_the_space_holds(seed: int) -> None:
    space, rng = bound(), Random(seed)
    size = {"full": 3.0, "window:2": 0.0, "window:4": 1.0, "block:8": 1.5}

    def loss(schedule: Schedule) -> float:
        return 3 - sum(0.05 * (layer + 1) * size[str(span)] for layer, span in enumerate(schedule))

    trained = list(dict.fromkeys(space.sample(rng) for _ in range(14)))
    records = [record(s, loss(s), cost=space.cost(s)) for s in trained]
    found = solve(records, space, cost_limit(space, 0.5))
    assert found.proposal is not None
    assert space.encode(found.proposal.schedule) is not None
    assert found.proposal.cost <= 0.5


def test_one_sparse_without_a_common_sparse_span_is_refused() -> None:
    with pytest.raises(UserError, match="one_sparse, but 'layers' leaves no sparse span"):
        bound(layers={0: ("window:2",), 1: ("window:4",)})


def test_one_sparse_shipped_space_can_always_be_exported(tmp_path: Path) -> None:
    space = BoundSpace(load_space("hf-exportable"), n_layers=6, seq_len=64, n_heads=2)
    families = [held.capabilities for held in FAMILIES.values() if "window" in held.layer_types]
    assert len(families) == len(FAMILIES) - 1
    assert space.size == 5 * (2**6 - 1) + 1
    assert not [s for s in space.schedules() for family in families if family.problem(s)]
