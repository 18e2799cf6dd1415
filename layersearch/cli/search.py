"""What each command does. Every command imports what it needs when it is called, so that ``--help`` stays quick."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from layersearch.cli.flags import DEFAULT_RECIPE, check_seed, pool_of
from layersearch.errors import UserError
from layersearch.schedule.bound_space import BoundSpace
from layersearch.study.saved_run import load_records, load_request, load_result

if TYPE_CHECKING:
    from layersearch.results.result import Result


def run(options: argparse.Namespace) -> None:
    """Search, or plan a search."""
    from layersearch.config.recipe import load_recipe
    from layersearch.schedule.space import load_space

    sizes = {"search.trials": options.trials, "search.workers": options.workers}
    given = [f"{key}={value}" for key, value in sizes.items() if value is not None]
    name = options.recipe or ("pretrained" if options.model else DEFAULT_RECIPE)
    recipe = load_recipe(name, [*options.overrides, *given])
    if options.model:
        from layersearch.model.pretrained import recipe_for

        recipe = recipe_for(recipe, options.model)
    try:
        space = load_space(options.space or recipe.default_space)
    except UserError as error:
        if options.space:
            raise
        raise UserError(f"--space is missing and the recipe gives none: {error}") from None
    budget = options.budget if options.budget is not None else space.budget
    if budget is None:
        raise UserError(f"--budget is missing and search space {space.name!r} names none: give one, such as 0.27")
    check_seed(options.seed)
    pool = pool_of(options)
    if options.dry_run:
        from layersearch.study.estimate import estimate

        found = estimate(recipe, space, budget, options.seed, elsewhere=options.pool == "ray")
        if options.json:
            print(json.dumps(dataclasses.asdict(found), indent=1))
        else:
            from layersearch.cli.tables import estimate_table

            estimate_table(found)
        return
    out = options.out or Path("runs") / f"{recipe.name}-{space.name}-{budget:g}-s{options.seed}"
    from layersearch.cli.progress import ProgressDisplay
    from layersearch.study.search import search

    with ProgressDisplay() as display:
        result = search(recipe, space, budget, out, seed=options.seed, pool=pool, listener=display)
    _show_result(result, out, options.json)


def show(options: argparse.Namespace) -> None:
    """Print what a run has found so far."""
    _show_result(load_result(options.run), options.run, options.json)


def solve(options: argparse.Namespace) -> None:
    """Answer for another constraint from a run's trials."""
    from layersearch.cli import tables
    from layersearch.schedule.cost import attention_flops
    from layersearch.surrogate import constraint
    from layersearch.surrogate.solve import solve as find

    if (options.latency is None) != (options.latency_table is None):
        there, missing = (
            ("--latency", "--latency-table") if options.latency_table is None else ("--latency-table", "--latency")
        )
        raise UserError(f"{there} needs {missing}: the limit in milliseconds, and a YAML file of one layer's by span")
    if options.bytes is not None and options.kv_cache is None:
        raise UserError("--bytes is of a cached value: it needs --kv-cache; drop it")
    recipe, space, _ = load_request(options.run)
    model = recipe.model
    bound = BoundSpace.of(space, recipe)
    if options.budget is not None:
        limit = constraint.cost_limit(bound, options.budget)
    elif options.kv_cache is not None:
        value_bytes = 2 if options.bytes is None else options.bytes
        limit = constraint.cache_limit(bound, constraint.parse_bytes(options.kv_cache), model, value_bytes)
    else:
        limit = constraint.latency_limit(bound, options.latency, constraint.read_latencies(options.latency_table))
    found = find(load_records(options.run), bound, limit, tolerance=recipe.search.tolerance)
    answer = found.answer.schedule
    flops = attention_flops(answer, seq_len=bound.seq_len, n_heads=model.n_heads, head_dim=model.head_dim)
    command = None
    if found.proposal is not None:
        command = shlex.join(["layersearch", "confirm", str(options.run), str(found.proposal.schedule)])
    if options.json:
        print(json.dumps(found.to_dict() | {"attention_flops": flops, "confirm_with": command}, indent=1))
    else:
        tables.solution_table(found, flops=flops, confirm_with=command)


def confirm(options: argparse.Namespace) -> None:
    """Train given schedules at the confirming seeds of a run."""
    from layersearch.cli.progress import ProgressDisplay
    from layersearch.cli.tables import confirmed_table
    from layersearch.schedule.files import schedule_argument
    from layersearch.study.run_folder import read_config
    from layersearch.study.search import search
    from layersearch.surrogate.solve import compare_to_best

    pool = pool_of(options)
    config = read_config(options.run)
    recipe, space, budget = load_request(options.run)
    schedules = [schedule_argument(text) for text in options.schedules]
    with ProgressDisplay() as display:
        result = search(
            recipe, space, budget, options.run, seed=config["seed"], pool=pool, listener=display, confirm=schedules
        )
    if options.json:
        print(json.dumps(result.to_dict(), indent=1))
        return
    rows = [(result.entry(held), *compare_to_best(result, held)) for held in dict.fromkeys(schedules)]
    confirmed_table(rows)


def plot(options: argparse.Namespace) -> None:
    """Draw what a run has found so far."""
    from layersearch.files import unwritable
    from layersearch.results.plots.noise import plot_signal
    from layersearch.results.plots.pareto import plot_pareto

    out = options.out or options.run
    result = load_result(options.run)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in (*plot_pareto(result, out / "pareto"), *plot_signal(result, out / "signal")):
            print(path)
    except OSError as error:
        raise unwritable(out, error) from None


def _show_result(result: Result, run: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
        return
    from layersearch.cli.summary import show as print_result
    from layersearch.study.run_folder import read_config

    config = read_config(run)
    meta = {"run": run, "recipe": config["recipe"]["name"], "space": config["space"]["name"], "seed": config["seed"]}
    print_result(result, meta | {"data": config["data"]["source"]})
