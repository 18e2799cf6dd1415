"""The command line: a thin face over the package. Commands import what they need, when they need it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from layersearch import __version__
from layersearch.errors import EXIT_USER_ERROR, UserError, did_you_mean

if TYPE_CHECKING:
    from layersearch.schedule import Schedule

DEFAULT_RECIPE = "laptop"


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with a remedy."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            word = message.removeprefix("unrecognized arguments: ").split()[0]
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            message = f"{word!r} is not known here{did_you_mean(word.partition('=')[0], flags)}"
        elif "invalid choice: " in message and "choose from" in message:
            message = message.replace("invalid choice", "unknown")
        raise UserError(f"{self.prog}: {message} (see '{self.prog} --help')")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 after one line that says what the user can mend."""
    try:
        options = _parser().parse_args(arguments)
        options.command(options)
    except UserError as error:
        print(f"layersearch: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`); there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("layersearch: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="layersearch",
        description="Find which layers of a long-context transformer need full attention, and the cheapest span for the others.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"layersearch {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    run = _command(commands, "run", _run, "search for the best schedule within a budget; run again to resume")
    run.add_argument("--budget", type=float, help="largest attention cost, as a share of all-full (default: the space's)")
    run.add_argument("--recipe", default=DEFAULT_RECIPE, help="what a trial runs: a YAML file or a name in trials/ (default: %(default)s)")
    run.add_argument("--space", help="what may vary: a YAML file or a name in search_spaces/ (default: the recipe's name)")
    run.add_argument("--out", type=Path, help="the run folder (default: runs/RECIPE-SPACE-BUDGET-sSEED)")
    run.add_argument("--seed", type=int, default=0, help="of the search; confirming uses the seeds after it (default: %(default)s)")
    run.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe, for example training.steps=200")
    run.add_argument("--trials", type=int, help="distinct schedules trained; the same as --set search.trials=N")
    run.add_argument("--workers", type=int, help="trials side by side; the same as --set search.workers=N")
    run.add_argument("--dry-run", action="store_true", help="print the plan, its FLOPs, memory and estimated time; train nothing")
    run.add_argument("--json", action="store_true", help="print the result (or the plan) as JSON")

    show = _command(commands, "show", _show, "one screen: the winner, the frontier, the baselines, loss against l")
    show.add_argument("run", type=Path, help="a run folder, finished or not")
    show.add_argument("--json", action="store_true", help="print what frontier.json holds")

    plot = _command(commands, "plot", _plot, "draw the cost-quality frontier as PNG and SVG")
    plot.add_argument("run", type=Path, help="a run folder, finished or not")
    plot.add_argument("--out", type=Path, help="path without suffix (default: RUN/pareto)")

    export = _command(commands, "export", _export, "write a schedule as a configuration that other software loads")
    export.add_argument("schedule", metavar="RUN|SCHEDULE", help="a run folder, a winner.yaml, or a schedule such as 'full window:32*3'")
    export.add_argument("--to", required=True, metavar="TARGET", help="hf, yaml or json")
    export.add_argument("--family", help="hf: the model family, for example ministral or qwen3")
    export.add_argument("--recipe", help="take the model's size from this recipe (default: the run's)")
    export.add_argument("--out", type=Path, required=True, help="the folder to write")

    cost = _command(commands, "cost", _cost, "count a schedule's attention FLOPs and cache, exactly and without a model")
    cost.add_argument("schedule", help="for example 'full*4 block:1024*20', or a YAML or JSON file")
    cost.add_argument("--seq-len", type=int, required=True, help="tokens in a sequence")
    cost.add_argument("--heads", type=int, default=32, help="query heads (default: %(default)s)")
    cost.add_argument("--kv-heads", type=int, help="key-value heads (default: as --heads)")
    cost.add_argument("--head-dim", type=int, default=128, help="width of a head (default: %(default)s)")
    cost.add_argument("--bytes", type=int, default=2, help="bytes of a cached value (default: %(default)s)")
    cost.add_argument("--json", action="store_true", help="print as JSON")

    presets = _command(commands, "presets", _presets, "the literature's schedules by name and size")
    presets.add_argument("name", nargs="?", help="print this one")
    presets.add_argument("sizes", nargs="*", metavar="KEY=VALUE", help="its sizes, for example l=4 n_layers=24")
    presets.add_argument("--json", action="store_true", help="print as JSON")
    return parser


def _command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.set_defaults(command=function)
    return parser


def _run(options: argparse.Namespace) -> None:
    from layersearch.recipe import load_recipe
    from layersearch.ladder import search
    from layersearch.space import load_space

    overrides = list(options.overrides)
    overrides += [f"search.{key}={value}" for key in ("trials", "workers") if (value := getattr(options, key)) is not None]
    recipe = load_recipe(options.recipe, overrides)
    space = load_space(options.space or recipe.name)
    budget = options.budget if options.budget is not None else space.budget
    if budget is None:
        raise UserError(f"--budget is missing and search space {space.name!r} names none: give one, for example --budget 0.27")
    if options.seed < 0:
        raise UserError(f"--seed must not be negative, not {options.seed}")
    if options.dry_run:
        from layersearch.estimate import estimate

        _print_estimate(estimate(recipe, space, budget, options.seed), options.json)
        return
    out = options.out or Path("runs") / f"{recipe.name}-{space.name}-{budget:g}-s{options.seed}"
    from layersearch.progress import ProgressDisplay

    with ProgressDisplay() as display:
        result = search(recipe, space, budget, out, seed=options.seed, listener=display)
    if options.json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        from layersearch.report import show

        show(result, _meta(out))


def _show(options: argparse.Namespace) -> None:
    result = _result(options.run)
    if options.json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        from layersearch.report import show

        show(result, _meta(options.run))


def _plot(options: argparse.Namespace) -> None:
    from layersearch.plots import plot_pareto
    from layersearch.ladder.folder import unwritable

    stem = options.out or options.run / "pareto"
    result = _result(options.run)
    try:
        for path in plot_pareto(result, stem):
            print(path)
    except OSError as error:
        raise unwritable(stem.parent, error) from None


def _result(run: Path) -> Any:
    from layersearch.record import read
    from layersearch.result import analyse
    from layersearch.ladder.folder import read_config

    config = read_config(run)
    trials = run / "trials.jsonl"
    records = list(read(trials)) if trials.exists() else []
    if not records:
        raise UserError(f"{run}: no trial has finished yet; run the command that made it again to go on")
    return analyse(records, config["budget"])


def _meta(run: Path) -> dict[str, Any]:
    from layersearch.ladder.folder import read_config

    return {"run": str(run)} | read_config(run)


def _export(options: argparse.Namespace) -> None:
    raise UserError("export: not wired yet")


def _schedule_argument(text: str) -> Schedule:
    """Read a schedule from a file that holds one, or from its text form."""
    from layersearch.config import read_yaml
    from layersearch.schedule import Schedule

    path = Path(text)
    if path.suffix in (".yaml", ".yml", ".json"):
        held = read_yaml(path)
        if isinstance(held, dict):
            if "schedule" not in held:
                raise UserError(f"{path}: no key 'schedule'; give a winner.yaml or a list of spans")
            held = held["schedule"]
        return Schedule.parse(held) if isinstance(held, str) else Schedule.from_dicts(held)
    return Schedule.parse(text)


def _cost(options: argparse.Namespace) -> None:
    from layersearch import cost

    for flag in ("seq_len", "heads", "kv_heads", "head_dim", "bytes"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} must be at least 1, not {value}")
    kv_heads = options.kv_heads or options.heads
    if options.heads % kv_heads:
        raise UserError(f"--kv-heads {kv_heads} must divide --heads {options.heads}")
    schedule = _schedule_argument(options.schedule)
    schedule.check(seq_len=options.seq_len, n_heads=options.heads)
    report = cost.cost_report(
        schedule,
        seq_len=options.seq_len,
        n_heads=options.heads,
        n_kv_heads=kv_heads,
        head_dim=options.head_dim,
        bytes_per_value=options.bytes,
    )
    if options.json:
        print(json.dumps(report, indent=1))
        return
    from layersearch.report import show_cost

    show_cost(report)


def _presets(options: argparse.Namespace) -> None:
    from layersearch.presets import PRESETS, make_preset

    if options.name:
        sizes = {}
        for pair in options.sizes:
            key, equals, value = pair.partition("=")
            if not equals:
                raise UserError(f"presets {options.name}: expected KEY=VALUE, for example n_layers=24, found {pair!r}")
            sizes[key] = value
        schedule = make_preset(options.name, sizes)
        print(json.dumps(schedule.to_dicts(), indent=1) if options.json else schedule)
        return
    print(PRESETS)


def _print_estimate(plan: Any, as_json: bool) -> None:
    raise UserError("--dry-run: not wired yet")


if __name__ == "__main__":
    sys.exit(main())
