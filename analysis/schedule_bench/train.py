"""Train every schedule of a small space, for a benchmark that searches can be run on in seconds.

Command:  python analysis/schedule_bench/train.py [mix recall text prose deep hops shallow] [--seeds 3] [--files PROSE]
Time:     about 6 seconds a trial for mix and 4 for recall on one core (729 trials each), 7 for text and prose, 10
          for deep (243 each), 4 for hops (162) and 10 for shallow (128, on a busy machine), after a minute of compiling
          in each worker
Writes:   CORPUS.parquet, one row per trial and checkpoint, every 10 seconds; finished trials are not trained again

The trials are those of `layersearch run`: its worker processes, its records, its paired seeds. One seed of all
schedules comes before the next, in an order drawn once, so that what is there is a fair sample at any time.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from concurrent.futures import as_completed
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from layersearch.config.recipe import load_recipe
from layersearch.schedule import Schedule
from layersearch.study.benchmark import load_bench_space
from layersearch.training.record import Trial, TrialRecord
from layersearch.training.workers.pool import LocalPool

HERE = Path(__file__).resolve().parent
POINTS = 8
SAVE_EVERY = 10.0
"""Seconds."""


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
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--files", nargs="+", help="prose: files or folders of English prose")
    options = parser.parse_args()
    for corpus in options.corpora:
        path = HERE / f"{corpus}.parquet"
        files = [f"data.files=[{','.join(options.files)}]"] if options.files and corpus == "prose" else []
        recipe = load_recipe(str(path.with_suffix(".yaml")), files)
        training = recipe.training
        bound = load_bench_space(path)
        schedules = [str(bound.schedule(spans)) for spans in itertools.product(*bound.options)]
        Random(0).shuffle(schedules)
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
                saved = time.monotonic()
                futures = [pool.submit(trial) for trial in todo]
                for future in track(as_completed(futures), total=len(todo), description=corpus):
                    record = future.result()
                    assert record.state == "complete", record.error
                    found += rows(record)
                    if time.monotonic() - saved > SAVE_EVERY:
                        save(found, path)
                        saved = time.monotonic()
            finally:
                if found:
                    save(found, path)
                pool.close()
        print(f"{corpus}: {len(found) // POINTS} trials in {path.name}")


if __name__ == "__main__":
    main()
