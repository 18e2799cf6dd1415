"""`search.pruner`: a key of its own, whatever the sampler, and run folders from before it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from layersearch.config.loader import build
from layersearch.config.recipe import Recipe, load_recipe
from layersearch.config.search import SearchConfig
from layersearch.data import describe, open_source
from layersearch.errors import UserError
from layersearch.optimal_l.config import OptimalLConfig
from layersearch.optimal_l.protocol import run_setting
from layersearch.results.result import PROPOSED
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import load_space
from layersearch.study.journal import Study
from layersearch.study.loop import SearchLoop
from layersearch.study.plan import make_plan
from layersearch.study.pruning import ExpectedGainPruner, SuccessiveHalvingPruner
from layersearch.study.run_folder import RunFolder, read_config
from layersearch.training.workers.pool import LocalPool, Pool

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPool]:
    found = LocalPool(load_recipe("smoke"), 2, tmp_path_factory.mktemp("logs"))
    yield found
    found.close()


@pytest.mark.parametrize(
    ("search", "pruner", "reduction"),
    [
        ({}, "expected_gain", None),
        ({"sampler": "gp"}, "successive_halving", 2),
        ({"sampler": "gp", "rungs": ()}, "none", None),
        ({"rungs": ()}, "none", None),
        ({"pruner": "successive_halving"}, "successive_halving", 2),
        ({"sampler": "tpe", "pruner": "expected_gain"}, "expected_gain", None),
        ({"sampler": "tpe", "pruner": "none"}, "none", None),
    ],
)
def test_search_config_without_pruner_takes_the_samplers(
    search: dict[str, Any], pruner: str, reduction: int | None
) -> None:
    found = SearchConfig(**search)
    assert (found.sampler, found.pruner, found.reduction) == (search.get("sampler", "gain"), pruner, reduction)


@pytest.mark.parametrize("pruner", ["expected_gain", "successive_halving", "none"])
@pytest.mark.parametrize("sampler", ["gain", "random"])
def test_search_with_any_sampler_stops_what_the_named_pruner_stops(
    sampler: str, pruner: str, tmp_path: Path, smoke_run: Path, pool: LocalPool
) -> None:
    recipe = load_recipe(
        "smoke", [f"search.sampler={sampler}", f"search.pruner={pruner}", "search.trials=9", "search.kept_trials=0"]
    )
    steps, config = recipe.training.steps, read_config(smoke_run)
    space = BoundSpace.of(load_space("smoke"), recipe)
    plan = make_plan(recipe, space, 0.6, 0)
    asked = {key: config[key] for key in ("space", "budget", "seed", "data")} | {"recipe": recipe.to_dict()}
    folder = RunFolder(tmp_path, asked)
    study = Study(folder.journal, space, 0.6, recipe.search, 0)
    SearchLoop(plan, space, folder, lambda: study, pool, lambda progress: None).run()
    folder.release()
    generations = study.generations()
    records = {r.schedule: r for r in folder.records() if r.phase == "search"}
    proposed = [r for r in records.values() if r.role == PROPOSED]
    assert max(generations.values()) >= 2
    for record in proposed:
        generation = generations[record.schedule]
        # In the order in which the search sees them: the study's.
        earlier = [r for r in records.values() if generations[r.schedule] < generation]
        members = [schedule for schedule, number in generations.items() if number == generation]
        rule: SuccessiveHalvingPruner | ExpectedGainPruner | None = None
        if pruner == "successive_halving":
            rule = SuccessiveHalvingPruner(space, earlier, 2)
        elif pruner == "expected_gain":
            rule = ExpectedGainPruner(space, 0.6, earlier, members, steps)
        kept = all(rule is None or rule.keep_going(record.schedule, *at) for at in record.curve if at[0] < steps)
        assert kept == (record.state == "complete"), record


@pytest.mark.parametrize(("sampler", "pruner"), [("gain", "expected_gain"), ("tpe", "successive_halving")])
def test_read_config_from_before_the_pruner_key_derives_it(
    sampler: str, pruner: str, tmp_path: Path, smoke_run: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(smoke_run, out)
    config = json.loads((out / "config.json").read_text())
    del config["recipe"]["search"]["pruner"], config["crc32"]
    config["recipe"]["search"] |= {"sampler": sampler, "reduction": 2}
    (out / "config.json").write_text(json.dumps(config))
    found = build(Recipe, read_config(out)["recipe"], "recipe")
    assert found.search == load_recipe("smoke", [f"search.sampler={sampler}"]).search
    assert found.search.pruner == pruner
    asked = {key: config[key] for key in ("space", "budget", "seed", "data")} | {"recipe": found.to_dict()}
    RunFolder(out, asked).release()  # refuses another run


def test_run_folder_of_optimal_l_with_another_sampler_resumes(tmp_path: Path, smoke_run: Path) -> None:
    """A study of l neither proposes nor prunes by the recipe's search, so that a new default must not end it."""
    recipe = load_recipe("recall")
    (setting,) = OptimalLConfig(recipe=recipe, space=load_space(recipe.default_space), delta=0.05).settings()
    config = json.loads((smoke_run / "config.json").read_text())
    del config["crc32"]
    held = json.loads(json.dumps(setting.recipe.to_dict()))
    held["search"] |= {"sampler": "gp", "reduction": 2}
    del held["search"]["pruner"]
    source = open_source(setting.recipe.data, setting.seq_len)
    config |= {"recipe": held, "space": asdict(setting.space), "budget": 1.0, "seed": 0, "data": describe(source)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = {key: config[key] for key in ("space", "budget", "seed", "data")} | {"recipe": setting.recipe.to_dict()}
    with pytest.raises(UserError, match=r"another recipe.search.sampler \('gp', now 'gain'\); give its own value"):
        RunFolder(tmp_path, asked)
    with pytest.raises(Started):
        run_setting(setting, tmp_path, cache=None, pool=refuse, listener=lambda progress: None)


class Started(Exception):
    """The study got as far as its workers."""


def refuse(*_: object) -> Pool:
    raise Started


def test_shipped_recipes_for_gpus_use_the_gain_sampler() -> None:
    for name in ("gpu-125m", "masformer-1.3b"):
        search = load_recipe(name).search
        assert (search.sampler, search.pruner) == ("gain", "expected_gain")
