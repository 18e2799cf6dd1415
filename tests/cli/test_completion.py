"""The script of each shell knows every command and its flags, and bash completes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from layersearch.cli.main import COMMANDS, main

NAMES = [module.__name__.rpartition(".")[2].replace("_", "-") for module in COMMANDS]


@pytest.fixture(autouse=True)
def _extra() -> None:
    pytest.importorskip("shtab", reason="needs the extra completion")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_script_names_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert [name for name in NAMES if name not in script] == []


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("layersearch ev", {"evaluate"}),
        ("layersearch run --lo", {"--log"}),
        ("layersearch run --log te", {"tensorboard"}),
        ("layersearch show a_", {"a_run"}),
    ],
)
def test_completion_in_bash(words: str, wanted: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "complete.sh").write_text(capsys.readouterr().out, encoding="utf-8")
    (tmp_path / "a_run").mkdir()
    typed = words.split(" ")
    ask = f"COMP_WORDS=({' '.join(typed)}); COMP_CWORD={len(typed) - 1}; COMP_LINE='{words}'; COMP_POINT={len(words)}"
    call = f"_shtab_layersearch layersearch '{typed[-1]}' '{typed[-2]}'"
    line = f'. ./complete.sh; {ask}; {call} 2>/dev/null; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert {word.strip().rstrip("/") for word in done.stdout.split()} == wanted, done.stdout
