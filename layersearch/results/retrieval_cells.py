"""Retrieval by depth of the fact and length of the text: the shares of answers' digits that a model predicts.

A selection measures every confirmed schedule at its own length, so its records hold every depth. Three of them are also
measured at shorter lengths, on the same questions: all_full, the winner and the best named placement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from layersearch.config.recipe import Recipe
from layersearch.config.selection import depth_of
from layersearch.errors import RunFolderError
from layersearch.files import parse_json
from layersearch.results import stats
from layersearch.schedule import Schedule
from layersearch.training.record import TrialRecord

NAME = "retrieval_lengths.json"
Shares = Mapping[int, Mapping[str, float]]
"""Share of an answer's digits that the model predicts, by number of the example and task."""


@dataclass(frozen=True, kw_only=True)
class RetrievalCell:
    """One schedule at one depth and length."""

    length: int
    """Tokens of the text, T."""
    depth: float
    """Depth of the fact: 0 is the beginning of the text, 1 stands just before the questions."""
    accuracy: stats.Interval
    """Share of the answers' digits that the model predicts, over the answers at this depth."""


def retrieval_cells(shares: Mapping[int, Shares], tasks: Sequence[str]) -> list[RetrievalCell]:
    """Return a cell for every length and depth that was asked for, in order.

    Args:
        shares: by length in tokens.
        tasks: every task of the examples, in the order in which they were made.
    """
    cells = []
    for length, by_number in sorted(shares.items()):
        found: dict[float, list[float]] = {}
        for number, by_task in sorted(by_number.items()):
            for task in filter(by_task.__contains__, tasks):
                found.setdefault(depth_of(task, tasks, number), []).append(by_task[task])
        cells += [
            RetrievalCell(length=length, depth=depth, accuracy=stats.mean_interval(values))
            for depth, values in sorted(found.items())
        ]
    return cells


def first_example(recipe: Recipe) -> int:
    """Return the number of the first example of a selection's confirmation."""
    assert recipe.selection is not None
    return recipe.selection.calibration_units + recipe.selection.selection_units


def run_cells(run: Path, recipe: Recipe, records: Sequence[TrialRecord]) -> dict[Schedule, list[RetrievalCell]]:
    """Return the cells of every confirmed schedule of a selection; none without retrieval tasks.

    Args:
        run: the run folder, for what was measured at shorter lengths. A folder of an earlier version has none of that.
        recipe: of the run.
        records: of the run.

    Raises:
        RunFolderError: if the file of shorter lengths is damaged.
    """
    assert recipe.selection is not None
    shares: dict[Schedule, dict[int, dict[int, dict[str, float]]]] = {}
    first, prefix = first_example(recipe), "accuracy_"
    for record in records:
        by_task = {name.removeprefix(prefix): v for name, v in record.metrics if name.startswith(prefix)}
        if record.phase == "confirm" and record.state == "complete" and by_task:
            by_length = shares.setdefault(record.schedule, {})
            by_length.setdefault(recipe.training.seq_len, {})[first + record.seed] = by_task
    for schedule, by_length in read_lengths(run).items():
        shares.setdefault(schedule, {}).update(by_length)
    return {schedule: retrieval_cells(found, recipe.selection.used_tasks) for schedule, found in shares.items()}


def read_lengths(run: Path) -> dict[Schedule, dict[int, dict[int, dict[str, float]]]]:
    """Return what a run folder holds of shorter lengths: shares by schedule, length, number and task.

    Raises:
        RunFolderError: if the file is damaged.
    """
    file = run / NAME
    if not file.exists():
        return {}
    try:
        return {
            Schedule.parse(text): {
                int(length): {
                    int(number): {str(task): float(share) for task, share in by_task.items()}
                    for number, by_task in by_number.items()
                }
                for length, by_number in by_length.items()
            }
            for text, by_length in parse_json(file.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        raise RunFolderError(f"{file}: damaged; remove it, and run the command that made it again") from None
