"""Healing: the conversion of a run's winner, with what the run used as defaults."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from layersearch.errors import ConfigError, RunFolderError
from layersearch.results.held_out import measure_rows
from layersearch.schedule import Schedule
from layersearch.study.saved_run import load_records, load_request, load_result

RECIPE = "heal"
"""The recipe of a selection's winner."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Winner:
    """The winner of a run, and the defaults of its conversion."""

    schedule: Schedule
    model: str | None
    """The pre-trained model of the run; None: the run trained a proxy."""
    recipe: str
    """Name of the conversion's recipe."""
    overrides: tuple[str, ...]
    """Keys of that recipe: the run's text, its length and its retrieval tasks."""


def load_winner(run: Path) -> Winner:
    """Read the winner of a run.

    Raises:
        RunFolderError: there is none yet, or the folder is damaged.
    """
    result = load_result(run)
    if result.winner is None:
        raise RunFolderError(f"{run}: no winner yet ({result.verdict}); repeat the command that made it")
    recipe, _, _ = load_request(run)
    schedule = result.winner.schedule
    if recipe.pretrained is None:
        return Winner(schedule=schedule, model=None, recipe="plain", overrides=())
    data = recipe.data
    if data.tokenizer == recipe.pretrained:
        data = dataclasses.replace(data, tokenizer=None)  # that of the model that is converted, wherever it lies
    overrides = [f"data={json.dumps(dataclasses.asdict(data))}", f"training.seq_len={recipe.training.seq_len}"]
    if recipe.selection is None:
        return Winner(schedule=schedule, model=recipe.pretrained, recipe="plain", overrides=tuple(overrides))
    rows = measure_rows(load_records(run))
    overrides.append(f"retrieval_tasks={json.dumps([*rows[0].by_task] if rows else [])}")
    return Winner(schedule=schedule, model=recipe.pretrained, recipe=RECIPE, overrides=tuple(overrides))


def model_of(winner: Winner, run: Path) -> str:
    """Return the model to convert; raise ConfigError if the run has none."""
    if winner.model is None:
        raise ConfigError(f"--model is missing: {run} trained a proxy; name the pre-trained model to convert")
    return winner.model
