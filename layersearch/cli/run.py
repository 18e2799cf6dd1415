"""Search for the best schedule within a budget; run again to resume."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from layersearch.cli.flags import (
    DEFAULT_RECIPE,
    add_key,
    add_shared,
    data_overrides,
    pool_of,
    seed,
)
from layersearch.errors import ConfigError, LayersearchError

if TYPE_CHECKING:
    from layersearch.config.recipe import Recipe
    from layersearch.study.estimate import Estimate
    from layersearch.study.plan import Progress, Stage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--budget", type=float, help="largest attention cost, as a share of all-full (default: the space's)")
    add("--recipe", help=f"YAML file or name in trials/ (default: {DEFAULT_RECIPE}; with --model: pretrained)")
    add(
        "--model",
        metavar="PATH|ID",
        help="choose for a pre-trained model, without training: Hugging Face folder, hub id or GGUF file",
    )
    text = "search space: YAML file or name in search_spaces/ (default: the recipe's); with --model also stock: full "
    text += "attention and one window, as engines load it"
    add("--space", help=text)
    add("--out", type=Path, help="run folder (default: runs/RECIPE-SPACE-BUDGET-sSEED)")
    add("--seed", type=seed, default=0, help="seed of the search; confirmation uses the seeds after it (default: 0)")
    add_key(parser, "--trials", "search.trials", "N", "distinct schedules trained")
    add_key(parser, "--workers", "search.workers", "N", "trials side by side")
    text = "then convert the winner in OUT/healed by the conversion recipe heal; with --model"
    add("--heal", action="store_true", help=text)
    text = "log trials, losses and the frontier there too; may be repeated; all but csv need the extra of that name"
    add("--log", action="append", default=[], choices=("csv", "tensorboard", "mlflow", "wandb"), help=text)
    add_shared(parser, "--data", "--set", "--pool", "--ray-address", "--dry-run", "--json")


def run(options: argparse.Namespace) -> None:
    """Search, or print the plan of a search."""
    from layersearch.config.recipe import load_recipe
    from layersearch.schedule.space import load_space

    name = options.recipe or ("pretrained" if options.model else DEFAULT_RECIPE)
    recipe = load_recipe(name, [*data_overrides(options.data), *options.overrides])
    if options.model:
        from layersearch.model.pretrained_recipe import recipe_for

        print(f"reading the configuration of {options.model}", file=sys.stderr, flush=True)
        recipe = recipe_for(recipe, options.model)
        _say_limits(options.model, options.heal)
    elif recipe.selection is not None:
        raise ConfigError(f"recipe {recipe.name} selects layers of a pre-trained model: name one with --model")
    try:
        if recipe.selection is not None and (options.space == "stock" or not (options.space or recipe.space)):
            from layersearch.study.selection_plan import default_space, stock_space

            space = (stock_space if options.space else default_space)(recipe.training.seq_len)
        else:
            space = load_space(options.space or recipe.default_space)
    except LayersearchError as error:
        if options.space:
            raise
        raise ConfigError(f"--space is missing and the recipe gives none: {error}") from None
    budget = options.budget if options.budget is not None else space.budget
    if budget is None:
        raise ConfigError(f"--budget is missing and search space {space.name!r} names none: give one, such as 0.27")
    if options.heal:
        _check_heal(recipe)
    pool = pool_of(options)
    if options.log:
        from layersearch.report.trackers.tracking import check_trackers

        check_trackers(options.log)
    if options.dry_run and recipe.selection is not None:
        from layersearch.cli.selection_summary import print_plan

        print_plan(recipe, space, budget, options.json, heal=options.heal)
        return
    if options.dry_run:
        from layersearch.study.estimate import estimate

        found = estimate(recipe, space, budget, options.seed, elsewhere=options.pool == "ray")
        if options.json:
            print(json.dumps(dataclasses.asdict(found), indent=1))
        else:
            _print_estimate(found)
        return
    label = recipe.name if recipe.selection is None else Path(options.model).stem
    out = options.out or Path("runs") / f"{label}-{space.name}-{budget:g}-s{options.seed}"
    from layersearch.cli.progress import ProgressDisplay
    from layersearch.cli.summary import print_run
    from layersearch.report.trackers.tracking import Tracking
    from layersearch.study.search import search

    tracking = Tracking(options.log, out)
    with contextlib.closing(tracking), ProgressDisplay("trials") as display:

        def on_trial(progress: Progress) -> None:
            display.trials(progress)
            tracking.update()

        def on_stage(stage: Stage) -> None:
            display.stage(stage)
            tracking.update()

        result = search(recipe, space, budget, out, seed=options.seed, pool=pool, listener=on_trial, on_stage=on_stage)
        tracking.finish()
    if not options.heal:
        print_run(result, out, options.json)
        _report(out, options.json)
        return
    if not options.json:
        print_run(result, out, False)
    from layersearch.cli.convert import conversion_values, own_output, print_conversion
    from layersearch.convert.config import load_convert_recipe
    from layersearch.convert.heal import load_winner, model_of
    from layersearch.convert.run import convert

    winner = load_winner(out)
    healer = load_convert_recipe(winner.recipe, winner.overrides)
    with own_output() as output:
        with ProgressDisplay("steps") as display:
            healed = convert(
                healer,
                model_of(winner, out),
                winner.schedule,
                out / "healed",
                seed=options.seed,
                listener=display.steps,
            )
        if not options.json:
            print("", file=output)
            print_conversion(healed, winner.schedule, output, False)
    if options.json:
        print_run(result, out, True, {"healed": conversion_values(healed, winner.schedule)})
    _report(out, options.json)


def _report(out: Path, as_json: bool) -> None:
    """Write the page of the run, and say where it is unless JSON is printed."""
    from layersearch.report.page import report_beside

    said = report_beside(out)
    if not as_json:
        print(said, file=sys.stderr)


def _say_limits(model: str, heal: bool) -> None:
    """Say before the search which schedules no conversion can save; refuse a healing that could save none."""
    from layersearch.convert.save import formats, limits
    from layersearch.model.pretrained import load_config

    kind = load_config(model).model_type
    text = limits(kind)
    if text is not None and heal and not formats(kind):
        raise ConfigError(f"--heal: {text}; leave it out")
    if text is not None:
        print(f"note: {text}", file=sys.stderr, flush=True)


def _check_heal(recipe: Recipe) -> None:
    """Refuse, before the run starts, a healing that cannot follow it."""
    from layersearch.convert.config import load_convert_recipe
    from layersearch.convert.heal import RECIPE, recipe_overrides

    if recipe.selection is None:
        raise ConfigError(
            f"--heal follows a selection, and recipe {recipe.name} has no section selection: name a --model and leave "
            "out --recipe, or give layersearch convert --run when the run has ended"
        )
    load_convert_recipe(RECIPE, recipe_overrides(recipe))


def _print_estimate(found: Estimate) -> None:
    from layersearch.cli.progress import duration
    from layersearch.cli.tables import console, size, table

    rows = {
        "schedules in the space": f"{found.schedules_in_space:,}",
        "baselines": f"{len(found.baselines)}, each trained to the last step",
        "proposals": f"at most {found.proposals}, within budget {found.budget:g}",
        "sampler, pruner": f"{found.sampler}, {found.pruner}",
        "confirmation": f"at most {found.confirm_trials} full trials at fresh seeds",
        "total training": f"about {found.full_trials:.1f} full trials",
        "model": f"{found.parameters:,} parameters, vocabulary {found.vocab_size:,}",
        "one training step": f"{found.step_flops:.3g} FLOPs (all-full, forward and backward)",
        **({"one trial": f"{found.trial_flops:.3g} FLOPs, in {len(found.stages)} stages"} if found.stages else {}),
        "whole search": f"at most {found.total_flops:.3g} FLOPs (one multiply-add = one FLOP)",
        "memory of a rank": f"{size(found.model_bytes)} for weights, gradients and optimizer state",
        "activations": f"{size(found.activation_bytes)} kept for the backward pass (all-full)",
        "training time": "not estimated" if found.seconds is None else f"about {duration(found.seconds)}",
        "": found.seconds_note,
    }
    screen = console()
    grid = table("", "", left=2, show_header=False)
    for row in rows.items():
        grid.add_row(*row)
    baselines = table("baseline", "schedule", "cost", left=2)
    for name, schedule, cost in found.baselines:
        baselines.add_row(name, schedule, f"{cost:.3f}")
    screen.print(grid, "", baselines, sep="\n")
    if found.stages:
        stages = table("stage", "tokens", "steps", "learning rate", "FLOPs of a trial (all-full)", "share", left=1)
        for number, stage in enumerate(found.stages, start=1):
            share = f"{stage.flops / found.trial_flops:.1%}"
            rate = f"{stage.learning_rate:g}"
            stages.add_row(str(number), f"{stage.seq_len:,}", f"{stage.steps:,}", rate, f"{stage.flops:,}", share)
        screen.print("", stages, sep="\n")
