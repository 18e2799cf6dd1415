"""Trials of the study: what is to be trained, the pool they run on, and the file that keeps their records.

A job is one training. Its key says all that decides its outcome, so that groups share what they have in common and a
run that was killed goes on where it stopped.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from layersearch.config.data import DataConfig
from layersearch.config.model import ModelConfig
from layersearch.config.recipe import Recipe, load_recipe
from layersearch.config.training import TrainingConfig
from layersearch.files import UNTRAINED
from layersearch.schedule import Schedule
from layersearch.schedule.files import plain
from layersearch.training.record import Trial, TrialRecord
from layersearch.training.workers.pool import LocalPool

HERE = Path(__file__).resolve().parent
WORK = HERE.parent.parent / "runs" / "optimal_l"
"""Weights at the switch, workers' logs and unfinished run folders; not committed."""
POINTS = 8
"""Validations along a training."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training."""

    recipe: str
    """A name in trials/."""
    changes: tuple[str, ...] = ()
    """As ``--set`` takes them."""
    schedule: str
    seed: int
    switch: float | None = None
    """Train all-full to its end first, then this schedule for such a share of the steps; None: from scratch."""

    @property
    def setting(self) -> tuple[str, tuple[str, ...], float | None]:
        """What jobs of one pool have in common."""
        return (self.recipe, self.changes, self.switch)


class Records:
    """A file of JSON lines: a job and its record on each. Failed trials are kept there, and tried again.

    A record whose recipe has changed since does not count.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[Job, TrialRecord] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            row = json.loads(line)
            job = Job(**row["job"] | {"changes": tuple(row["job"]["changes"])})
            if row["recipe"] == fingerprint(job.recipe, job.changes):
                self._found[job] = TrialRecord.from_json(json.dumps(row["record"]))

    def get(self, job: Job) -> TrialRecord | None:
        """Return the record of a job that is complete."""
        record = self._found.get(job)
        return record if record is not None and record.state == "complete" else None

    def loss(self, job: Job) -> float | None:
        """Return the last validation loss of a job, nats."""
        record = self.get(job)
        return None if record is None else record.loss

    def add(self, job: Job, record: TrialRecord) -> None:
        """Append a record, forced to the disk."""
        self._found[job] = record
        with self.path.open("a", encoding="utf-8") as file:
            whole = {"job": asdict(job), "recipe": fingerprint(job.recipe, job.changes), "record": plain(record)}
            file.write(json.dumps(whole) + "\n")
            file.flush()
            os.fsync(file.fileno())


ADDED: dict[str, tuple[type, tuple[str, ...]]] = {
    "model": (ModelConfig, ("kind", "searched", "other_layers", "other_schedule", "pooling")),
    "data": (
        DataConfig,
        ("mask_share", "list_min", "list_max", "contour_length", "examples", "classes", "documents", "asked_in"),
    ),
    "training": (TrainingConfig, ("segments", "warm_tokens", "stages")),
}
"""Keys that came after the committed records. At its default, such a key leaves a training what it was before."""


def trained_parts(recipe: Recipe) -> dict[str, Any]:
    """Return the sections of a recipe that decide a training, as the digests of the committed records hold them."""
    parts = recipe.to_dict()
    for name, (section, keys) in ADDED.items():
        defaults = {field.name: field.default for field in fields(section) if field.name in keys}
        parts[name] = {key: value for key, value in parts[name].items() if (key, value) not in defaults.items()}
    training = {key: value for key, value in parts["training"].items() if key not in UNTRAINED}
    # ``depth`` is a retired key of the data section; those digests were made with it.
    return {"model": parts["model"], "data": parts["data"] | {"depth": 0.5}, "training": training}


@functools.cache
def fingerprint(recipe: str, changes: tuple[str, ...] = ()) -> str:
    """Return what tells one training from another: a digest of the recipe's model, data and training."""
    parts = trained_parts(load_recipe(recipe, list(changes)))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def recipe_of(job: Job) -> Recipe:
    """Return what a job runs."""
    changes = list(job.changes)
    if job.switch is not None:
        whole = load_recipe(job.recipe, changes).training
        steps = max(1, round(whole.steps * job.switch))
        start = _weights(job).with_name("seed-{seed}.safetensors")
        changes += [f"training.steps={steps}", f"training.warmup_steps={min(whole.warmup_steps, steps // 4)}"]
        changes += [f"training.start={start}"]
    return load_recipe(job.recipe, changes)


def _weights(job: Job) -> Path:
    changes = "_".join(job.changes).replace("/", "-") or "as-it-is"
    return WORK / "weights" / job.recipe / changes / f"seed-{job.seed}.safetensors"


def _trial(job: Job, recipe: Recipe) -> Trial:
    return Trial(schedule=Schedule.parse(job.schedule), seed=job.seed, checkpoints=_checkpoints(recipe))


def _checkpoints(recipe: Recipe) -> tuple[int, ...]:
    steps = recipe.training.steps
    return tuple(sorted({max(1, steps * at // POINTS) for at in range(1, POINTS)} - {steps}))


def run(jobs: Iterable[Job], records: Records, workers: int, say: Callable[[str], None] = print) -> None:
    """Train what has no record, one pool for all jobs of a setting."""
    by_setting: dict[object, list[Job]] = {}
    for job in dict.fromkeys(jobs):
        if records.get(job) is None:
            by_setting.setdefault(job.setting, []).append(job)
    for todo in by_setting.values():
        if todo[0].switch is not None:
            _train_starts(todo, workers)
        recipe = recipe_of(todo[0])
        pool = LocalPool(recipe, workers, WORK / "logs")
        try:
            futures = {pool.submit(_trial(job, recipe)): job for job in todo}
            for number, future in enumerate(as_completed(futures), start=1):
                job, record = futures[future], future.result()
                records.add(job, record)
                loss = record.error if record.loss is None else f"{record.loss:.4f}"
                say(f"  {number}/{len(todo)} {job.schedule} seed {job.seed}: {loss} ({record.seconds:.0f} s)")
        finally:
            pool.close()


def _train_starts(jobs: Sequence[Job], workers: int) -> None:
    """Train all-full up to the switch where its weights are not there."""
    missing = {_weights(job): job for job in jobs if not _weights(job).exists()}
    if not missing:
        return
    recipe = load_recipe(jobs[0].recipe, list(jobs[0].changes))
    full = Schedule.parse(f"full*{recipe.model.n_layers}")
    pool = LocalPool(recipe, workers, WORK / "logs")
    try:
        for future in [
            pool.submit(Trial(schedule=full, seed=job.seed, save=str(path))) for path, job in missing.items()
        ]:
            record = future.result()
            assert record.state == "complete", record.error
    finally:
        pool.close()
