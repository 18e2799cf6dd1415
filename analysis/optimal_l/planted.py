"""Does `layersearch optimal-l` find the planted number of full layers, nineteen times of twenty?

Command:  python analysis/optimal_l/planted.py [--tasks local recall hops2] [--repetitions N] [--workers 2]
Time:     about 3 core-minutes a repetition of recall (52 trials of 3 s) and of local, 9 of hops2 (about 55 trials of
          10 s): about 480 core-minutes for all. Finished repetitions are taken from the records, an unfinished
          one goes on
Writes:   planted.jsonl, one line per repetition

A repetition is the command's own machinery (`layersearch.optimal_l.run.optimal_l`) with the recipe as it ships, the
placement searched and that at the bottom, and seeds of its own. Four hops: `hops4.py`.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from jobs import HERE, WORK, fingerprint

from layersearch.config.recipe import Recipe, load_recipe
from layersearch.optimal_l.answer import BEST
from layersearch.optimal_l.config import OptimalLConfig, default_delta
from layersearch.optimal_l.run import optimal_l
from layersearch.schedule.space import load_space
from layersearch.training.record import Trial, TrialRecord, read
from layersearch.training.trial import KeepGoing
from layersearch.training.workers.pool import LocalPool, Pool

TASKS = ("local", "recall", "hops2")
RULE = 3
"""Of the tests (LOG.md). 1: the reference's losses are cut above their median; 2: above their lowest; 3: with a scale
that failures do not widen, an eighth of many differences left out, and 12 seeds at the most instead of 8. Repetitions
of a former rule are answered anew, from their run folders where these are left."""
MENDED_AT = 22
"""Repetitions from this one on were answered after rule 3 was made, from those before: they are its test."""
REPETITIONS = {"local": 20, "recall": 20, "hops2": 42}
"""Only on two hops did a rule fail, and only there is the last one tested on repetitions of its own."""
STRIDE = 1000
"""Seeds from one repetition to the next."""
BOTTOM = {"recall": 20, "hops2": 5, "local": 0}
"""Repetitions in which bottom placement is measured too: where a local layer must come first."""


class _Kept:
    """A pool that outlives the study it serves, so that workers start once for all repetitions."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def submit(self, trial: Trial, keep_going: KeepGoing | None = None) -> Future[TrialRecord]:
        return self._pool.submit(trial, keep_going)

    def close(self) -> None:
        """Leave it open."""


def repetition(task: str, number: int, recipe: Recipe, pool: Pool) -> dict[str, Any]:
    """Run the study once; return its line."""
    placements = ("bottom", "searched") if number < BOTTOM[task] else ("searched",)
    asked = OptimalLConfig(
        recipe=recipe,
        space=load_space(recipe.default_space),
        delta=default_delta(recipe),
        placements=placements,
        seed=STRIDE * number,
    )
    out = WORK / "planted" / f"{task}-{number}"

    def kept(recipe: Recipe, workers: int, logs: Path, cache: Path | None) -> _Kept:
        return _Kept(pool)

    (found,) = optimal_l(asked, out, pool=kept, figures=False).settings
    records = [record for record in read(out / "trials.jsonl") if record.state == "complete"]
    bottom = {
        row.l: [placed.to_best.mean, placed.to_best.n]
        for row in found.curve
        for placed in row.placements
        if placed.to_best is not None and placed.name != BEST
    }
    fresh = [r for r in records if r.phase == "confirm"]
    return {
        "task": task,
        "recipe": fingerprint(task),
        "rule": RULE,
        "repetition": number,
        "seed": asked.seed,
        "delta": asked.delta,
        "known_l": found.known_l,
        "l_star": found.l_star.value,
        "low": found.l_star.low,
        "reference": str(found.l_star.reference),
        "l_star_all_full": found.l_star_all_full.value,
        "low_all_full": found.l_star_all_full.low,
        "knee": found.knee.l,
        "best": {row.l: str(row.schedule) for row in found.curve},
        "bottom_less_best": bottom,
        "confirmed": {
            str(held): {r.seed: round(r.loss, 5) for r in fresh if r.schedule == held and r.loss}
            for held in dict.fromkeys(r.schedule for r in fresh)
        },
        "trials": found.trials,
        "failed": found.failed,
        "trial_seconds": round(found.seconds),
    }


def finished(path: Path, rule: int = RULE) -> list[dict[str, Any]]:
    """Return the repetitions on record under a rule, but those of a recipe that has changed since."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if row["recipe"] == fingerprint(row["task"]) and row["rule"] == rule]


def main() -> None:
    """Run what has no record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--repetitions", type=int, help="of each task; the default is 20, and 42 of two hops")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    path = HERE / "planted.jsonl"
    rows = finished(path)
    for task in options.tasks:
        wanted = REPETITIONS[task] if options.repetitions is None else options.repetitions
        left = set(range(wanted)) - {row["repetition"] for row in rows if row["task"] == task}
        todo = sorted(left, key=lambda number: (number < MENDED_AT, number))  # the rule's test first
        recipe = load_recipe(task, ["search.workers=1"])
        pool = LocalPool(recipe, options.workers, WORK / "logs")
        try:
            # Repetitions side by side keep the workers busy where one of them waits for its last trial.
            with ThreadPoolExecutor(options.workers) as threads:
                futures = [threads.submit(repetition, task, number, recipe, pool) for number in todo]
                for future in as_completed(futures):
                    row = future.result()
                    rows.append(row)
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    print(
                        f"{task} {row['repetition']}: l* = {row['l_star']} (from {row['low']}), against all-full "
                        f"{row['l_star_all_full']}; known {row['known_l']}; {row['trials']} trials, "
                        f"{row['trial_seconds']} s of trials",
                        flush=True,
                    )
        finally:
            pool.close()
    for task in TASKS:
        mine = [row for row in rows if row["task"] == task]
        right = sum(row["l_star"] == row["known_l"] for row in mine)
        print(f"{task}: l* is the known l in {right} of {len(mine)} repetitions")


if __name__ == "__main__":
    main()
