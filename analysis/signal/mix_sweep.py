"""Train a few telling schedules of a recipe under changed settings: what makes a proxy separate them?

Command:  python analysis/signal/mix_sweep.py NAME [--recipe laptop] [--set KEY=VALUE ...] [--schedules S ...]
          [--seeds 0 1] [--workers 2]
Time:     that of the trials it names; finished ones are taken from mix_sweep.jsonl
Writes:   one line per trial in mix_sweep.jsonl (setting's name, changes, the trial's record), and prints them

Trials are those of a search: `layersearch.training.workers.pool.LocalPool`, paired seeds, nothing ended early.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import as_completed
from pathlib import Path

from layersearch.config.recipe import load_recipe
from layersearch.schedule import Schedule
from layersearch.training.record import Trial
from layersearch.training.workers.pool import LocalPool

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "mix_sweep.jsonl"


def main() -> None:
    """Run the trials that have no record yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="names the setting in the records")
    parser.add_argument("--recipe", default="laptop")
    parser.add_argument("--set", nargs="*", default=[], dest="changes", help="dotted settings, KEY=VALUE")
    parser.add_argument("--schedules", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--points", type=int, default=6, help="validations along the training")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.changes)
    steps = recipe.training.steps
    points = tuple(steps * index // options.points for index in range(1, options.points))
    known = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    done = {(row["name"], row["record"]["schedule"], row["record"]["seed"]) for row in known}
    wanted = [(str(Schedule.parse(text)), seed) for seed in options.seeds for text in options.schedules]
    for row in known:
        if row["name"] == options.name and (row["record"]["schedule"], row["record"]["seed"]) in wanted:
            _print(row)
    pool = LocalPool(recipe, options.workers, Path(tempfile.mkdtemp()))
    try:
        futures = [
            pool.submit(Trial(schedule=Schedule.parse(text), seed=seed, checkpoints=points))
            for text, seed in wanted
            if (options.name, text, seed) not in done
        ]
        for future in as_completed(futures):
            row = {"name": options.name, "recipe": options.recipe, "changes": options.changes}
            row["record"] = json.loads(future.result().to_json())
            with RECORDS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            _print(row)
    finally:
        pool.close()


def _print(row: dict) -> None:  # type: ignore[type-arg]
    record = row["record"]
    measures = " ".join(f"{name} {value:.3f}" for name, value in dict(record["metrics"]).items())
    curve = " ".join(f"{loss:.3f}" for _, loss in record["curve"])
    times = f"{record['train_seconds']:.0f}+{record['eval_seconds']:.0f} s"
    print(
        f"{record['schedule']:34s} seed {record['seed']}  {curve}  {measures}  {times} {record['error'] or ''}",
        flush=True,
    )


if __name__ == "__main__":
    main()
