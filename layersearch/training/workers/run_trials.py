"""Runs trials on a pool and yields each record as soon as its trial ends."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait

from layersearch.training.record import KeepGoing, Trial, TrialRecord
from layersearch.training.workers.pool import Pool


def run_trials(
    pool: Pool, trials: Sequence[Trial], keep_going: Callable[[Trial], KeepGoing | None] = lambda trial: None
) -> Generator[TrialRecord]:
    """Yield records as trials end; if the caller stops, cancel the trials that have not begun.

    A trial whose worker was lost is tried once more: its failed record comes first, the other one later. Trials are
    submitted in their order. ``keep_going`` returns a trial's stopping rule; None: it runs to its end.
    """
    pending = {pool.submit(trial, keep_going(trial)): trial for trial in trials}
    retried = set[Trial]()
    try:
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                trial, record = pending.pop(future), future.result()
                if record.lost and trial not in retried:
                    retried.add(trial)
                    pending[pool.submit(trial, keep_going(trial))] = trial
                yield record
    finally:
        for future in pending:
            future.cancel()
