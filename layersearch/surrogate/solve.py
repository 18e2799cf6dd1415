"""The best schedule under any constraint, from the trials of a finished run. See docs/methods/surrogate.md.

Two candidates are compared: the confirmed schedule with the lowest mean loss (*measured*), and the schedule with the
lowest predicted loss among all others (*proposal*), of a number of full layers that was trained.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from layersearch.errors import ConfigError, RunFolderError
from layersearch.results import stats
from layersearch.results.analyze import Decision, decide
from layersearch.results.result import Entry, Result
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.files import plain
from layersearch.surrogate.constraint import Constraint, Kind
from layersearch.surrogate.fit import fit_pair, thinned, training_trials
from layersearch.surrogate.gp import MIN_SCHEDULES
from layersearch.surrogate.local_search import shortlist
from layersearch.training.record import TrialRecord

STD_FACTOR = 1.2
"""Factor on the surrogate's standard deviation: the lowest of many predictions is lowest partly by error. It was set
on two tables of ``analysis/schedule_bench`` and checked on the third; see ``analysis/search_efficiency``."""
ENOUGH_SCHEDULES = 28
"""With fewer trained schedules the standard deviation is also multiplied by this number divided by theirs: the fit does
not know how little it has seen. It was set on the tables ``recall`` and ``deep``, where 77 to 82% of 95% intervals held
the truth after 12 and 16 schedules, and checked on the other four; see ``analysis/calibration``."""

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
    low: float  # Lower end of the interval of that mean: of the seeds, allowing for the choice, or the surrogate's
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
    first_round: int = 0,
) -> Solution:
    """Return the best schedule of a space within a constraint, given a run's records. See `Solver` and its `solve`."""
    solver = Solver(records, space, tolerance=tolerance, confidence=confidence, first_round=first_round)
    return solver.solve(constraint)


class Solver:
    """Answers constraints from the records of one run: all share the fits of the surrogates.

    Args:
        records: of one run, finished or not; a complete record replaces others of its schedule, phase and seed.
        space: the run's space.
        tolerance: loss above the lowest confirmed one, in nats, within which a cheaper schedule must be shown to lie
            (``cheaper``).
        confidence: of every interval.
        first_round: see `layersearch.results.analyze.analyze`.

    Raises:
        RunFolderError: if too few distinct schedules are complete.
    """

    def __init__(
        self,
        records: Iterable[TrialRecord],
        space: BoundSpace,
        *,
        tolerance: float = 0.0,
        confidence: float = stats.CONFIDENCE,
        first_round: int = 0,
    ) -> None:
        self._space, self._tolerance, self._confidence, self._first_round = space, tolerance, confidence, first_round
        self._trials = training_trials(records, space)
        self._trained = sorted({record.schedule for record in self._trials}, key=str)
        self._complete = [record for record in self._trials if record.state == "complete"]
        self._ended = {record.schedule for record in self._complete}
        if len(self._ended) < MIN_SCHEDULES:
            raise RunFolderError(
                f"{len(self._ended)} schedules of the space are trained to the end, too few to learn from: "
                f"{MIN_SCHEDULES} are needed; run the command that made the run again to go on, or search with more "
                "--trials into another --out"
            )
        self._n_full = sorted({schedule.n_full for schedule in self._trained})
        self.pairwise, self.surrogate = fit_pair(self._trials, space)
        means, stds = self.surrogate.predict(self._trained)
        self._predicted = dict(zip(self._trained, zip(means.tolist(), stds.tolist(), strict=True), strict=True))
        losses = [(record, record.loss) for record in self._complete if record.loss is not None]
        self._lowest = min(loss for _, loss in losses)
        fresh: dict[Schedule, list[float]] = {}
        for record, loss in losses:
            if record.phase == "confirm":
                fresh.setdefault(record.schedule, []).append(loss)
        self._noise = stats.pooled_std(fresh.values())
        self._confirmed = [record for record in self._complete if record.schedule in fresh]

    def solve(self, constraint: Constraint) -> Solution:
        """Return the best schedule within a constraint, see `layersearch.surrogate.constraint`.

        Raises:
            ConfigError: if no schedule with a trained number of full layers is within the constraint.
        """
        within = [schedule for schedule in self._trained if constraint.admits(schedule)]
        offered = shortlist(self.pairwise, self._space, constraint, within, self._n_full)
        if not within and not offered:
            raise ConfigError(
                f"every schedule of l = {', '.join(map(str, self._n_full))} full layers, which are those that were "
                f"trained, is over the limit of {constraint.limit:g}; raise it, or search at a budget that holds other "
                "l"
            )
        kept = [record for record in self._confirmed if constraint.admits(record.schedule)]
        decided = decide(kept, 1.0, self._confidence, self._tolerance, first_round=self._first_round)
        found = decided.winner
        candidates = self._candidates(constraint, within, offered, decided)
        measured = cheaper = None
        # A winner on a single seed is not confirmed.
        if found is not None and candidates[found.leader].state == "confirmed":
            measured = candidates[found.leader]
            cheaper = None if found.to_leader is None else candidates[found.schedule]
        others = [one for one in candidates.values() if one.state != "confirmed"]
        proposal = min(others, key=lambda one: (one.predicted, one.cost, one.schedule), default=None)
        difference = nearest = changed = None
        if proposal is not None:
            if measured is not None:
                difference = _difference(proposal, measured, stats.normal_quantile(self._confidence))
            nearest, changed = self._nearest(proposal.schedule, candidates)
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
            nearest=nearest,
            changed=changed,
            difference=difference,
            shortlisted=len(offered),
            trials=len(self._complete),
            stopped=len(self._trials) - len(self._complete),
            fitted=len(thinned(self._trials)),
            schedules=len(self._trained),
            n_full=tuple(self._n_full),
            within=len(within),
            lowest=self._lowest,
            noise=self._noise,
            confidence=self._confidence,
        )

    def _candidates(
        self,
        constraint: Constraint,
        within: list[Schedule],
        offered: list[Schedule],
        decided: Decision,
    ) -> dict[Schedule, Candidate]:
        """Return the trained and the offered schedules; ``decided`` holds those with fresh seeds."""
        entries = {entry.schedule: entry for entry in decided.entries}
        shared = 0 if decided.winner is None else len(decided.winner.seeds)
        z = stats.normal_quantile(self._confidence)
        ceiling = self._lowest + z * self.surrogate.noise
        means, stds = self.surrogate.predict(offered)
        predicted = self._predicted | dict(zip(offered, zip(means.tolist(), stds.tolist(), strict=True), strict=True))

        def candidate(schedule: Schedule, known: bool) -> Candidate:
            mean, std = predicted[schedule]
            std *= STD_FACTOR * max(1.0, ENOUGH_SCHEDULES / len(self._trained))
            state: CandidateState = "trained" if schedule in self._ended else "stopped" if known else "untrained"
            loss, low, high = max(0.0, mean), max(0.0, mean - z * std), max(mean + z * std, ceiling)
            entry = entries.get(schedule)
            real = entry.mean if entry else None
            if real is not None and real.low is not None and real.high is not None and real.n >= shared:
                state, loss, low, high = "confirmed", real.mean, real.low, real.high
            return Candidate(
                schedule=schedule,
                n_full=schedule.n_full,
                cost=self._space.cost(schedule),
                takes=constraint.measure(schedule),
                state=state,
                loss=loss,
                low=low,
                high=high,
                seeds=len(entry.confirm) if entry else 0,
                predicted=mean,
                predicted_std=std,
            )

        return {one: candidate(one, True) for one in within} | {one: candidate(one, False) for one in offered}

    def _nearest(
        self, proposal: Schedule, candidates: Mapping[Schedule, Candidate]
    ) -> tuple[Candidate | None, int | None]:
        """Return the candidate trained to the end that differs in the fewest layers, and their number."""
        distances = {
            other: sum(a is not b and a != b for a, b in zip(proposal, other, strict=True))
            for other in candidates
            if other in self._ended and other != proposal
        }
        nearest = min(distances, key=lambda other: (distances[other], candidates[other].predicted, other), default=None)
        return (None, None) if nearest is None else (candidates[nearest], distances[nearest])


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
