"""The scripts in examples/ run to their end and say what their heads promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.integration


def execute(name: str, folder: Path) -> str:
    """Run an example in a process of its own; return its output."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(EXAMPLES / name), str(folder)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False, cwd=folder.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the run folder of the first example, and its output."""
    folder = tmp_path_factory.mktemp("examples") / "first"
    return folder, execute("first_search.py", folder)


def test_first_search_smoke_recipe_prints_frontier_and_winner(run: tuple[Path, str]) -> None:
    folder, printed = run
    assert "1.000" in printed
    assert any(line.startswith("* ") for line in printed.splitlines())
    assert "attention FLOPs per sequence" in printed
    assert (folder / "winner.yaml").exists()


def test_run_in_pandas_finished_run_prints_paired_differences(run: tuple[Path, str]) -> None:
    printed = execute("run_in_pandas.py", run[0])
    all_full = next(line for line in printed.splitlines() if line.startswith("full*2"))
    assert all_full.split()[1:2] == ["1.0000"]
    assert all_full.split()[3] == "0.0000"  # less itself
    assert "Validation loss along the training" in printed


def test_export_and_verify_qwen3_is_verified_and_block_refused(tmp_path: Path) -> None:
    printed = execute("export_and_verify.py", tmp_path / "exported")
    assert printed.count("as scheduled") == 2
    assert "Qwen3ForCausalLM: verified" in printed
    assert "refused: layer" in printed


def test_examples_folder_every_script_is_executed_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'execute("{script.name}"' in text for script in EXAMPLES.glob("*.py"))
