"""How often is l* of two hops wrong? Studies drawn again from the losses of real trainings.

Command:  python analysis/optimal_l/redraw.py [--studies 300]
Time:     half a minute
Prints:   how many studies found which l*
Reads:    redraw.json, the losses of the first 21 repetitions of `planted.py` by schedule, on which the rule was made

A study is the command's own machinery; a trial draws one of the losses that its schedule had at any seed. Seeds are
drawn apart for each schedule, so nothing is paired: what a seed does to all schedules is small beside a failure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
from jobs import HERE
from rich.progress import track

from layersearch.config.recipe import Recipe, load_recipe
from layersearch.optimal_l.config import OptimalLConfig, default_delta
from layersearch.optimal_l.run import optimal_l
from layersearch.schedule.space import load_space
from layersearch.training.record import Trial, TrialRecord, blank_record
from layersearch.training.trial import KeepGoing
from layersearch.training.workers.pool import Pool


class Redrawn:
    """A pool whose trials take no time: each draws a loss that its schedule had."""

    def __init__(self, recipe: Recipe, losses: dict[str, list[float]], study: int) -> None:
        self._recipe, self._losses, self._study = recipe, losses, study

    def submit(self, trial: Trial, keep_going: KeepGoing | None = None) -> Future[TrialRecord]:
        """Return the trial's record at once."""
        rng = np.random.default_rng([self._study, trial.seed, zlib.crc32(str(trial.schedule).encode())])
        # A hair of noise parts the ties of losses that are drawn twice.
        loss = float(rng.choice(self._losses[str(trial.schedule)]) + rng.normal(0, 1e-4))
        steps = self._recipe.training.steps
        blank = blank_record(trial, self._recipe)
        found: Future[TrialRecord] = Future()
        found.set_result(replace(blank, state="complete", steps=steps, loss=loss, seconds=1.0, curve=((steps, loss),)))
        return found

    def close(self) -> None:
        """Nothing to end."""


def study(number: int, recipe: Recipe, losses: dict[str, list[float]], out: Path) -> int:
    """Return l* of one study."""

    def pool(recipe: Recipe, workers: int, logs: Path, cache: Path | None) -> Pool:
        return Redrawn(recipe, losses, number)

    asked = OptimalLConfig(
        recipe=recipe,
        space=load_space(recipe.default_space),
        delta=default_delta(recipe),
        placements=("searched",),
    )
    (found,) = optimal_l(asked, out, pool=pool, figures=False).settings
    return found.l_star.value


def main() -> None:
    """Draw the studies and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=300)
    options = parser.parse_args()
    losses = json.loads((HERE / "redraw.json").read_text())
    recipe = load_recipe("hops2")
    found: Counter[int] = Counter()
    for number in track(range(options.studies), "studies"):
        with tempfile.TemporaryDirectory() as folder:
            found[study(number, recipe, losses, Path(folder) / "run")] += 1
    print("; ".join(f"l* = {l} in {times} of {options.studies}" for l, times in sorted(found.items())))


if __name__ == "__main__":
    main()
