"""A run folder, opened for a page: its request, its records, its analysis, and whether it goes on. No torch here."""

from __future__ import annotations

import contextlib
import fcntl
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from layersearch.config.loader import build
from layersearch.config.recipe import Recipe
from layersearch.errors import RunFolderError
from layersearch.files import parse_json
from layersearch.results.analyze import analyze
from layersearch.results.compared import full_entry
from layersearch.results.held_out import MeasureRow, measure_rows
from layersearch.results.result import Entry, Result
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space
from layersearch.study.run_folder import read_config
from layersearch.study.saved_run import load_result
from layersearch.training.record import TrialRecord, read

Kind = Literal["search", "selection", "optimal-l"]
SETTINGS = "length-*-depth-*"
"""Folders of an optimal-l study of several settings."""


@dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """A run folder and what its page needs."""

    path: Path
    kind: Kind
    config: dict[str, Any]
    """``config.json``."""
    recipe: Recipe
    space: BoundSpace
    budget: float
    """Largest cost allowed, as a share of all-full's."""
    records: tuple[TrialRecord, ...]
    """Empty before the first trial."""
    result: Result
    held_out: tuple[MeasureRow, ...]
    """Text loss and retrieval of a selection; else empty."""
    finished: bool
    """Whether the result was written."""
    answer: dict[str, Any] | None
    """The setting's part of ``answer.json``; None: no optimal-l study, or an unfinished one."""

    @functools.cached_property
    def full(self) -> Entry | None:
        """all_full's entry."""
        return full_entry(self.result)


def expand(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders: a study of several settings stands for the folders of its settings."""
    found: list[Path] = []
    for path in paths:
        inside = [] if (path / "config.json").exists() else sorted(path.glob(f"{SETTINGS}/config.json"), key=_size)
        found += [file.parent for file in inside] or [path]
    return list(dict.fromkeys(found))


def _size(file: Path) -> list[int]:
    return [int(part) for part in file.parent.name.split("-") if part.isdigit()]


def open_run(path: Path) -> OpenedRun:
    """Open a run folder, finished or not.

    Raises:
        LayersearchError: if it is no run folder, or a file in it is damaged or of another version.
    """
    config, where = read_config(path), path / "config.json"
    recipe = build(Recipe, config["recipe"], f"{where}: recipe")
    space = BoundSpace.of(build(Space, config["space"], f"{where}: space"), recipe)
    trials = path / "trials.jsonl"
    records = tuple(read(trials, recipe)) if trials.exists() else ()
    unit: Literal["document", "seed"] = "document" if recipe.selection is not None else "seed"
    result = load_result(path) if records else analyze([], config["budget"], unit=unit)
    answer = _answer(path)
    studied = answer is not None or (space.space.name.endswith("-l") and config["budget"] == 1.0)
    selects = recipe.selection is not None
    return OpenedRun(
        path=path,
        kind="selection" if selects else "optimal-l" if studied else "search",
        config=config,
        recipe=recipe,
        space=space,
        budget=config["budget"],
        records=records,
        result=result,
        held_out=tuple(measure_rows(records)) if selects else (),
        finished=answer is not None or (path / "frontier.json").exists(),
        answer=answer,
    )


def _answer(path: Path) -> dict[str, Any] | None:
    """Return the setting's part of ``answer.json``, in the folder or in that of its study."""
    own, parent = path / "answer.json", path.parent / "answer.json"
    file = own if own.exists() else parent if path.match(SETTINGS) and parent.exists() else None
    if file is None:
        return None
    held = read_json(file)
    try:
        settings = held["settings"]
        found = settings[0] if file is own else next(one for one in settings if one["name"] == path.name)
        return {**found, "text": str(held["text"])}
    except (KeyError, TypeError, IndexError, StopIteration):
        raise damaged(file) from None


def read_json(file: Path) -> Any:
    """Return the content of a JSON file of a run; raise RunFolderError if it is damaged."""
    try:
        return parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise damaged(file) from None


def damaged(file: Path) -> RunFolderError:
    """Return the error for a file of a run that another program cut or changed."""
    return RunFolderError(f"{file}: damaged; remove it, and run the command that made it again")


def goes_on(path: Path) -> bool:
    """Return whether a process holds the run folder, or one of a study's folders.

    The lock is taken for a moment. A run that starts in that moment would be refused.
    """
    for lock in (path / "run.lock", *path.glob(f"{SETTINGS}/run.lock")):
        with contextlib.suppress(FileNotFoundError), lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False
