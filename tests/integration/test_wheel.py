"""The wheel: it holds what the sdist holds of recipes and spaces, and runs alone from an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
DATA = ("search_spaces", "trials")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the sdist and the wheel that is built from it, both made offline."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the wheel in an empty folder; return the environment that finds it there and nowhere else."""
    target = tmp_path_factory.mktemp("target")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--no-index", "--target", str(target), str(built[1])], check=True)
    return os.environ | {"PYTHONPATH": str(target)}


def layersearch(*arguments: str, at: Path, environment: dict[str, str]) -> str:
    command = [sys.executable, "-P", "-m", "layersearch", *arguments]
    done = subprocess.run(command, cwd=at, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_the_recipes_and_spaces_of_the_sdist(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    with tarfile.open(sdist) as archive:
        paths = {name.partition("/")[2]: name for name in archive.getnames()}
        kept = {}
        for path, name in paths.items():
            file = archive.extractfile(name)
            if path.startswith(DATA) and file is not None:
                kept[path] = file.read()
    with zipfile.ZipFile(wheel) as archive:
        packed = {name.removeprefix("layersearch/"): archive.read(name) for name in archive.namelist()}
    assert {path: packed.get(path) for path in kept} == kept
    assert {path for path in packed if path.startswith(DATA)} == set(kept)
    tracked = subprocess.run(["git", "ls-files", *DATA], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    on_disk = {
        path.relative_to(ROOT).as_posix() for folder in DATA for path in (ROOT / folder).rglob("*") if path.is_file()
    }
    assert set(tracked.split()) <= set(kept) <= on_disk
    assert {"trials/smoke.yaml", "trials/deepspeed/zero3.json", "search_spaces/smoke.yaml"} <= set(kept)


def test_wheel_brings_no_other_top_level_package(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"layersearch"}


def test_wheel_tells_type_checkers_that_it_is_typed(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        assert "layersearch/py.typed" in archive.namelist()
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        assert "Classifier: Typing :: Typed" in archive.read(metadata).decode().splitlines()


def test_wheel_installed_in_an_empty_folder_finds_its_files_and_runs(installed: dict[str, str], tmp_path: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import layersearch; print(layersearch.__file__)"],
        cwd=tmp_path,
        env=installed,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        Path(where.stdout.strip()).parts[: len(Path(installed["PYTHONPATH"]).parts)]
        == Path(installed["PYTHONPATH"]).parts
    )
    # Workers are started as modules of their own: what finds the package here must reach them too.
    small = [f"search.{key}" for key in ("trials=3", "finalists=1", "workers=1")] + ["training.steps=2"]
    sets = [part for setting in [*small, "training.warmup_steps=0"] for part in ("--set", setting)]
    found = json.loads(layersearch("run", "--recipe", "smoke", *sets, "--json", at=tmp_path, environment=installed))
    assert found["winner"] is not None
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "config.json").read_text())["git_commit"] is None
    assert (run / "pareto.svg").is_file()
    assert (run / "signal.svg").is_file()


def test_load_bench_from_the_wheel_finds_every_table(installed: dict[str, str], tmp_path: Path) -> None:
    names = sorted(path.stem for path in (ROOT / "analysis" / "schedule_bench").glob("*.parquet"))
    assert {"deep", "mix", "prose", "recall", "smollm2", "text"} <= set(names)
    script = f"from layersearch import load_bench\nfor name in {names}: print(load_bench(name).name)"
    command = [sys.executable, "-P", "-c", script]
    asked = subprocess.run(command, cwd=tmp_path, env=installed, capture_output=True, text=True, check=False)
    assert (asked.stdout.split(), asked.returncode) == (names, 0), asked.stderr


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = [
        "torch",
        "deepspeed",
        "optuna",
        "datasets",
        "transformers",
        "tokenizers",
        "matplotlib",
        "numpy",
        "scipy",
        "pydantic",
        "yaml",
        "rich",
    ]
    script = (
        "import json, sys\nfrom layersearch.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"print(json.dumps([name for name in {heavy!r} if name in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "usage: layersearch" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == []
