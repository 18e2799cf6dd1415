"""Runs the trials of one setting on a pool and keeps their records in its run folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence

from layersearch.errors import LayersearchError
from layersearch.schedule import Schedule
from layersearch.study.plan import Listener, Progress
from layersearch.study.run_folder import RunFolder
from layersearch.training.record import Phase, Trial, TrialRecord
from layersearch.training.workers.pool import Pool
from layersearch.training.workers.run_trials import run_trials


def losses_of(records: Iterable[TrialRecord], phase: Phase) -> dict[Schedule, dict[int, float]]:
    """Return the losses of complete trials of a phase by schedule and seed, nats."""
    found: dict[Schedule, dict[int, float]] = {}
    for record in records:
        if record.phase == phase and record.state == "complete" and record.loss is not None:
            found.setdefault(record.schedule, {})[record.seed] = record.loss
    return found


class TrialRunner:
    """Trains the trials of one run folder that have no record yet, failed ones again.

    The pool is made when the first trial is to run. The listener is called after each trial.
    """

    def __init__(self, folder: RunFolder, pool: Callable[[], Pool], listener: Listener) -> None:
        self.folder, self._make_pool, self._listener = folder, pool, listener
        self._pool: Pool | None = None
        folder.drop_torn_line()
        self.records: list[TrialRecord] = [r for r in folder.records() if r.state != "failed"]
        self._planned = self._new = 0
        self._began = time.monotonic()

    def train(self, phase: str, trials: Sequence[Trial]) -> None:
        """Run the trials that have no record, in this order. The listener is told the phase.

        Raises:
            LayersearchError: if every trial failed; gives the first reason.
        """
        made = {record.key for record in self.records}
        todo = [t for key, t in {t.key: t for t in trials}.items() if key not in made]
        self._planned = max(self._planned, len(self.records) + len(todo))
        if not todo:
            return
        pool = self._pool = self._pool or self._make_pool()
        failed: list[TrialRecord] = []
        with contextlib.closing(run_trials(pool, todo)) as records:
            for record in records:
                self.folder.append(record)
                self.records.append(record)
                self._new += 1
                failed += [record] if record.state == "failed" else []
                self._announce(phase, record)
        if len(failed) == len(todo) and all(r.state == "failed" for r in self.records):
            raise LayersearchError(
                f"every trial failed ({failed[0].error}): correct the recipe and start anew with another --out, or, if "
                "the machine was the cause, run the same command again"
            )

    def close(self) -> None:
        """Close the pool. The next trial makes another."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _announce(self, phase: str, last: TrialRecord) -> None:
        done = len(self.records)
        complete = [r for r in self.records if r.state == "complete" and r.phase == last.phase]
        seconds_per_trial = (time.monotonic() - self._began) / self._new
        self._listener(
            Progress(
                phase=phase,
                done=done,
                planned=max(self._planned, done),
                best=min(complete, key=lambda r: (r.loss, r.cost), default=None),
                last=last,
                seconds_left=seconds_per_trial * max(0, self._planned - done),
            )
        )
