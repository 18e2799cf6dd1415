"""The command line: a thin face over the package. Commands import what they need, when they need it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from layersearch.cli import export as export_commands
from layersearch.cli import flags as flags_commands
from layersearch.cli import optimal_l as optimal_l_commands
from layersearch.cli import schedule as schedule_commands
from layersearch.cli import search as search_commands
from layersearch.cli.convert import _convert
from layersearch.cli.export import _verify_export
from layersearch.cli.flags import DEFAULT_RECIPE, _command
from layersearch.errors import EXIT_USER_ERROR, UserError, did_you_mean
from layersearch.version import __version__


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with a remedy."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is not known here and now: a subcommand's own parser knows its flags, the outer one does not."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            word = message.removeprefix("unrecognized arguments: ").split()[0]
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            message = f"{word!r} is not known here{did_you_mean(word.partition('=')[0], flags)}"
        elif "invalid choice: " in message and "choose from" in message:
            message = message.replace("invalid choice", "unknown")
        raise UserError(f"{self.prog}: {message} (see '{self.prog} --help')")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 after one line that says what the user can mend, or a command's own code."""
    try:
        options = _parser().parse_args(arguments)
        code: int | None = options.command(options)
        sys.stdout.flush()
    except UserError as error:
        print(f"layersearch: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except BrokenPipeError:
        _discard_output()  # the reader of a pipe has gone (`| head`); there is nobody to tell
        return 0
    except OSError as error:  # what no command foresaw of files that vanish, names too long and disks that are full
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or " ".join(str(error).split())
        print(f"layersearch: {where}{reason}; mend that file or folder, or name another", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # it was the output itself, which the interpreter would try once more to write
            _discard_output()
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("layersearch: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return code or 0


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="layersearch",
        description="Find which layers of a long-context transformer need full attention, "
        "and the cheapest span for the others.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"layersearch {__version__}")
    groups = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    run = _command(
        groups, "run", search_commands.run, "search for the best schedule within a budget; run again to resume"
    )
    run.add_argument(
        "--budget", type=float, help="largest attention cost, as a share of all-full (default: the space's)"
    )
    run.add_argument(
        "--recipe",
        help=f"what a trial runs: YAML or a name in trials/ (default: {DEFAULT_RECIPE}; with --model: pretrained)",
    )
    run.add_argument(
        "--model", metavar="PATH|ID", help="search on a pre-trained Hugging Face model: trials start from its weights"
    )
    run.add_argument("--space", help="what may vary: a YAML file or a name in search_spaces/ (default: the recipe's)")
    run.add_argument("--out", type=Path, help="the run folder (default: runs/RECIPE-SPACE-BUDGET-sSEED)")
    run.add_argument(
        "--seed", type=int, default=0, help="of the search; confirming uses the seeds after it (default: %(default)s)"
    )
    run.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the recipe, for example training.steps=200",
    )
    run.add_argument("--trials", type=int, help="distinct schedules trained; the same as --set search.trials=N")
    run.add_argument("--workers", type=int, help="trials side by side; the same as --set search.workers=N")
    flags_commands.add_flags(run)
    run.add_argument(
        "--dry-run", action="store_true", help="print the plan, its FLOPs, memory and estimated time; train nothing"
    )
    run.add_argument("--json", action="store_true", help="print the result (or the plan) as JSON")

    show = _command(
        groups, "show", search_commands.show, "one screen: the winner, the frontier, the baselines, loss against l"
    )
    show.add_argument("run", type=Path, help="a run folder, finished or not")
    show.add_argument("--json", action="store_true", help="print what frontier.json holds")

    solve = _command(
        groups,
        "solve",
        search_commands.solve,
        "answer for another budget, cache or latency from a run's trials; train nothing",
    )
    solve.add_argument("run", type=Path, help="a run folder, finished or not")
    limit = solve.add_mutually_exclusive_group(required=True)
    limit.add_argument("--budget", type=float, help="at most this attention cost, as a share of all-full")
    limit.add_argument(
        "--kv-cache", metavar="BYTES", help="at most this KV cache for one sequence, for example 65536 or 64KiB"
    )
    limit.add_argument(
        "--latency", type=float, metavar="MS", help="at most this sum over the layers of --latency-table"
    )
    solve.add_argument(
        "--latency-table",
        type=Path,
        metavar="FILE",
        help="YAML: milliseconds of one layer by span, for example 'window:32: 0.08'",
    )
    solve.add_argument("--bytes", type=int, help="with --kv-cache: bytes of a cached value (default: 2)")
    solve.add_argument("--json", action="store_true", help="print as JSON")

    confirm = _command(
        groups,
        "confirm",
        search_commands.confirm,
        "train given schedules at a run's fresh seeds, beside what it confirmed",
    )
    confirm.add_argument("run", type=Path, help="a run folder, finished or not")
    confirm.add_argument(
        "schedules", nargs="+", metavar="SCHEDULE", help="for example 'full window:32*3', or a winner.yaml"
    )
    flags_commands.add_flags(confirm)
    confirm.add_argument("--json", action="store_true", help="print what frontier.json then holds")

    optimal_l = _command(
        groups,
        "optimal-l",
        optimal_l_commands.optimal_l,
        "find out how many layers need full attention, and how sure that is",
    )
    optimal_l_commands.add_flags(optimal_l, DEFAULT_RECIPE)

    plot = _command(groups, "plot", search_commands.plot, "draw the cost-quality frontier, and signal against noise")
    plot.add_argument("run", type=Path, help="a run folder, finished or not")
    plot.add_argument("--out", type=Path, help="the folder to draw into (default: RUN)")

    export = _command(
        groups, "export", export_commands.export, "write a schedule as a configuration that other software loads"
    )
    export.add_argument(
        "schedule", metavar="RUN|SCHEDULE", help="a run folder, a winner.yaml, or a schedule such as 'full window:32*3'"
    )
    export.add_argument(
        "--to",
        required=True,
        metavar="TARGET",
        help="hf, hf-remote, flex, megatron, vllm, sglang, tensorrt-llm, litgpt, torchtitan, flash-attn, yaml or json",
    )
    export.add_argument("--family", help="hf, vllm, sglang: the model family, for example ministral or llama")
    export.add_argument("--recipe", help="take the model's size from this recipe (default: the run's)")
    export.add_argument(
        "--config", type=Path, metavar="FILE", help="hf: change this config.json of yours where it holds the schedule"
    )
    export.add_argument("--out", type=Path, required=True, help="the folder to write")

    _convert(groups)
    _verify_export(groups)

    cost = _command(
        groups,
        "cost",
        schedule_commands.cost,
        "count a schedule's attention FLOPs and cache, exactly and without a model",
    )
    cost.add_argument("schedule", help="for example 'full*4 block:1024*20', or a YAML or JSON file")
    cost.add_argument("--seq-len", type=int, required=True, help="tokens in a sequence")
    cost.add_argument("--heads", type=int, default=32, help="query heads (default: %(default)s)")
    cost.add_argument("--kv-heads", type=int, help="key-value heads (default: as --heads)")
    cost.add_argument("--head-dim", type=int, default=128, help="width of a head (default: %(default)s)")
    cost.add_argument("--bytes", type=int, default=2, help="bytes of a cached value (default: %(default)s)")
    cost.add_argument("--json", action="store_true", help="print as JSON")

    presets = _command(groups, "presets", schedule_commands.presets, "the literature's schedules by name and size")
    presets.add_argument("name", nargs="?", help="print this one")
    presets.add_argument("sizes", nargs="*", metavar="KEY=VALUE", help="its sizes, for example l=4 n_layers=24")
    presets.add_argument("--json", action="store_true", help="print as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
