"""Does `layersearch run` find the known number of full layers, ten seeds of ten?

Command:  python analysis/signal/known_l.py [--recipes local recall hops2] [--seeds 10]
          python analysis/signal/known_l.py --today    # the recorded losses under today's rule; trains nothing
Time:     about 20 minutes on two cores (recall and local 1 to 2 minutes a run on one core, hops2 twice that); finished
          runs are taken from known_l.jsonl
Writes:   one line per run in known_l.jsonl: the winner, its l, the task's known l, and what was confirmed

Each run is the command `layersearch run --recipe NAME --seed S`, its recipe's own settings. Two run side by side with
one worker each, which changes no record: they do not depend on the number of workers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from layersearch.config.recipe import load_recipe
from layersearch.data import open_source
from layersearch.results.analyze import analyze
from layersearch.schedule import Schedule
from layersearch.training.record import Trial, blank_record

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "known_l.jsonl"


def one_run(recipe: str, seed: int, folder: Path) -> dict[str, object]:
    """Run the command in a folder of its own and return what it found."""
    out = folder / f"{recipe}-{seed}"
    begun = time.monotonic()
    program = Path(sys.executable).with_name("layersearch")
    command = [str(program), "run", "--recipe", recipe, "--seed", str(seed), "--out", str(out)]
    subprocess.run([*command, "--set", "search.workers=1"], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - begun
    found = json.loads((out / "frontier.json").read_text())
    trials = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    loaded = load_recipe(recipe)
    answer = open_source(loaded.data, loaded.training.seq_len).answer
    assert answer is not None
    winner = found["winner"]["schedule"]
    return {
        "recipe": recipe,
        "seed": seed,
        "known_l": answer.optimal_l,
        "found_l": Schedule.parse(winner).n_full,
        "winner": winner,
        "verdict": found["verdict"],
        "confirmed": {
            e["schedule"]: [round(loss, 4) for _, loss in e["confirm"]] for e in found["entries"] if e["confirm"]
        },
        "searched": {t["schedule"]: round(t["loss"], 4) for t in trials if t["phase"] == "search"},
        "seconds": round(seconds),
    }


def todays_l(row: dict[str, Any]) -> int:
    """Return the number of full layers of the winner that `analyze` names today for a run's confirmed losses."""
    recipe = load_recipe(row["recipe"])
    records = []
    for text, losses in row["confirmed"].items():
        for number, loss in enumerate(losses):
            trial = Trial(
                schedule=Schedule.parse(text), seed=row["seed"] + 1 + number, phase="confirm", role="proposed"
            )
            steps = recipe.training.steps
            records.append(dataclasses.replace(blank_record(trial, recipe), state="complete", loss=loss, steps=steps))
    winner = analyze(records, 1.0, tolerance=recipe.search.tolerance).winner
    assert winner is not None
    return winner.schedule.n_full


def main() -> None:
    """Run what has no record yet, or apply today's rule to what has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=["recall", "local", "hops2"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--today", action="store_true", help="train nothing")
    options = parser.parse_args()
    rows = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    if options.today:
        for recipe in options.recipes:
            mine = [row for row in rows if row["recipe"] == recipe]
            right = sum(todays_l(row) == row["known_l"] for row in mine)
            print(f"{recipe}: the known l in {right} of {len(mine)} runs, by today's rule")
        return
    done = {(row["recipe"], row["seed"]) for row in rows}
    wanted = [(recipe, seed) for recipe in options.recipes for seed in range(options.seeds)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as threads:
        todo = [(recipe, seed) for recipe, seed in wanted if (recipe, seed) not in done]
        for row in threads.map(lambda job: one_run(*job, Path(folder)), todo):
            rows.append(row)
            with RECORDS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{row['recipe']:8s} seed {row['seed']}: l = {row['found_l']} ({row['winner']}), {row['seconds']} s",
                flush=True,
            )
    for recipe in options.recipes:
        mine = [row for row in rows if row["recipe"] == recipe]
        right = sum(row["found_l"] == row["known_l"] for row in mine)
        print(f"{recipe}: the known l in {right} of {len(mine)} runs")


if __name__ == "__main__":
    main()
