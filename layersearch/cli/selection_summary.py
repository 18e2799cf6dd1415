"""One screen about a selection on a pre-trained model."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layersearch.cli.tables import console, table
from layersearch.config.recipe import Recipe
from layersearch.errors import RunFolderError
from layersearch.files import parse_json
from layersearch.results.held_out import MeasureRow, compact, measure_rows, ranking_agreements
from layersearch.results.result import Result
from layersearch.results.retrieval_cells import run_cells
from layersearch.results.stats import Interval
from layersearch.schedule.files import plain
from layersearch.schedule.space import Space
from layersearch.study.run_folder import read_config
from layersearch.study.saved_run import load_records, load_request


def print_selection(result: Result, run: Path, as_json: bool, more: Mapping[str, Any] | None = None) -> None:
    """Print the result of a run folder, as JSON, with ``more``, or on one screen."""
    records = load_records(run)
    rows, agreements, levels = measure_rows(records), ranking_agreements(records), _levels(run)
    if as_json:
        held = [
            {"schedule": str(row.schedule), "cost": row.cost, "text_loss": row.text.mean, "by_task": row.by_task}
            for row in rows
        ]
        ranked = [
            {"first": a.first, "second": a.second, "spearman": a.correlation.spearman, "differs": a.differs}
            for a in agreements
        ]
        recipe = load_request(run)[0]
        cells = [
            {"schedule": str(schedule), **plain(cell)}
            for schedule, cells in run_cells(run, recipe, records).items()
            for cell in cells
        ]
        found = result.to_dict() | {"held_out": held, "retrieval_levels": levels, "retrieval_cells": cells}
        found |= {"ranking_agreements": ranked}
        found |= dict(more or {})
        print(json.dumps(found, indent=1))
        return
    screen, config = console(), read_config(run)
    training = config["recipe"]["training"]
    head = f"run {run} · model {Path(str(config['recipe']['pretrained'])).name} · {training['seq_len']} tokens · "
    head += f"data {config['data']['source']} · seed {config['seed']}"
    screen.print(textwrap.shorten(head, screen.width, placeholder=" …"), style="dim", soft_wrap=True)
    by = {row.schedule: row for row in rows}
    if result.winner is not None and result.winner.schedule in by:
        row = by[result.winner.schedule]
        text = f"Winner: {row.schedule} (l = {row.n_full}, cost {row.cost:.3f}, budget {result.budget:g})"
        screen.print("\n".join(textwrap.wrap(text, screen.width)), style="bold", soft_wrap=True)
        screen.print(_winner_sentence(row, by, result), soft_wrap=True)
    verdict = result.verdict
    for schedule in by:
        verdict = verdict.replace(str(schedule), compact(schedule))
    for line in textwrap.wrap("Loss = text and answers together. " + verdict, screen.width):
        screen.print(line, soft_wrap=True)
    if rows:
        documents = rows[0].text.n
        screen.print(f"\nOn {documents} held-out documents (mean ± 95%; + is worse than all_full)", style="bold")
        screen.print(_table(rows, result, screen.width))
    for agreement in agreements:
        style = "bold" if agreement.differs else ""
        said = f"{agreement}." + (" Look at both before you choose." if agreement.differs else "")
        screen.print("\n".join(textwrap.wrap(said, screen.width)), style=style, soft_wrap=True)
    if levels:
        said = ", ".join(f"{task} {level['full']:.2f} (chance {level['chance']:.2f})" for task, level in levels.items())
        used = set(rows[0].by_task) if rows else set(levels)
        dropped = sorted(set(levels) - used)
        said = f"Digits right with full attention: {said}."
        said += f" Not used, the model itself fails: {', '.join(dropped)}." if dropped else ""
        screen.print("\n" + "\n".join(textwrap.wrap(said, screen.width)), soft_wrap=True)


def print_plan(recipe: Recipe, space: Space, budget: float, as_json: bool, *, heal: bool = False) -> None:
    """Print the plan of a selection, and of the healing after it: its work, its memory, its placements."""
    from layersearch.cli.tables import memory_text, size
    from layersearch.convert.heal import plan_heal
    from layersearch.convert.memory import check_free_memory
    from layersearch.schedule.bound_space import BoundSpace
    from layersearch.study.selection_plan import check_memory, plan_of

    bound = BoundSpace.of(space, recipe)
    bound.check_budget(budget)
    plan, config = plan_of(recipe, bound, budget), recipe.selection
    assert config is not None
    healing = plan_heal(recipe, plan) if heal else None
    if as_json:
        more = {}
        if healing is not None:
            memory = None if healing.memory is None else healing.memory.to_dict()
            more = {"heal": plain(healing) | {"memory": memory}}
        print(json.dumps(plain(plan) | {"memory_bytes": plan.memory.total} | more, indent=1))
        return
    kept, units = plan.memory, f"{config.selection_units} texts and {config.selection_units} retrieval examples"
    rows = {
        "model": f"{plan.parameters:,} parameters, vocabulary {plan.vocab_size:,}, {recipe.model.n_layers} layers",
        "choices of a layer": ", ".join(space.choices),
        "schedules in the space": f"{bound.size:.3g}",
        "gates": f"{config.gate_steps} gradient steps over all choices, weights frozen",
        "local search": f"{config.candidates} schedules on {units}",
        "confirmation": f"on {config.confirm_units} held-out documents",
        "forward passes": f"about {plan.passes:,.0f} of {recipe.training.seq_len:,} tokens",
        "work": f"about {plan.flops:.3g} FLOPs (one multiply-add = one FLOP)",
        "memory": f"at most {size(kept.total)}: weights {size(kept.weights)} ({plan.precision}), "
        f"activations {size(kept.kept)} (every {kept.stride} layers), logits {size(kept.logits)}, rest libraries",
    }
    if healing is not None:
        rows["healing"] = f"{healing.steps} steps of {healing.tokens:,} tokens, distillation weight {healing.distil:g}"
        rows["healing's work"] = f"about {healing.flops:.3g} FLOPs"
        rows["healing's memory"] = memory_text(healing.memory)
    screen = console()
    grid = table("", "", left=2, show_header=False)
    for row in rows.items():
        grid.add_row(*row)
    placements = table("placement", "cost", "schedule", left=1)
    for name, schedule in plan.placements:
        placements.add_row(name, f"{bound.cost(schedule):.3f}", compact(schedule))
    screen.print(grid, "", placements, sep="\n")
    check_memory(recipe, plan)
    if healing is not None and healing.memory is not None:
        check_free_memory(healing.memory, str(recipe.pretrained))


def _winner_sentence(row: MeasureRow, by: dict[Any, MeasureRow], result: Result) -> str:
    full = next(r for r in by.values() if r.cost == 1.0)
    said = f"Text loss {row.text.mean:.3f} against {full.text.mean:.3f} with full attention"
    named = [r for r in by.values() if r.names and r.cost <= result.budget]
    if row.accuracy is not None and full.accuracy is not None:
        said += f"; digits right {row.accuracy.mean:.2f} against {full.accuracy.mean:.2f}"
    if named:
        best = min(named, key=lambda r: r.text.mean)
        said += f". Best named placement within the budget: {best.label}, {best.text.mean:.3f}"
        if row.accuracy is not None:
            most = max(r.accuracy.mean for r in named if r.accuracy is not None)
            said += f"; most digits of any, {most:.2f}"
    return "\n".join(textwrap.wrap(said + ".", console().width))


def _table(rows: Sequence[MeasureRow], result: Result, width: int) -> Any:
    retrieval = rows[0].accuracy is not None
    heads = ["digits right", "±"] if retrieval else []
    made = table("schedule", "l", "cost", "text loss", "to all_full", "±", *heads, cut=True)
    for row in rows:
        wins = result.winner is not None and row.schedule == result.winner.schedule
        name = row.label if row.names else compact(row.schedule)
        room = width - (64 if retrieval else 46)
        name = name if len(name) <= room else name[: room - 1] + "…"
        cells = [f"{row.accuracy.mean:.2f}", _half(row.accuracy, 2)] if row.accuracy is not None else []
        made.add_row(
            ("* " if wins else "  ") + name,
            str(row.n_full),
            f"{row.cost:.3f}",
            f"{row.text.mean:.3f}",
            f"{row.text_to_full.mean:+.3f}",
            _half(row.text_to_full, 3),
            *cells,
            style="bold" if wins else "",
        )
    return made


def _half(interval: Interval, places: int) -> str:
    return "" if interval.half_width is None else f"{interval.half_width:.{places}f}"


def _levels(run: Path) -> dict[str, dict[str, float]]:
    file = run / "retrieval.json"
    if not file.exists():
        return {}
    try:
        held = parse_json(file.read_text(encoding="utf-8"))
        return {str(task): {key: float(level[key]) for key in ("full", "chance")} for task, level in held.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise RunFolderError(f"{file}: damaged; remove it, and run the command that made it again") from None
