"""The best schedule under any constraint, from the trials a run already made.

Two candidates are compared. The *measured* one is the confirmed schedule of the lowest mean loss, as in
`layersearch.results.analyze`. The *proposal* is the schedule of the lowest predicted loss among all others of the
space, trained in the search or not. A local search lists the best candidates under an additive-plus-pairwise
surrogate. A second surrogate, in which layers act together in any number, picks one: it predicts better and its
intervals are more honest. The constraint holds exactly; the local search is a heuristic. The proposal is the answer if
it is shown to lie below the measured one, or if nothing is confirmed. Otherwise the answer is the winner of
`layersearch.results.analyze`: the cheapest confirmed schedule not shown to be worse.

What is learnt from: every trial, each with its seed; of a trial that was stopped early the loss where it was stopped,
which counts as far as losses of that step went together with those of the end. A single low loss of the search is low
partly by luck; it is not taken at its word, since the surrogate sets its noise against what like schedules lost.

What is proposed: only numbers l of full layers that were trained. Loss is far from additive in l (where one full
layer does what the task needs, a second brings nothing), so that a sum of effects of layers and pairs says nothing of
an l it never saw: learnt at l = 0, 1 and 6, it puts l = 3 of six layers 1.8 nats too low. For the same reason a
predicted interval always reaches up to the lowest loss that was trained and its noise, and no loss is predicted below
0: losses level off where a sum goes on falling.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from layersearch.errors import UserError
from layersearch.results import stats
from layersearch.results.analyze import analyse
from layersearch.results.result import Entry, Result
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.surrogate.constraint import Constraint, Kind
from layersearch.surrogate.fit import fit_surrogate, learnt_from
from layersearch.surrogate.gp import FEWEST, Surrogate
from layersearch.surrogate.local_search import shortlist
from layersearch.training.record import TrialRecord

CHOSEN = 1.2
"""Intervals are this much wider than the surrogate's own: what is chosen as the lowest of many predictions is lowest
partly by error. Set on two of the tables of ``analysis/schedule_bench`` and checked on the third; see
``analysis/search_efficiency``."""

State = Literal["confirmed", "trained", "stopped", "untrained"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A schedule within the constraint, and what its loss is, or should be."""

    schedule: str
    """Text form."""
    n_full: int
    """The number l of full-attention layers."""
    cost: float
    """Attention FLOPs over those of all-full, exact."""
    takes: float
    """What it takes of the constraint, in the limit's units."""
    state: State
    """``confirmed``: on all fresh seeds that the confirmed schedules share, at least two; ``trained``: on fewer, or at
    the search's seed only; ``stopped``: not to the end; ``untrained``."""
    loss: float
    """Of a confirmed schedule the mean over its fresh seeds, otherwise the prediction of the mean over seeds, nats."""
    low: float
    """Lower end of the interval of that mean: Student's t of the seeds, or the surrogate's."""
    high: float
    """Upper end."""
    seeds: int
    """Fresh seeds that it was trained on."""
    predicted: float
    """The surrogate's mean as it stands, nats; what was measured on the schedule is in it."""
    predicted_std: float
    """The surrogate's standard deviation of the mean over seeds, nats."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Proposal less measured, both as the surrogate sees them but none below 0, in nats."""

    mean: float
    low: float
    high: float
    """The ends are those of independent errors: like schedules err alike, so that they lie closer than this. As for a
    prediction, the upper end reaches to where the proposal is no better than the lowest loss that was trained."""

    @property
    def shown(self) -> bool:
        """Tell whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a run says about a constraint."""

    kind: Kind
    """What is limited."""
    limit: float
    """At most so much: a share of all-full's attention FLOPs, bytes, or milliseconds."""
    answer: Candidate
    """The proposal, if it is predicted below the measured candidate or nothing is confirmed; else the measured one."""
    measured: Candidate | None
    """The lowest confirmed mean within the constraint; None if nothing within it is confirmed."""
    cheaper: Candidate | None
    """The cheapest confirmed schedule not shown to be worse than that (the rule that names a run's winner); None if it
    is the same."""
    proposal: Candidate | None
    """The lowest prediction of the others; None if every schedule within the constraint is confirmed."""
    nearest: Candidate | None
    """The trained schedule within the constraint with the fewest layers unlike the proposal's; None without either."""
    changed: int | None
    """In so many layers they differ."""
    difference: Difference | None
    """None without both candidates."""
    shortlisted: int
    """Untrained schedules that the local search offered, best first by the pairwise model; 0 if there is none left."""
    trials: int
    """Complete trials that were learnt from."""
    stopped: int
    """Stopped trials that were learnt from."""
    schedules: int
    """Distinct schedules among them."""
    n_full: tuple[int, ...]
    """The numbers of full layers among them: no other is proposed."""
    within: int
    """Of which so many are within the constraint."""
    lowest: float
    """The lowest loss of a complete trial, whatever it costs, nats."""
    noise: float | None
    """Standard deviation over fresh seeds of a schedule's loss, pooled, nats; None if none has two seeds."""
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``--json`` prints it."""
        return dataclasses.asdict(self)


def solve(
    records: Iterable[TrialRecord],
    space: BoundSpace,
    constraint: Constraint,
    *,
    tolerance: float = 0.0,
    confidence: float = stats.CONFIDENCE,
) -> Solution:
    """Return the best schedule of a space within a constraint, as far as a run's records tell.

    Args:
        records: of one run, finished or not; of several of a schedule, phase and seed a complete one counts.
        space: the run's space.
        constraint: see `layersearch.surrogate.constraint`.
        tolerance: nats above the lowest confirmed loss that are worth a cheaper schedule (``cheaper``).
        confidence: of every interval.

    Raises:
        UserError: if too few distinct schedules are complete, or none of a number of full layers that was trained is
            within the constraint.
    """
    learnt = learnt_from(records, space)
    parsed = {record.schedule: Schedule.parse(record.schedule) for record in learnt}
    complete = [record for record in learnt if record.state == "complete"]
    ended = {record.schedule for record in complete}
    if len(ended) < FEWEST:
        raise UserError(
            f"{len(ended)} schedules of the space are trained to the end, too few to learn from: {FEWEST} are needed; "
            "run the command that made the run again to go on, or search with more --trials into another --out"
        )
    surrogate = fit_surrogate(learnt, parsed, space, pairwise=False)
    within = {text: schedule for text, schedule in sorted(parsed.items()) if constraint.admits(schedule)}
    n_full = sorted({schedule.n_full for schedule in parsed.values()})
    pairs = fit_surrogate(learnt, parsed, space, pairwise=True)
    offered = shortlist(pairs, space, constraint, within.values(), n_full)
    asked = [*within.values(), *offered]
    if not asked:
        raise UserError(
            f"every schedule of l = {', '.join(map(str, n_full))} full layers, which are those that were trained, is "
            f"over the limit of {constraint.limit:g}; raise it, or search at a budget that holds other l"
        )
    lowest = min(record.loss for record in complete if record.loss is not None)
    predictions = _predict(surrogate, asked, lowest, confidence)
    measured_here = [record for record in complete if record.schedule in within]
    found = analyse(measured_here, 1.0, confidence, tolerance) if measured_here else None
    entries = {} if found is None else {entry.schedule: entry for entry in found.entries}
    shared = 0 if found is None or found.winner is None else len(found.winner.seeds)

    def candidate(schedule: Schedule) -> Candidate:
        text = str(schedule)
        state: State = "trained" if text in entries else "stopped" if text in within else "untrained"
        return _candidate(schedule, state, space, constraint, entries.get(text), shared, predictions[text])

    candidates = {str(schedule): candidate(schedule) for schedule in asked}
    measured, cheaper = _confirmed(found, candidates)
    others = [one for one in candidates.values() if one.state != "confirmed"]
    proposal = min(others, key=lambda one: (one.predicted, one.cost, one.schedule), default=None)
    difference = None
    if proposal is not None and measured is not None:
        difference = _difference(predictions[proposal.schedule], predictions[measured.schedule], confidence)
    better = difference is None or (difference.shown and difference.mean < 0)
    answer = proposal if proposal is not None and better else cheaper or measured
    assert answer is not None, "something is within the constraint"
    trained = {text: schedule for text, schedule in within.items() if text in ended}
    near = None if proposal is None else _nearest(Schedule.parse(proposal.schedule), trained, predictions)
    return Solution(
        kind=constraint.kind,
        limit=constraint.limit,
        answer=answer,
        measured=measured,
        cheaper=cheaper,
        proposal=proposal,
        nearest=None if near is None else candidates[near[0]],
        changed=None if near is None else near[1],
        difference=difference,
        shortlisted=len(offered),
        trials=len(complete),
        stopped=len(learnt) - len(complete),
        schedules=len(parsed),
        n_full=tuple(n_full),
        within=len(within),
        lowest=lowest,
        noise=_noise(complete),
        confidence=confidence,
    )


def _noise(complete: Sequence[TrialRecord]) -> float | None:
    groups: dict[str, list[float]] = {}
    for record in complete:
        if record.phase == "confirm" and record.loss is not None:
            groups.setdefault(record.schedule, []).append(record.loss)
    return stats.pooled_std(groups.values())


@dataclass(frozen=True, kw_only=True)
class _Prediction:
    """Of the mean loss over seeds, nats."""

    mean: float
    std: float
    low: float
    high: float

    @property
    def loss(self) -> float:
        return max(0.0, self.mean)


def _predict(
    surrogate: Surrogate, schedules: Sequence[Schedule], lowest: float, confidence: float
) -> dict[str, _Prediction]:
    wide = stats.normal_quantile(confidence)
    means, stds = surrogate.predict(schedules)
    stds = CHOSEN * stds
    return {
        str(schedule): _Prediction(
            mean=float(mean),
            std=float(std),
            low=max(0.0, float(mean - wide * std)),
            high=max(float(mean + wide * std), float(lowest + wide * surrogate.noise)),
        )
        for schedule, mean, std in zip(schedules, means, stds, strict=True)
    }


def _difference(proposal: _Prediction, measured: _Prediction, confidence: float) -> Difference:
    mean = proposal.loss - measured.loss
    half = stats.normal_quantile(confidence) * math.hypot(proposal.std, measured.std)
    return Difference(mean=mean, low=mean - half, high=max(mean + half, proposal.high - measured.loss))


def _candidate(
    schedule: Schedule,
    state: State,
    space: BoundSpace,
    constraint: Constraint,
    entry: Entry | None,
    shared: int,
    prediction: _Prediction,
) -> Candidate:
    loss, low, high = prediction.loss, prediction.low, prediction.high
    interval = None if entry is None else entry.mean
    if interval is not None and interval.low is not None and interval.high is not None and interval.n >= shared:
        state = "confirmed"
        loss, low, high = interval.mean, interval.low, interval.high
    return Candidate(
        schedule=str(schedule),
        n_full=schedule.n_full,
        cost=space.cost(schedule),
        takes=constraint.measure(schedule),
        state=state,
        loss=loss,
        low=low,
        high=high,
        seeds=0 if entry is None else len(entry.confirm),
        predicted=prediction.mean,
        predicted_std=prediction.std,
    )


def _confirmed(found: Result | None, candidates: Mapping[str, Candidate]) -> tuple[Candidate | None, Candidate | None]:
    """Return the lowest confirmed mean and the cheapest not shown to be worse."""
    if found is None or found.winner is None:
        return None, None
    leader, pick = candidates[found.winner.leader], candidates[found.winner.schedule]
    if leader.state != "confirmed":
        return None, None  # on a single seed
    return leader, None if pick is leader else pick


def _nearest(
    schedule: Schedule, trained: Mapping[str, Schedule], predictions: Mapping[str, _Prediction]
) -> tuple[str, int] | None:
    """Return the trained schedule with the fewest layers unlike, other than itself, and their number."""
    unlike = {
        text: sum(a != b for a, b in zip(schedule, other, strict=True))
        for text, other in trained.items()
        if other != schedule
    }
    if not unlike:
        return None
    text = min(unlike, key=lambda text: (unlike[text], predictions[text].mean, text))
    return text, unlike[text]


def against_best(result: Result, schedule: str) -> tuple[Entry | None, stats.Interval | None]:
    """Return the lowest confirmed mean of all other schedules that cost no more, and the paired difference to it.

    That one was picked for being the lowest on these very seeds: the difference does the schedule no favour.

    Args:
        result: of the run.
        schedule: text form of one of its schedules.
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
