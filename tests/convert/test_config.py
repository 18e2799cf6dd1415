"""Recipes of conversions: those that ship load, and stages are resolved as they say."""

from __future__ import annotations

import pytest

from layersearch.config.loader import find_file
from layersearch.convert.config import load_convert_recipe, resolve_stages
from layersearch.errors import UserError
from layersearch.schedule import Schedule

SHIPPED = sorted(path.stem for path in find_file("plain", "trials/convert").parent.glob("*.yaml"))
SCHEDULE = Schedule.parse("full*2 window:8192/2@1+sink:4*2 block:512")


@pytest.mark.parametrize("name", SHIPPED)
def test_convert_recipe_shipped_loads_and_stages_add_up(name: str) -> None:
    recipe = load_convert_recipe(name, ["training.seq_len=23040"])
    stages = resolve_stages(recipe, SCHEDULE)
    assert recipe.name == name
    assert stages[0].first == 0
    assert sum(stage.training.steps for stage in stages) == recipe.training.steps
    assert stages[-1].schedule == SCHEDULE
    assert stages[-1].training.seq_len == recipe.training.seq_len


def test_resolve_stages_longformer_doubles_length_and_window_and_halves_rate() -> None:
    """2004.05150: five phases, 2,048 to 23,040 tokens, 2.5e-4 to 1.5625e-5; the last length is no doubling there."""
    stages = resolve_stages(load_convert_recipe("longer"), SCHEDULE)
    assert [stage.training.seq_len for stage in stages] == [2048, 4096, 8192, 16384, 23040]
    assert [stage.training.learning_rate for stage in stages] == [2.5e-4 / 2**number for number in range(5)]
    assert [stage.schedule[2].size for stage in stages] == [512, 1024, 2048, 4096, 8192]
    assert [stage.schedule[4].size for stage in stages] == [32, 64, 128, 256, 512]
    assert {str(stage.schedule[0]) for stage in stages} == {"full"}
    shares = [stage.training.steps / 20000 for stage in stages]
    assert shares == pytest.approx([430 / 570, 50 / 570, 50 / 570, 35 / 570, 5 / 570], abs=1e-4)
    assert all(stage.training.warmup_steps == round(0.05 * stage.training.steps) for stage in stages)


def test_resolve_stages_every_stage_has_a_step() -> None:
    stages = resolve_stages(load_convert_recipe("longer", ["training.steps=5"]), SCHEDULE)
    assert [(stage.first, stage.training.steps) for stage in stages] == [(n, 1) for n in range(5)]


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("training.warmup_steps=3", "give warmup, a share"),
        ("training.optimizer=muon", "must be adamw"),
        ("warmup=1", "warmup: input should be less than 1"),
        ("training.steps=4", "fewer than the 5 stages"),
        ("training.seq_len=64", "the last stage must have training.seq_len"),
        ("rope={rope_type: yarn, factor: 0.5}", "rope.factor: input should be greater than or equal to 1"),
        ("rope={rope_type: longrope}", "rope_type"),
        ("evaluations=-1", "evaluations: input should be greater than or equal to 0"),
        ("checkpoint_steps=0", "checkpoint_steps: input should be greater than or equal to 1"),
    ],
)
def test_convert_recipe_contradictory_values_are_refused(assignment: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_convert_recipe("longer", [assignment])
