"""Run trials on a pool and hand out each record as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import as_completed

from layersearch.training.record import Trial, TrialRecord
from layersearch.training.trial import KeepGoing
from layersearch.training.workers.pool import Pool


def run_trials(
    pool: Pool, trials: Sequence[Trial], keep_going: Callable[[Trial], KeepGoing | None] = lambda trial: None
) -> Generator[TrialRecord]:
    """Yield the records of trials in the order in which they end; cancel what has not begun if the caller stops.

    Args:
        pool: where they run.
        trials: submitted in this order.
        keep_going: returns the rule that may stop a trial early; None: it runs to its end.
    """
    futures = [pool.submit(trial, keep_going(trial)) for trial in trials]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
