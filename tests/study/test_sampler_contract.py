"""What every sampler that a recipe can name must hold, in the study that a search uses."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from layersearch.config.recipe import load_recipe
from layersearch.config.search import SearchConfig
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space
from layersearch.study.journal import Study
from tests.helpers.synthetic import record

SAMPLERS = typing.get_args(typing.get_type_hints(SearchConfig)["sampler"])
SPACE = BoundSpace(Space(name="small", choices=("full", "window:4", "window:2")), n_layers=4, seq_len=32, n_heads=2)
BUDGET = 0.7


def study(path: Path, sampler: str, seed: int = 0, space: BoundSpace = SPACE, budget: float = BUDGET) -> Study:
    search = load_recipe("smoke", [f"search.sampler={sampler}"]).search
    return Study(path, space, budget, search, seed)


def proposals(found: Study, already: list[Schedule], number: int) -> list[Schedule]:
    """Propose and tell one schedule after another, whose loss falls with each full layer; return all so far."""
    seen = list(already)
    while len(seen) < number:
        schedule = found.propose(seen, 1 + len(seen), 0)
        if schedule is None:
            break
        seen.append(schedule)
        loss = 3.0 - 0.2 * sum(span.is_full for span in schedule)
        found.tell(record(schedule, loss, cost=SPACE.cost(schedule)))
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampler_proposals_are_within_the_budget_and_distinct(sampler: str, tmp_path: Path) -> None:
    found = proposals(study(tmp_path / "a.journal", sampler), [], 12)
    assert len(found) == len(set(found)) == 12
    assert all(SPACE.cost(schedule) <= BUDGET for schedule in found)
    assert all(SPACE.encode(schedule) is not None for schedule in found)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampler_proposals_repeat_by_seed_and_after_a_resume(sampler: str, tmp_path: Path) -> None:
    whole = proposals(study(tmp_path / "a.journal", sampler), [], 8)
    assert proposals(study(tmp_path / "b.journal", sampler), [], 8) == whole
    begun = proposals(study(tmp_path / "c.journal", sampler), [], 4)
    assert begun == whole[:4]
    if sampler != "gain":  # it learns from records, which the journal does not hold whole; the search tells them again
        assert proposals(study(tmp_path / "c.journal", sampler), begun, 8) == whole


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampler_exhausted_space_ends_with_none(sampler: str, tmp_path: Path) -> None:
    space = BoundSpace(Space(name="tiny", choices=("full", "window:4")), n_layers=2, seq_len=32, n_heads=2)
    search = study(tmp_path / "a.journal", sampler, space=space, budget=1.0)
    seen: list[Schedule] = []
    for index in range(space.size):
        schedule = search.propose(seen, 1, index)
        assert schedule is not None
        seen.append(schedule)
    assert len(set(seen)) == space.size
    assert search.propose(seen, 1, space.size) is None
