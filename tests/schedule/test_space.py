"""Search spaces: reading, encoding, cost, baselines and repair."""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from layersearch.config.loader import find_file
from layersearch.errors import UserError
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.cost import budget_ratio
from layersearch.schedule.space import Space, load_space
from layersearch.schedule.work import Work

SHIPPED = {"laptop": (6, 64, 2), "smoke": (2, 48, 2), "masformer-1.3b": (24, 8192, 16), "gpu-125m": (12, 2048, 12),
           "wide": (6, 512, 2), "planted": (4, 28, 2), "local": (4, 48, 2), "hf-exportable": (6, 64, 2),
           "text": (6, 256, 2), "pretrained": (6, 512, 2), "patterns": (6, 512, 2),
           "smoke-encoder": (2, 48, 2), "smoke-segments": (2, 48, 2), "smoke-t5": (2, 48, 2),
           "smoke-classes": (2, 40, 2), "lra": (6, 2000, 8), "staged": (4, 512, 2)}  # fmt: skip
"""Layers, tokens and heads of a model that each shipped space fits."""
ENCODERS = ("smoke-encoder", "smoke-t5", "smoke-classes", "lra")


def bound(choices: str = "full window:8 block:12", **sizes: Any) -> BoundSpace:
    size = {"n_layers": 4, "seq_len": 48, "n_heads": 2} | {
        key: sizes.pop(key) for key in ("n_layers", "seq_len", "n_heads") if key in sizes
    }
    return BoundSpace(Space(name="test", choices=tuple(choices.split()), **sizes), **size)


def write(folder: Path, content: Any) -> str:
    path = folder / "space.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(path)


def every_schedule(space: BoundSpace) -> list[Schedule]:
    variables = space.variables
    return [
        space.decode(dict(zip(variables, values, strict=True))) for values in itertools.product(*variables.values())
    ]


def test_space_shipped_files_are_all_tested() -> None:
    folder = find_file("laptop", "search_spaces").parent
    assert {path.stem for path in folder.glob("*.yaml")} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_space_shipped_reaches_its_budget_and_opens_with_its_command(name: str) -> None:
    space = load_space(name)
    n_layers, seq_len, n_heads = SHIPPED[name]
    segment = 12 if name == "smoke-segments" else None
    work = Work(seq_len=seq_len, n_heads=n_heads, bidirectional=name in ENCODERS, segment=segment)
    fitted = BoundSpace(space, n_layers=n_layers, work=work)
    assert space.name == name
    assert space.budget is not None
    baselines = fitted.named_baselines(space.budget)
    assert {"all_full", "all_sparse"} < set(baselines)
    assert any(schedule.n_full for label, schedule in baselines.items() if label != "all_full")
    first = find_file(name, "search_spaces").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# layersearch run ")
    assert f"--space {name}" in first
    assert f"--budget {space.budget}" in first


def test_space_masformer_with_four_full_layers_is_a_baseline() -> None:
    space = load_space("masformer-1.3b")
    assert space.budget is not None
    baselines = BoundSpace(space, n_layers=24, seq_len=8192, n_heads=16).named_baselines(space.budget)
    assert baselines["bottom(4)"] == Schedule.parse("full*4 block:1024*20")


def test_space_lists_multiply_out_and_equal_spans_merge(tmp_path: Path) -> None:
    choices = ["full", {"kind": "window", "size": [8, 16], "dilation": [1, 2], "dilated_heads": [None, 2]}]
    space = load_space(write(tmp_path, {"name": "x", "choices": choices}))
    assert space.choices == (
        "full", "window:8", "window:8/2", "window:8/2@2", "window:16", "window:16/2", "window:16/2@2",
    )  # fmt: skip


def test_space_mapping_reaches_every_field(tmp_path: Path) -> None:
    choice = {"kind": "window", "size": 8, "dilation": 2, "dilated_heads": 1, "sink": 4, "decay": 0.5, "pool": 3}
    space = load_space(write(tmp_path, {"name": "x", "choices": [choice]}))
    assert space.choices == ("window:8/2@1+sink:4+las:0.5/3",)


def test_load_space_keys_of_the_file_reach_the_space(tmp_path: Path) -> None:
    text = """
name: x
choices: [full, "window:8", {kind: block, size: [12]}]
layers: {0: [full], 3: ["window:8", {kind: block, size: 12}]}
tied: [[1, 2]]
budget: 0.5
baseline_span: block:12
"""
    space = load_space(write(tmp_path, text))
    fitted = BoundSpace(space, n_layers=5, seq_len=48, n_heads=2)
    assert space.budget == 0.5
    assert fitted.groups == ((0,), (1, 2), (3,), (4,))
    assert fitted.variables == {
        "layer_01": ("full", "window:8", "block:12"),
        "layer_03": ("window:8", "block:12"),
        "layer_04": ("full", "window:8", "block:12"),
    }
    params = {"layer_01": "window:8", "layer_03": "block:12", "layer_04": "full"}
    assert fitted.decode(params) == Schedule.parse("full window:8*2 block:12 full")
    assert str(fitted.baseline_span) == "block:12"
    assert fitted.size == 3 * 2 * 3


def test_space_pattern_repeats_the_first_layers() -> None:
    space = bound("full window:8", pattern=3, n_layers=7)
    assert list(space.variables) == ["layer_00", "layer_01", "layer_02"]
    params = {"layer_00": "window:8", "layer_01": "full", "layer_02": "window:8"}
    assert space.decode(params) == Schedule.parse("window:8 full window:8 window:8 full window:8 window:8")


def test_bound_space_variable_names_sort_by_layer_in_deep_models() -> None:
    names = list(bound("full window:8", n_layers=120).variables)
    assert names == sorted(names)
    assert names[7] == "layer_007"


@pytest.mark.parametrize(
    "options", [{}, {"tied": ((0, 2), (1, 3))}, {"pattern": 2}, {"layers": {1: ("full",), 2: ("window:8", "block:12")}}]
)
def test_bound_space_encode_and_decode_are_inverse_and_size_counts_them(options: dict[str, Any]) -> None:
    space = bound(**options)
    schedules = every_schedule(space)
    assert len(set(schedules)) == len(schedules) == space.size
    for schedule in schedules:
        params = space.encode(schedule)
        assert params is not None
        assert space.decode(params) == schedule
    costs = [space.cost(schedule) for schedule in schedules]
    assert space.cost_range == (min(costs), max(costs))
    assert space.cost(space.cheapest()) == min(costs)
    assert costs == [budget_ratio(schedule, seq_len=48, n_heads=2) for schedule in schedules]


@pytest.mark.parametrize(
    "text", ["full*3", "full*5", "window:9 full*3", "full window:8 full*2", "full*3 window:8", "block:12 full*3"]
)
def test_encode_schedule_outside_the_space_is_none(text: str) -> None:
    space = bound(tied=((0, 1),), layers={3: ("full",)})
    assert space.encode(Schedule.parse(text)) is None


@pytest.mark.parametrize("options", [{}, {"tied": ((0, 2), (1, 3))}, {"layers": {1: ("full",)}}])
def test_neighbours_are_all_schedules_one_variable_away(options: dict[str, Any]) -> None:
    space = bound(**options)
    start = space.sample(Random(0))
    code = space.encode(start)
    assert code is not None

    def distance(schedule: Schedule) -> int:
        other = space.encode(schedule)
        assert other is not None
        return sum(code[name] != other[name] for name in code)

    near = list(space.neighbors(start))
    assert len(near) == len(set(near))
    assert set(near) == {schedule for schedule in every_schedule(space) if distance(schedule) == 1}


def test_neighbours_of_a_schedule_outside_the_space_are_refused() -> None:
    with pytest.raises(UserError, match="outside search space 'test'"):
        next(bound().neighbors(Schedule.parse("window:9*4")))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), budget=st.floats(0.32, 1.0), tied=st.booleans())
def test_repair_meets_the_budget_with_the_fewest_changes(seed: int, budget: float, tied: bool) -> None:
    space = bound("full window:8 block:12 window:24", tied=((0, 1),) if tied else (), n_layers=4)
    proposal = space.sample(Random(seed))
    params = space.encode(proposal)
    assert params is not None

    def changes(schedule: Schedule) -> int:
        other = space.encode(schedule)
        assert other is not None
        return sum(params[name] != other[name] for name in params)

    repaired = space.repair(params, budget, Random(seed))
    assert repaired == space.repair(params, budget, Random(seed))
    assert space.cost(repaired) <= budget
    fewest = min(changes(schedule) for schedule in every_schedule(space) if space.cost(schedule) <= budget)
    assert changes(repaired) == fewest


def test_repair_reaches_every_equally_near_set_of_layers() -> None:
    space = bound("full window:8", n_layers=3)
    params = space.encode(Schedule.parse("full*3"))
    assert params is not None
    budget = space.cost(Schedule.parse("full full window:8"))
    found = {str(space.repair(params, budget, Random(seed))) for seed in range(40)}
    assert found == {"full*2 window:8", "full window:8 full", "window:8 full*2"}


def test_bound_space_large_is_never_enumerated() -> None:
    choices = "full window:8 window:16 block:12 window:8+sink:2 window:24"
    space = bound(choices, n_layers=48)
    assert space.size == 6**48
    params = space.encode(space.decode(dict.fromkeys(space.variables, "full")))
    assert params is not None
    repaired = space.repair(params, 0.4, Random(1))
    assert space.cost(repaired) <= 0.4
    assert len(list(space.neighbors(repaired))) == 48 * 5
    assert len(space.named_baselines(0.4)) == 6


def test_sample_follows_the_seed_and_lies_in_the_space() -> None:
    space = bound(tied=((0, 3),))
    draws = [space.sample(Random(seed)) for seed in range(30)]
    assert draws == [space.sample(Random(seed)) for seed in range(30)]
    assert len(set(draws)) > 10
    assert all(space.encode(schedule) is not None for schedule in draws)


def test_baselines_take_the_largest_l_that_fits() -> None:
    space = bound("full window:8 block:12", n_layers=6, baseline_span="window:8")
    budget = 0.6
    baselines = space.named_baselines(budget)
    assert baselines["all_full"] == Schedule.parse("full*6")
    assert baselines["all_sparse"] == Schedule.parse("block:12*6")
    l = baselines["bottom(2)"].n_full  # noqa: E741
    assert baselines["bottom(2)"] == Schedule.parse("full*2 window:8*4")
    assert baselines["top(2)"] == Schedule.parse("window:8*4 full*2")
    assert baselines["middle(2)"] == Schedule.parse("window:8*2 full*2 window:8*2")
    assert baselines["interleaved(2)"] == Schedule.parse("window:8 full window:8*2 full window:8")
    assert space.cost(Schedule.parse("full*3 window:8*3")) > budget >= space.cost(baselines["bottom(2)"])
    assert l == 2


def test_baselines_one_schedule_of_two_keeps_both_names() -> None:
    space = bound("full window:8", n_layers=3)
    baselines = space.named_baselines(space.cost(Schedule.parse("full window:8*2")))
    assert baselines["middle(1) = interleaved(1)"] == Schedule.parse("window:8 full window:8")
    assert len(set(baselines.values())) == len(baselines)


def test_baselines_that_tied_layers_cannot_express_are_left_out() -> None:
    space = bound("full window:8", tied=((0, 1), (2, 3)))
    baselines = space.named_baselines(0.9)
    assert set(baselines) == {"all_full", "all_sparse", "bottom(2)", "top(2)"}


def test_baselines_small_budget_has_no_full_layer() -> None:
    space = bound("full window:8")
    assert set(space.named_baselines(space.cost_range[0])) == {"all_full", "all_sparse"}


def test_baselines_space_without_sparse_spans_has_one() -> None:
    assert bound("full").named_baselines(1.0) == {"all_full": Schedule.parse("full*4")}


def test_baselines_at_budget_one_still_differ_from_all_full() -> None:
    baselines = bound("full window:8").named_baselines(1.0)
    assert set(baselines) == {"all_full", "all_sparse", "bottom(3) = middle(3)", "top(3)", "interleaved(3)"}
    assert len(set(baselines.values())) == len(baselines)


@pytest.mark.parametrize("budget", [0.0, -1.0, 2.0, float("nan"), float("inf")])
def test_check_budget_out_of_range_is_refused(budget: float) -> None:
    with pytest.raises(UserError, match=r"budget must lie in \(0, 1\]"):
        bound().check_budget(budget)
    with pytest.raises(UserError, match=r"budget must lie in \(0, 1\]"):
        Space(name="x", choices=("full",), budget=budget)


def test_check_budget_unreachable_names_the_lowest_that_can_be_met() -> None:
    space = bound()
    lowest = space.cost_range[0]
    space.check_budget(lowest)
    with pytest.raises(UserError, match="raise the budget to ") as error:
        space.check_budget(lowest * 0.999)
    named = float(str(error.value).split("raise the budget to ")[1].split()[0])
    assert lowest <= named < lowest + 1e-4
    space.check_budget(named)
    assert "block:12*4" in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"choices": ["full"]}, "'name' is missing"),
        ({"name": "x"}, "'choices' is missing"),
        ({"name": "", "choices": ["full"]}, "name is empty"),
        ({"name": "x", "choices": ["full"], "bugdet": 0.3}, "did you mean 'budget'"),
        ({"name": "x", "choices": []}, "choices is empty"),
        ({"name": "x", "choices": "full"}, "expected a list"),
        ({"name": "x", "choices": ["full", "full"]}, "full is named twice"),
        ({"name": "x", "choices": ["window:8", {"kind": "window", "size": [8, 16]}]}, "window:8 is named twice"),
        ({"name": "x", "choices": [{"kind": "window", "size": [8, 8]}]}, "choices.0: size holds a value twice"),
        ({"name": "x", "choices": [{"kind": "window", "size": []}]}, "size is an empty list"),
        ({"name": "x", "choices": [{"kind": "window", "sise": 8}]}, "a span has no key 'sise'; did you mean 'size'"),
        ({"name": "x", "choices": [{"size": 8}]}, "needs the key 'kind'"),
        ({"name": "x", "choices": ["full", {"kind": "window", "size": [8, 0]}]}, "choices.1: a window needs a size"),
        ({"name": "x", "choices": ["full", "windw:8"]}, "choices.1: 'windw:8'"),
        ({"name": "x", "choices": [8]}, "choices.0: expected a span"),
        ({"name": "x", "choices": ["full*2"]}, "choices.0"),
        ({"name": "x", "choices": ["full"], "layers": {0: ["window:8"]}}, "layers.0: window:8 is not among choices"),
        ({"name": "x", "choices": ["full"], "layers": {-1: ["full"]}}, "no layer -1"),
        ({"name": "x", "choices": ["full"], "layers": {0: []}}, "layers.0 is empty"),
        ({"name": "x", "choices": ["full"], "layers": {"first": ["full"]}}, "layers.first"),
        ({"name": "x", "choices": ["full"], "layers": [["full"]]}, "layers"),
        ({"name": "x", "choices": ["full"], "tied": [[0]]}, "at least two layers"),
        ({"name": "x", "choices": ["full"], "tied": [[0, 1], [1, 2]]}, "layer 1 stands in it twice"),
        ({"name": "x", "choices": ["full"], "tied": [[0, -1]]}, "no layer -1"),
        ({"name": "x", "choices": ["full"], "tied": [[0, 1]], "pattern": 2}, "exclude each other"),
        ({"name": "x", "choices": ["full"], "pattern": 0}, "pattern must be at least 1"),
        ({"name": "x", "choices": ["full"], "budget": "small"}, "budget"),
        ({"name": "x", "choices": ["full"], "budget": float("nan")}, "budget"),
        ({"name": "x", "choices": ["full"], "budget": 0}, "budget must lie in (0, 1]"),
        (
            {"name": "x", "choices": ["full", "window:8"], "baseline_span": "full"},
            "baseline_span: full is not a sparse",
        ),
        ({"name": "x", "choices": ["full", "window:8"], "baseline_span": "window:9"}, "did you mean 'window:8'"),
        ("[full, window]", "expected a mapping"),
        ("", "expected a mapping"),
        ("name: x\nname: y\n", "written twice"),
        ("name: [", "not valid YAML"),
    ],
)
def test_load_space_wrong_file_is_refused_by_its_key(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        load_space(write(tmp_path, content))
    assert words in str(error.value)
    assert "space.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("choices", "options", "words"),
    [
        ("full window:64", {}, "choice window:64: window:64 is longer than the text of 48 tokens"),
        ("full block:49", {}, "block:49 is longer than the text"),
        ("full window:8+sink:50", {}, "longer than the text"),
        ("full window:8/2@3", {}, "dilates more heads than the model's 2"),
        ("full window:44+summary:2", {}, "choice window:44+summary:2: window:44+summary:2 costs more than 'full'"),
        ("full window:8", {"layers": {4: ("full",)}}, "a model of 4 has no layer 4; the last is 3"),
        ("full window:8", {"tied": ((0, 9),)}, "a model of 4 has no layer 9"),
        ("full window:8", {"pattern": 5}, "pattern 5 is longer than the model's 4 layers"),
        ("full window:8", {"tied": ((0, 1),), "layers": {0: ("full",), 1: ("window:8",)}}, "none in common"),
    ],
)
def test_bind_space_that_does_not_fit_the_model_is_refused(choices: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        bound(choices, **options)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "'layer_00' is missing"),
        ({"layer_00": "full", "layer_1": "full"}, "did you mean 'layer_01'"),
        ({"layer_00": "window:9", "layer_01": "full"}, "layer_00: 'window:9' is no choice; did you mean 'window:8'"),
    ],
)
def test_decode_wrong_variable_values_are_refused(params: dict[str, str], words: str) -> None:
    with pytest.raises(UserError) as error:
        bound(n_layers=2).decode(params)
    assert words in str(error.value)
