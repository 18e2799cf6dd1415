"""The table behind the budget slider: at each budget, the best measured schedule and the best proposal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from layersearch.errors import LayersearchError
from layersearch.report.folder import OpenedRun
from layersearch.report.layers import gate_scores
from layersearch.report.schedules import ScheduleTable
from layersearch.results.result import Entry
from layersearch.selection.rounding import round_to_schedules
from layersearch.surrogate.constraint import cost_limit
from layersearch.surrogate.gp import Surrogate
from layersearch.surrogate.solve import Candidate, solve

GRID = 16
"""Budgets of a search, between its cheapest schedule and its most expensive one."""
MOST_ROWS = 240


def budget_table(
    run: OpenedRun, table: ScheduleTable, fitted: tuple[Surrogate, Surrogate] | None
) -> dict[str, Any] | None:
    """Return rows by ascending budget; None where there is nothing to choose from.

    A row counts until the next one begins. Its measured schedule has the lowest mean loss of the confirmed ones that
    the budget admits. Its proposal comes from the gates of a selection, or from the surrogate of a search.
    """
    measured = sorted((entry for entry in run.result.entries if _is_measured(entry)), key=lambda entry: entry.cost)
    proposals, note = _proposals(run, table, fitted)
    edges = sorted({entry.cost for entry in measured} | proposals.keys())
    if len(edges) < 2 or len(edges) > MOST_ROWS:
        step = max(1, math.ceil(len(edges) / MOST_ROWS))
        edges = sorted({*edges[::step], *edges[-1:]})
    rows = []
    for edge in edges:
        within = [entry for entry in measured if entry.cost <= edge]
        best = min(within, key=lambda entry: (entry.mean.mean if entry.mean else math.inf, entry.cost), default=None)
        at = max((budget for budget in proposals if budget <= edge), default=None)
        rows.append(
            {
                "budget": edge,
                "measured": None if best is None else table.add(best.schedule),
                "proposal": None if at is None else proposals[at],
            }
        )
    return {"rows": rows, "note": note} if len(rows) > 1 else None


def _is_measured(entry: Entry) -> bool:
    return entry.mean is not None and entry.mean.low is not None


def _proposals(
    run: OpenedRun, table: ScheduleTable, fitted: tuple[Surrogate, Surrogate] | None
) -> tuple[dict[float, dict[str, Any]], str]:
    """Return proposals by the budget at which they begin, and what they are."""
    if run.kind == "selection":
        scores = gate_scores(run)
        if scores is None:
            return {}, ""
        costs = [np.array([run.space.share(span) for span in options]) for options in run.space.options]
        path = round_to_schedules(run.space.options, scores, costs)
        note = "Proposed: the gates, rounded at this budget. No loss was measured unless the schedule was confirmed."
        return {run.space.cost(one): {"schedule": table.add(one)} for one in path}, note
    if fitted is None:
        return {}, ""
    found = {}
    for budget in _grid(run):
        solution = _solve(run, budget, fitted)
        if solution is not None:
            found[budget] = {"schedule": table.add(solution.schedule), **_prediction(solution)}
    return found, "Proposed: the answer of `layersearch solve`. A prediction is no measurement; confirm it."


def _grid(run: OpenedRun) -> list[float]:
    low, high = run.space.cost_range
    even = {math.ceil((low + (high - low) * step / GRID) * 1000) / 1000 for step in range(GRID + 1)}
    return sorted({min(1.0, budget) for budget in even} | {run.budget})


def _solve(run: OpenedRun, budget: float, fitted: tuple[Surrogate, Surrogate]) -> Candidate | None:
    try:
        limit = cost_limit(run.space, budget)
        return solve(run.records, run.space, limit, tolerance=run.recipe.search.tolerance, fitted=fitted).answer
    except LayersearchError:  # no schedule with a trained number of full layers is that cheap
        return None


def _prediction(one: Candidate) -> dict[str, Any]:
    return {"state": one.state, "loss": {"mean": one.loss, "low": one.low, "high": one.high}, "seeds": one.seeds}
