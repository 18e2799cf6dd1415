"""Give a pre-trained model another schedule and continue training; run again to resume."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.cli.flags import add_card, add_key, add_shared, data_overrides, seed
from layersearch.errors import ConfigError

if TYPE_CHECKING:
    from layersearch.convert.config import ConvertRecipe
    from layersearch.convert.run import Conversion
    from layersearch.schedule import Schedule


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="PATH|ID", help="Hugging Face folder, hub id or GGUF file (default: the run's own)")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--schedule", help="one span per layer, for example 'full*2 window:128*4', or a winner.yaml")
    which.add_argument("--run", type=Path, help="take the winner of this run, its text and its length")
    add_key(parser, "--steps", "training.steps", "N", "optimizer steps")
    add("--out", type=Path, required=True, help="folder of the log, evaluations, checkpoint and model/")
    text = "YAML file or name in trials/convert/ (default: heal for the winner of a selection, else plain)"
    add("--recipe", help=text)
    add_key(parser, "--distil", "distil", "WEIGHT", "share of the loss that is KL divergence from the original")
    add_key(parser, "--lora", "lora", "RANK", "train low-rank updates, merged at the end")
    only = "only_attention=true"
    text = "train the attention layers only"
    add("--only-attention", dest="overrides", action="append_const", const=only, help=text)
    add("--family", help="save as this family, or hf-remote (default: a stock family that can hold the schedule)")
    add("--seed", type=seed, default=0, help="seed of the data order (default: %(default)s)")
    add("--trust-remote-code", action="store_true", help="run the modeling code in the model's folder")
    add("--dry-run", action="store_true", help="print the memory by part, and whether it is free; train nothing")
    add_card(parser)
    add_shared(parser, "--data", "--set", "--json")


def run(options: argparse.Namespace) -> None:
    """Convert the model and print its evaluations."""
    from layersearch.convert.config import load_convert_recipe

    name, model, schedule, own = _what(options)
    recipe = load_convert_recipe(name, [*own, *data_overrides(options.data), *options.overrides])
    if options.dry_run:
        _print_memory(recipe, model, schedule, options)
        return
    if options.push is not None:
        from layersearch.export.hub_upload import check_repository

        check_repository(options.push)
    from layersearch.cli.progress import ProgressDisplay
    from layersearch.convert.run import convert

    with own_output() as output:
        with ProgressDisplay("steps") as display:
            found = convert(
                recipe,
                model,
                schedule,
                options.out,
                seed=options.seed,
                family=options.family,
                trust_remote_code=options.trust_remote_code,
                listener=display.steps,
            )
        if options.card or options.push is not None:
            _publish(found, schedule, options)
        print_conversion(found, schedule, output, options.json, family=options.family)
    from layersearch.report.page import report_beside

    pages = [report_beside(options.out)]
    if options.run is not None and options.out.resolve().parent == options.run.resolve():
        pages.append(report_beside(options.run))  # it shows what follows its selection
    if not options.json:
        print(*pages, sep="\n", file=sys.stderr)


def _publish(found: Conversion, schedule: Schedule, options: argparse.Namespace) -> None:
    """Write the card into the model's folder, and upload it if that was asked for; say where on standard error."""
    from layersearch.cli.model_card import publish
    from layersearch.report.card_facts import conversion_facts

    target = "hf-remote" if found.family == "hf-remote" else "hf"
    files = [path.name for path in found.model.iterdir() if path.is_file()]
    address = publish(schedule, target, found.model, conversion_facts(options.out), options.push, files)
    print(f"card: {found.model / 'README.md'}" + (f"; uploaded: {address}" if address else ""), file=sys.stderr)


def _print_memory(recipe: ConvertRecipe, model: str, schedule: Schedule, options: argparse.Namespace) -> None:
    from layersearch.cli.tables import console, memory_text
    from layersearch.convert.memory import check_free_memory, plan_memory

    found = plan_memory(recipe, model, schedule, trust_remote_code=options.trust_remote_code)
    if options.json:
        print(json.dumps({"memory": None if found is None else found.to_dict()}, indent=1))
        return
    training = recipe.training
    screen = console()
    screen.print(f"{training.steps} steps of {training.batch_size} x {training.seq_len:,} tokens, recipe {recipe.name}")
    screen.print(f"memory of a rank: {memory_text(found)}")
    if found is not None:
        check_free_memory(found, model)


def _what(options: argparse.Namespace) -> tuple[str, str, Schedule, Sequence[str]]:
    """Return the recipe's name, the model, the schedule and the keys of the recipe that the run sets."""
    if options.schedule is not None:
        from layersearch.schedule.files import schedule_argument

        if options.model is None:
            raise ConfigError("--model is missing: --schedule names none; give the pre-trained model to convert")
        return options.recipe or "plain", options.model, schedule_argument(options.schedule), ()
    from layersearch.convert.heal import load_winner, model_of

    winner = load_winner(options.run)
    model = options.model or model_of(winner, options.run)
    return options.recipe or winner.recipe, model, winner.schedule, winner.overrides


@contextlib.contextmanager
def own_output() -> Iterator[Any]:
    """Yield standard output; output of libraries goes to standard error, that of C++ (Gloo) too."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(own), "w", encoding="utf-8") as output:
            yield output
    finally:
        sys.stdout.flush()
        os.dup2(own, 1)
        os.close(own)


def print_conversion(
    found: Conversion, schedule: Schedule, output: Any, as_json: bool, *, family: str | None = None
) -> None:
    """Print a conversion; ``family`` is what the user named to save it as."""
    if as_json:
        print(json.dumps(conversion_values(found, schedule), indent=1), file=output)
        return
    from layersearch.cli.tables import console, table

    original, converted = found.at("original"), found.at("converted")
    screen = console(output)
    screen.print(f"{schedule}: attention cost {found.cost:.3f} of all-full at {original.seq_len} tokens")
    asked = "answer_accuracy" in dict(original.metrics)
    heads = ["digits right"] if asked else []
    grid = table("", "step", "loss", *heads, *(f"<{edge}" for edge in original.position_edges))
    for evaluation in found.evaluations:
        losses = [f"{loss:.3f}" for loss in evaluation.loss_by_position]
        right = [f"{dict(evaluation.metrics)['answer_accuracy']:.2f}"] if asked else []
        grid.add_row(evaluation.moment, str(evaluation.step), f"{evaluation.loss:.4f}", *right, *losses)
    screen.print(grid)
    recovered = found.recovered
    if recovered is None:
        share = "nothing had to be recovered"
    elif recovered > 1:  # a share of a tiny gap means nothing
        share = f"after training the loss is {original.loss - converted.loss:.4f} nats below the original"
    else:
        share = f"training recovered {recovered:.0%} of it" if recovered > 0 else "training did not recover it"
    screen.print(f"The switch cost {found.gap:+.4f} nats; {share}. Column <N: tokens up to position N.")
    how = f"as a stock {found.family}"
    if found.family == "hf-remote":
        how = "with trust_remote_code=True: it brings its modeling file (hf-remote)"
        how += "" if family else ", because no stock family holds this schedule with these weights"
    screen.print(f"{found.model}: loads in transformers {how}", soft_wrap=True)


def conversion_values(found: Conversion, schedule: Schedule) -> dict[str, Any]:
    """Return a conversion as plain data."""
    values = {name: getattr(found, name) for name in ("cost", "gap", "recovered", "family")}
    evaluations = [dataclasses.asdict(evaluation) for evaluation in found.evaluations]
    return {"schedule": str(schedule), **values, "model": str(found.model), "evaluations": evaluations}
