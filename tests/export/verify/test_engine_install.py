"""The installer of engines: what it is given, and what pip does."""

from __future__ import annotations

from pathlib import Path

import pytest

from layersearch.export.verify.engines.environments import ENVIRONMENTS, installed
from layersearch.export.verify.engines.install import main


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no engine is named; give some of mlx, "),
        (["mlxx"], "engine 'mlxx' has no environment to install; did you mean 'mlx'?"),
        (["hf"], "engine 'hf' has no environment to install; known: mlx, llama.cpp, litgpt, vllm"),
    ],
)
def test_install_wrong_name_is_refused_in_one_line(
    names: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(names) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_install_runs_pip_once_and_a_failure_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    python = installed("mlx")
    python.parent.mkdir(parents=True)

    def pip_ends_with(code: int) -> None:
        python.write_text(f'#!/bin/sh\necho "$@" >> calls\nexit {code}\n')
        python.chmod(0o755)

    pip_ends_with(1)
    assert main(["mlx"]) == 2
    assert "mlx was not installed: .engines/mlx/bin/python -m pip install failed" in capsys.readouterr().err
    pip_ends_with(0)
    assert main(["mlx"]) == main(["mlx"]) == 0
    calls = Path("calls").read_text().splitlines()
    assert len(calls) == 2  # the failure, and one installation; the third run found it done
    assert all(package in calls[1] for package in ENVIRONMENTS["mlx"].packages)
