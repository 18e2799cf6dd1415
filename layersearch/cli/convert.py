"""``layersearch convert``: what the command line adds to a conversion."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import glob
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from layersearch.cli.flags import _command, check_seed
from layersearch.cli.progress import QUIET_SECONDS
from layersearch.errors import UserError

if TYPE_CHECKING:
    from layersearch.config.recipe import DataConfig
    from layersearch.convert.run import Conversion, Step
    from layersearch.schedule import Schedule


def convert(options: argparse.Namespace) -> None:
    """Give a pre-trained model another schedule and train it on."""
    from layersearch.convert.config import load_convert_recipe

    recipe = load_convert_recipe(options.recipe, [*data_overrides(options.data), *_given(options), *options.overrides])
    schedule = _schedule(options)
    check_seed(options.seed)
    from layersearch.convert.run import convert as run

    with _own_output() as output:
        found = run(
            recipe,
            options.model,
            schedule,
            options.out,
            seed=options.seed,
            family=options.family,
            trust_remote_code=options.trust_remote_code,
            listener=_Lines(data_line(recipe.data)),
        )
        _print(found, schedule, output, options.json)


def data_overrides(words: list[str] | None) -> list[str]:
    """Return the recipe's keys that ``--data`` stands for: a source's name, ``hub:ID``, or files, patterns, folders.

    Raises:
        UserError: if it names neither a source nor a file, or files of several formats.
    """
    from layersearch.config.recipe import SourceKind
    from layersearch.data.files import detect_source, local_files

    if not words:
        return []
    sources = sorted({*get_args(SourceKind)} - {"text", "json", "parquet", "hub"})
    if len(words) == 1 and words[0] in sources:
        return [f"data.source={words[0]}"]
    if len(words) == 1 and words[0].startswith("hub:"):
        return ["data.source=hub", f"data.dataset={words[0].removeprefix('hub:')}"]
    for word in words:
        if not glob.glob(os.path.expanduser(word), recursive=True):
            raise UserError(
                f"--data {word}: no such file, and no source; give files, hub:ID, or one of {', '.join(sources)}"
            )
    return [f"data.source={detect_source(local_files(words))}", f"data.files={json.dumps(words)}"]


def data_line(data: DataConfig) -> str:
    """Return the line that says what is read, and as what."""
    from layersearch.data.files import local_files

    count = len(local_files(data.files))
    return f"data: {count} file{'s' * (count != 1)} read as {data.source}" if count else f"data: {data.source}"


def _given(options: argparse.Namespace) -> list[str]:
    values = {
        "training.steps": options.steps,
        "distil": options.distil,
        "lora": options.lora,
        "only_attention": options.only_attention or None,
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]


def _schedule(options: argparse.Namespace) -> Schedule:
    from layersearch.schedule import Schedule
    from layersearch.schedule.files import schedule_argument

    if options.schedule is not None:
        return schedule_argument(options.schedule)
    from layersearch.study.saved_run import _result

    result = _result(options.run)
    if result.winner is None:
        raise UserError(f"{options.run}: no winner yet ({result.verdict}); run the command that made it again to go on")
    return Schedule.parse(result.winner.schedule)


@contextlib.contextmanager
def _own_output() -> Iterator[Any]:
    """Keep standard output to ourselves: libraries that print to it print to standard error."""
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


class _Lines:
    """Says how far a conversion is, on standard error.

    Args:
        heading: the first line.
    """

    def __init__(self, heading: str) -> None:
        self._heading = heading
        self._last = 0.0
        self._began: tuple[float, int] | None = None

    def __call__(self, step: Step) -> None:
        now = time.monotonic()
        if self._heading:
            print(self._heading, file=sys.stderr)
            self._heading = ""
        if step.evaluation is not None:
            print(
                f"{step.evaluation.moment:<9} step {step.step}/{step.steps}  loss {step.evaluation.loss:.4f}",
                file=sys.stderr,
            )
            return
        if self._began is None:
            self._began = (now, step.step)
        if now - self._last < QUIET_SECONDS:
            return
        self._last = now
        done = step.step - self._began[1]
        left = f"  {(now - self._began[0]) / done * (step.steps - step.step):.0f} s left" if done else ""
        print(f"training  step {step.step}/{step.steps}  training loss {step.loss:.4f}{left}", file=sys.stderr)


def _print(found: Conversion, schedule: Schedule, output: Any, as_json: bool) -> None:
    if as_json:
        values = {
            "schedule": str(schedule),
            "cost": found.cost,
            "gap": found.gap,
            "recovered": found.recovered,
            "family": found.family,
            "model": str(found.model),
            "evaluations": [dataclasses.asdict(evaluation) for evaluation in found.evaluations],
        }
        print(json.dumps(values, indent=1), file=output)
        return
    from rich.table import Table

    from layersearch.cli import tables

    edges = found.at("original").position_edges
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "step", "loss", *(f"<{edge}" for edge in edges)):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for evaluation in found.evaluations:
        losses = [f"{loss:.3f}" for loss in evaluation.loss_by_position]
        table.add_row(evaluation.moment, str(evaluation.step), f"{evaluation.loss:.4f}", *losses)
    console = tables.console(output)
    console.print(f"{schedule}: attention cost {found.cost:.3f} of all-full at {found.at('original').seq_len} tokens")
    console.print(table)
    recovered = found.recovered
    share = "there was nothing to recover"
    if recovered is not None:
        share = f"training recovered {recovered:.0%} of it" if recovered > 0 else "training did not win it back"
        if recovered > 1:  # a share of next to nothing says nothing
            below = found.at("original").loss - found.at("converted").loss
            share = f"after training it lies {below:.4f} nats below the original"
    console.print(f"The switch cost {found.gap:+.4f} nats; {share}. Column <N: tokens up to position N.")
    how = "with trust_remote_code=True" if found.family == "hf-remote" else f"as a stock {found.family}"
    console.print(f"{found.model}: loads in transformers {how}", soft_wrap=True)


def _convert(groups: Any) -> None:
    from layersearch.cli import convert as convert_commands

    convert = _command(
        groups,
        "convert",
        convert_commands.convert,
        "give a pre-trained model another schedule and train it on; again to resume",
    )
    convert.add_argument("--model", required=True, metavar="PATH|ID", help="a Hugging Face model folder or hub id")
    which = convert.add_mutually_exclusive_group(required=True)
    which.add_argument("--schedule", help="one span per layer, for example 'full*2 window:128*4', or a winner.yaml")
    which.add_argument("--run", type=Path, help="take the winner of this run")
    convert.add_argument(
        "--data",
        nargs="+",
        metavar="DATA",
        help="files or folders of text, JSON lines or Parquet, hub:ID, or a source like stdlib (default: the recipe's)",
    )
    convert.add_argument("--steps", type=int, help="optimiser steps; the same as --set training.steps=N")
    convert.add_argument("--out", type=Path, required=True, help="the folder: log, evaluations, checkpoint, model/")
    convert.add_argument(
        "--recipe", default="plain", help="a YAML file or a name in trials/convert/ (default: %(default)s)"
    )
    convert.add_argument("--distil", type=float, metavar="WEIGHT", help="share of the loss that is KL to the original")
    convert.add_argument("--only-attention", action="store_true", help="train the attention layers only")
    convert.add_argument("--lora", type=int, metavar="RANK", help="train low-rank updates, merged in the end")
    convert.add_argument("--family", help="save as this family, or hf-remote (default: a stock one that can hold it)")
    convert.add_argument("--seed", type=int, default=0, help="of the data order (default: %(default)s)")
    convert.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe"
    )
    convert.add_argument(
        "--trust-remote-code", action="store_true", help="run the modelling code that the model brings"
    )
    convert.add_argument("--json", action="store_true", help="print the evaluations as JSON")
