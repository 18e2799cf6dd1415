"""Healing: the conversion of a run's winner, with what the run used as defaults."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from layersearch.config.recipe import Recipe
from layersearch.convert.config import load_convert_recipe
from layersearch.convert.memory import MemoryEstimate, plan_memory
from layersearch.errors import ConfigError, RunFolderError
from layersearch.results.held_out import measure_rows
from layersearch.schedule import Schedule, presets
from layersearch.study.saved_run import load_records, load_request, load_result
from layersearch.study.selection_plan import SelectionPlan

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
    tasks = None
    if recipe.selection is not None:
        rows = measure_rows(load_records(run))
        tasks = [*rows[0].by_task] if rows else []
    name = "plain" if tasks is None else RECIPE
    return Winner(
        schedule=schedule, model=recipe.pretrained, recipe=name, overrides=tuple(recipe_overrides(recipe, tasks))
    )


def recipe_overrides(recipe: Recipe, tasks: Sequence[str] | None = None) -> list[str]:
    """Return the keys of a conversion's recipe that a run's recipe sets: text, length and these retrieval tasks."""
    data = recipe.data
    if data.tokenizer == recipe.pretrained:
        data = dataclasses.replace(data, tokenizer=None)  # that of the model that is converted, wherever it lies
    found = [f"data={json.dumps(dataclasses.asdict(data))}", f"training.seq_len={recipe.training.seq_len}"]
    return found if tasks is None else [*found, f"retrieval_tasks={json.dumps([*tasks])}"]


def model_of(winner: Winner, run: Path) -> str:
    """Return the model to convert; raise ConfigError if the run has none."""
    if winner.model is None:
        raise ConfigError(f"--model is missing: {run} trained a proxy; name the pre-trained model to convert")
    return winner.model


@dataclasses.dataclass(frozen=True, kw_only=True)
class HealPlan:
    """The work of a healing, before it starts."""

    steps: int
    tokens: int
    """Tokens of a step."""
    distil: float
    """Weight of distillation."""
    flops: float
    """About; one multiply-add = one FLOP."""
    memory: MemoryEstimate | None
    """With full attention, whose activations take no less; None: not known."""


def plan_heal(recipe: Recipe, plan: SelectionPlan) -> HealPlan:
    """Return the plan of the healing after a selection.

    Raises:
        ConfigError: if the run's recipe cannot be healed.
    """
    own = load_convert_recipe(RECIPE, recipe_overrides(recipe))
    rows = own.training.steps * own.training.batch_size
    # The backward pass costs two forward passes, the original one more.
    passes = rows * (4 if own.distil else 3) + (own.evaluations + 3) * (
        own.training.val_sequences + own.retrieval_examples
    )
    return HealPlan(
        steps=own.training.steps,
        tokens=own.training.batch_size * own.training.seq_len,
        distil=own.distil,
        flops=passes * plan.flops / plan.passes,
        memory=plan_memory(own, str(recipe.pretrained), presets.all_full(recipe.model.n_layers)),
    )
