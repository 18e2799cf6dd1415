"""Run folders to plain data: what a page shows, in numbers and sentences. Template and script read only this."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from layersearch.errors import LayersearchError, visible
from layersearch.files import unseal
from layersearch.report import answer, facts
from layersearch.report.budgets import budget_table
from layersearch.report.conversion import OpenedConversion, conversion_data
from layersearch.report.folder import OpenedRun, damaged, read_json
from layersearch.report.layers import layer_needs
from layersearch.report.schedules import ScheduleTable, run_table
from layersearch.results.compared import compared
from layersearch.results.result import ALL_FULL, PROPOSED, Entry
from layersearch.results.retrieval_cells import run_cells
from layersearch.results.stats import Interval, paired_difference
from layersearch.surrogate.solve import Solver
from layersearch.version import __version__

DIGITS = 8
"""Significant digits of the numbers of a page."""
MOST_NOISE = 14
"""Schedules in the figure of signal and noise."""


def page_data(runs: Sequence[OpenedRun | OpenedConversion], *, quick: bool = False) -> dict[str, Any]:
    """Return what a page of runs shows, as plain data with visible text and finite numbers.

    ``quick`` leaves out what a surrogate predicts, which takes seconds.
    """
    settings = [run.settings() if isinstance(run, OpenedConversion) else facts.settings(run) for run in runs]
    found = {
        "version": __version__,
        "runs": [
            conversion_data(run) if isinstance(run, OpenedConversion) else run_data(run, quick=quick) for run in runs
        ],
        "differences": facts.differences(settings) if len(runs) > 1 else [],
    }
    cleaned: dict[str, Any] = clean(found)
    return cleaned


def clean(value: Any) -> Any:
    """Return plain data with control characters made visible; numbers are rounded, or None if not finite."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [clean(held) for held in value]
    return value


def run_data(run: OpenedRun, *, quick: bool = False) -> dict[str, Any]:
    """Return what the page shows of one run; see `page_data`."""
    flag, _ = facts.recipe_flag(run)
    table, solver = run_table(run, flag), None if quick else _solver(run)
    schedule = answer.chosen(run)
    model = run.recipe.model
    return {
        "name": run.path.resolve().name,
        "kind": run.kind,
        "facts": [[key, str(value)] for key, value in answer.run_facts(run).items()],
        "finished": run.finished,
        "progress": "" if run.finished else answer.progress(run),
        "headline": answer.headline(run),
        "sureness": answer.sureness(run),
        "tiles": answer.tiles(run),
        "budget": run.budget,
        "seq_len": run.space.seq_len,
        "n_layers": run.space.n_layers,
        "heads": [model.n_heads, model.n_kv_heads, model.head_dim],
        "unit": run.result.unit,
        "winner": None if schedule is None else table.add(schedule),
        "points": [_point(run, entry, table) for entry in run.result.entries],
        "frontier": [table.add(one) for one in run.result.frontier],
        "frontier_of": run.result.frontier_of,
        "frontier_line": answer.frontier_line(run),
        "needs": layer_needs(run, solver.pairwise if solver else None),
        "budgets": budget_table(run, table, solver),
        "training": None,
        "baselines": _baselines(run, table),
        "positions": _positions(run),
        "position_line": answer.position_line(run),
        "retrieval": _retrieval(run),
        "depths": _depths(run),
        "per_l": _per_l(run),
        "noise": _noise(run, table),
        "noise_lines": answer.noise_lines(run),
        "trust": _trust(run),
        "spent": facts.spent(run),
        "healed": _healed(run.path / "healed" / "evaluations.jsonl"),
        "recipe": facts.recipe_yaml(run),
        "space": facts.space_yaml(run),
        "command": facts.command(run),
        "recipe_file": flag == facts.RECIPE_FILE,
        "versions": facts.versions(run.config),
        "not_said": answer.not_said(run),
        "schedules": table.rows,
        "spans": table.spans,
    }


def _solver(run: OpenedRun) -> Solver | None:
    """Return what answers a search's budgets; None if too few schedules are trained, or for a selection."""
    if run.kind == "selection":
        return None
    search = run.recipe.search
    try:
        return Solver(run.records, run.space, tolerance=search.tolerance, first_round=search.first_round)
    except LayersearchError:
        return None


def _interval(found: Interval | None) -> dict[str, Any] | None:
    return None if found is None else {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}


def _point(run: OpenedRun, entry: Entry, table: ScheduleTable) -> dict[str, Any]:
    row = next((row for row in run.held_out if row.schedule == entry.schedule), None)
    names = [name for name in entry.names if name != PROPOSED]
    return {
        "schedule": table.add(entry.schedule),
        "names": names,
        "role": "full" if any(ALL_FULL in name for name in names) else "baseline" if names else "proposed",
        "state": entry.state,
        "steps": [entry.steps, entry.full_steps],
        "within": entry.within_budget,
        "on_frontier": entry.on_frontier,
        "loss": _interval(entry.mean),
        "search_loss": entry.search_loss,
        "to_full": _interval(answer.to_full(run, entry)),
        "text": _interval(None if row is None else row.text),
        "text_to_full": _interval(None if row is None else row.text_to_full),
        "digits": _interval(None if row is None else row.accuracy),
        "metrics": dict(entry.metrics),
    }


def _baselines(run: OpenedRun, table: ScheduleTable) -> list[dict[str, Any]]:
    """Return each baseline within the budget, and its paired loss minus the winner's."""
    schedule = answer.chosen(run)
    winner = next((entry for entry in run.result.entries if entry.schedule == schedule), None)
    if winner is None:
        return []
    found = []
    for entry in run.result.entries:
        shared = dict(entry.confirm).keys() & dict(winner.confirm).keys()
        if not entry.names or not entry.within_budget or entry is winner or not shared:
            continue
        difference = paired_difference(dict(entry.confirm), dict(winner.confirm), run.result.confidence)
        found.append(
            {"schedule": table.add(entry.schedule), "name": entry.names[0], "difference": _interval(difference)}
        )
    return sorted(found, key=lambda one: -one["difference"]["mean"])


def _compared(run: OpenedRun) -> list[tuple[str, Entry]]:
    return compared(run.result, answer.chosen(run))


def _positions(run: OpenedRun) -> dict[str, Any] | None:
    lines = [(label, entry) for label, entry in _compared(run) if len(entry.position_edges) > 1]
    if not lines:
        return None
    edges = lines[0][1].position_edges
    lines = [(label, entry) for label, entry in lines if entry.position_edges == edges]
    return {"edges": list(edges), "lines": [{"label": la, "values": list(e.loss_by_position)} for la, e in lines]}


def _retrieval(run: OpenedRun) -> dict[str, Any] | None:
    """Return shares of right answers by task, of the winner, all_full and the best baseline; None without tasks."""
    rows = _compared(run)
    names = dict.fromkeys(
        name for _, entry in rows for name, _ in entry.metrics if "accuracy" in name and name != "answer_accuracy"
    )
    if not names:
        return None
    return {
        "tasks": [name.removeprefix("accuracy_").replace("_", " ") for name in names],
        "chance": _chance(run, [name.removeprefix("accuracy_") for name in names]),
        "rows": [{"label": la, "values": [dict(e.metrics).get(name) for name in names]} for la, e in rows],
    }


def _chance(run: OpenedRun, tasks: Sequence[str]) -> list[float]:
    """Return what can be guessed of each task without its facts; nothing where that was not measured."""
    file = run.path / "retrieval.json"
    if not file.exists():
        return []
    levels = read_json(file)
    try:
        return [float(levels[task]["chance"]) for task in tasks]
    except (KeyError, TypeError, ValueError):
        raise damaged(file) from None


def _depths(run: OpenedRun) -> dict[str, Any] | None:
    """Return shares of digits right by length and depth, of the schedules of `_retrieval`; None without tasks."""
    if run.kind != "selection":
        return None
    held = run_cells(run.path, run.recipe, run.records)
    rows = [(label, held[entry.schedule]) for label, entry in _compared(run) if entry.schedule in held]
    places = sorted({(cell.length, cell.depth) for _, cells in rows for cell in cells})
    if not places:
        return None
    found = []
    for label, cells in rows:
        by_place = {(cell.length, cell.depth): cell.accuracy for cell in cells}
        found.append({"label": label, "values": [_interval(by_place.get(place)) for place in places]})
    tasks = [name.removeprefix("accuracy_") for name, _ in run.records[0].metrics if name.startswith("accuracy_")]
    chance = _chance(run, tasks)
    return {"places": places, "chance": fmean(chance) if chance else None, "rows": found}


def _per_l(run: OpenedRun) -> list[dict[str, Any]]:
    return [
        {
            "l": row.n_full,
            "trained": row.trained,
            "best": row.search_loss,
            "worst": row.search_worst,
            "confirmed": _interval(row.confirmed),
        }
        for row in run.result.best_per_l
    ]


def _noise(run: OpenedRun, table: ScheduleTable) -> dict[str, Any] | None:
    """Return differences to a reference by seed: the spread within a row is noise, the one between rows is signal."""
    entries = [entry for entry in run.result.entries if len(entry.confirm) > 1]
    full, schedule = run.full, answer.chosen(run)
    reference = full if full is not None and len(full.confirm) > 1 else None
    if reference is None or len(entries) < 2:
        return None
    entries.sort(key=lambda entry: (entry.schedule != schedule, not entry.names, entry.cost))
    rows = []
    for entry in [entry for entry in entries if entry is not reference][:MOST_NOISE]:
        theirs = dict(reference.confirm)
        values = [loss - theirs[seed] for seed, loss in entry.confirm if seed in theirs]
        if values:
            label = "winner" if entry.schedule == schedule else entry.label if entry.names else ""
            mean = _interval(answer.to_full(run, entry))
            rows.append({"schedule": table.add(entry.schedule), "label": label, "values": values, "mean": mean})
    return {"rows": rows} if rows else None


def _trust(run: OpenedRun) -> list[list[str]]:
    rows = []
    for found in run.result.trust:
        a = found.agreement
        said = "too few trials" if a is None else a.spearman_text
        rows.append([f"{found.name} → {found.against}", said, "" if a is None else str(a.n), str(found.stopped or "")])
    return rows


def _healed(file: Path) -> list[dict[str, Any]]:
    """Return the evaluations of a healing that has begun in the run folder."""
    if not file.exists():
        return []
    try:
        lines = [unseal(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
        return [
            {
                "moment": str(line["moment"]),
                "step": int(line["step"]),
                "loss": float(line["loss"]),
                "metrics": [[str(name), float(value)] for name, value in line.get("metrics", ())],
            }
            for line in lines
        ]
    except (OSError, ValueError, KeyError, TypeError):
        raise damaged(file) from None
