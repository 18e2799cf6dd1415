"""Commands import heavy libraries only where they need them, and the package runs as a module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from layersearch.cli.main import COMMANDS
from layersearch.version import __version__

HEAVY = {"torch", "transformers", "deepspeed", "ray", "optuna", "datasets"}
LIBRARIES = HEAVY | {"numpy", "scipy", "matplotlib", "pydantic", "yaml", "rich"}
SCRIPT = """
import contextlib, sys
from layersearch.cli.main import main
with contextlib.suppress(SystemExit):
    assert main(sys.argv[1:]) == 0
print(*sys.modules, file=sys.stderr)
"""


def imported(*arguments: str) -> set[str]:
    """Run a command in a process of its own; return the modules that it loaded."""
    line = [sys.executable, "-P", "-c", SCRIPT, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return set(done.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", *(module.__name__.rpartition(".")[2] for module in COMMANDS)])
def test_help_imports_no_library(command: str) -> None:
    words = [command.replace("_", "-")] if command else []
    assert imported(*words, "--help") & LIBRARIES == set()


@pytest.mark.slow
def test_show_imports_neither_torch_nor_matplotlib_nor_scipy_stats(saved_run: Path) -> None:
    assert imported("show", str(saved_run)) & (HEAVY | {"matplotlib", "scipy.stats"}) == set()


@pytest.mark.slow
def test_plot_imports_no_torch(saved_run: Path, tmp_path: Path) -> None:
    assert imported("plot", str(saved_run), "--out", str(tmp_path)) & HEAVY == set()


@pytest.mark.slow
def test_report_imports_no_torch(saved_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="needs the extra report")
    assert imported("report", str(saved_run), "--out", str(tmp_path / "page.html")) & HEAVY == set()


@pytest.mark.slow
def test_solve_imports_no_torch(saved_run: Path) -> None:
    assert imported("solve", str(saved_run), "--budget", "0.6") & HEAVY == set()


@pytest.mark.slow
def test_export_of_a_run_imports_no_torch(saved_run: Path, tmp_path: Path) -> None:
    assert imported("export", str(saved_run), "--to", "yaml", "--out", str(tmp_path)) & HEAVY == set()


def test_cost_imports_neither_numpy_nor_pydantic() -> None:
    assert imported("cost", "full*2", "--seq-len", "8") & (HEAVY | {"numpy", "scipy", "pydantic"}) == set()


def test_python_m_layersearch_prints_the_version() -> None:
    line = [sys.executable, "-P", "-m", "layersearch", "--version"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout == f"layersearch {__version__}\n"
