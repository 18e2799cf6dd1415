"""Does `solve` keep its word? Its intervals and its proposals against trainings it has not seen.

Command:  python analysis/search_efficiency/solve_check.py
Time:     about five minutes on one core
Writes:   solve_check.json

Of a benchmark's schedules some are drawn as trained, at one seed; the three best of them, all-full and the cheapest are
confirmed at the other seeds, as after a run. `solve` answers for a budget, and its untrained proposal is looked up: the
mean over all seeds. The nearest trained schedule, the one that differs in the fewest layers, is what a user without a
model would take.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
from rich.progress import track

from layersearch.schedule import Schedule, presets
from layersearch.study.benchmark import Benchmark, load_bench
from layersearch.surrogate.constraint import cost_limit
from layersearch.surrogate.solve import solve
from layersearch.training.record import Phase, TrialRecord

HERE = Path(__file__).resolve().parent
BUDGETS, TRAINED, REPETITIONS, FINALISTS = (0.2, 0.27, 0.35, 0.5), (12, 24, 48), 12, 3


def records(bench: Benchmark, count: int, repetition: int) -> list[TrialRecord]:
    """Return what a run leaves that searched so many schedules: all-full, the cheapest, and what was drawn."""
    first = [presets.all_full(bench.space.n_layers), bench.space.cheapest()]
    drawn = Random(repetition).sample([s for s in bench.schedules if s not in first], count - len(first))
    seed = bench.seeds[repetition % len(bench.seeds)]
    best = sorted(drawn, key=lambda schedule: bench.query(schedule, seed))[:FINALISTS]
    others = [other for other in bench.seeds if other != seed]
    search = [trial(bench, schedule, seed, "search") for schedule in [*first, *drawn]]
    return search + [trial(bench, schedule, other, "confirm") for other in others for schedule in [*first, *best]]


def trial(bench: Benchmark, schedule: Schedule, seed: int, phase: Phase) -> TrialRecord:
    """Return the record of one training of the table."""
    full, loss = bench.steps[-1], bench.query(schedule, seed)
    return TrialRecord(
        schedule=schedule,
        seed=seed,
        phase=phase,
        role="proposed",
        state="complete",
        flops=0,
        cost=bench.cost(schedule),
        steps=full,
        full_steps=full,
        loss=loss,
        curve=((full, loss),),
    )


def main() -> None:
    """Ask and look up."""
    rows = []
    for corpus in ("mix", "recall", "text"):
        bench = load_bench(corpus)
        truth = dict(zip(bench.schedules, bench.means.tolist(), strict=True))
        for count in TRAINED:
            inside, better, regrets, widths, best = [], [], [], [], []
            for repetition in track(range(REPETITIONS), description=f"{corpus} {count}"):
                known = records(bench, count, repetition)
                for budget in BUDGETS:
                    found = solve(known, bench.space, cost_limit(bench.space, budget)).proposal
                    if found is None or found.state != "untrained":
                        continue
                    true = truth[found.schedule]
                    inside.append(found.low <= true <= found.high)
                    widths.append(found.high - found.low)
                    target = found.schedule
                    within = [r for r in known if r.cost <= budget and r.phase == "search"]
                    gaps = [sum(a != b for a, b in zip(target, r.schedule, strict=True)) for r in within]
                    nearest = [truth[r.schedule] for r, gap in zip(within, gaps, strict=True) if gap == min(gaps)]
                    better.append(true < float(np.mean(nearest)))
                    lowest = min(loss for s, loss in truth.items() if bench.cost(s) <= budget)
                    regrets.append(true - lowest)
                    chosen = min(within, key=lambda r: r.loss or 0.0).schedule
                    best.append(truth[chosen] - lowest)
            rows.append(
                {
                    "corpus": corpus,
                    "trained": count,
                    "proposals": len(inside),
                    "inside_95": round(float(np.mean(inside)), 3),
                    "median_width": round(float(np.median(widths)), 3),
                    "beats_nearest_trained": round(float(np.mean(better)), 3),
                    "median_regret": round(float(np.median(regrets)), 4),
                    "median_regret_best_trained": round(float(np.median(best)), 4),
                }
            )
            print(rows[-1], flush=True)
    (HERE / "solve_check.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
