"""What is learnt from a run's records: which of them count, and the surrogate that is fitted to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.surrogate.gp import FEWEST, Surrogate
from layersearch.training.record import TrialRecord


def learnt_from(records: Iterable[TrialRecord], space: BoundSpace) -> list[TrialRecord]:
    """Return the trials of the space that have a loss, one record each, in an order of their own.

    A trial that was stopped counts if a complete one was validated at the step where it ended.
    """
    kept: dict[tuple[str, int, str], TrialRecord] = {}
    for record in records:
        if record.loss is None or space.encode(record.parsed()) is None:
            continue
        if record.state == "complete" or record.key not in kept:
            kept[record.key] = record
    steps = {step for record in kept.values() if record.state == "complete" for step, _ in record.curve}
    return [kept[key] for key in sorted(kept) if kept[key].state == "complete" or kept[key].steps in steps]


def fit_surrogate(
    learnt: Sequence[TrialRecord], parsed: Mapping[str, Schedule], space: BoundSpace, *, pairwise: bool
) -> Surrogate:
    """Fit a surrogate to trials, the losses of those that were stopped included.

    Args:
        learnt: as `learnt_from` returns them.
        parsed: every schedule of theirs by its text form.
        space: what the surrogate can be asked about.
        pairwise: as for `Surrogate`.

    Raises:
        UserError: as `Surrogate.fit`.
    """
    early = {record.steps for record in learnt if record.state == "stopped"}
    rows: list[tuple[Schedule, float, int, float]] = []
    for record in learnt:
        assert record.loss is not None
        known = {} if record.state == "stopped" else {step: loss for step, loss in record.curve if step in early}
        for step, loss in sorted((known | {record.steps: record.loss}).items()):
            rows.append((parsed[record.schedule], loss, record.seed, step / record.full_steps))
    schedules, losses, seeds, shares = zip(*rows, strict=True)
    return Surrogate(space, pairwise=pairwise).fit(schedules, losses, seeds, shares)


def left_out_losses(records: Iterable[TrialRecord], space: BoundSpace) -> list[tuple[float, float]]:
    """Return what the surrogate says of each complete trial of the search, had it not seen that schedule.

    It is the one by which the sampler `gain` proposes, fitted to the search's trials, whatever sampler made them.

    Args:
        records: of a run.
        space: the run's space.

    Returns:
        (predicted, real) last loss of each schedule, nats; none where too few are complete to learn from.
    """
    learnt = learnt_from((record for record in records if record.phase == "search"), space)
    if len({record.schedule for record in learnt if record.state == "complete"}) < FEWEST:
        return []
    surrogate = fit_surrogate(learnt, {r.schedule: r.parsed() for r in learnt}, space, pairwise=False)
    predicted, real, _ = surrogate.left_out()
    return list(zip(predicted.tolist(), real.tolist(), strict=True))
