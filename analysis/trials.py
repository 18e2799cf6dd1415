"""Lists of trials, run resumably, and tables of their paired differences. The studies beside this file import it."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersearch.config.recipe import Recipe
from layersearch.errors import LayersearchError
from layersearch.results.stats import mean_interval, paired_difference
from layersearch.schedule import Schedule
from layersearch.schedule.work import Work
from layersearch.training.record import Trial
from layersearch.training.workers.pool import LocalPool
from layersearch.training.workers.run_trials import run_trials

LOGS = Path(__file__).resolve().parent.parent / "runs"
"""Where workers write what they say; not committed."""


SMALL: dict[str, Any] = {
    "d_model": 64,
    "n_heads": 2,
    "n_kv_heads": 2,
    "d_ff": 160,
    "qk_norm": True,
    "tie_embeddings": False,
    "init": "width",
}
"""The model of the studies, but for its kind and depth."""
FAST: dict[str, Any] = {"optimizer": "muon", "learning_rate": 0.004, "warmup_steps": 20, "compile": False}
"""How they train it, but for lengths, steps and Muon's rate."""


def placed(full: Collection[int], near: str, layers: int, other: str = "full") -> Schedule:
    """Return the schedule with ``other`` in the layers ``full``, 0 at the bottom, and ``near`` elsewhere."""
    return Schedule.parse(" ".join(other if layer in full else near for layer in range(layers)))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Schedules that are trained by one recipe and compared with one another."""

    name: str
    recipe: Recipe
    schedules: dict[str, Schedule]
    """By the name in the table."""
    seeds: int


@dataclass(frozen=True)
class Row:
    """What one trial found."""

    group: str
    name: str
    schedule: str
    cost: float
    seed: int
    loss: float | None
    metrics: dict[str, float]
    seconds: float


def arguments(description: str) -> argparse.Namespace:
    """Read the flags that all studies have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="trials at the same time, one core each (default: 1)")
    parser.add_argument("--only", nargs="*", help="names of groups to run (default: all)")
    parser.add_argument("--toy", action="store_true", help="a few steps of one seed, into /tmp: does it run?")
    return parser.parse_args()


def run(groups: Sequence[Group], records: Path, workers: int, only: Sequence[str] | None = None) -> None:
    """Train what the file of records lacks; seeds come in the outer loop, so that every row grows alike."""
    done = {(row.group, row.name, row.seed) for row in read(records) if row.loss is not None}
    for group in groups:
        if only and group.name not in only:
            continue
        work = Work.of(group.recipe)
        names = {schedule: name for name, schedule in group.schedules.items()}
        missing = [
            Trial(schedule=schedule, seed=seed, role=name)
            for seed in range(group.seeds)
            for schedule, name in names.items()
            if (group.name, name, seed) not in done
        ]
        if not missing:
            continue
        pool = LocalPool(group.recipe, min(workers, len(missing)), LOGS / records.parent.name / group.name)
        try:
            for count, record in enumerate(run_trials(pool, missing), start=1):
                row = {
                    "group": group.name,
                    "name": names[record.schedule],
                    "schedule": str(record.schedule),
                    "cost": work.ratio(record.schedule),
                    "seed": record.seed,
                    "loss": record.loss,
                    "metrics": dict(record.metrics),
                    "seconds": round(record.seconds, 1),
                }
                with records.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    f"{group.name} {count}/{len(missing)}: {row['name']} seed {row['seed']} {row['loss']}", flush=True
                )
        finally:
            pool.close()


def read(records: Path) -> list[Row]:
    """Return the rows of a file, none if there is no file."""
    if not records.exists():
        return []
    return [Row(**json.loads(line)) for line in records.read_text().splitlines()]


def table(rows: Sequence[Row], group: str, metric: str | None = None, against: str | None = None) -> str:
    """Return a Markdown table of a group: losses, differences to one schedule by seed, 95% intervals.

    Args:
        rows: of all groups.
        group: the group's name.
        metric: a metric beside the loss, whose mean and interval are shown.
        against: name of the schedule that differences are taken to; None: the one of lowest mean loss.
    """
    losses: dict[str, dict[int, float]] = defaultdict(dict)
    metrics: dict[str, dict[int, float]] = defaultdict(dict)
    facts: dict[str, Row] = {}
    for row in rows:
        if row.group == group and row.loss is not None:
            losses[row.name][row.seed] = row.loss
            facts[row.name] = row
            if metric is not None and metric in row.metrics:
                metrics[row.name][row.seed] = row.metrics[metric]
    if not losses:
        return f"Group `{group}` has no records yet.\n"
    best = against or min(losses, key=lambda name: sum(losses[name].values()) / len(losses[name]))
    head = ["schedule", "spans, bottom first", "cost", "seeds", "loss, nats", f"minus {best}, nats"]
    head += [metric] if metric else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in sorted(losses, key=lambda name: sum(losses[name].values()) / len(losses[name])):
        mean = mean_interval(losses[name].values())
        difference = "0"
        if name != best:
            try:
                found = paired_difference(losses[name], losses[best])
                difference = _signed(found.mean, found.half_width)
            except LayersearchError:
                difference = "no seed in common"
        cells = [name, f"`{facts[name].schedule}`", f"{facts[name].cost:.4f}", str(len(losses[name]))]
        cells += [f"{mean.mean:.4f}", difference]
        if metric:
            held = metrics[name].values()
            cells.append(_plain(*_of(held)) if held else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _of(values: Sequence[float]) -> tuple[float, float | None]:
    found = mean_interval(values)
    return found.mean, found.half_width


def _plain(mean: float, half: float | None) -> str:
    return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"


def _signed(mean: float, half: float | None) -> str:
    return f"{mean:+.4f}" if half is None else f"{mean:+.4f} ± {half:.4f}"


def toy(group: Group) -> Group:
    """Return a group of one seed and a few steps."""
    from dataclasses import replace

    training = replace(group.recipe.training, steps=4, warmup_steps=1, val_sequences=8)
    return replace(group, recipe=replace(group.recipe, training=training), seeds=1)
