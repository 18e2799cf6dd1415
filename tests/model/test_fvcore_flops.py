"""Every run counts its proxy with fvcore once, holds the closed form to it, and writes both down."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from layersearch.config.recipe import load_recipe
from layersearch.model import fvcore_flops
from layersearch.model.flops import model_flops
from layersearch.model.fvcore_flops import MismatchError, check_flops
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.cost import attention_flops
from layersearch.schedule.space import load_space
from tests.helpers.runs import lines, run


def bound(name: str) -> BoundSpace:
    recipe = load_recipe(name)
    space = load_space(recipe.default_space)
    return BoundSpace.of(space, recipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sparsest"),
    [
        ("smoke", "window:4*2"),
        ("laptop", "window:2*6"),
        ("gpu-125m", "window:128*12"),
        ("masformer-1.3b", "block:1024*24"),
    ],
)
def test_check_flops_of_a_shipped_recipe_agrees_with_the_closed_form(name: str, sparsest: str) -> None:
    """On the meta device: on a CPU one forward pass of the largest would take minutes and gigabytes."""
    recipe = load_recipe(name)
    began = time.monotonic()
    found = check_flops(recipe, bound(name), recipe.data.vocab_size)
    assert time.monotonic() - began < 60
    assert found["convention"] == "one multiply-add = one FLOP"
    model, seq_len = recipe.model, recipe.training.seq_len
    for which, text in (("all_full", f"full*{model.n_layers}"), ("sparsest", sparsest)):
        schedule = Schedule.parse(text)
        assert found["forward_pass"][which] == {
            "schedule": str(schedule),
            "attention_flops": attention_flops(
                schedule, seq_len=seq_len, n_heads=model.n_heads, head_dim=model.head_dim
            ),
            "model_flops": model_flops(model, recipe.data.vocab_size, schedule, seq_len=seq_len),
        }


@pytest.mark.parametrize("name", ["attention_flops", "recipe_flops"])
def test_check_flops_with_another_closed_form_names_both_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = getattr(fvcore_flops, name)
    monkeypatch.setattr(fvcore_flops, name, lambda *args, **kwargs: closed(*args, **kwargs) + 1)
    with pytest.raises(MismatchError, match="internal error") as error:
        check_flops(load_recipe("smoke"), bound("smoke"), 64)
    first, second = (int(word.rstrip(";")) for word in str(error.value).split() if word.rstrip(";").isdigit())
    assert (second - first, "\n" in str(error.value)) == (1, False)


@pytest.mark.slow
def test_run_folder_without_flops_gets_them_on_resume_and_keeps_its_records(tmp_path: Path, smoke_run: Path) -> None:
    found = json.loads((smoke_run / "flops.json").read_text())
    assert found == check_flops(load_recipe("smoke"), bound("smoke"), 64)
    records = {record["schedule"]: record["flops"] for record in map(json.loads, lines(smoke_run))}
    for count in found["forward_pass"].values():
        assert records[count["schedule"]] == count["attention_flops"]
    out = tmp_path / "run"
    shutil.copytree(smoke_run, out)
    (out / "flops.json").unlink()
    run(out)
    assert lines(out) == lines(smoke_run)
    assert json.loads((out / "flops.json").read_text()) == found
