"""What each command does. Every command imports what it needs when it is called, so that ``--help`` stays quick."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.errors import UserError, did_you_mean
from layersearch.poolflags import pool_of

if TYPE_CHECKING:
    from layersearch.export.nearest import CannotHold
    from layersearch.export.ownconfig import OwnConfig
    from layersearch.recipe import Recipe
    from layersearch.record import TrialRecord
    from layersearch.result import Result
    from layersearch.space import Space

MOST_SEED = 2**31
"""Seeds below this suit every generator of random numbers, the confirming seeds after them too."""


def run(options: argparse.Namespace) -> None:
    """Search, or plan a search."""
    from layersearch.recipe import load_recipe
    from layersearch.space import load_space

    sizes = {"search.trials": options.trials, "search.workers": options.workers}
    given = [f"{key}={value}" for key, value in sizes.items() if value is not None]
    recipe = load_recipe(options.recipe or ("pretrained" if options.model else "laptop"), [*options.overrides, *given])
    if options.model:
        from layersearch.pretrained import recipe_for

        recipe = recipe_for(recipe, options.model)
    try:
        space = load_space(options.space or recipe.default_space)
    except UserError as error:
        if options.space:
            raise
        raise UserError(f"--space is missing and the recipe gives none: {error}") from None
    budget = options.budget if options.budget is not None else space.budget
    if budget is None:
        raise UserError(f"--budget is missing and search space {space.name!r} names none: give one, such as 0.27")
    if not 0 <= options.seed < MOST_SEED:
        raise UserError(f"--seed must lie in [0, {MOST_SEED}), not {options.seed}")
    pool = pool_of(options)
    if options.dry_run:
        from layersearch.estimate import estimate

        found = estimate(recipe, space, budget, options.seed, elsewhere=options.pool == "ray")
        if options.json:
            print(json.dumps(dataclasses.asdict(found), indent=1))
        else:
            from layersearch.tables import estimate_table

            estimate_table(found)
        return
    out = options.out or Path("runs") / f"{recipe.name}-{space.name}-{budget:g}-s{options.seed}"
    from layersearch.ladder import search
    from layersearch.progress import ProgressDisplay

    with ProgressDisplay() as display:
        result = search(recipe, space, budget, out, seed=options.seed, pool=pool, listener=display)
    _show_result(result, out, options.json)


def show(options: argparse.Namespace) -> None:
    """Print what a run has found so far."""
    _show_result(_result(options.run), options.run, options.json)


def solve(options: argparse.Namespace) -> None:
    """Answer for another constraint from a run's trials."""
    from layersearch import constraint, tables
    from layersearch.cost import attention_flops
    from layersearch.schedule import Schedule
    from layersearch.solve import solve as find

    if (options.latency is None) != (options.latency_table is None):
        there, missing = (
            ("--latency", "--latency-table") if options.latency_table is None else ("--latency-table", "--latency")
        )
        raise UserError(f"{there} needs {missing}: the limit in milliseconds, and a YAML file of one layer's by span")
    if options.bytes is not None and options.kv_cache is None:
        raise UserError("--bytes is of a cached value: it needs --kv-cache; drop it")
    recipe, space, _ = _asked(options.run)
    model = recipe.model
    bound = space.bind(n_layers=model.n_layers, seq_len=recipe.training.seq_len, n_heads=model.n_heads)
    if options.budget is not None:
        limit = constraint.cost_limit(bound, options.budget)
    elif options.kv_cache is not None:
        value_bytes = 2 if options.bytes is None else options.bytes
        limit = constraint.cache_limit(bound, constraint.parse_bytes(options.kv_cache), model, value_bytes)
    else:
        limit = constraint.latency_limit(bound, options.latency, constraint.read_latencies(options.latency_table))
    found = find(_records(options.run), bound, limit, tolerance=recipe.search.tolerance)
    answer = Schedule.parse(found.answer.schedule)
    flops = attention_flops(answer, seq_len=bound.seq_len, n_heads=model.n_heads, head_dim=model.head_dim)
    command = None
    if found.proposal is not None:
        command = shlex.join(["layersearch", "confirm", str(options.run), found.proposal.schedule])
    if options.json:
        print(json.dumps(found.to_dict() | {"attention_flops": flops, "confirm_with": command}, indent=1))
    else:
        tables.solution_table(found, flops=flops, confirm_with=command)


def confirm(options: argparse.Namespace) -> None:
    """Train given schedules at the confirming seeds of a run."""
    from layersearch.ladder import read_config, search
    from layersearch.progress import ProgressDisplay
    from layersearch.schedulefile import schedule_argument
    from layersearch.solve import against_best
    from layersearch.tables import confirmed_table

    pool = pool_of(options)
    config = read_config(options.run)
    recipe, space, budget = _asked(options.run)
    schedules = [schedule_argument(text) for text in options.schedules]
    with ProgressDisplay() as display:
        result = search(
            recipe, space, budget, options.run, seed=config["seed"], pool=pool, listener=display, confirm=schedules
        )
    if options.json:
        print(json.dumps(result.to_dict(), indent=1))
        return
    texts = [str(schedule) for schedule in dict.fromkeys(schedules)]
    confirmed_table([(result.entry(text), *against_best(result, text)) for text in texts])


def plot(options: argparse.Namespace) -> None:
    """Draw what a run has found so far."""
    from layersearch.ladder.folder import unwritable
    from layersearch.plots import plot_pareto
    from layersearch.signalplot import plot_signal

    out = options.out or options.run
    result = _result(options.run)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in (*plot_pareto(result, out / "pareto"), *plot_signal(result, out / "signal")):
            print(path)
    except OSError as error:
        raise unwritable(out, error) from None


def export(options: argparse.Namespace) -> None:
    """Write a schedule for other software."""
    from layersearch.config import build
    from layersearch.data import open_source
    from layersearch.export import TARGETS
    from layersearch.export import export as write
    from layersearch.export.nearest import CannotHold
    from layersearch.export.ownconfig import own_config, write_own_config
    from layersearch.ladder import read_config, winner_evidence
    from layersearch.recipe import Recipe, load_recipe
    from layersearch.schedule import Schedule
    from layersearch.schedulefile import schedule_argument

    evidence: dict[str, Any] = {}
    run: Path | None = None
    recipe = load_recipe(options.recipe) if options.recipe else None
    own, stock = _own_config(options), None
    if options.to not in TARGETS:
        raise UserError(f"--to {options.to!r} is no export target{did_you_mean(options.to, TARGETS)}")
    if os.path.isdir(options.schedule):  # not Path.is_dir, which raises where a schedule is longer than a file's name
        run = Path(options.schedule)
        config = read_config(run)
        result = _result(run)
        if result.winner is None:
            raise UserError(f"{run}: no winner yet ({result.verdict}); run the command that made it again to go on")
        schedule = Schedule.parse(result.winner.schedule)
        vocab_size = config["data"]["vocab_size"]
        evidence = winner_evidence(result)
        if recipe is None:
            recipe = build(Recipe, config["recipe"], f"{run / 'config.json'}: recipe")
            if recipe.pretrained is not None and own is None and options.to in ("hf", "hf-remote", "litgpt"):
                stock = _searched_model(run, recipe.pretrained, options.to)
                if options.to == "hf":
                    own = own_config(stock.to_dict(), Path(recipe.pretrained) / "config.json", options.family)
    else:
        try:
            schedule = schedule_argument(options.schedule)
        except UserError as error:
            raise UserError(f"no run folder {options.schedule!r}, and no schedule: {error}") from None
        if recipe is None and own is None:
            raise UserError(
                "--recipe is missing: a schedule alone has no model size; name a recipe, give --config, or export a run"
            )
    note = None
    try:
        if own is not None:
            paths, note = write_own_config(schedule, own, out=options.out, evidence=evidence)
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
    except CannotHold as refused:
        if run is None:
            raise
        raise UserError(f"{refused}; {_price(run, refused)}") from None
    for path in paths:
        print(path)
    if note is not None:
        print(f"note: {note}")


def _own_config(options: argparse.Namespace) -> OwnConfig | None:
    """Return the configuration that the user wants changed, if any."""
    if options.config is None:
        return None
    if options.to != "hf":
        raise UserError(f"--config is changed by --to hf, not by --to {options.to}; drop it")
    if options.recipe is not None:
        raise UserError("--config holds the model's size already; drop --recipe")
    from layersearch.export.ownconfig import read_own_config

    return read_own_config(options.config, options.family)


def _searched_model(run: Path, name: str, target: str) -> Any:
    """Return transformers' configuration of the pre-trained model of a run; the recipe holds its sizes only."""
    from layersearch.pretrained import load_config

    other = f"give --to hf --config with a copy of its config.json, or layersearch convert --run {run} --model {name}"
    if target == "litgpt":
        raise UserError(f"--to litgpt writes a recipe's model, and {run} searched on {name}, another; {other}")
    try:
        return load_config(name)
    except UserError as error:
        raise UserError(f"{run} searched on {name}, whose configuration is needed ({error}); {other}") from None


def _price(run: Path, refused: CannotHold) -> str:
    """Return what the nearest schedule costs in loss, as far as a run tells."""
    from layersearch.price import loss_change

    try:
        return f"it costs {loss_change(_records(run), _asked(run)[0], refused.asked, refused.nearest)}"
    except UserError as error:
        return f"what it costs in loss is not known: {error}"


def cost(options: argparse.Namespace) -> None:
    """Count a schedule's cost in closed form."""
    from layersearch.cost import attention_flops, budget_ratio, kv_cache_bytes, layer_costs
    from layersearch.schedulefile import schedule_argument

    for flag in ("seq_len", "heads", "kv_heads", "head_dim", "bytes"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} must be at least 1, not {value}")
    kv_heads = options.kv_heads or options.heads
    if options.heads % kv_heads:
        raise UserError(f"--kv-heads {kv_heads} must divide --heads {options.heads}")
    schedule = schedule_argument(options.schedule)
    schedule.check(seq_len=options.seq_len, n_heads=options.heads)
    size = {"seq_len": options.seq_len, "n_heads": options.heads, "head_dim": options.head_dim}
    cache = {**size, "n_kv_heads": kv_heads, "bytes_per_value": options.bytes}
    layers = layer_costs(schedule, **cache)
    flops = attention_flops(schedule, **size)
    ratio = budget_ratio(schedule, seq_len=options.seq_len, n_heads=options.heads)
    cache_bytes = kv_cache_bytes(schedule, **cache)
    if options.json:
        rows = [dataclasses.asdict(layer) | {"span": str(layer.span)} for layer in layers]
        report = {"schedule": str(schedule), **cache, "ratio": ratio, "attention_flops": flops}
        print(json.dumps(report | {"kv_cache_bytes": cache_bytes, "layers": rows}, indent=1))
        return
    from layersearch.tables import cost_table

    cost_table(schedule, layers, ratio=ratio, flops=flops, cache_bytes=cache_bytes, seq_len=options.seq_len)


def presets(options: argparse.Namespace) -> None:
    """List the literature's schedules, or print one."""
    from layersearch.presets import PRESETS, make_preset

    if options.name:
        pairs = [pair.partition("=") for pair in options.sizes]
        for key, equals, _ in pairs:
            if not equals:
                raise UserError(f"presets {options.name}: expected KEY=VALUE such as n_layers=24, found {key!r}")
        schedule = make_preset(options.name, {key: value for key, _, value in pairs})
        print(json.dumps(schedule.to_dicts(), indent=1) if options.json else schedule)
        return
    if options.json:
        rows = {
            name: {"summary": preset.summary, "source": preset.source, "parameters": preset.parameters}
            for name, preset in PRESETS.items()
        }
        print(json.dumps(rows, indent=1))
        return
    from layersearch.tables import preset_table

    preset_table(PRESETS)


def _result(run: Path) -> Result:
    """Analyse the records of a run folder.

    Raises:
        UserError: if it is no run folder, or no trial has finished.
    """
    from layersearch.result import analyse

    recipe, space, budget = _asked(run)
    model, seq_len = recipe.model, recipe.training.seq_len
    bound = space.bind(n_layers=model.n_layers, seq_len=seq_len, n_heads=model.n_heads)
    return analyse(_records(run), budget, tolerance=recipe.search.tolerance, space=bound)


def _records(run: Path) -> list[TrialRecord]:
    from layersearch.record import read

    trials = run / "trials.jsonl"
    records = list(read(trials)) if trials.exists() else []
    if not records:
        raise UserError(f"{run}: no trial has finished yet; run the command that made it again to go on")
    return records


def _asked(run: Path) -> tuple[Recipe, Space, float]:
    """Return the recipe, the space and the budget of a run folder."""
    from layersearch.config import build
    from layersearch.ladder import read_config
    from layersearch.recipe import Recipe
    from layersearch.space import Space

    config, where = read_config(run), run / "config.json"
    recipe = build(Recipe, config["recipe"], f"{where}: recipe")
    return recipe, build(Space, config["space"], f"{where}: space"), config["budget"]


def _show_result(result: Result, run: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
        return
    from layersearch.ladder import read_config
    from layersearch.report import show as print_result

    config = read_config(run)
    meta = {"run": run, "recipe": config["recipe"]["name"], "space": config["space"]["name"], "seed": config["seed"]}
    print_result(result, meta | {"data": config["data"]["source"]})
