"""The suite on the pinned, the lowest and the newest releases of what layersearch depends on.

`pipx run nox -s floors -- tests/golden` passes what follows the two dashes on to pytest. pip's own settings
(PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS) choose the index, as for the CPU builds of PyTorch.
"""

from __future__ import annotations

from pathlib import Path

import nox
from packaging.requirements import Requirement

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
PINS = ("-c", "constraints.txt")

nox.options.sessions = ["lint", f"tests-{PYTHONS[0]}"]


def floors() -> list[str]:
    """Return each dependency, those of the extras too, pinned to the floor that pyproject.toml declares."""
    project = PYPROJECT["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    bounds = [(found.name, bound) for found in map(Requirement, texts) for bound in found.specifier]
    return sorted({f"{name}=={bound.version}" for name, bound in bounds if bound.operator == ">="})


def install(session: nox.Session, *constraints: str, extra: str = "test") -> None:
    """Install torch first, which DeepSpeed's build looks for, then the package; list what was installed."""
    session.install(*constraints, "torch")
    session.install(*constraints, "-e", f".[{extra}]", env={"DS_BUILD_OPS": "0"})
    session.run("python", "-m", "pip", "freeze", "--exclude-editable")


def run_suite(session: nox.Session) -> None:
    """Run pytest as `make test` does: two processes of one thread each."""
    parallel = ("-n", "2", "--dist", "loadfile")
    session.run("python", "-m", "pytest", *parallel, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the suite on the pinned releases."""
    install(session, *PINS)
    run_suite(session)


@nox.session(name="floors", python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run the suite on exactly the declared floors; pip refuses floors that exclude each other."""
    listed = Path(session.create_tmp(), "floors.txt")
    listed.write_text("\n".join(floors()), encoding="utf-8")
    install(session, "-c", str(listed), extra="test,dashboard")
    run_suite(session)


@nox.session(python=PYTHONS[-1])
def newest(session: nox.Session) -> None:
    """Run the suite on the newest releases that go together."""
    install(session, extra="test,dashboard")
    run_suite(session)


@nox.session(python=PYTHONS[0])
def lint(session: nox.Session) -> None:
    """Check style and types."""
    install(session, *PINS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session(python=PYTHONS[0])
def docs(session: nox.Session) -> None:
    """Build the pages; a broken link is an error."""
    install(session, *PINS, extra="docs")
    session.run("mkdocs", "build", "--strict", *session.posargs)
