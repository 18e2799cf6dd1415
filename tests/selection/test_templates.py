"""Named placements: their layers, their cost, and when they are left out."""

from __future__ import annotations

import pytest

from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space
from layersearch.selection.templates import TEMPLATES, named_placements

SINKS = ("full", "window:8", "window:8+sink:2", "window:16", "window:16+sink:2")


def bound(choices: tuple[str, ...] = SINKS, n_layers: int = 12, **more: object) -> BoundSpace:
    space = Space(name="s", choices=choices, baseline_span=more.pop("baseline_span", choices[-1]), **more)  # type: ignore[arg-type]
    return BoundSpace(space, n_layers=n_layers, seq_len=128, n_heads=2)


@pytest.mark.parametrize(
    ("name", "n_layers", "full"),
    [
        ("3:1, last full", 12, {3, 7, 11}),
        ("3:1, last full", 10, {1, 5, 9}),
        ("5:1 and layer 0", 12, {0, 5, 11}),
        ("5:1", 14, {5, 11}),
        ("odd layers", 6, {1, 3, 5}),
    ],
)
def test_template_has_the_published_full_layers(name: str, n_layers: int, full: set[int]) -> None:
    assert set(TEMPLATES[name](n_layers)) == full
    found = named_placements(bound(n_layers=n_layers), 1.0)[name]
    assert set(found.full_layers) == full


@pytest.mark.parametrize("budget", [0.1, 0.2, 0.35, 0.5, 0.8, 1.0])
def test_named_placements_keep_to_the_budget_and_the_space(budget: float) -> None:
    space = bound()
    found = named_placements(space, budget)
    assert all(space.cost(schedule) <= budget for schedule in found.values())
    assert all(space.encode(schedule) is not None for schedule in found.values())


def test_named_placements_take_the_most_full_layers_that_fit() -> None:
    space, budget = bound(), 0.5
    found = named_placements(space, budget)
    count = max(n for n in range(1, 12) if space.cost(Schedule.parse(f"full*{n} window:16+sink:2*{12 - n}")) <= budget)
    assert str(found[f"bottom({count})"]) == f"full*{count} window:16+sink:2*{12 - count}"
    assert str(found[f"top({count})"]) == f"window:16+sink:2*{12 - count} full*{count}"
    assert {f"middle({count})", f"interleaved({count})"} <= set(found)


def test_template_takes_the_widest_sparse_span_with_sinks_that_fits() -> None:
    space = bound()
    wide, narrow = (
        Schedule.parse(f"window:{size}+sink:2*3 full window:{size}+sink:2*3 full window:{size}+sink:2*3 full")
        for size in (16, 8)
    )
    assert named_placements(space, space.cost(wide))["3:1, last full"] == wide
    assert named_placements(space, space.cost(wide) - 1e-6)["3:1, last full"] == narrow
    assert "3:1, last full" not in named_placements(space, space.cost(narrow) - 1e-6)
    assert str(named_placements(space, 0.3)["one window"]) == "window:16+sink:2*12"
    plain = bound(("full", "window:8", "window:16"))
    assert str(named_placements(plain, 0.3)["one window"]) == "window:16*12"


def test_named_placements_at_the_cheapest_schedule_are_left_out() -> None:
    space = bound()
    lowest = space.cost_range[0]
    assert named_placements(space, lowest) == {}  # a window of 8 without sinks, and templates have sinks here


def test_named_placements_of_a_space_without_sparse_span_are_none() -> None:
    assert named_placements(bound(("full",), baseline_span=None), 1.0) == {}


def test_named_placements_outside_the_space_are_left_out() -> None:
    """Layer 0 may not be full: bottom and 5:1 with layer 0 do not exist."""
    found = named_placements(bound(layers={0: SINKS[1:]}), 1.0)
    assert not [name for name in found if name.startswith("bottom")]
    assert "5:1 and layer 0" not in found
    assert "odd layers" in found
