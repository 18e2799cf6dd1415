"""Every command that prints a result has --json, and prints the keys that the reference lists."""

from __future__ import annotations

import argparse
import json
import runpy
from pathlib import Path

import pytest

from layersearch.cli.main import build_parser, main

ROOT = Path(__file__).parents[2]
KEYS = runpy.run_path(str(ROOT / "docs" / "generate_reference.py"))["json_keys"]()
WITHOUT_RESULT = {"completion"}  # a script


def printed(line: str, capsys: pytest.CaptureFixture[str]) -> object:
    """Run a command and return its JSON; standard output holds nothing else."""
    assert main([*line.split(" "), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_command_has_json() -> None:
    groups = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    lacking = {name for name, parser in groups.choices.items() if "--json" not in parser._option_string_actions}
    assert lacking == WITHOUT_RESULT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("show", "show RUN"),
        ("solve", "solve RUN --budget 0.6"),
        ("plot, report, export, init", "export RUN --to yaml --out OUT"),
        ("plot, report, export, init", "plot RUN --out OUT"),
        ("cost", "cost full*2 --seq-len 8"),
        ("cost of a model file", "cost OUT/config.json --seq-len 8"),
        ("presets", "presets"),
        ("doctor", "doctor"),
    ],
)
def test_json_keys_are_those_of_the_reference(
    command: str, line: str, saved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "config.json" in line:
        main(["export", "full*2", "--to", "hf", "--recipe", "smoke", "--out", str(tmp_path)])
        capsys.readouterr()
    found = printed(line.replace("RUN", str(saved_run)).replace("OUT", str(tmp_path)), capsys)
    assert isinstance(found, dict)
    assert sorted(found) == sorted(KEYS[command])
