"""Four hops: does training find the three full layers of pointer doubling, or does it need four, one for each link?

Command:  python analysis/optimal_l/hops4.py [--seeds 3] [--workers 2] [--straight]
Time:     about 90 s a schedule and seed on one core: some 40 core-minutes; --straight: 45 s each
Writes:   hops4.jsonl, one line per schedule, seed and number of hops; with --straight: straight.jsonl

Straight away (`--straight`) nothing learns four hops in 700 steps, or in 2,000 (LOG.md). So every schedule learns one
hop first, then two, three and four, each from the weights of the one before: same model, same schedule, same text but
for the length of the chains.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs import HERE, WORK, Job, Records, fingerprint, run

from layersearch.config.recipe import Recipe, load_recipe
from layersearch.schedule import Schedule
from layersearch.training.record import Trial
from layersearch.training.workers.pool import LocalPool

CHANGES = (
    "data.pairs=3",
    "data.queries=3",
    "data.vocab_size=18",
    "data.fillers=2",
    "data.distance=7",
    "model.n_layers=6",
    "training.seq_len=52",
)
"""Of the recipe `hops2`: chains of four links fit, and six windows of 2 do not reach from one link to the next."""
STEPS = {1: 200, 2: 300, 3: 400, 4: 500}
"""By the number of hops."""
SCHEDULES = (
    "window:2 full*3 window:2*2",
    "window:2*2 full*3 window:2",
    "window:2 full*4 window:2",
    "window:2 full*2 window:2*3",
    "window:2*2 full*2 window:2*2",
    "window:2 full window:2*4",
    "window:2*6",
    "full*6",
)
POINTS = 4
"""Validations along a stage."""
PATH = HERE / "hops4.jsonl"
STRAIGHT = HERE / "straight.jsonl"
STRAIGHT_STEPS = 700


def changes_of(hops: int) -> tuple[str, ...]:
    """Return what a stage changes of the recipe `hops2`."""
    return (*CHANGES, f"data.hops={hops}", f"training.steps={STEPS[hops]}")


def straight(schedule: str, seed: int) -> Job:
    """Return the training of four hops at once."""
    changes = ("data.hops=4", *CHANGES, f"training.steps={STRAIGHT_STEPS}")
    return Job(recipe="hops2", changes=changes, schedule=schedule, seed=seed)


def recipe_of(hops: int, start: Path | None = None) -> Recipe:
    """Return the recipe of so many hops; ``start`` names weights to begin with."""
    changes = list(changes_of(hops))
    return load_recipe("hops2", changes if start is None else [*changes, f"training.start={start}"])


def weights(schedule: str, hops: int) -> Path:
    """Return where the weights of a schedule after so many hops lie; ``{seed}`` stands for the seed."""
    return WORK / "hops4" / re.sub(r"\W+", "-", schedule) / f"hops-{hops}-seed-{{seed}}.safetensors"


def done(path: Path = PATH) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Return the lines on record by schedule, seed and hops, but those of a recipe that has changed since."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    prints = {hops: fingerprint("hops2", changes_of(hops)) for hops in STEPS}
    return {(row["schedule"], row["seed"], row["hops"]): row for row in rows if row["recipe"] == prints[row["hops"]]}


def climb(schedule: str, seeds: int, writing: threading.Lock) -> None:
    """Train a schedule from one hop to four, all seeds of a stage in one pool."""
    last = max(STEPS)
    for hops, steps in STEPS.items():
        held = done()
        todo = [
            seed
            for seed in range(seeds)
            if (schedule, seed, last) not in held
            and not ((schedule, seed, hops) in held and Path(str(weights(schedule, hops)).format(seed=seed)).exists())
        ]
        if not todo:
            continue
        recipe = recipe_of(hops, weights(schedule, hops - 1) if hops > 1 else None)
        pool = LocalPool(recipe, 1, WORK / "logs")
        try:
            for seed in todo:
                save = Path(str(weights(schedule, hops)).format(seed=seed))
                save.parent.mkdir(parents=True, exist_ok=True)
                points = tuple(steps * at // POINTS for at in range(1, POINTS))
                record = pool.submit(
                    Trial(schedule=Schedule.parse(schedule), seed=seed, save=str(save), checkpoints=points)
                ).result()
                if record.state != "complete":
                    raise SystemExit(f"{schedule}, seed {seed}, {hops} hops: {record.error}")
                row = {
                    "recipe": fingerprint("hops2", changes_of(hops)),
                    "schedule": schedule,
                    "seed": seed,
                    "hops": hops,
                    "steps": steps,
                    "loss": record.loss,
                    "accuracy": dict(record.metrics)["hops_accuracy"],
                    "curve": record.curve,
                    "kernels": record.kernels,
                    "device": record.device,
                    "precision": record.precision,
                    "seconds": round(record.seconds, 1),
                }
                with writing, PATH.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{schedule} seed {seed}, {hops} hops: {row['accuracy']:.3f}", flush=True)
        finally:
            pool.close()


def main() -> None:
    """Run what has no record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--straight", action="store_true", help="train four hops at once instead")
    options = parser.parse_args()
    if options.straight:
        todo = [straight(schedule, seed) for schedule in SCHEDULES for seed in range(options.seeds)]
        run(todo, Records(STRAIGHT), options.workers)
        return
    writing = threading.Lock()
    with ThreadPoolExecutor(options.workers) as threads:
        for future in [threads.submit(climb, schedule, options.seeds, writing) for schedule in SCHEDULES]:
            future.result()


if __name__ == "__main__":
    main()
