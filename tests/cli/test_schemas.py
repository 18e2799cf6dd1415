"""The published JSON Schemas are those of the code, hold every shipped file, and refuse what the loader refuses."""

from __future__ import annotations

import copy
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from layersearch.cli.schemas import NAMES, schema
from layersearch.config.loader import read_yaml
from layersearch.config.recipe import load_recipe
from layersearch.convert.config import load_convert_recipe
from layersearch.errors import LayersearchError
from layersearch.schedule import Schedule
from layersearch.schedule.files import read_schedule, schedule_text
from layersearch.schedule.space import load_space

ROOT = Path(__file__).parents[2]
FOLDERS = {"recipe": "trials", "space": "search_spaces", "conversion": "trials/convert"}
LOADERS: dict[str, Callable[[Path], object]] = {
    "recipe": lambda path: load_recipe(str(path)),
    "space": lambda path: load_space(str(path)),
    "conversion": lambda path: load_convert_recipe(str(path)),
    "schedule": read_schedule,
}
START: dict[str, Any] = {
    "recipe": read_yaml(ROOT / "trials" / "smoke.yaml"),
    "space": {"name": "own", "choices": ["full", "window:8", {"kind": "window", "size": [16, 32], "sink": 4}]},
    "conversion": read_yaml(ROOT / "trials" / "convert" / "heal.yaml"),
    "schedule": {"layers": [{"kind": "full"}, {"kind": "window", "size": 8}]},
}
WRONG = [
    ("recipe", "training.stpes", 3),
    ("recipe", "training.steps", "many"),
    ("recipe", "training.steps", 0),
    ("recipe", "training.betas", [0.9]),
    ("recipe", "training.final_lr_ratio", 1.5),
    ("recipe", "search.sampler", "genetic"),
    ("recipe", "model.qk_norm", "yes"),
    ("recipe", "name", None),
    ("space", "budget", 0),
    ("space", "choices", []),
    ("space", "choices", ["windo:8"]),
    ("space", "choices", ["window:8+sink:0"]),
    ("space", "choices", [{"kind": "window", "size": []}]),
    ("space", "choices", [{"size": 8}]),
    ("space", "layers", {"0": ["windo:8"]}),
    ("space", "tied", [[1]]),
    ("space", "chioces", ["full"]),
    ("conversion", "distil", 2),
    ("conversion", "stages", [{"seq_len": 1024}]),
    ("conversion", "rope", {"rope_type": "none"}),
    ("schedule", "layers", []),
    ("schedule", "layers", [{"kind": "full", "size": 8}]),
    ("schedule", "layers", [{"kind": "full", "sink": 2}]),
    ("schedule", "layers", [{"kind": "window"}]),
    ("schedule", "layers", [{"kind": "window", "size": None}]),
    ("schedule", "layers", [{"kind": "window", "size": 0}]),
    ("schedule", "layers", [{"kind": "block", "size": 8, "dilation": 2}]),
    ("schedule", "layers", [{"kind": "window", "size": 8, "width": 2}]),
    ("schedule", "layers", [{"kind": "windows", "size": 8}]),
]


def holds(name: str, content: Any) -> bool:
    """Return whether a schema accepts plain data, whose keys JSON writes as text."""
    checker = jsonschema.Draft202012Validator(schema(name))
    return checker.is_valid(json.loads(json.dumps(content)))


@pytest.mark.parametrize("name", NAMES)
def test_schema_published_is_that_of_the_code_and_a_valid_schema(name: str) -> None:
    made = runpy.run_path(str(ROOT / "docs" / "generate_reference.py"))["schemas"]()[f"schemas/{name}.json"]
    committed = (ROOT / "docs" / "schemas" / f"{name}.json").read_text(encoding="utf-8")
    assert committed == made, f"docs/schemas/{name}.json is out of date: run make docs-reference"
    jsonschema.Draft202012Validator.check_schema(json.loads(committed))


@pytest.mark.parametrize("name", FOLDERS)
def test_schema_holds_every_shipped_file_and_the_file_names_it(name: str) -> None:
    files = sorted((ROOT / FOLDERS[name]).glob("*.yaml"))
    assert files
    for file in files:
        (line,) = [one for one in file.read_text(encoding="utf-8").splitlines() if "yaml-language-server" in one]
        named = file.parent / line.removeprefix("# yaml-language-server: $schema=")
        assert named.resolve() == ROOT / "docs" / "schemas" / f"{name}.json"
        assert holds(name, read_yaml(file)), file


def test_schema_describes_the_keys_of_every_section() -> None:
    found = schema("recipe")
    assert found["properties"]["space"]["description"].startswith("Name of the search space")
    assert found["$defs"]["TrainingConfig"]["properties"]["steps"]["description"] == "Optimizer steps of a full trial."


@pytest.mark.parametrize(
    "text",
    [
        "full*2 window:32+sink:4*2",
        "window:8/2@2 block:8~3+las:0.25/2 full+las:0.5",
        "strided:8 fixed:8/2 bigbird:4/2 bigbird:4/2/1 memory:9/4 window:4+global:first:2",
        "strided:8@2 fixed:8/2@1 bigbird:4/0 window:4+summary:3 block:8+global:mask:2",
    ],
)
def test_schema_holds_the_schedule_files_that_are_written(text: str) -> None:
    schedule = Schedule.parse(text)
    assert holds("schedule", yaml.safe_load(schedule_text(schedule, {"loss": 1.0})))
    assert holds("schedule", schedule.to_dicts())
    assert holds("space", {"name": "own", "choices": [str(span) for span in schedule]})


@pytest.mark.parametrize("name", NAMES)
def test_start_of_the_wrong_files_is_right(name: str, tmp_path: Path) -> None:
    path = tmp_path / "right.yaml"
    path.write_text(yaml.safe_dump(START[name]), encoding="utf-8")
    assert LOADERS[name](path)
    assert holds(name, START[name])


@pytest.mark.parametrize(("name", "key", "value"), WRONG)
def test_schema_and_loader_refuse_the_same_file(name: str, key: str, value: Any, tmp_path: Path) -> None:
    content = copy.deepcopy(START[name])
    *sections, last = key.split(".")
    place = content
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = (
        {int(layer): spans for layer, spans in value.items()} if key == "layers" and name == "space" else value
    )
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert not holds(name, content)
    with pytest.raises(LayersearchError):
        LOADERS[name](path)
