"""Train every schedule of a small space, for a benchmark that searches can be run on in seconds.

Command:  python analysis/schedule_bench/train.py [mix recall text] [--seeds 3] [--workers 2]
Time:     about 6 seconds a trial for mix and 4 for recall on one core (729 trials each); 17 for text
          (243 trials) where other work ran beside it
Writes:   CORPUS.parquet, one row per trial and checkpoint, every 20 trials; finished trials are not trained again

The trials are those of `layersearch run`: its worker processes, its records, its paired seeds. One seed of all
schedules comes before the next, in an order drawn once, so that what is there is a fair sample at any time.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from concurrent.futures import as_completed
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from layersearch.config.recipe import load_recipe
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import load_space
from layersearch.training.record import Trial, TrialRecord
from layersearch.training.workers.pool import LocalPool

HERE = Path(__file__).resolve().parent
POINTS = 8
TOGETHER = 20


def rows(record: TrialRecord) -> list[dict[str, object]]:
    """Return one row per validation of a trial."""
    whole = {
        "schedule": str(record.schedule),
        "seed": record.seed,
        "cost": record.cost,
        "attention_flops": record.flops,
        "seconds": record.train_seconds + record.eval_seconds,
        "kernels": " ".join(record.kernels),
        "device": record.device,
        "precision": record.precision,
    }
    return [whole | {"step": step, "loss": loss} for step, loss in record.curve]


def save(found: list[dict[str, object]], path: Path) -> None:
    """Write all rows, whole or not at all."""
    part = path.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist(found), part, compression="zstd")
    os.replace(part, path)


def main() -> None:
    """Train what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", nargs="*", default=["mix", "recall", "text"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    for corpus in options.corpora:
        recipe = load_recipe(str(HERE / f"{corpus}.yaml"))
        training = recipe.training
        space = load_space(str(HERE / "space.yaml"))
        bound = BoundSpace.of(space, recipe)
        schedules = [str(Schedule(spans)) for spans in itertools.product(*bound.options)]
        Random(0).shuffle(schedules)
        path = HERE / f"{corpus}.parquet"
        found = pq.read_table(path).to_pylist() if path.exists() else []
        done = {(row["schedule"], row["seed"]) for row in found}
        checkpoints = tuple(training.steps * at // POINTS for at in range(1, POINTS))
        todo = [
            Trial(schedule=Schedule.parse(text), seed=seed, checkpoints=checkpoints)
            for seed in range(options.seeds)
            for text in schedules
            if (text, seed) not in done
        ]
        with tempfile.TemporaryDirectory() as logs:
            pool = LocalPool(recipe, options.workers, Path(logs))
            try:
                for first in track(range(0, len(todo), TOGETHER), description=corpus):
                    futures = [pool.submit(trial) for trial in todo[first : first + TOGETHER]]
                    for future in as_completed(futures):
                        record = future.result()
                        assert record.state == "complete", record.error
                        found += rows(record)
                    save(found, path)
            finally:
                pool.close()
        print(f"{corpus}: {len(found) // POINTS} trials in {path.name}")


if __name__ == "__main__":
    main()
