"""Read a run folder with pandas.

It shows that the records of a run need no layersearch to be read: ``trials.jsonl`` holds one trial per line. The
script compares each schedule with all-full, seed by seed, and prints how the loss falls along the training. pandas is
installed with ``datasets``, so you have it already.

    python examples/run_in_pandas.py runs/first
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd


def main(run: Path) -> pd.DataFrame:
    """Print two tables of a run; return the paired differences to all-full, in nats."""
    trials = pd.read_json(run / "trials.jsonl", lines=True)
    trials = trials[trials["state"] == "complete"]

    # All schedules share weights and data order at the same seed, so differences are taken seed by seed.
    losses = trials[trials["phase"] == "confirm"].pivot(index="schedule", columns="seed", values="loss")
    all_full = trials.loc[trials["cost"] == 1.0, "schedule"].iloc[0]
    differences = losses - losses.loc[all_full]
    table = pd.DataFrame(
        {
            "cost": trials.groupby("schedule")["cost"].first(),
            "loss": losses.mean(axis=1),
            "less all-full": differences.mean(axis=1),
            "std over seeds": differences.std(axis=1),
        }
    ).loc[losses.index]
    print("Confirmed losses, nats")
    print(table.sort_values("cost").round(4).to_string())

    curves = trials[trials["phase"] == "search"].set_index("schedule")["curve"].explode()
    points = pd.DataFrame(curves.tolist(), index=curves.index, columns=["step", "loss"])
    print("\nValidation loss along the training, nats")
    print(points.pivot_table(index="schedule", columns="step", values="loss").round(3).to_string())

    whole, trained = trials["seconds"].sum(), trials["train_seconds"].sum()
    print(f"\n{len(trials)} complete trials took {whole:.1f} seconds, {trained:.1f} of them for optimizer steps.")
    return differences


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/first"))
