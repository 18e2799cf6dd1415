"""The best schedule under any constraint, from the trials of a finished run. See docs/methods/surrogate.md.

Two candidates are compared: the confirmed schedule with the lowest mean loss (*measured*), and the schedule with the
lowest predicted loss among all others (*proposal*), of a number of full layers that was trained.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from layersearch.errors import ConfigError, RunFolderError
from layersearch.results import stats
from layersearch.results.analyze import analyze
from layersearch.results.result import Entry, Result
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.files import plain
from layersearch.surrogate.constraint import Constraint, Kind
from layersearch.surrogate.fit import fit_pair, thinned, training_trials
from layersearch.surrogate.gp import MIN_SCHEDULES, Surrogate
from layersearch.surrogate.local_search import shortlist
from layersearch.training.record import TrialRecord

STD_FACTOR = 1.2
"""Factor on the surrogate's standard deviation: the lowest of many predictions is lowest partly by error. It was set
on two tables of ``analysis/schedule_bench`` and checked on the third; see ``analysis/search_efficiency``."""

CandidateState = Literal["confirmed", "trained", "stopped", "untrained"]
"""``confirmed``: trained on all fresh seeds that confirmed schedules share, at least two; ``trained``: on fewer, or at
the search's seed only; ``stopped``: not to the end."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A schedule within the constraint, with its measured or predicted loss."""

    schedule: Schedule
    n_full: int  # Number l of full-attention layers
    cost: float  # Attention FLOPs divided by those of all-full, exact
    takes: float  # Sum over layers that the constraint limits, in the units of its limit
    state: CandidateState
    loss: float  # Mean over fresh seeds of a confirmed schedule, else the predicted mean over seeds, nats
    low: float  # Lower end of the interval of that mean: Student's t of the seeds, or the surrogate's
    high: float  # Upper end
    seeds: int  # Number of fresh seeds that it was trained on
    predicted: float  # Mean predicted by the surrogate, nats; it was fitted to this schedule's losses too
    predicted_std: float  # Standard deviation predicted by the surrogate, of the mean over seeds, nats


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Proposal minus measured, both predicted by the surrogate and none below 0, nats."""

    mean: float
    low: float
    high: float
    """The interval assumes independent errors. Similar schedules have similar errors, so it is too wide. As for a
    prediction, its upper end includes a proposal that is no better than the lowest trained loss."""

    @property
    def shown(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The answer to a constraint, and its evidence."""

    kind: Kind  # The limited quantity
    limit: float  # Its limit: a ratio to all-full's attention FLOPs, bytes, or milliseconds
    answer: Candidate  # The proposal if it is shown below `measured` or nothing is confirmed, else `measured`
    measured: Candidate | None  # Lowest confirmed mean within the constraint; None if nothing within it is confirmed
    cheaper: Candidate | None  # Cheapest confirmed schedule shown to lie within the tolerance of that; None if the same
    proposal: Candidate | None  # Lowest prediction of the others; None if all within the constraint are confirmed
    nearest: Candidate | None  # Trained schedule within the constraint nearest to the proposal; None without one
    changed: int | None  # Number of layers in which the two differ
    difference: Difference | None  # None without both candidates
    shortlisted: int  # Number of untrained schedules that the local search found; 0 if none is left
    trials: int  # Number of complete trials
    stopped: int  # Number of stopped trials
    fitted: int  # Number of both that the surrogate was fitted to
    schedules: int  # Number of distinct schedules among them
    n_full: tuple[int, ...]  # Numbers of full layers among them: no other is proposed
    within: int  # How many of `schedules` satisfy the constraint
    lowest: float  # Lowest loss of a complete trial at any cost, nats
    noise: float | None  # Pooled standard deviation of a loss over fresh seeds, nats; None if none has two seeds
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``--json`` prints it."""
        return plain(self)


def solve(
    records: Iterable[TrialRecord],
    space: BoundSpace,
    constraint: Constraint,
    *,
    tolerance: float = 0.0,
    confidence: float = stats.CONFIDENCE,
    fitted: tuple[Surrogate, Surrogate] | None = None,
    first_round: int = 0,
) -> Solution:
    """Return the best schedule of a space within a constraint, given a run's records.

    Args:
        records: of one run, finished or not; a complete record replaces others of its schedule, phase and seed.
        space: the run's space.
        constraint: see `layersearch.surrogate.constraint`.
        tolerance: loss above the lowest confirmed one, in nats, within which a cheaper schedule must be shown to lie
            (``cheaper``).
        confidence: of every interval.
        fitted: `fit_pair` of the records' trials; None: fit here. Several constraints share one fit.
        first_round: see `layersearch.results.analyze.analyze`.

    Raises:
        RunFolderError: if too few distinct schedules are complete.
        ConfigError: if no schedule with a trained number of full layers is within the constraint.
    """
    trials = training_trials(records, space)
    trained = sorted({record.schedule for record in trials})
    complete = [record for record in trials if record.state == "complete"]
    ended = {record.schedule for record in complete}
    if len(ended) < MIN_SCHEDULES:
        raise RunFolderError(
            f"{len(ended)} schedules of the space are trained to the end, too few to learn from: {MIN_SCHEDULES} are "
            "needed; run the command that made the run again to go on, or search with more --trials into another --out"
        )
    within = [schedule for schedule in trained if constraint.admits(schedule)]
    admitted = set(within)
    n_full = sorted({schedule.n_full for schedule in trained})
    pairwise, surrogate = fitted or fit_pair(trials, space)
    offered = shortlist(pairwise, space, constraint, within, n_full)
    if not within and not offered:
        raise ConfigError(
            f"every schedule of l = {', '.join(map(str, n_full))} full layers, which are those that were trained, is "
            f"over the limit of {constraint.limit:g}; raise it, or search at a budget that holds other l"
        )
    losses = [(record, record.loss) for record in complete if record.loss is not None]
    fresh: dict[Schedule, list[float]] = {}
    for record, loss in losses:
        if record.phase == "confirm":
            fresh.setdefault(record.schedule, []).append(loss)
    lowest = min(loss for _, loss in losses)
    kept = [record for record in complete if record.schedule in admitted]
    found = analyze(kept, 1.0, confidence, tolerance, first_round=first_round, trust=False)
    entries = {entry.schedule: entry for entry in found.entries}
    shared = len(found.winner.seeds) if found.winner else 0
    z = stats.normal_quantile(confidence)
    ceiling = lowest + z * surrogate.noise

    def candidate(schedule: Schedule, mean: float, std: float) -> Candidate:
        entry = entries.get(schedule)
        state: CandidateState = "trained" if entry else "stopped" if schedule in admitted else "untrained"
        loss, low, high = max(0.0, mean), max(0.0, mean - z * std), max(mean + z * std, ceiling)
        real = entry.mean if entry else None
        if real is not None and real.low is not None and real.high is not None and real.n >= shared:
            state, loss, low, high = "confirmed", real.mean, real.low, real.high
        return Candidate(
            schedule=schedule,
            n_full=schedule.n_full,
            cost=space.cost(schedule),
            takes=constraint.measure(schedule),
            state=state,
            loss=loss,
            low=low,
            high=high,
            seeds=len(entry.confirm) if entry else 0,
            predicted=mean,
            predicted_std=std,
        )

    asked = [*within, *offered]
    means, stds = surrogate.predict(asked)
    rows = zip(asked, means.tolist(), (STD_FACTOR * stds).tolist(), strict=True)
    candidates = {schedule: candidate(schedule, mean, std) for schedule, mean, std in rows}
    measured = cheaper = None
    # A winner on a single seed is not confirmed.
    if found.winner is not None and candidates[found.winner.leader].state == "confirmed":
        measured = candidates[found.winner.leader]
        cheaper = None if found.winner.to_leader is None else candidates[found.winner.schedule]
    others = [one for one in candidates.values() if one.state != "confirmed"]
    proposal = min(others, key=lambda one: (one.predicted, one.cost, one.schedule), default=None)
    difference = nearest = changed = None
    if proposal is not None:
        difference = None if measured is None else _difference(proposal, measured, z)
        distances = {
            other: sum(a != b for a, b in zip(proposal.schedule, other, strict=True))
            for other in within
            if other in ended and other != proposal.schedule
        }
        nearest = min(distances, key=lambda other: (distances[other], candidates[other].predicted, other), default=None)
        changed = None if nearest is None else distances[nearest]
    better = difference is None or (difference.shown and difference.mean < 0)
    answer = proposal if proposal is not None and better else cheaper or measured
    assert answer is not None, "something is within the constraint"
    return Solution(
        kind=constraint.kind,
        limit=constraint.limit,
        answer=answer,
        measured=measured,
        cheaper=cheaper,
        proposal=proposal,
        nearest=None if nearest is None else candidates[nearest],
        changed=changed,
        difference=difference,
        shortlisted=len(offered),
        trials=len(complete),
        stopped=len(trials) - len(complete),
        fitted=len(thinned(trials)),
        schedules=len(trained),
        n_full=tuple(n_full),
        within=len(within),
        lowest=lowest,
        noise=stats.pooled_std(fresh.values()),
        confidence=confidence,
    )


def _difference(proposal: Candidate, measured: Candidate, z: float) -> Difference:
    reference = max(0.0, measured.predicted)
    mean = proposal.loss - reference
    half = z * math.hypot(proposal.predicted_std, measured.predicted_std)
    return Difference(mean=mean, low=mean - half, high=max(mean + half, proposal.high - reference))


def compare_to_best(result: Result, schedule: Schedule) -> tuple[Entry | None, stats.Interval | None]:
    """Return the best other confirmed schedule that costs no more, and the paired difference to it.

    The other was picked for its low losses on these very seeds, so the difference does not favor the schedule.
    """
    entry = result.entry(schedule)
    rivals = [
        other
        for other in result.entries
        if other is not entry and other.cost <= entry.cost and dict(other.confirm).keys() & dict(entry.confirm).keys()
    ]
    if not rivals:
        return None, None
    rival = min(rivals, key=lambda other: (math.inf if other.mean is None else other.mean.mean, other.cost))
    return rival, stats.paired_difference(dict(entry.confirm), dict(rival.confirm), result.confidence)
