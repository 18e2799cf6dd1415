"""``layersearch export`` and ``verify-export``."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.cli import export as export_commands
from layersearch.cli.flags import _command
from layersearch.errors import EXIT_NOT_PROVEN, ExportError, LayersearchError
from layersearch.study.saved_run import load_result

if TYPE_CHECKING:
    from layersearch.export.edit_config import UserConfig


def verify_export(options: argparse.Namespace) -> int:
    """Prove an exported folder; return 0, or 1 if it does not do what its schedule says."""
    from layersearch.cli.tables import proof_table
    from layersearch.export.verify import verify
    from layersearch.schedule.files import schedule_argument

    proof = verify(
        options.folder,
        schedule=None if options.schedule is None else schedule_argument(options.schedule),
        trust_remote_code=options.trust_remote_code,
        attention=options.attention,
    )
    if options.json:
        print(json.dumps(proof.to_dict(), indent=1))
    else:
        proof_table(proof)
    return 0 if proof.proven else EXIT_NOT_PROVEN


def _verify_export(groups: Any) -> None:
    verify = _command(
        groups,
        "verify-export",
        export_commands.verify_export,
        "prove by experiment that an exported folder does what its schedule says; exit code 1 if it does not",
    )
    verify.add_argument("folder", type=Path, metavar="DIR", help="holds config.json and schedule.yaml")
    verify.add_argument("--schedule", help="what it should do (default: its schedule.yaml)")
    verify.add_argument("--attention", metavar="NAME", help="an attention of transformers, such as eager or sdpa")
    verify.add_argument("--trust-remote-code", action="store_true", help="run code that lies in DIR; read it first")
    verify.add_argument("--json", action="store_true", help="print as JSON")


def export(options: argparse.Namespace) -> None:
    """Write a schedule for other software."""
    from layersearch.config.loader import build
    from layersearch.config.recipe import Recipe, load_recipe
    from layersearch.data import open_source
    from layersearch.export import check_target
    from layersearch.export import export as write
    from layersearch.export.edit_config import parse_user_config, write_user_config
    from layersearch.results.verdict import winner_evidence
    from layersearch.schedule.files import schedule_argument
    from layersearch.study.run_folder import read_config

    evidence: dict[str, Any] = {}
    run: Path | None = None
    recipe = load_recipe(options.recipe) if options.recipe else None
    own, stock = _user_config(options), None
    check_target(options.to)
    if os.path.isdir(options.schedule):  # not Path.is_dir, which raises where a schedule is longer than a file's name
        run = Path(options.schedule)
        config = read_config(run)
        result = load_result(run)
        if result.winner is None:
            raise ExportError(f"{run}: no winner yet ({result.verdict}); run the command that made it again to go on")
        schedule = result.winner.schedule
        vocab_size = config["data"]["vocab_size"]
        evidence = winner_evidence(result)
        if recipe is None:
            recipe = build(Recipe, config["recipe"], f"{run / 'config.json'}: recipe")
            if recipe.pretrained is not None and own is None and options.to in ("hf", "hf-remote", "litgpt"):
                stock = _searched_model(run, recipe.pretrained, options.to)
                if options.to == "hf":
                    own = parse_user_config(stock.to_dict(), Path(recipe.pretrained) / "config.json", options.family)
    else:
        try:
            schedule = schedule_argument(options.schedule)
        except LayersearchError as error:
            raise ExportError(f"no run folder {options.schedule!r}, and no schedule: {error}") from None
        if recipe is None and own is None:
            raise ExportError(
                "--recipe is missing: a schedule alone has no model size; name a recipe, give --config, or export a run"
            )
    note = None
    if own is not None:
        paths, note = write_user_config(schedule, own, out=options.out, evidence=evidence)
    else:
        assert recipe is not None
        if run is None:
            vocab_size = open_source(recipe.data, recipe.training.seq_len).vocab_size
        paths = write(
            schedule,
            options.to,
            model=recipe.model,
            vocab_size=vocab_size,
            seq_len=recipe.training.seq_len,
            out=options.out,
            family=options.family,
            evidence=evidence,
            stock=stock,
        )
    for path in paths:
        print(path)
    if note is not None:
        print(f"note: {note}")


def _user_config(options: argparse.Namespace) -> UserConfig | None:
    """Return the configuration that the user wants changed, if any."""
    if options.config is None:
        return None
    if options.to != "hf":
        raise ExportError(f"--config is changed by --to hf, not by --to {options.to}; drop it")
    if options.recipe is not None:
        raise ExportError("--config holds the model's size already; drop --recipe")
    from layersearch.export.edit_config import read_user_config

    return read_user_config(options.config, options.family)


def _searched_model(run: Path, name: str, target: str) -> Any:
    """Return transformers' configuration of the pre-trained model of a run; the recipe holds its sizes only."""
    from layersearch.model.pretrained import load_config

    other = f"give --to hf --config with a copy of its config.json, or layersearch convert --run {run} --model {name}"
    if target == "litgpt":
        raise ExportError(f"--to litgpt writes a recipe's model, and {run} searched on {name}, another; {other}")
    try:
        return load_config(name)
    except LayersearchError as error:
        raise ExportError(f"{run} searched on {name}, whose configuration is needed ({error}); {other}") from None
