"""The declared floors and the pins hold together, and the workflows run every session of nox."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEPENDENCIES = [
    found
    for found in map(Requirement, [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)])
    if found.name != PROJECT["name"]
]
NOT_PINNED = {"dashboard", "docs", "tensorboard", "mlflow", "wandb", "lm-eval", "completion", "digits"}
"""Extras that the test environment does not install."""
WORKFLOWS = sorted((ROOT / ".github" / "workflows").iterdir())


def read(workflow: Path) -> dict[str, Any]:
    """Return the workflow; YAML 1.1 reads the key ``on`` as true."""
    return yaml.safe_load(workflow.read_text(encoding="utf-8"))


def sessions() -> set[str]:
    """Return the names of the sessions in noxfile.py, which is read and not run: nox need not be installed."""
    found = set()
    for node in ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8")).body:
        for call in getattr(node, "decorator_list", []):
            named = [keyword.value.value for keyword in call.keywords if keyword.arg == "name"]
            found.add(named[0] if named else node.name)
    return found


@pytest.mark.parametrize("dependency", DEPENDENCIES, ids=lambda found: found.name)
def test_pyproject_dependency_declares_one_floor(dependency: Requirement) -> None:
    assert [bound.operator for bound in dependency.specifier].count(">=") == 1


@pytest.mark.slow
def test_package_imports_only_what_it_declares() -> None:
    """What another dependency happens to bring is not there under another release of it."""
    imported = set()
    for path in (ROOT / "layersearch").rglob("*.py"):
        if path.parent.name == "drivers":  # each runs in the environment of its engine
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).partition(".")[0])
    names = {"pyyaml": "yaml", "mlflow-skinny": "mlflow", "lm-eval": "lm_eval"}
    declared = {names.get(found.name, found.name) for found in DEPENDENCIES}
    assert imported - sys.stdlib_module_names - {PROJECT["name"]} <= declared


def test_constraints_pin_what_the_package_needs_within_its_floors() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = map(Requirement, re.findall(r"^[^#\s].*", text, flags=re.MULTILINE))
    pins = {canonicalize_name(pin.name): pin for pin in found}
    pinned = {text for extra in EXTRAS.keys() - NOT_PINNED for text in EXTRAS[extra]}
    needed = map(Requirement, {*PROJECT["dependencies"], *pinned} - {"layersearch[ray,convert,gguf,report]"})
    for dependency in needed:
        (pin,) = pins[canonicalize_name(dependency.name)].specifier
        assert dependency.specifier.contains(pin.version), dependency


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_file_has_triggers_and_jobs_with_steps(workflow: Path) -> None:
    found = read(workflow)
    assert found[True], "no triggers"
    assert found["jobs"]
    for job in found["jobs"].values():
        assert job["timeout-minutes"] > 0
        assert all("run" in step or "uses" in step for step in job["steps"])


def test_workflows_run_every_session_of_nox() -> None:
    run = set()
    for workflow in WORKFLOWS:
        for job in read(workflow)["jobs"].values():
            matrix = job.get("strategy", {}).get("matrix", {})
            run |= {*matrix.get("session", []), *(entry["session"] for entry in matrix.get("include", []))}
            run |= set(re.findall(r'nox -s "(\w+)-', " ".join(step.get("run", "") for step in job["steps"])))
    assert run == sessions()


def test_workflow_tests_runs_the_pythons_that_are_declared() -> None:
    declared = [
        found[1]
        for found in (
            re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text) for text in PROJECT["classifiers"]
        )
        if found
    ]
    matrix = read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == declared
    assert PROJECT["requires-python"] == f">={declared[0]}"
