"""How long do a proposal and an answer of solve take in large spaces, and how much memory?

Command:  python analysis/search_efficiency/scale.py [--only ask|solve]
Time:     about a minute on one core for ask, two for solve
Writes:   scale.json and scale.png

Each space has 6 choices a layer, LaS decay among them; it is asked for a proposal after 60 complete trials with one
early loss each, as a search of such a size would have. `solve` is asked for a budget from 60 such complete trials; its
time is the processor's, since other work was on the machine. A process of its own measures each, one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space

HERE = Path(__file__).resolve().parent
CHOICES = ("full", "full+las:0.1", "window:64", "window:256", "window:256+las:0.1", "block:128")
LAYERS = (6, 12, 24, 48, 96)
TRIALS, ASKS = 60, 5


BUDGET = 0.4


def bound(layers: int, kind: str) -> BoundSpace:
    """Return a space."""
    ties: dict[str, dict[str, Any]] = {
        "free": {},
        "tied": {"tied": tuple((at, at + 1) for at in range(0, layers, 2))},
        "pattern": {"pattern": 6},
    }
    return BoundSpace(Space(name=kind, choices=CHOICES, **ties[kind]), n_layers=layers, seq_len=4096, n_heads=8)


def loss_of(schedule: Schedule, space: BoundSpace, rng: Random) -> float:
    """Return a made-up loss."""
    full_in_the_middle = schedule[space.n_layers // 2].is_full
    return 3.0 - 0.3 * space.cost(schedule) ** 0.5 - 0.05 * full_in_the_middle + rng.gauss(0, 0.005)


def memory() -> int:
    """Return the largest memory that this process has held, MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def ask(space: BoundSpace) -> dict[str, object]:
    """Time proposals in this process."""
    import optuna

    from layersearch.surrogate.sampler import CURVE, ScheduleSampler

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng = Random(0)
    sampler = ScheduleSampler(space, budget=BUDGET, seed=0)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    distributions = {n: optuna.distributions.CategoricalDistribution(c) for n, c in space.variables.items()}

    def tell(trial: optuna.Trial | None, params: dict[str, str]) -> None:
        schedule = space.decode(params)
        loss = loss_of(schedule, space, rng)
        curve = [(0.5, loss + 0.5 + rng.gauss(0, 0.01)), (1.0, loss)]
        if trial is None:
            made = optuna.trial.create_trial(
                params=params,
                distributions=distributions,
                values=[loss, space.cost(schedule)],
                user_attrs={CURVE: curve},
            )
            study.add_trial(made)
        else:
            trial.set_user_attr(CURVE, curve)
            study.tell(trial, [loss, space.cost(schedule)])

    for _ in range(TRIALS):
        tell(None, space.encode(space.sample(rng)) or {})
    seconds = []
    for _ in range(ASKS):
        began = time.perf_counter()
        trial = study.ask(distributions)
        seconds.append(time.perf_counter() - began)
        tell(trial, trial.params)
    return {
        "ask_seconds": round(statistics.median(seconds), 3),
        "slowest_ask_seconds": round(max(seconds), 3),
        "peak_memory_mb": memory(),
    }


def solve(space: BoundSpace) -> dict[str, object]:
    """Time an answer in this process."""
    from layersearch.surrogate.constraint import cost_limit
    from layersearch.surrogate.solve import solve
    from layersearch.training.record import TrialRecord

    rng = Random(0)
    records = []
    for _ in range(TRIALS):
        schedule = space.sample(rng)
        loss, cost = loss_of(schedule, space, rng), space.cost(schedule)
        ran = {"flops": round(1e9 * cost), "cost": cost, "steps": 100, "full_steps": 100, "loss": loss}
        role: dict[str, Any] = {"seed": 0, "phase": "search", "role": "proposed", "state": "complete"}
        records.append(TrialRecord(schedule=schedule, **role, **ran))
    began = time.process_time()
    found = solve(records, space, cost_limit(space, BUDGET))
    seconds = time.process_time() - began
    assert found.shortlisted
    return {
        "solve_cpu_seconds": round(seconds, 2),
        "solve_peak_memory_mb": memory(),
    }


def main() -> None:
    """Measure every space, each in a process of its own, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("ask", "solve"), help="measure this anew, the other stays as recorded")
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "LAYERS", "KIND"))
    options = parser.parse_args()
    if options.one:
        what, layers, kind = options.one
        print(json.dumps({"ask": ask, "solve": solve}[what](bound(int(layers), kind))))
        return
    path = HERE / "scale.json"
    held = {(row["layers"], row["kind"]): row for row in json.loads(path.read_text())} if path.exists() else {}
    rows = []
    for kind in ("free", "tied", "pattern"):
        for layers in LAYERS:
            size = bound(layers, kind).size
            row: dict[str, object] = {
                "layers": layers,
                "kind": kind,
                "schedules": f"{size:.1e}" if size < 1e300 else "over 1e300",
            }
            row = held.get((layers, kind), {}) | row
            for what in (options.only,) if options.only else ("ask", "solve"):
                command = [sys.executable, __file__, "--one", what, str(layers), kind]
                environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                row |= json.loads(done.stdout.splitlines()[-1])
            rows.append(row)
            print(row, flush=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows)


def draw(rows: list[dict[str, object]]) -> None:
    """Draw the time of a proposal and of an answer against the layers."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(9.6, 4.0))
    labels = {"ask_seconds": "seconds a proposal", "solve_cpu_seconds": "processor seconds of solve"}
    for axes, (key, label) in zip(both, labels.items(), strict=True):
        for kind, marker, color in (("free", "o", "#0072B2"), ("tied", "s", "#D55E00"), ("pattern", "^", "#009E73")):
            mine = [row for row in rows if row["kind"] == kind]
            axes.plot([r["layers"] for r in mine], [r[key] for r in mine], marker + "-", color=color, label=kind)
        axes.set_ylim(0, 1.1 * max(1.0, *(r[key] for r in rows)))
        axes.set_xticks(LAYERS)
        axes.set_xlabel("layers, 6 choices each")
        axes.set_ylabel(f"{label}, after {TRIALS} trials")
        axes.grid(color="#E4E4E4", lw=0.6)
    both[0].axhline(1.0, color="black", lw=0.8, ls="--")
    both[0].annotate("1 s", (LAYERS[0], 1.0), fontsize=9, va="bottom")
    both[1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(HERE / "scale.png", dpi=110)


if __name__ == "__main__":
    main()
