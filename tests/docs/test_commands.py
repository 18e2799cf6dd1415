"""The commands that the documentation prints are commands of this version."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from layersearch.cli.main import build_parser

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "AGENTS.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference"),
    *sorted((ROOT / "analysis").glob("*/README.md")),
]


def commands(page: Path) -> list[str]:
    """Return the commands in the fenced blocks of a page, continued lines joined, comments left out."""
    blocks = re.findall(r"(?ms)^```\n(.*?)^```", page.read_text(encoding="utf-8"))
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("layersearch ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_every_printed_command_is_parsed(page: Path) -> None:
    for command in commands(page):
        assert build_parser().parse_args(shlex.split(command, comments=True)[1:]).command


def test_pages_print_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_every_file_link_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_every_named_study_exists(page: Path) -> None:
    for name in re.findall(
        r"`((?:analysis|trials|search_spaces|layersearch)/[\w./-]+)`", page.read_text(encoding="utf-8")
    ):
        assert "NAME" in name or (ROOT / name).exists(), f"{page.name} names {name}"
