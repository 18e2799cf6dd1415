"""The tabular benchmark: every schedule of a small space, really trained, to be searched in seconds.

``analysis/schedule_bench`` holds the tables, how they were made and what they say. A search that is tried on them pays
for training steps as it would for real ones: `Bench.query` answers for any checkpoint of any trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from layersearch.config.loader import find_file
from layersearch.config.recipe import load_recipe
from layersearch.errors import DataError
from layersearch.results.pareto import hypervolume, nondominated
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import load_space

FOLDER = "analysis/schedule_bench"
COLUMNS = ("schedule", "seed", "step", "loss", "cost", "seconds")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One corpus: the validation loss of every schedule at every seed and checkpoint."""

    name: str
    schedules: tuple[Schedule, ...]
    """All schedules of the space, in the order of their text."""
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    """Checkpoints, rising; the last is a full trial."""
    costs: NDArray[np.float64]
    """Attention cost as a share of all-full, (schedules,)."""
    losses: NDArray[np.float64]
    """Validation loss in nats, (schedules, seeds, steps)."""
    seconds: NDArray[np.float64]
    """Of training and validation of a full trial on one core, (schedules, seeds)."""
    space: BoundSpace

    def query(self, schedule: Schedule | str, seed: int, step: int | None = None) -> float:
        """Return the validation loss that a real trial had, nats.

        Args:
            schedule: one of the space's.
            seed: one of `seeds`.
            step: one of `steps`; None: the last.

        Raises:
            DataError: if no such trial was made; names what there is.
        """
        at = self._at.get(Schedule.parse(schedule) if isinstance(schedule, str) else schedule)
        if at is None:
            choices = ", ".join(self.space.space.choices)
            raise DataError(f"benchmark {self.name}: {schedule} lies outside its space of {choices}")
        if seed not in self.seeds:
            raise DataError(f"benchmark {self.name}: there is no seed {seed}; choose from {list(self.seeds)}")
        if step is not None and step not in self.steps:
            raise DataError(f"benchmark {self.name}: there is no step {step}; choose from {list(self.steps)}")
        return float(self.losses[at, self.seeds.index(seed), -1 if step is None else self.steps.index(step)])

    def cost(self, schedule: Schedule) -> float:
        """Return the exact attention cost as a share of the all-full schedule's."""
        return float(self.costs[self._at[schedule]])

    @cached_property
    def _at(self) -> dict[Schedule, int]:
        return {schedule: at for at, schedule in enumerate(self.schedules)}

    @cached_property
    def means(self) -> NDArray[np.float64]:
        """The mean over seeds of the loss of a full trial: the benchmark's truth, (schedules,)."""
        result: NDArray[np.float64] = self.losses[:, :, -1].mean(axis=1)
        return result

    @cached_property
    def frontier(self) -> tuple[Schedule, ...]:
        """The schedules on the true frontier, cheapest first."""
        points = list(zip(self.means.tolist(), self.costs.tolist(), strict=True))
        return tuple(self.schedules[at] for at in nondominated(points))

    @property
    def seed_std(self) -> float:
        """The standard deviation over seeds of a full trial's loss, pooled over all schedules."""
        return float(np.sqrt(self.losses[:, :, -1].var(axis=1, ddof=1).mean()))

    def hypervolume(self, found: list[Schedule]) -> float:
        """Return the true hypervolume of a set of schedules as a share of that of all of them.

        Losses are means over seeds; loss and cost are scaled to the range over all schedules, the worst of both being
        the reference point.
        """
        low, high = self.means.min(), self.means.max()
        cheap, dear = self.costs.min(), self.costs.max()

        def scaled(at: int) -> tuple[float, float]:
            return float((self.means[at] - low) / (high - low)), float((self.costs[at] - cheap) / (dear - cheap))

        whole = hypervolume([scaled(at) for at in range(len(self.schedules))], (1.0, 1.0))
        return hypervolume([scaled(self._at[schedule]) for schedule in found], (1.0, 1.0)) / whole


def load_bench(name: str) -> Bench:
    """Read a benchmark.

    Args:
        name: ``mix``, ``recall`` or ``text``, or the path of such a table; its ``space.yaml`` lies beside it.

    Raises:
        DataError: if the file is missing, is no such table, or lacks trials.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = find_file(name, FOLDER, ".parquet")
    try:
        table = pq.read_table(path, columns=list(COLUMNS)).to_pydict()
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise DataError(f"{path}: no benchmark table ({str(error).splitlines()[0]}); get it anew") from None
    recipe, space = load_recipe(str(path.with_suffix(".yaml"))), load_space(str(path.with_name("space.yaml")))
    bound = BoundSpace.of(space, recipe)
    texts, seeds, steps = (sorted(set(table[key])) for key in ("schedule", "seed", "step"))
    shape = (len(texts), len(seeds), len(steps))
    losses, seconds, costs = np.full(shape, np.nan), np.full(shape[:2], np.nan), np.full(shape[0], np.nan)
    place = {text: at for at, text in enumerate(texts)}
    for text, seed, step, loss, cost, taken in zip(*(table[key] for key in COLUMNS), strict=True):
        at, of = place[text], seeds.index(seed)
        losses[at, of, steps.index(step)], seconds[at, of], costs[at] = loss, taken, cost
    schedules = tuple(Schedule.parse(text) for text in texts)
    missing = int(np.isnan(losses).any(axis=2).sum()) + (bound.size - len(texts)) * len(seeds)
    if missing:
        raise DataError(f"{path}: {missing} trials are missing; run python {FOLDER}/train.py {path.stem}")
    return Bench(
        name=path.stem,
        schedules=schedules,
        seeds=tuple(seeds),
        steps=tuple(steps),
        costs=costs,
        losses=losses,
        seconds=seconds,
        space=bound,
    )
