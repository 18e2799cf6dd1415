"""The tabular benchmark: every schedule of a small space was trained, so a search takes seconds.

``analysis/schedule_bench`` has the tables and how they were made. `Benchmark.query` gives the loss of any trial at any
checkpoint, so a search method can be charged for training steps as in a real search.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layersearch.config.loader import Strict, build, find_file, read_yaml
from layersearch.config.recipe import load_recipe
from layersearch.errors import DataError
from layersearch.results.pareto import hypervolume, nondominated
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import load_space

FOLDER = "analysis/schedule_bench"
COLUMNS = ("schedule", "seed", "step", "loss", "cost", "seconds")


@dataclass(frozen=True, kw_only=True)
class MeasuredModel(Strict):
    """The shape of a pre-trained model whose schedules were measured and not trained, as the table's YAML names it."""

    name: str
    """The name of the table."""
    n_layers: int
    n_heads: int
    seq_len: int
    """Tokens in a sequence."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The validation losses of one corpus: every schedule at every seed and checkpoint."""

    name: str
    schedules: tuple[Schedule, ...]
    """All schedules of the space, in the order of their text."""
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    """Checkpoints, ascending; the last is a full trial."""
    costs: NDArray[np.float64]
    """Attention cost as a share of all-full, (schedules,)."""
    losses: NDArray[np.float64]
    """Validation loss in nats, (schedules, seeds, steps)."""
    seconds: NDArray[np.float64]
    """Time of a full trial's training and validation on one core, (schedules, seeds)."""
    space: BoundSpace

    def query(self, schedule: Schedule | str, seed: int, step: int | None = None) -> float:
        """Return a trial's validation loss in nats. ``step`` is one of `steps`; None: the last.

        Raises:
            DataError: if there is no such trial; names the choices.
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
        """Mean loss of full trials over seeds, nats: the ground truth, (schedules,)."""
        result: NDArray[np.float64] = self.losses[:, :, -1].mean(axis=1)
        return result

    @cached_property
    def frontier(self) -> tuple[Schedule, ...]:
        """The schedules on the true Pareto front, cheapest first."""
        points = list(zip(self.means.tolist(), self.costs.tolist(), strict=True))
        return tuple(self.schedules[at] for at in nondominated(points))

    @property
    def seed_std(self) -> float:
        """Standard deviation of a full trial's loss over seeds, pooled over all schedules, nats."""
        return float(np.sqrt(self.losses[:, :, -1].var(axis=1, ddof=1).mean()))

    def hypervolume(self, found: list[Schedule]) -> float:
        """Return the true hypervolume of a set of schedules as a share of that of all schedules.

        Mean loss and cost are scaled to their range over all schedules. The reference point is the worst of both.
        """
        scaled, whole = self._scaled
        return hypervolume([scaled[self._at[one]] for one in found], (1.0, 1.0)) / whole

    @cached_property
    def _scaled(self) -> tuple[list[tuple[float, float]], float]:
        """The (loss, cost) of every schedule, scaled to their range, and the hypervolume of all."""
        points = np.stack([self.means, self.costs], axis=1)
        low, high = points.min(axis=0), points.max(axis=0)
        scaled = [(float(loss), float(cost)) for loss, cost in (points - low) / (high - low)]
        return scaled, hypervolume(scaled, (1.0, 1.0))


def load_bench_space(table: Path) -> BoundSpace:
    """Return the bound space of a table, from the YAML files beside it.

    ``NAME.yaml`` is the recipe of the trials, or a `MeasuredModel`. ``NAME.space.yaml`` is the space; without it,
    ``space.yaml`` is.

    Raises:
        ConfigError: a file is missing or wrong.
    """
    facts, own = table.with_suffix(".yaml"), table.with_suffix(".space.yaml")
    space = load_space(str(own if own.exists() else table.with_name("space.yaml")))
    mapping = read_yaml(facts) if facts.exists() else {}
    if isinstance(mapping, dict) and "n_layers" in mapping:
        model = build(MeasuredModel, mapping, facts.name)
        return BoundSpace(space, n_layers=model.n_layers, seq_len=model.seq_len, n_heads=model.n_heads)
    return BoundSpace.of(space, load_recipe(str(facts)))


def load_bench(name: str) -> Benchmark:
    """Read a benchmark: of trainings, or of a model that was measured without training.

    Of trainings are ``mix``, ``recall``, ``text``, ``prose``, ``deep``, ``hops`` and ``shallow``. Those of a model are
    ``smollm2`` and ``smollm2-prose``.

    The path of such a table beside its YAML files serves too.

    Raises:
        LayersearchError: if the file is missing, is no such table, or lacks trials.

    Example:
        >>> import layersearch
        >>> benchmark = layersearch.load_bench("mix")
        >>> benchmark.query(benchmark.schedules[0], seed=benchmark.seeds[0]) > 0
        True
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = find_file(name, FOLDER, ".parquet")
    try:
        table = pq.read_table(path, columns=list(COLUMNS)).to_pydict()
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise DataError(f"{path}: no benchmark table ({str(error).splitlines()[0]}); download it again") from None
    bound = load_bench_space(path)
    texts, seeds, steps = (sorted(set(table[key])) for key in ("schedule", "seed", "step"))
    shape = (len(texts), len(seeds), len(steps))
    losses, seconds, costs = np.full(shape, np.nan), np.full(shape[:2], np.nan), np.full(shape[0], np.nan)
    index = {text: at for at, text in enumerate(texts)}
    for text, seed, step, loss, cost, taken in zip(*(table[key] for key in COLUMNS), strict=True):
        at, of = index[text], seeds.index(seed)
        losses[at, of, steps.index(step)], seconds[at, of], costs[at] = loss, taken, cost
    schedules = tuple(Schedule.parse(text) for text in texts)
    missing = int(np.isnan(losses).any(axis=2).sum()) + (bound.size - len(texts)) * len(seeds)
    if missing:
        raise DataError(f"{path}: {missing} trials are missing; run python {FOLDER}/train.py {path.stem}")
    return Benchmark(
        name=path.stem,
        schedules=schedules,
        seeds=tuple(seeds),
        steps=tuple(steps),
        costs=costs,
        losses=losses,
        seconds=seconds,
        space=bound,
    )
