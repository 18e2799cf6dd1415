"""What the package promises: its public names, its files, and the commands that its README prints."""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import layersearch
from layersearch.cli.main import main
from layersearch.config.loader import find_file
from layersearch.config.recipe import deepspeed_file, load_recipe
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import load_space
from layersearch.training.deepspeed_config import deepspeed_config

ROOT = Path(layersearch.__file__).parent.parent
COMMANDS = {"run", "show", "solve", "confirm", "plot", "export", "verify-export"}
COMMANDS |= {"cost", "presets", "convert", "optimal-l", "report"}


def names(folder: str, suffix: str) -> list[str]:
    """Return the names of the files that ship in a folder."""
    return sorted(path.name.removesuffix(suffix) for path in (ROOT / folder).glob("*" + suffix))


def test_public_names_of_the_stub_are_all_there_is() -> None:
    stub = ast.parse((ROOT / "layersearch" / "__init__.pyi").read_text(encoding="utf-8"))
    wanted = sorted(name.name for node in stub.body if isinstance(node, ast.ImportFrom) for name in node.names)
    assert sorted(layersearch.__all__) == wanted
    assert set(wanted) <= set(dir(layersearch))


@pytest.mark.slow
def test_public_names_are_imported_on_demand_and_no_module_hides_one(tmp_path: Path) -> None:
    script = """
import importlib, pkgutil, sys
import layersearch
assert not {"torch", "numpy", "yaml", "optuna"} & set(sys.modules), "heavy"
before = {name: getattr(layersearch, name) for name in layersearch.__all__}
for module in pkgutil.walk_packages(layersearch.__path__, "layersearch."):
    if "_layersearch" not in module.name and module.name != "layersearch.__main__":
        importlib.import_module(module.name)
assert [name for name, held in before.items() if getattr(layersearch, name) is not held] == []
assert callable(layersearch.search)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_public_names_unknown_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="serach"):
        layersearch.serach  # noqa: B018


@pytest.mark.parametrize("name", names("trials", ".yaml"))
def test_recipe_shipped_loads_with_its_deepspeed_file_and_space(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert deepspeed_config(recipe.training, deepspeed_file(recipe))["train_batch_size"] == recipe.training.batch_size
    space = load_space(recipe.default_space)
    bound = BoundSpace.of(space, recipe)
    assert space.budget is not None
    bound.check_budget(space.budget)
    assert find_file(name, "trials").read_text().startswith("# layersearch run ")


@pytest.mark.parametrize("name", names("search_spaces", ".yaml"))
def test_space_shipped_loads(name: str) -> None:
    assert load_space(name).name == name


@pytest.mark.parametrize("name", names("trials/deepspeed", ".json"))
def test_deepspeed_file_shipped_loads(name: str) -> None:
    settings = json.loads(find_file(name, "trials/deepspeed", ".json").read_text())
    recipe = load_recipe("smoke", [f"training.deepspeed={name}"])
    assert (
        deepspeed_config(recipe.training, deepspeed_file(recipe))["zero_optimization"] == settings["zero_optimization"]
    )


def printed_commands(file: Path) -> list[str]:
    """Return the commands of the program that a text prints, in indented or fenced lines, comments or backticks."""
    text = file.read_text()
    return sorted(
        set(
            re.findall(r"(?m)^(?:# |\\$ |    )?(layersearch [^\n`#]+)", text)
            + re.findall(r"`(layersearch [^`\n]+)`", text)
        )
    )


@pytest.mark.parametrize(
    "file",
    [ROOT / "README.md", *sorted(ROOT.glob("trials/**/*.yaml")), *sorted(ROOT.glob("search_spaces/*"))],
    ids=lambda file: file.relative_to(ROOT).as_posix(),
)
def test_main_command_that_a_text_prints_is_parsed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse, commands_of_texts = argparse.ArgumentParser.parse_args, printed_commands(file)

    def parse_only(self: argparse.ArgumentParser, *arguments: Any) -> argparse.Namespace:
        found = parse(self, *arguments)
        assert callable(found.command)
        return argparse.Namespace(command=lambda options: 0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    for command in commands_of_texts:
        words = shlex.split(command)[1:]
        if words and words[0] in COMMANDS:
            assert main(words) == 0, command


@pytest.mark.parametrize("file", ["README.md", "trials/laptop.yaml", "search_spaces/laptop.yaml"])
def test_printed_commands_of_main_texts_include_run(file: str) -> None:
    assert any("run" in command for command in printed_commands(ROOT / file))
