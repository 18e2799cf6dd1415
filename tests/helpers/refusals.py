"""What a user can get wrong: one line with the key and the remedy, exit code 2, and nothing on the disk is changed."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from layersearch.config.loader import find_file

SMOKE = find_file("smoke", "trials").read_text()
SPACE = find_file("smoke", "search_spaces").read_text()
RUN = ["run", "--recipe", "smoke", "--out", "new"]

Line = list[str] | Callable[[Path, Path], list[str]]
"""A command line, or what prepares the fault and returns one: from the empty working folder and a finished run."""


class Refuses(Protocol):
    """The fixture `refuses`: runs a command line that must be refused in one line with these words."""

    def __call__(self, line: Line, *words: str) -> None: ...


def write(path: Path, content: str | bytes) -> str:
    """Write a file, its folders too; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def edit(file: str, pattern: str, replacement: str) -> Callable[[Path], object]:
    """Return a change of one place in a file."""

    def change(run: Path) -> None:
        text = (run / file).read_text()
        found = re.sub(pattern, replacement, text, count=1)
        assert found != text
        (run / file).write_text(found)

    return change


def begun(at: Path, run: Path, records: bytes = b"") -> Path:
    """Return a run that was killed before its first record, or with such a file of records."""
    (at / "begun").mkdir()
    shutil.copy(run / "config.json", at / "begun")
    (at / "begun" / "trials.jsonl").write_bytes(records)
    return at / "begun"


def edited(at: Path, run: Path, pattern: str, replacement: str) -> Path:
    """Return a run with one place of its configuration changed."""
    folder = begun(at, run)
    edit("config.json", pattern, replacement)(folder)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Return a digest of every file, by path; folders too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
        if path.name != "run.lock"
    }


def check_line(line: str, words: tuple[str, ...]) -> None:
    """Check that it is one line of the program and holds the words."""
    assert line.startswith("layersearch: ")
    assert line.endswith("\n")
    assert line.count("\n") == 1, line
    assert [word for word in words if word not in line] == [], line


def shell(*arguments: str, at: Path, **more: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-P", "-m", "layersearch", *arguments]
    return subprocess.run(command, cwd=at, text=True, stderr=subprocess.PIPE, check=False, **more)
