"""A simulated landscape of 24 or 48 layers, fitted to what was measured on SmolLM2-135M.

`analysis/schedule_bench/smollm2.parquet` holds the loss of every choice of full groups of three layers, 1,024 of them.
A schedule whose groups are full in part lies between them: the loss is the multilinear interpolation of the table, so
all interactions between groups that were measured are kept, whatever their order. A layer has a share of its group, and
a window a part of what full attention gives; both are fitted to the losses of schedules of single layers in
`analysis/smollm2`. A landscape of another depth gives a layer's share to the layer nearest to it in relative depth.
The noise is the table's own: a search reads one seed's losses, and is judged by the mean over seeds.

Command:  python analysis/search_efficiency/landscape.py
Writes:   landscape.json, the fit and the best frontiers known
"""

from __future__ import annotations

import json
from functools import cached_property, lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from layersearch.results.pareto import hypervolume, nondominated
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space
from layersearch.study.benchmark import load_bench

HERE = Path(__file__).resolve().parent
SMOLLM2 = HERE.parent / "smollm2"
LAYERS, GROUPS = 30, 10
CHOICES = ("full", "window:128+sink:4", "window:64+sink:4")
Array = NDArray[np.float64]
EQUAL = 0.5
"""Standard deviation of the prior that the layers of a group have equal shares, in their logarithms."""


def corners() -> Array:
    """Return the measured losses by (full groups as bits, seed, step), nats, (1024, 3, 8)."""
    bench = load_bench(str(HERE.parent / "schedule_bench" / "smollm2.parquet"))
    firsts = [group[0] for group in bench.space.groups]
    bits = [sum(schedule[at].is_full << g for g, at in enumerate(firsts)) for schedule in bench.schedules]
    found = np.empty((2**GROUPS, len(bench.seeds), len(bench.steps)))
    found[bits] = bench.losses
    return found


def between(values: Array, parts: Array) -> Array:
    """Return the multilinear interpolation of ``values`` (2^10, ...) at the shares full of the groups, (10,)."""
    for part in parts[::-1]:  # the highest bit first
        half = len(values) // 2
        values = (1 - part) * values[:half] + part * values[half:]
    return values[0]


def records() -> list[tuple[str, Schedule, float]]:
    """Return (set of units, schedule, loss in nats) of what `analysis/smollm2` measured of these choices."""
    found: dict[tuple[str, str], list[float]] = {}
    for line in (SMOLLM2 / "records" / "contest.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(("contest", row["schedule"]), []).append(0.8 * row["text"] + 0.2 * row["answers"])
    for line in (SMOLLM2 / "run" / "trials.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault((row["phase"], row["schedule"]), []).append(row["loss"])
    rows = [(part, Schedule.parse(text), float(np.mean(losses))) for (part, text), losses in found.items()]
    return [row for row in rows if all(str(span) in CHOICES for span in row[1])]


def unpack(values: Array) -> tuple[Array, float]:
    """Return the share of each layer in its group, (30,), and the part of full attention that window:128 gives."""
    logs = values[:LAYERS].reshape(GROUPS, -1)
    shares = np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True)
    return shares.reshape(-1), float(1 / (1 + np.exp(-values[LAYERS])))


def parts(schedule: Schedule, shares: Array, window: float) -> Array:
    """Return the share full of each group, (10,)."""
    given = {"full": 1.0, CHOICES[1]: window, CHOICES[2]: 0.0}
    full = np.array([given[str(span)] for span in schedule]) * shares
    group = np.arange(len(schedule)) * GROUPS // len(schedule)
    return np.bincount(group, weights=full, minlength=GROUPS)


def fit() -> dict[str, Any]:
    """Fit shares and the window's part to the records, each set of units with its own mean; check by leaving out."""
    table, rows = corners()[:, :, -1].mean(axis=1), records()
    sets = sorted({part for part, _, _ in rows})
    belongs = np.array([sets.index(part) for part, _, _ in rows])
    losses = np.array([loss for _, _, loss in rows])

    def centered(values: Array, which: Array) -> Array:
        means = np.array([values[(belongs == s) & which].mean() for s in range(len(sets))])
        return values - means[belongs]

    def predicted(values: Array) -> Array:
        shares, window = unpack(values)
        return np.array([between(table, parts(schedule, shares, window)) for _, schedule, _ in rows])

    def solved(which: Array) -> Array:
        def misses(values: Array) -> Array:
            gaps = centered(predicted(values), which) - centered(losses, which)
            return np.concatenate([gaps[which] / 0.05, values / EQUAL])

        return np.asarray(optimize.least_squares(misses, np.zeros(LAYERS + 1)).x)

    everything = np.ones(len(rows), dtype=bool)
    values = solved(everything)
    left_out = np.empty(len(rows))
    for fold in range(5):
        held = np.arange(len(rows)) % 5 == fold
        left_out[held] = centered(predicted(solved(~held)), ~held)[held]
    real = centered(losses, everything)
    shares, window = unpack(values)
    equal = centered(predicted(np.zeros(LAYERS + 1)), everything)
    return {
        "records": len(rows),
        "shares": [round(share, 4) for share in shares.tolist()],
        "window_128": round(window, 4),
        "r2": round(1 - float(np.var(real - centered(predicted(values), everything)) / np.var(real)), 3),
        "spearman": round(float(stats.spearmanr(real, centered(predicted(values), everything)).statistic), 3),
        "r2_left_out": round(1 - float(np.var(real - left_out) / np.var(real)), 3),
        "spearman_left_out": round(float(stats.spearmanr(real, left_out).statistic), 3),
        "spearman_equal_shares": round(float(stats.spearmanr(real, equal).statistic), 3),
    }


class Landscape:
    """A landscape of so many layers, with what `methods.Training` asks of a table."""

    def __init__(self, layers: int) -> None:
        self._found = found = json.loads((HERE / "landscape.json").read_text())
        self.name, self._window = f"smollm2-{layers}", found["window_128"]
        space = Space(name=self.name, choices=CHOICES, baseline_span=CHOICES[2], budget=0.5)
        self.space = BoundSpace(space, n_layers=layers, seq_len=1024, n_heads=9)
        self.shares = stretched(np.array(found["shares"]), layers)
        self._corners = corners()
        self.seeds, self.steps = tuple(range(self._corners.shape[1])), tuple(range(1, self._corners.shape[2] + 1))
        self._mean = self._corners[:, :, -1].mean(axis=1)
        self.truth = lru_cache(maxsize=None)(self._truth)

    def _parts(self, schedule: Schedule) -> Array:
        return parts(schedule, self.shares, self._window)

    def _truth(self, schedule: Schedule) -> float:
        """Return the mean loss over seeds at the end, nats."""
        return float(between(self._mean, self._parts(schedule)))

    def query(self, schedule: Schedule, seed: int, step: int) -> float:
        """Return a trial's loss at a step, nats."""
        return float(between(self._corners[:, seed, step - 1], self._parts(schedule)))

    def cost(self, schedule: Schedule) -> float:
        """Return the cost as a share of all-full's."""
        return self.space.cost(schedule)

    @cached_property
    def frontier(self) -> list[Schedule]:
        """The best frontier known, from the file if it is there; else by `climb`."""
        held = self._found.get("frontiers", {}).get(self.name)
        return [Schedule.parse(text) for text in held] if held else self.climb()

    def climb(self) -> list[Schedule]:
        """Return the best frontier known: single changes and swaps of two layers until none improves it."""
        first = [Schedule(tuple(self.space.options[0][at] for _ in range(self.space.n_layers))) for at in range(3)]
        front, done = first, set[Schedule]()
        while fresh := [schedule for schedule in front if schedule not in done]:
            near = set(front)
            for schedule in fresh:
                done.add(schedule)
                near.update(self.space.neighbors(schedule))
                near.update(swapped(schedule))
            everything = list(near)
            front = [everything[at] for at in nondominated([(self.truth(s), self.cost(s)) for s in everything])]
        return front

    @cached_property
    def worst(self) -> float:
        """The loss of the cheapest schedule, nats."""
        return self.truth(self.space.cheapest())

    def best(self, budget: float) -> float:
        """Return the lowest loss known within a budget, nats."""
        return min(self.truth(schedule) for schedule in self.frontier if self.cost(schedule) <= budget)

    def hypervolume(self, found: list[Schedule]) -> float:
        """Return the true hypervolume of schedules as a share of the frontier's, as `Benchmark.hypervolume`."""
        return self._volume(found) / self._whole

    @cached_property
    def _whole(self) -> float:
        return self._volume(self.frontier)

    def _volume(self, found: list[Schedule]) -> float:
        low = (min(map(self.truth, self.frontier)), self.cost(self.space.cheapest()))
        scale = (self.worst - low[0], 1.0 - low[1])
        scaled = [((self.truth(s) - low[0]) / scale[0], (self.cost(s) - low[1]) / scale[1]) for s in found]
        return hypervolume(scaled, (1.0, 1.0))

    def drawn(self, rng: Random) -> Any:
        """Yield schedules drawn uniformly, none twice."""
        seen = set[Schedule]()
        while True:
            schedule = self.space.sample(rng)
            if schedule not in seen:
                seen.add(schedule)
                yield schedule


def swapped(schedule: Schedule) -> list[Schedule]:
    """Return the schedules that swap the spans of two layers."""
    spans, found = list(schedule), []
    for a in range(len(spans)):
        for b in range(a):
            if spans[a] != spans[b]:
                other = list(spans)
                other[a], other[b] = other[b], other[a]
                found.append(Schedule(tuple(other)))
    return found


def stretched(shares: Array, layers: int) -> Array:
    """Return the shares at another depth: (30,) -> (layers,), each group's shares at the layers nearest to them."""
    group = np.arange(layers) * GROUPS // layers
    found = np.zeros(layers)
    for g in range(GROUPS):
        here = np.flatnonzero(group == g)
        weights = np.full(len(here), 0.05)  # a layer to which none is nearest
        for at, share in enumerate(shares[3 * g : 3 * g + 3]):
            place = (3 * g + at + 0.5) / LAYERS * layers - 0.5
            weights[np.abs(here - place).argmin()] += share
        found[here] = weights / weights.sum()
    return found


if __name__ == "__main__":
    path = HERE / "landscape.json"
    made = fit()
    path.write_text(json.dumps(made, indent=1) + "\n")
    print(made)
    # With 48 layers it takes minutes.
    made["frontiers"] = {f"smollm2-{layers}": [str(s) for s in Landscape(layers).climb()] for layers in (24, 48)}
    path.write_text(json.dumps(made, indent=1) + "\n")
