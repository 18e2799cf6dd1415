"""Runs trials on a pool and yields each record as soon as its trial ends."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import as_completed

from layersearch.training.record import Trial, TrialRecord
from layersearch.training.trial import KeepGoing
from layersearch.training.workers.pool import Pool


def run_trials(
    pool: Pool, trials: Sequence[Trial], keep_going: Callable[[Trial], KeepGoing | None] = lambda trial: None
) -> Generator[TrialRecord]:
    """Yield records as trials end; if the caller stops, cancel the trials that have not begun.

    Trials are submitted in their order. ``keep_going`` returns a trial's stopping rule; None: it runs to its end.
    """
    futures = [pool.submit(trial, keep_going(trial)) for trial in trials]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
