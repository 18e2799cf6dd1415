"""What is installed here, against what layersearch needs, and what it will use. `torch` is imported only when asked."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from layersearch.errors import ExportError, one_line
from layersearch.version import __version__

EXTRAS = {
    "convert": "convert --lora: train low-rank updates",
    "gguf": "--model FILE.gguf, export --to gguf",
    "ray": "--pool ray",
    "report": "report: one HTML page of a run",
    "dashboard": "optuna-dashboard on RUN/study.journal",
    "tensorboard": "run --log tensorboard",
    "mlflow": "run --log mlflow",
    "wandb": "run --log wandb",
    "lm-eval": "evaluate --lm-eval",
    "digits": "data.source digits",
    "completion": "completion: the keys of a shell complete commands and flags",
}
"""What each extra of pyproject.toml adds for a user, by its name for pip."""


def requirements() -> Iterator[tuple[Requirement, str | None]]:
    """Yield what the installed distribution declares, each with the extra that needs it; None: always needed.

    Raises:
        importlib.metadata.PackageNotFoundError: the package runs from a folder, and no pip installed it.
    """
    for text in importlib.metadata.requires("layersearch") or ():
        needed = Requirement(text)
        marker = needed.marker
        if needed.name == "layersearch" or (marker is not None and "extra" not in str(marker)):
            continue
        if marker is None:
            yield needed, None
        else:
            yield from ((needed, extra) for extra in EXTRAS if marker.evaluate({"extra": extra}))


def libraries() -> list[dict[str, Any]]:
    """Return the state of each library: ``name``, ``needs``, ``found`` (None: missing), ``extra``, ``ok``.

    It is empty where the declared floors are unknown: the package runs from a folder that pip did not install.
    """
    rows = []
    try:
        declared = [*requirements()]
    except importlib.metadata.PackageNotFoundError:
        return []
    for needed, extra in declared:
        try:
            found = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        ok = found is not None and needed.specifier.contains(Version(found), prereleases=True)
        rows.append({"name": needed.name, "needs": str(needed.specifier), "found": found, "extra": extra, "ok": ok})
    return rows


def extras(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each extra: what it is ``for``, what is ``missing`` or too old, and the command that ``install``s it."""
    found: dict[str, dict[str, Any]] = {}
    for name, purpose in EXTRAS.items():
        mine = [row for row in rows if row["extra"] == name]
        missing = [row["name"] for row in mine if not row["ok"]]
        command = f"pip install 'layersearch[{name}]'" if missing or not mine else None
        found[name] = {"for": purpose, "ok": bool(mine) and not missing, "missing": missing, "install": command}
    return found


def engines() -> dict[str, dict[str, Any]]:
    """Return each engine of ``verify-export --engine``: the ``python`` that runs it, or the ``problem``."""
    from layersearch.export.verify.engines.environments import ENVIRONMENTS, find_python

    found: dict[str, dict[str, Any]] = {}
    for name, environment in ENVIRONMENTS.items():
        row: dict[str, Any] = {"variable": environment.variable, "python": None, "problem": None}
        try:
            row["python"] = str(find_python(name))
        except ExportError as error:
            row["problem"] = str(error)
        found[name] = row
    return found


def devices() -> dict[str, Any]:
    """Return what runs here: ``cpu`` and, if there is one, ``cuda``; each with kernels, precision and compiling.

    ``problem`` says why torch cannot be imported; the devices are missing then.
    """
    try:
        import torch

        from layersearch.model.attention.dispatch import kernel_for
        from layersearch.schedule import Span
        from layersearch.study.selection_plan import weights_type
        from layersearch.training.engine import can_compile
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        return {"problem": one_line(error)}
    found: dict[str, Any] = {"problem": None, "cpu": None, "cuda": None}
    names = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for name in names:
        bf16: dict[str, Any] = {"dtype": torch.bfloat16, "head_dim": 64}
        found[name] = {
            "name": platform.machine() if name == "cpu" else torch.cuda.get_device_name(0),
            "threads" if name == "cpu" else "count": torch.get_num_threads()
            if name == "cpu"
            else torch.cuda.device_count(),
            "kernel_full": kernel_for(Span(kind="full"), name, **bf16),
            "kernel_sparse": kernel_for(Span(kind="window", size=64), name, **bf16),
            "weights_auto": weights_type("auto", name),
            "compiles": can_compile(name),
        }
    return found


def diagnose() -> dict[str, Any]:
    """Return everything that `layersearch doctor` says, as plain data with stable keys."""
    rows = libraries()
    needed = [row for row in rows if row["extra"] is None]
    found = {"layersearch": __version__, "python": platform.python_version(), "system": platform.system()}
    found_devices = devices()
    problems = [
        f"{row['name']}{row['needs']} is needed, {row['found'] or 'none'} is installed; pip install -U layersearch"
        for row in needed
        if not row["ok"]
    ]
    if found_devices["problem"]:
        problems.append(f"torch cannot be used: {found_devices['problem']}")
    return {
        **found,
        "installed_by_pip": bool(rows),
        "libraries": rows,
        "extras": extras(rows),
        "devices": found_devices,
        "engines": engines(),
        "problems": problems,
    }
