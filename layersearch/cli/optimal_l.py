"""Find out how many layers need full attention, and how sure that is."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from layersearch.cli.flags import DEFAULT_RECIPE, add_key, add_shared, pool_of, seed
from layersearch.errors import ConfigError

if TYPE_CHECKING:
    from layersearch.optimal_l.config import OptimalLConfig
    from layersearch.optimal_l.plan import SettingPlan

_MAX_SEEDS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--recipe", default=DEFAULT_RECIPE, help="YAML file or name in trials/ (default: %(default)s)")
    add("--space", help="search space; its baseline_span is the sparse span (default: the recipe's space)")
    names = "bottom,top,interleaved,middle,searched"
    add("--placements", default=names, help="placements of l full layers to measure (default: %(default)s)")
    add("--l", dest="ls", metavar="L,L,...", help="numbers of full layers (default: each from 0 to all)")
    add("--lengths", metavar="T,T,...", help="repeat the study at these sequence lengths, in tokens")
    add("--depths", metavar="N,N,...", help="repeat the study at these numbers of layers")
    text = "converted: train all-full, then switch the schedule and train on (default: %(default)s)"
    add("--regime", choices=("scratch", "converted"), default="scratch", help=text)
    text = "converted: steps after the switch, as a share of the recipe's (default: %(default)s)"
    add("--continued", type=float, default=0.5, metavar="SHARE", help=text)
    add("--delta", type=float, help="margin of equal quality, in nats (default: the recipe's tolerance, >= 0.01)")
    add("--budget", type=float, help="name the best l within this attention cost, as a share of all-full")
    add("--seeds", type=int, default=3, help="fresh seeds of every schedule (default: %(default)s)")
    add("--max-seeds", type=int, help=f"most fresh seeds where l* is in doubt (default: {_MAX_SEEDS}, >= --seeds)")
    add("--trials-per-l", type=int, default=8, help="most placements tried at one l (default: %(default)s)")
    add("--out", type=Path, help="folder of the study (default: runs/optimal-l-RECIPE-REGIME-sSEED)")
    add("--seed", type=seed, default=0, help="first seed; the others follow it (default: %(default)s)")
    add_key(parser, "--workers", "search.workers", "N", "trials side by side")
    add_shared(parser, "--set", "--pool", "--ray-address", "--dry-run", "--json")


def run(options: argparse.Namespace) -> None:
    """Measure l*, or print the plan of it."""
    asked, pool = _asked(options), pool_of(options)
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
    from layersearch.optimal_l.run import optimal_l

    with ProgressDisplay("trials") as display:
        answer = optimal_l(asked, out, pool=pool, listener=display.trials)
    if options.json:
        print(json.dumps(answer.to_dict(), indent=1))
    else:
        from layersearch.report.page import report_beside

        print(f"{answer.text}\nFigures, answer.json and the trials: {out}")
        print(report_beside(out), file=sys.stderr)


def _asked(options: argparse.Namespace) -> OptimalLConfig:
    from layersearch.config.recipe import load_recipe
    from layersearch.optimal_l.config import OptimalLConfig, default_delta, parse_ints, parse_names
    from layersearch.schedule.space import load_space

    recipe = load_recipe(options.recipe, options.overrides)
    if options.regime == "converted" and recipe.training.start is not None:
        raise ConfigError("--regime converted trains its own start: drop training.start, or use --regime scratch")
    return OptimalLConfig(
        recipe=recipe,
        space=load_space(options.space or recipe.default_space),
        delta=default_delta(recipe) if options.delta is None else options.delta,
        placements=parse_names(options.placements),
        ls=None if options.ls is None else parse_ints(options.ls, "--l"),
        lengths=() if options.lengths is None else parse_ints(options.lengths, "--lengths"),
        depths=() if options.depths is None else parse_ints(options.depths, "--depths"),
        regime=options.regime,
        continued=options.continued,
        budget=options.budget,
        seeds=options.seeds,
        most_seeds=max(_MAX_SEEDS, options.seeds) if options.max_seeds is None else options.max_seeds,
        per_l=options.trials_per_l,
        seed=options.seed,
    )


def _print_plan(asked: OptimalLConfig, found: tuple[SettingPlan, ...]) -> None:
    from layersearch.cli.progress import duration
    from layersearch.optimal_l.report import range_of
    from layersearch.results.stats import CONFIDENCE

    print(f"Plan of {asked.recipe.name}, {asked.regime}; nothing is trained.")
    for one in found:
        print(f"\n{one.seq_len} tokens, {one.n_layers} layers, batches of {one.batch_size}")
        print(f"  full layers, l          {_list(one.ls)}; the other layers {one.span}")
        print(f"  selection, 2 seeds      {range_of(*one.selection)} trials")
        print(f"  fresh seeds, {asked.looks[0]} to {asked.most_seeds:<6} {range_of(*one.confirm)} trials")
        if one.before[1]:
            print(f"  before the switch       {range_of(*one.before)} trials")
        print(f"  total                   {range_of(*one.trials)} trials, at most {one.total_flops:.3g} FLOPs")
        print("                          (one multiply-add = one FLOP)")
        ends = "" if one.seconds is None else " to ".join(map(duration, one.seconds)) + ", "
        print(f"  time                    {ends}{one.seconds_note}")
    print(f"\nl* within {asked.delta:g} nats, {CONFIDENCE:.0%}; looks after {_list(asked.looks)} fresh seeds.")


def _list(values: tuple[int, ...]) -> str:
    if len(values) > 3 and values == tuple(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))
