"""A run folder read back: its request, its records, its result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from layersearch.errors import UserError

if TYPE_CHECKING:
    from layersearch.config.recipe import Recipe
    from layersearch.results.result import Result
    from layersearch.schedule.space import Space
    from layersearch.training.record import TrialRecord


def _result(run: Path) -> Result:
    """Analyse the records of a run folder.

    Raises:
        UserError: if it is no run folder, or no trial has finished.
    """
    from layersearch.results.analyze import analyse

    recipe, space, budget = _asked(run)
    model, seq_len = recipe.model, recipe.training.seq_len
    bound = space.bind(n_layers=model.n_layers, seq_len=seq_len, n_heads=model.n_heads)
    return analyse(_records(run), budget, tolerance=recipe.search.tolerance, space=bound)


def _records(run: Path) -> list[TrialRecord]:
    from layersearch.training.record import read

    trials = run / "trials.jsonl"
    records = list(read(trials)) if trials.exists() else []
    if not records:
        raise UserError(f"{run}: no trial has finished yet; run the command that made it again to go on")
    return records


def _asked(run: Path) -> tuple[Recipe, Space, float]:
    """Return the recipe, the space and the budget of a run folder."""
    from layersearch.config.loader import build
    from layersearch.config.recipe import Recipe
    from layersearch.schedule.space import Space
    from layersearch.study.run_folder import read_config

    config, where = read_config(run), run / "config.json"
    recipe = build(Recipe, config["recipe"], f"{where}: recipe")
    return recipe, build(Space, config["space"], f"{where}: space"), config["budget"]
