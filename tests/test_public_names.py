"""What the package promises: its public names, its files, and the commands that its README prints."""

from __future__ import annotations

import argparse
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
from layersearch.schedule.space import load_space
from layersearch.training.deepspeed_config import deepspeed_config

ROOT = Path(layersearch.__file__).parent.parent
PUBLIC = [
    "Recipe",
    "Result",
    "Schedule",
    "ScheduleSampler",
    "Space",
    "Span",
    "UserError",
    "analyse",
    "attend",
    "attention_flops",
    "budget_ratio",
    "kv_cache_bytes",
    "load_bench",
    "load_recipe",
    "load_space",
    "presets",
    "reference_attention",
    "search",
    "span_mask",
]

COMMANDS = {"run", "show", "solve", "confirm", "plot", "export", "verify-export"}
COMMANDS |= {"cost", "presets", "convert", "optimal-l"}


def names(folder: str, suffix: str) -> list[str]:
    """Return the names of the files that ship in a folder."""
    return sorted(path.name.removesuffix(suffix) for path in (ROOT / folder).glob("*" + suffix))


def test_public_names_equal_the_promised_list() -> None:
    assert list(layersearch.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(layersearch))


def test_public_names_are_imported_on_demand_and_keep_their_object(tmp_path: Path) -> None:
    script = f"""
import importlib, sys
import layersearch
assert not {{"torch", "numpy", "yaml", "optuna"}} & set(sys.modules), "heavy"
from layersearch import {", ".join(PUBLIC)}
for module in ("ladder", "ladder.study", "presets", "cost", "attention", "cli", "commands", "result"):
    importlib.import_module("layersearch." + module)
assert callable(layersearch.search) and layersearch.search is search
assert layersearch.schedule.presets.masformer(l=4, n_layers=6, block=8).n_full == 4
assert [name for name in {PUBLIC!r} if getattr(layersearch, name) is not globals()[name]] == []
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_public_names_unknown_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'serach'"):
        layersearch.serach  # noqa: B018


@pytest.mark.parametrize("name", names("trials", ".yaml"))
def test_recipe_shipped_loads_with_its_deepspeed_file_and_space(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert deepspeed_config(recipe.training, deepspeed_file(recipe))["train_batch_size"] == recipe.training.batch_size
    space = load_space(recipe.default_space)
    bound = space.bind(n_layers=recipe.model.n_layers, seq_len=recipe.training.seq_len, n_heads=recipe.model.n_heads)
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
