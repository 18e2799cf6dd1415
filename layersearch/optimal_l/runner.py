"""Runs the trials of one setting on the search's pool and keeps their records in its run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from layersearch.errors import UserError
from layersearch.study.plan import Listener, Progress
from layersearch.study.run_folder import RunFolder
from layersearch.training.record import Phase, Trial, TrialRecord
from layersearch.training.workers.pool import Pool


class Trainer:
    """The trials of one run folder: those with a record are not trained again, failed ones are.

    Args:
        folder: held by this process.
        pool: makes the pool where trials run, once there is one to run.
        listener: called after each trial.
    """

    def __init__(self, folder: RunFolder, pool: Callable[[], Pool], listener: Listener) -> None:
        self.folder, self._make, self._listener = folder, pool, listener
        self._pool: Pool | None = None
        folder.mend()
        self.records: list[TrialRecord] = [r for r in folder.records() if r.state != "failed"]
        self.planned = 0
        """Trials that are expected in all, for the listener."""
        self._new = 0
        self._began = time.monotonic()

    def losses(self, phase: Phase) -> dict[str, dict[int, float]]:
        """Return the losses of complete trials, by schedule and seed, nats."""
        found: dict[str, dict[int, float]] = {}
        for record in self.records:
            if record.phase == phase and record.state == "complete" and record.loss is not None:
                found.setdefault(record.schedule, {})[record.seed] = record.loss
        return found

    def missing(self, trials: Iterable[Trial]) -> list[Trial]:
        """Return the trials that have no record yet, each once."""
        made = {record.key for record in self.records}
        return [t for key, t in {(t.schedule, t.seed, t.phase): t for t in trials}.items() if key not in made]

    def train(self, phase: str, trials: Sequence[Trial]) -> None:
        """Run what has no record yet.

        Args:
            phase: what the listener is told.
            trials: in order.

        Raises:
            UserError: if every trial failed, with the first one's reason.
        """
        todo = self.missing(trials)
        self.planned = max(self.planned, len(self.records) + len(todo))
        if not todo:
            return
        pool = self._pool = self._pool or self._make()
        futures: list[Future[TrialRecord]] = [pool.submit(trial) for trial in todo]
        failed: list[TrialRecord] = []
        try:
            pending = set(futures)
            while pending:
                ready, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in ready:
                    record = future.result()
                    self.folder.append(record)
                    self.records.append(record)
                    self._new += 1
                    failed += [record] if record.state == "failed" else []
                    self._announce(phase, record)
        finally:
            for future in futures:
                future.cancel()
        if len(failed) == len(todo) and all(r.state == "failed" for r in self.records):
            raise UserError(
                f"every trial failed ({failed[0].error}): correct the recipe and start anew with another --out, or, if "
                "the machine was the cause, run the same command again"
            )

    def close(self) -> None:
        """End the pool's workers and give their places back; the next trial starts others."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _announce(self, phase: str, last: TrialRecord) -> None:
        done = len(self.records)
        complete = [r for r in self.records if r.state == "complete" and r.phase == last.phase]
        each = (time.monotonic() - self._began) / self._new
        self._listener(
            Progress(
                phase=phase,
                done=done,
                planned=max(self.planned, done),
                best=min(complete, key=lambda r: (r.loss, r.cost), default=None),
                last=last,
                seconds_left=each * max(0, self.planned - done),
            )
        )
