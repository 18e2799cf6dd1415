"""What doctor says of this environment, and of one that lacks something."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

from layersearch.cli.installation import EXTRAS, engines, extras, libraries
from layersearch.cli.main import main

ROOT = Path(__file__).parents[2]
DEVELOPMENT = {"test", "browser", "docs"}


@pytest.fixture
def declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Return what puts a distribution of layersearch with such requirements before the installed one."""

    def declared(*needs: str) -> None:
        folder = tmp_path / "layersearch-9.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.4", "Name: layersearch", "Version: 9", *(f"Requires-Dist: {n}" for n in needs)]
        (folder / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))

    return declared


def test_extras_are_those_that_a_user_can_install() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(declared) - DEVELOPMENT


def test_libraries_name_what_is_too_old_and_what_is_missing(declares) -> None:  # type: ignore[no-untyped-def]
    needs = ("numpy>=999", "no-such-library>=1", "pyyaml>=6", "rich>=14", 'jinja2>=999; extra == "report"')
    declares(*needs)
    rows = {row["name"]: row for row in libraries()}
    assert {name: row["ok"] for name, row in rows.items()} == {
        "numpy": False,
        "no-such-library": False,
        "pyyaml": True,
        "rich": True,
        "jinja2": False,
    }
    assert rows["numpy"]["found"]
    assert rows["no-such-library"]["found"] is None
    report = extras([*rows.values()])["report"]
    assert report["missing"] == ["jinja2"]
    assert report["install"] == "pip install 'layersearch[report]'"


def test_engines_python_is_the_one_that_the_variable_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAYERSEARCH_MLX", sys.executable)
    monkeypatch.setenv("LAYERSEARCH_VLLM", "no-such-python")
    found = engines()
    assert found["mlx"]["python"] == sys.executable
    assert found["vllm"]["python"] is None
    assert "no-such-python is no Python" in found["vllm"]["problem"]


def test_doctor_where_a_library_is_too_old_exits_with_1_and_names_it(
    declares,  # type: ignore[no-untyped-def]
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert found["devices"]["cpu"]["kernel_sparse"] == "chunked-span"
    declares("numpy>=999")
    assert main(["doctor"]) == 1
    assert "numpy>=999 is needed" in capsys.readouterr().out
