"""Reads a run folder: its request, its records, its result. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from layersearch.config.loader import build
from layersearch.config.recipe import Recipe
from layersearch.errors import RunFolderError
from layersearch.results.analyze import analyze
from layersearch.results.result import Result
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space
from layersearch.study.run_folder import read_config
from layersearch.surrogate.fit import leave_one_out_losses
from layersearch.training.record import TrialRecord, read


def load_request(run: Path) -> tuple[Recipe, Space, float]:
    """Return the recipe, the space and the budget of a run folder; see `read_config` for errors."""
    config, where = read_config(run), run / "config.json"
    recipe = build(Recipe, config["recipe"], f"{where}: recipe")
    return recipe, build(Space, config["space"], f"{where}: space"), config["budget"]


def load_records(run: Path) -> list[TrialRecord]:
    """Return the records of a run folder in order; raise RunFolderError if there is none or one is damaged."""
    trials = run / "trials.jsonl"
    records = list(read(trials, load_request(run)[0])) if trials.exists() else []
    if not records:
        raise RunFolderError(f"{run}: no trial has finished yet; run the command that made it again to go on")
    return records


def load_result(run: Path, *, predicted: bool = True) -> Result:
    """Analyze the records of a run folder, finished or not. See `load_records` for errors.

    ``predicted=False`` leaves the surrogate's rank correlation out of `Result.trust`, which takes half of the time.
    """
    recipe, space, budget = load_request(run)
    records = load_records(run)
    if recipe.selection is not None:
        return analyze(records, budget, tolerance=recipe.search.tolerance, unit="document")
    leave_one_out = leave_one_out_losses(records, BoundSpace.of(space, recipe)) if predicted else ()
    search = recipe.search
    return analyze(
        records, budget, tolerance=search.tolerance, leave_one_out=leave_one_out, first_round=search.first_round
    )
