"""Write a schedule as a configuration that other software loads."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.errors import ExportError, LayersearchError

if TYPE_CHECKING:
    from layersearch.export.edit_config import UserConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("schedule", metavar="RUN|SCHEDULE", help="run folder, winner.yaml, or schedule such as 'full window:32*3'")
    add(
        "--to",
        required=True,
        metavar="TARGET",
        help="hf, hf-remote, flex, megatron, vllm, sglang, tensorrt-llm, litgpt, torchtitan, flash-attn, yaml or json",
    )
    add("--family", help="hf, vllm, sglang: the model family, for example ministral or llama")
    add("--recipe", help="take the model's size from this recipe (default: the run's)")
    add("--config", type=Path, metavar="FILE", help="hf: a config.json of yours; a copy with the schedule is written")
    add("--out", type=Path, required=True, help="the folder to write")


def run(options: argparse.Namespace) -> None:
    """Write the files and print their paths."""
    from layersearch.config.loader import build
    from layersearch.config.recipe import Recipe, load_recipe
    from layersearch.data import open_source
    from layersearch.export import check_target
    from layersearch.export import export as write
    from layersearch.export.edit_config import parse_user_config, write_user_config
    from layersearch.results.sentences import winner_evidence
    from layersearch.schedule.files import schedule_argument
    from layersearch.study.run_folder import read_config
    from layersearch.study.saved_run import load_result

    evidence: dict[str, Any] = {}
    vocab_size: int | None = None
    recipe = load_recipe(options.recipe) if options.recipe else None
    user, stock, note = _user_config(options), None, None
    check_target(options.to)
    if os.path.isdir(options.schedule):  # not Path.is_dir, which raises where a schedule is longer than a file's name
        folder = Path(options.schedule)
        config, result = read_config(folder), load_result(folder)
        if result.winner is None:
            raise ExportError(f"{folder}: no winner yet ({result.verdict}); run the same command again to continue")
        schedule, vocab_size, evidence = result.winner.schedule, config["data"]["vocab_size"], winner_evidence(result)
        if recipe is None:
            recipe = build(Recipe, config["recipe"], f"{folder / 'config.json'}: recipe")
            if recipe.pretrained is not None and user is None and options.to in ("hf", "hf-remote", "litgpt"):
                stock = _searched_model(folder, recipe.pretrained, options.to)
                if options.to == "hf":
                    file = Path(recipe.pretrained) / "config.json"
                    user = parse_user_config(stock.to_dict(), file, options.family)
    else:
        try:
            schedule = schedule_argument(options.schedule)
        except LayersearchError as error:
            raise ExportError(f"no run folder {options.schedule!r}, and no schedule: {error}") from None
    if user is not None:
        paths, note = write_user_config(schedule, user, out=options.out, evidence=evidence)
    elif recipe is not None:
        paths = write(
            schedule,
            options.to,
            model=recipe.model,
            vocab_size=vocab_size or open_source(recipe.data, recipe.training.seq_len).vocab_size,
            seq_len=recipe.training.seq_len,
            out=options.out,
            family=options.family,
            evidence=evidence,
            stock=stock,
        )
    else:
        other = "give --config, " if options.to == "hf" else ""
        raise ExportError(
            f"--recipe is missing: a schedule alone has no model size; name a recipe, {other}or export a run"
        )
    print(*paths, sep="\n")
    if note is not None:
        print(f"note: {note}")


def _user_config(options: argparse.Namespace) -> UserConfig | None:
    if options.config is None:
        return None
    if options.to != "hf":
        raise ExportError(f"--config is for --to hf, not for --to {options.to}; drop it")
    if options.recipe is not None:
        raise ExportError("--config has the model's size already; drop --recipe")
    from layersearch.export.edit_config import read_user_config

    return read_user_config(options.config, options.family)


def _searched_model(run: Path, name: str, target: str) -> Any:
    """Return transformers' configuration of a run's pre-trained model; the recipe has only its size."""
    from layersearch.model.pretrained import load_config

    other = f"give --to hf --config with a copy of its config.json, or layersearch convert --run {run} --model {name}"
    if target == "litgpt":
        raise ExportError(f"--to litgpt writes a recipe's model, but {run} searched on {name}; {other}")
    try:
        return load_config(name)
    except LayersearchError as error:
        raise ExportError(f"{run} searched on {name}, whose configuration is needed ({error}); {other}") from None
