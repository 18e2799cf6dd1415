"""Fits the surrogate to a run's records, and computes its leave-one-out predictions."""

from collections.abc import Iterable, Sequence

import numpy as np

from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.surrogate.gp import MIN_SCHEDULES, Surrogate
from layersearch.training.record import TrialRecord

MOST_TRIALS = 800
"""Trials that a surrogate learns from: its memory is quadratic in their number, its time cubic."""


def training_trials(records: Iterable[TrialRecord], space: BoundSpace) -> list[TrialRecord]:
    """Return the trials of the space that have a loss, one record each, sorted by key.

    A stopped trial counts if a complete one was validated at the same step.
    """
    kept: dict[tuple[Schedule, int, str], TrialRecord] = {}
    for record in records:
        if record.loss is None or not space.holds(record.schedule):
            continue
        if record.state == "complete" or record.key not in kept:
            kept[record.key] = record
    steps = {step for record in kept.values() if record.state == "complete" for step, _ in record.curve}
    return [kept[key] for key in sorted(kept) if kept[key].state == "complete" or kept[key].steps in steps]


def thinned(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return at most `MOST_TRIALS` of the trials of `training_trials`, in the same order.

    Confirmed trials and baselines stay. Of the others some do, evenly over the schedules in their order.
    """
    if len(trials) <= MOST_TRIALS:
        return list(trials)
    at = {True: list[int](), False: list[int]()}
    for number, record in enumerate(trials):
        at[record.phase == "confirm" or record.role != "proposed"].append(number)
    places = np.linspace(0, len(at[False]) - 1, max(0, MOST_TRIALS - len(at[True]))).round().astype(int)
    return [trials[number] for number in sorted({*at[True], *(at[False][place] for place in places)})]


def fit_surrogate(trials: Sequence[TrialRecord], space: BoundSpace, *, pairwise: bool) -> Surrogate:
    """Fit a `Surrogate` to the `thinned` trials of `training_trials`, stopped ones included.

    Errors are those of `Surrogate.fit`.
    """
    trials = thinned(trials)
    early = {record.steps for record in trials if record.state == "stopped"}
    rows: list[tuple[Schedule, float, int, float]] = []
    for record in trials:
        assert record.loss is not None
        curve = {} if record.state == "stopped" else {step: loss for step, loss in record.curve if step in early}
        for step, loss in sorted((curve | {record.steps: record.loss}).items()):
            rows.append((record.schedule, loss, record.seed, step / record.full_steps))
    schedules, losses, seeds, shares = zip(*rows, strict=True)
    return Surrogate(space, pairwise=pairwise).fit(schedules, losses, seeds, shares)


def fit_pair(trials: Sequence[TrialRecord], space: BoundSpace) -> tuple[Surrogate, Surrogate]:
    """Return the two surrogates of `solve`: one of single layers and pairs, one of interactions of any order."""
    return fit_surrogate(trials, space, pairwise=True), fit_surrogate(trials, space, pairwise=False)


def leave_one_out_losses(records: Iterable[TrialRecord], space: BoundSpace) -> list[tuple[float, float]]:
    """Return (predicted, real) last loss of each schedule of the search, nats; empty with too few complete trials.

    The leave-one-out prediction is that of the sampler `gain`'s surrogate, fitted to the trials of any sampler.
    """
    trials = training_trials((record for record in records if record.phase == "search"), space)
    if len({record.schedule for record in trials if record.state == "complete"}) < MIN_SCHEDULES:
        return []
    predicted, real, _ = fit_surrogate(trials, space, pairwise=False).leave_one_out()
    return list(zip(predicted.tolist(), real.tolist(), strict=True))
