"""Hold the recipes of planted tasks to their known answers: real trials, one JSON line each.

    python analysis/signal/known_answers.py RECIPE SEEDS RECORDS.jsonl SCHEDULE...

A schedule is a word of letters, ``w`` for the window and ``f`` for full, bottom layer first: ``wfww``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from layersearch.config.recipe import load_recipe
from layersearch.data import open_source
from layersearch.schedule import Schedule
from layersearch.schedule.files import plain
from layersearch.training.engine import RankGroup, join
from layersearch.training.record import Trial
from layersearch.training.trial import run_trial

WINDOWS = {"recall": "window:2", "hops2": "window:2", "local": "window:4"}


def main(name: str, seeds: int, records: Path, words: list[str]) -> None:
    """Train every schedule from every seed."""
    torch.set_num_threads(1)
    recipe = load_recipe(name)
    source = open_source(recipe.data, recipe.training.seq_len)
    checkpoints = tuple(recipe.training.steps * eighth // 8 for eighth in range(1, 8))
    with tempfile.TemporaryDirectory() as folder:
        join(RankGroup(), str(Path(folder, "rendezvous")))
        for seed in range(seeds):
            for word in words:
                schedule = " ".join({"w": WINDOWS[name], "f": "full"}[letter] for letter in word)
                record = run_trial(
                    Trial(schedule=Schedule.parse(schedule), seed=seed, checkpoints=checkpoints), recipe, source
                )
                with records.open("a") as file:
                    file.write(json.dumps({"recipe": name} | plain(record)) + "\n")
                measures = {key: round(value, 4) for key, value in record.metrics}
                print(name, word, seed, round(record.loss or -1, 4), measures, round(record.seconds, 1), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
