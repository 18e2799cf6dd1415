"""The table behind the budget slider: at each budget, the best measured schedule and the best proposal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from layersearch.errors import LayersearchError
from layersearch.report.folder import OpenedRun
from layersearch.report.layers import gate_scores
from layersearch.report.schedules import ScheduleTable
from layersearch.results.analyze import decide
from layersearch.results.result import Winner
from layersearch.selection.rounding import round_to_schedules
from layersearch.surrogate.constraint import cost_limit
from layersearch.surrogate.solve import Candidate, Solver

GRID = 12
"""Budgets of a search, between its cheapest schedule and its most expensive one."""
MOST_ROWS = 240


def budget_table(run: OpenedRun, table: ScheduleTable, solver: Solver | None) -> dict[str, Any] | None:
    """Return rows by ascending budget; None where there is nothing to choose from.

    A row counts until the next one begins. Its measured schedule is the winner of the confirmed ones that the budget
    admits. Its proposal comes from the gates of a selection, or from the surrogate of a search.
    """
    winners = _winners(run)
    proposals, note = _proposals(run, table, solver)
    edges = sorted(winners.keys() | proposals.keys())
    if len(edges) > MOST_ROWS:
        edges = sorted({*edges[:: math.ceil(len(edges) / MOST_ROWS)], edges[-1]})
    rows = []
    for edge in edges:
        won = max((budget for budget in winners if budget <= edge), default=None)
        at = max((budget for budget in proposals if budget <= edge), default=None)
        rows.append(
            {
                "budget": edge,
                "measured": None if won is None else table.add(winners[won].schedule),
                "alike": 0 if won is None else winners[won].non_inferior,
                "proposal": None if at is None else proposals[at],
            }
        )
    return {"rows": rows, "note": note} if len(rows) > 1 else None


def _winners(run: OpenedRun) -> dict[float, Winner]:
    """Return the winner at each cost of a confirmed schedule, by the rule that names the run's own winner."""
    confirmed = [record for record in run.records if record.phase == "confirm"]
    found = {}
    for edge in sorted({record.cost for record in confirmed}):
        search = run.recipe.search
        winner = decide(
            confirmed, edge, tolerance=search.tolerance, unit=run.result.unit, first_round=search.first_round
        ).winner
        if winner is not None and len(winner.seeds) > 1:
            found[edge] = winner
    return found


def _proposals(run: OpenedRun, table: ScheduleTable, solver: Solver | None) -> tuple[dict[float, dict[str, Any]], str]:
    """Return proposals by the budget at which they begin, and what they are."""
    if run.kind == "selection":
        scores = gate_scores(run)
        if scores is None:
            return {}, ""
        costs = [np.array([run.space.share(span) for span in options]) for options in run.space.options]
        path = round_to_schedules(run.space.options, scores, costs)
        note = "Proposed: the gates, rounded at this budget. No loss was measured unless the schedule was confirmed."
        return {run.space.cost(one): {"schedule": table.add(one)} for one in path}, note
    if solver is None:
        return {}, ""
    found = {}
    for budget in _grid(run):
        solution = _solve(run, budget, solver)
        if solution is not None:
            found[budget] = {"schedule": table.add(solution.schedule), **_prediction(solution)}
    return found, "Proposed: the answer of `layersearch solve`. A prediction is no measurement; confirm it."


def _grid(run: OpenedRun) -> list[float]:
    low, high = run.space.cost_range
    even = {math.ceil((low + (high - low) * step / GRID) * 1000) / 1000 for step in range(GRID + 1)}
    return sorted({min(1.0, budget) for budget in even} | {run.budget})


def _solve(run: OpenedRun, budget: float, solver: Solver) -> Candidate | None:
    try:
        return solver.solve(cost_limit(run.space, budget)).answer
    except LayersearchError:  # no schedule with a trained number of full layers is that cheap
        return None


def _prediction(one: Candidate) -> dict[str, Any]:
    return {"state": one.state, "loss": {"mean": one.loss, "low": one.low, "high": one.high}, "seeds": one.seeds}
