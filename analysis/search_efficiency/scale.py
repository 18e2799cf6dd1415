"""How long does a proposal take in large spaces, and how much memory?

Command:  python analysis/search_efficiency/scale.py
Time:     about a minute on one core
Writes:   scale.json and scale.png

Each space has 6 choices a layer, LaS decay among them; it is asked for a proposal after 60 complete trials with one
early loss each, as a search of such a size would have. A process of its own measures each, one thread.
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

HERE = Path(__file__).resolve().parent
CHOICES = ("full", "full+las:0.1", "window:64", "window:256", "window:256+las:0.1", "block:128")
LAYERS = (6, 12, 24, 48, 96)
TRIALS, ASKS = 60, 5


def measure(layers: int, kind: str) -> dict[str, object]:
    """Time proposals in this process."""
    import optuna

    from layersearch.sampler import CURVE, ScheduleSampler
    from layersearch.space import Space

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ties = {
        "free": {},
        "tied": {"tied": tuple((at, at + 1) for at in range(0, layers, 2))},
        "pattern": {"pattern": 6},
    }[kind]
    space = Space(name=kind, choices=CHOICES, **ties).bind(n_layers=layers, seq_len=4096, n_heads=8)
    rng = Random(0)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=ScheduleSampler(space, budget=0.4, seed=0))
    distributions = {n: optuna.distributions.CategoricalDistribution(c) for n, c in space.variables.items()}

    def tell(trial: optuna.Trial | None, params: dict[str, str]) -> None:
        schedule = space.decode(params)
        loss = 3.0 - 0.3 * space.cost(schedule) ** 0.5 - 0.05 * schedule[layers // 2].is_full + rng.gauss(0, 0.005)
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
        "layers": layers,
        "kind": kind,
        "schedules": f"{space.size:.1e}" if space.size < 1e300 else "over 1e300",
        "ask_seconds": round(statistics.median(seconds), 3),
        "slowest_ask_seconds": round(max(seconds), 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Measure every space, each in a process of its own, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, metavar=("LAYERS", "KIND"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(int(options.one[0]), options.one[1])))
        return
    rows = []
    for kind in ("free", "tied", "pattern"):
        for layers in LAYERS:
            command = [sys.executable, __file__, "--one", str(layers), kind]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    (HERE / "scale.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows)


def draw(rows: list[dict[str, object]]) -> None:
    """Draw the time of a proposal against the layers."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    for kind, marker, colour in (("free", "o", "#0072B2"), ("tied", "s", "#D55E00"), ("pattern", "^", "#009E73")):
        mine = [row for row in rows if row["kind"] == kind]
        axes.plot([r["layers"] for r in mine], [r["ask_seconds"] for r in mine], marker + "-", color=colour, label=kind)
    axes.axhline(1.0, color="black", lw=0.8, ls="--")
    axes.annotate("1 s", (LAYERS[0], 1.0), fontsize=9, va="bottom")
    axes.set_ylim(0, None)
    axes.set_xticks(LAYERS)
    axes.set_xlabel("layers, 6 choices each")
    axes.set_ylabel(f"seconds a proposal, after {TRIALS} trials")
    axes.grid(color="#E4E4E4", lw=0.6)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(HERE / "scale.png", dpi=110)


if __name__ == "__main__":
    main()
