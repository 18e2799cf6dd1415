"""``layersearch optimal-l``: the flags, the plan, and the page that is printed."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from layersearch.cli import flags
from layersearch.errors import UserError

if TYPE_CHECKING:
    from layersearch.optimal_l.config import OptimalLConfig
    from layersearch.optimal_l.plan import SettingPlan

_MOST_SEEDS = 12


def optimal_l(options: argparse.Namespace) -> None:
    """Find out how many layers need full attention, or plan to."""
    asked, pool = _asked(options), flags.pool_of(options)
    out = options.out or Path("runs") / f"optimal-l-{asked.recipe.name}-{asked.regime}-s{asked.seed}"
    if options.dry_run:
        from layersearch.optimal_l.plan import plan

        found = plan(asked, out, elsewhere=options.pool == "ray")
        if options.json:
            print(json.dumps([dataclasses.asdict(one) | {"trials": one.trials} for one in found], indent=1))
        else:
            _print_plan(asked, found)
        return
    from layersearch.cli.progress import ProgressDisplay
    from layersearch.optimal_l.run import optimal_l as find

    with ProgressDisplay() as display:
        answer = find(asked, out, pool=pool, listener=display)
    if options.json:
        print(json.dumps(answer.to_dict(), indent=1))
    else:
        print(answer.text, end="")
        print(f"\nFigures, answer.json and the trials: {out}")


def add_flags(parser: argparse.ArgumentParser, default_recipe: str) -> None:
    """Add what ``layersearch optimal-l`` takes."""
    parser.add_argument("--recipe", default=default_recipe, help="what a trial runs (default: %(default)s)")
    parser.add_argument("--space", help="the sparse span is its baseline_span (default: the recipe's space)")
    parser.add_argument(
        "--placements",
        default="bottom,top,interleaved,middle,searched",
        help="which placements of l full layers are measured (default: %(default)s)",
    )
    parser.add_argument("--l", dest="ls", metavar="L,L,...", help="numbers of full layers (default: every one)")
    parser.add_argument("--lengths", metavar="T,T,...", help="repeat it at these sequence lengths, in tokens")
    parser.add_argument("--depths", metavar="N,N,...", help="repeat it at these numbers of layers")
    parser.add_argument(
        "--regime",
        choices=("scratch", "converted"),
        default="scratch",
        help="converted: train all-full, then switch the schedule and train on (default: %(default)s)",
    )
    parser.add_argument(
        "--continued",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="converted: steps after the switch, as a share of the recipe's (default: %(default)s)",
    )
    parser.add_argument(
        "--delta",
        type=float,
        help="nats that count as good as the reference (default: the recipe's tolerance, >= 0.01)",
    )
    parser.add_argument("--budget", type=float, help="name the best l within this cost, as a share of all-full")
    parser.add_argument("--seeds", type=int, default=3, help="fresh seeds of every schedule (default: %(default)s)")
    parser.add_argument(
        "--max-seeds",
        type=int,
        help=f"fresh seeds where l* is in doubt, at the most (default: {_MOST_SEEDS}, or --seeds if more)",
    )
    parser.add_argument(
        "--trials-per-l", type=int, default=8, help="placements tried at one l, at the most (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="the folder (default: runs/optimal-l-RECIPE-REGIME-sSEED)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed; the others follow it (default: 0)")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the recipe, for example training.steps=200",
    )
    parser.add_argument("--workers", type=int, help="trials side by side; the same as --set search.workers=N")
    flags.add_flags(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan, its FLOPs and time; train nothing")
    parser.add_argument("--json", action="store_true", help="print the answer (or the plan) as JSON")


def _asked(options: argparse.Namespace) -> OptimalLConfig:
    from layersearch.config.recipe import load_recipe
    from layersearch.optimal_l.config import OptimalLConfig, default_delta, whole_numbers, words
    from layersearch.schedule.space import load_space

    given = [] if options.workers is None else [f"search.workers={options.workers}"]
    recipe = load_recipe(options.recipe, [*options.overrides, *given])
    if options.regime == "converted" and recipe.training.start is not None:
        raise UserError("--regime converted trains its own start: drop training.start, or use --regime scratch")
    flags.check_seed(options.seed)
    return OptimalLConfig(
        recipe=recipe,
        space=load_space(options.space or recipe.default_space),
        delta=default_delta(recipe) if options.delta is None else options.delta,
        placements=words(options.placements),
        ls=None if options.ls is None else whole_numbers(options.ls, "--l"),
        lengths=() if options.lengths is None else whole_numbers(options.lengths, "--lengths"),
        depths=() if options.depths is None else whole_numbers(options.depths, "--depths"),
        regime=options.regime,
        continued=options.continued,
        budget=options.budget,
        seeds=options.seeds,
        most_seeds=max(_MOST_SEEDS, options.seeds) if options.max_seeds is None else options.max_seeds,
        per_l=options.trials_per_l,
        seed=options.seed,
    )


def _print_plan(asked: OptimalLConfig, found: tuple[SettingPlan, ...]) -> None:
    from layersearch.cli.progress import duration
    from layersearch.results.stats import CONFIDENCE

    print(f"Plan of {asked.recipe.name}, {asked.regime}; nothing is trained.")
    for one in found:
        low, high = one.trials
        print(
            f"\n{one.seq_len} tokens, {one.n_layers} layers, batches of {one.batch_size}; l = {_list(one.ls)}; "
            f"the others {one.span}"
        )
        print(f"  selection, 2 seeds      {_range(*one.selection)} trials")
        print(f"  fresh seeds, {asked.looks[0]} to {asked.most_seeds:<6} {_range(*one.confirm)} trials")
        if one.before[1]:
            print(f"  before the switch       {_range(*one.before)} trials")
        print(f"  in all                  {_range(low, high)} trials, at most {one.total_flops:.3g} FLOPs")
        print("                          (one multiply-add = one FLOP)")
        if one.seconds is None:
            print(f"  time                    {one.seconds_note}")
        else:
            ends = f"{duration(one.seconds[0])} to {duration(one.seconds[1])}"
            print(f"  time                    {ends}, {one.seconds_note}")
    print(f"\nl* within {asked.delta:g} nats, {CONFIDENCE:.0%}; looks after {_list(asked.looks)} fresh seeds.")


def _list(values: tuple[int, ...]) -> str:
    if len(values) > 3 and values == tuple(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
