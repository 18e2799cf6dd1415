"""Install engines under ``.engines``: ``python -m layersearch.export.verify.engines.install NAME ...``.

pip's own settings choose the index, as for the CPU builds of PyTorch.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from layersearch.errors import ExportError, did_you_mean
from layersearch.export.verify.engines.environments import ENVIRONMENTS, installed


def install(engine: str) -> Path:
    """Make an engine's environment under the current folder's ``.engines`` unless it is there; return its Python.

    Raises:
        ExportError: if the engine is unknown or has no environment of its own, or pip fails.
    """
    names = [name for name, needs in ENVIRONMENTS.items() if needs.packages]
    if engine not in names:
        raise ExportError(f"engine {engine!r} has no environment to install{did_you_mean(engine, names)}")
    needs, python = ENVIRONMENTS[engine], installed(engine)
    done = python.parent.parent / "installed.txt"
    wanted = "\n".join((*needs.packages, *needs.alone)) + "\n"
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return python
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = [] if python.exists() else [[sys.executable, "-m", "venv", str(python.parent.parent)]]
    steps += [[*pip, *needs.packages]] + ([[*pip, "--no-deps", *needs.alone]] if needs.alone else [])
    for step in steps:
        if subprocess.run(step, check=False).returncode:
            raise ExportError(f"{engine} was not installed: {' '.join(step[:4])} failed; correct that and try again")
    done.write_text(wanted, encoding="utf-8")
    return python


def main(names: Sequence[str]) -> int:
    """Install each engine; return the exit code."""
    try:
        if not names:
            raise ExportError("no engine is named; give some of " + ", ".join(list(ENVIRONMENTS)[1:]))
        for name in names:
            print(f"{name}: {install(name)}", flush=True)
    except ExportError as error:
        print(f"layersearch: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
