"""Measure a model and schedules of it on held-out documents: loss by position and retrieval, with intervals."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from layersearch.cli.flags import add_key, add_shared, data_overrides, positive, seed
from layersearch.errors import ConfigError

if TYPE_CHECKING:
    from layersearch.results.stats import Interval
    from layersearch.study.model_evaluation import ModelEvaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="PATH|ID", help="Hugging Face folder, converted model, hub id or GGUF file")
    text = "compare this schedule with the model's own: text, or a winner.yaml; may be repeated"
    add("--schedule", action="append", default=[], metavar="SCHEDULE", help=text)
    add_key(parser, "--seq-len", "training.seq_len", "T", "tokens of a text")
    add_key(parser, "--documents", "selection.confirm_units", "N", "held-out documents, at least 2")
    add("--recipe", default="pretrained", help="YAML file or name in trials/ with a selection (default: %(default)s)")
    add("--seed", type=seed, default=0, help="seed of the documents and the retrieval examples (default: 0)")
    text = "also run these tasks of lm-evaluation-harness, which score texts; needs the extra lm-eval"
    add("--lm-eval", nargs="+", default=[], metavar="TASK", help=text)
    add("--lm-eval-folder", type=Path, metavar="DIR", help="with --lm-eval: YAML files of your own tasks")
    add("--lm-eval-limit", type=positive, metavar="N", help="with --lm-eval: most examples of a task (default: all)")
    add_shared(parser, "--data", "--set", "--json")


def run(options: argparse.Namespace) -> None:
    """Measure and print one row per schedule, the model's own first."""
    from layersearch.config.recipe import load_recipe
    from layersearch.schedule.files import schedule_argument

    for flag, value in (("--lm-eval-folder", options.lm_eval_folder), ("--lm-eval-limit", options.lm_eval_limit)):
        if value is not None and not options.lm_eval:
            raise ConfigError(f"{flag} {value} needs --lm-eval; name tasks, or drop it")
    schedules = [schedule_argument(text) for text in options.schedule]
    recipe = load_recipe(options.recipe, [*data_overrides(options.data), *options.overrides])
    if recipe.selection is None:
        raise ConfigError(f"--recipe {options.recipe} has no section selection; leave it out, or name pretrained")
    from layersearch.cli.progress import ProgressDisplay
    from layersearch.model.pretrained_recipe import recipe_for
    from layersearch.study.lm_eval_tasks import HarnessTasks
    from layersearch.study.model_evaluation import evaluate_model

    harness = None
    if options.lm_eval:
        names = tuple(options.lm_eval)
        harness = HarnessTasks(names=names, folder=options.lm_eval_folder, limit=options.lm_eval_limit)
    # A document stays in the part in which a run has it; of the other parts as little as possible is drawn.
    little = dataclasses.replace(recipe.selection, calibration_units=1, selection_units=2)
    recipe = recipe_for(dataclasses.replace(recipe, selection=little), options.model)
    with ProgressDisplay("measurements") as display:
        found = evaluate_model(
            recipe,
            schedules,
            seed=options.seed,
            harness=harness,
            listener=display.stage,
        )
    if options.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _print(found)


def _said(interval: Interval | None) -> str:
    return "" if interval is None else str(interval)


def _metric(metrics: dict[str, float], name: str) -> str:
    """Return a metric of lm-eval with its standard error, which it does not give for every metric."""
    error = metrics.get(f"{name}_stderr")
    return f"{metrics[name]:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _print(found: ModelEvaluation) -> None:
    from layersearch.cli.tables import console, table

    screen = console()
    head = f"{found.model}, {found.documents} held-out documents of {found.seq_len:,} tokens, data "
    screen.print(f"{head}{found.data['source']}, {found.precision} on {found.device}\n", soft_wrap=True)
    asked = bool(found.chance)
    heads = ["digits right", "to own"] if asked else []
    grid = table("", "schedule", "l", "cost", "text loss, nats", "to own", *heads, left=2)
    for number, row in enumerate(found.schedules, start=1):
        more = [_said(row.accuracy), _said(row.accuracy_to_own)] if asked else []
        cells = (str(row.n_full), f"{row.cost:.3f}", str(row.text_loss), _said(row.text_loss_to_own))
        grid.add_row(str(number), str(row.schedule) + (" (own)" if row.own else ""), *cells, *more)
    screen.print(grid)
    screen.print("\nLoss by position, nats (<N: tokens up to position N)", style="bold")
    grid = table("", *(f"<{edge}" for edge in found.position_edges))
    for number, row in enumerate(found.schedules, start=1):
        grid.add_row(str(number), *(f"{one.mean:.3f}" for one in row.loss_by_position))
    screen.print(grid)
    if asked:
        screen.print("\nDigits right by task", style="bold")
        grid = table("task", "chance", *map(str, range(1, len(found.schedules) + 1)))
        for task, chance in found.chance.items():
            grid.add_row(task, f"{chance:.2f}", *(str(row.by_task[task]) for row in found.schedules))
        screen.print(grid)
        screen.print("\nDigits right by tokens of the text and depth of the fact (0: its beginning)", style="bold")
        grid = table("tokens", "depth", *map(str, range(1, len(found.schedules) + 1)))
        for place in zip(*(row.retrieval for row in found.schedules), strict=True):
            grid.add_row(f"{place[0].length:,}", f"{place[0].depth:.1f}", *(str(cell.accuracy) for cell in place))
        screen.print(grid)
    if found.schedules[0].lm_eval:
        screen.print("\nlm-eval (± its standard error)", style="bold")
        grid = table("task", "metric", *map(str, range(1, len(found.schedules) + 1)), left=2)
        for task, metrics in found.schedules[0].lm_eval.items():
            for name in metrics:
                if name != "sample_len" and not name.endswith("_stderr"):
                    grid.add_row(task, name, *(_metric(row.lm_eval[task], name) for row in found.schedules))
        screen.print(grid)
    screen.print("\n± is a 95% interval over documents; differences are paired by document.", soft_wrap=True)
