"""What a run's records say: the frontier, the winner, what it differs from, and how far that may be trusted.

Losses of the phase ``search`` choose what is looked at; only losses of the phase ``confirm``, on fresh seeds, say how
good it is: the lowest of many losses is low partly by luck, on its own seed only (the winner's curse).

**The winner.** Among the schedules within the budget that were confirmed on the same seeds, the one of the lowest mean
leads. The winner is the cheapest whose paired difference to the leader is not significant. These intervals are not
corrected for their number: a correction widens them, and would give up a real gain for a cheaper schedule more easily.

**The claims.** The winner's differences to all-full and to the best baseline are claims, and the winner was picked from
several schedules with the same confirmed losses. So each claim also gets an interval corrected by Bonferroni for every
schedule that could have been picked and compared with that reference; only where this one excludes zero is the winner
called better or worse. Bonferroni's, not Holm's step-down, because it yields intervals and not only decisions.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from layersearch.results import pareto, stats
from layersearch.results import verdict as verdicts
from layersearch.results.fidelity import rank_fidelities
from layersearch.results.noise import measure_noise, measure_signal
from layersearch.results.result import (
    _STATES,
    ALL_FULL,
    PROPOSED,
    Comparison,
    Entry,
    PerL,
    Result,
    Winner,
    known,
)
from layersearch.schedule.bound_space import BoundSpace
from layersearch.surrogate.fit import left_out_losses
from layersearch.training.record import TrialRecord


def analyse(
    records: Iterable[TrialRecord],
    budget: float,
    confidence: float = stats.CONFIDENCE,
    tolerance: float = 0.0,
    space: BoundSpace | None = None,
) -> Result:
    """Turn a run's records, finished or not, into what they say.

    Args:
        records: in the order they were written; the last of several records of one schedule, phase and seed counts.
        budget: largest cost allowed, as a ratio to all-full.
        confidence: of every interval.
        tolerance: nats above the lowest loss that are worth a cheaper schedule.
        space: that was searched, to tell how well its surrogate ranks; None: that is not told.
    """
    records = list(records)
    grouped: dict[str, list[TrialRecord]] = {}
    for record in records:
        grouped.setdefault(record.schedule, []).append(record)
    confirmed = {
        text: {r.seed: r.loss for r in group if r.phase == "confirm" and r.state == "complete" and r.loss is not None}
        for text, group in grouped.items()
    }
    shared = _shared_seeds(confirmed.values())
    entries = [_entry(group, confirmed[text], shared, budget, confidence) for text, group in grouped.items()]
    entries.sort(key=lambda entry: (entry.cost, entry.schedule))
    complete = [entry for entry in entries if entry.search_loss is not None]
    whole = [entry for entry in entries if entry.mean is not None and entry.mean.n >= len(shared)]
    search_frontier = _frontier(complete, [known(entry.search_loss) for entry in complete])
    frontier_of = "confirm" if len(whole) > 1 else "search"
    on_frontier = search_frontier
    if frontier_of == "confirm":
        on_frontier = _frontier(whole, [known(entry.loss) for entry in whole])
    entries = [dataclasses.replace(entry, on_frontier=entry.schedule in on_frontier) for entry in entries]
    complete = [entry for entry in entries if entry.search_loss is not None]
    reference = max(((known(entry.search_loss), 1.0) for entry in complete if entry.names), default=None)
    best = min(
        (entry for entry in complete if entry.within_budget),
        key=lambda entry: (known(entry.search_loss), entry.cost),
        default=None,
    )
    winner = _winner(entries, confirmed, shared, confidence, tolerance)
    noise = measure_noise(confirmed.values(), len(shared), confidence)
    return Result(
        budget=budget,
        confidence=confidence,
        entries=tuple(entries),
        frontier=on_frontier,
        frontier_of=frontier_of,
        search_frontier=search_frontier,
        hypervolume=None
        if reference is None
        else pareto.hypervolume([(known(entry.search_loss), entry.cost) for entry in complete], reference),
        hypervolume_reference=reference,
        winner=winner,
        best_searched=None if best is None else best.schedule,
        noise=noise,
        signal=measure_signal(entries, shared),
        best_per_l=tuple(_per_l(n_full, entries) for n_full in sorted({entry.n_full for entry in entries})),
        trust=rank_fidelities(
            records,
            [(e.search_loss, e.mean.mean) for e in entries if e.search_loss is not None and e.mean],
            confidence,
            [] if space is None else left_out_losses(records, space),
        ),
        failed=len({r.key for r in records if r.state == "failed"} - {r.key for r in records if r.state != "failed"}),
        verdict=verdicts.verdict(winner, best, entries),
    )


def _frontier(entries: Sequence[Entry], losses: Sequence[float]) -> tuple[str, ...]:
    points = [(loss, entry.cost) for loss, entry in zip(losses, entries, strict=True)]
    return tuple(entries[index].schedule for index in pareto.nondominated(points))


def _shared_seeds(losses: Iterable[Mapping[int, float]]) -> tuple[int, ...]:
    """Return the seeds over which candidates are compared: the set, in a partial run, that keeps most trials in use."""
    sets = Counter(frozenset(by_seed) for by_seed in losses if by_seed)
    used = {seeds: len(seeds) * sum(times for other, times in sets.items() if seeds <= other) for seeds in sets}
    best = max(used, key=lambda seeds: (used[seeds], len(seeds), sorted(seeds)), default=frozenset[int]())
    return tuple(sorted(best))


def _entry(
    group: Sequence[TrialRecord],
    confirmed: Mapping[int, float],
    shared: Sequence[int],
    budget: float,
    confidence: float,
) -> Entry:
    first = group[0]
    by_seed = {r.seed: r for r in group if r.phase == "confirm" and r.state == "complete"}
    # A trial that was stopped and later taken up again has two records: the furthest one counts, the last of equals.
    searched = sorted((r for r in group if r.phase == "search"), key=lambda r: -_STATES.index(r.state))
    trial = searched[-1] if searched else None
    seeds = [seed for seed in shared if seed in confirmed]
    used = seeds if len(seeds) == len(shared) else sorted(confirmed)
    measured = [by_seed[seed] for seed in used]
    if not used and trial is not None and trial.state == "complete":
        measured = [trial]
    metrics = [dict(record.metrics) for record in measured]
    positions = zip(*(record.loss_by_position for record in measured), strict=True)
    return Entry(
        schedule=first.schedule,
        names=tuple(sorted({record.role for record in group} - {PROPOSED})),
        n_full=first.parsed().n_full,
        cost=first.cost,
        flops=first.flops,
        state=None if trial is None else trial.state,
        steps=0 if trial is None else trial.steps,
        full_steps=first.full_steps if trial is None else trial.full_steps,
        search_loss=trial.loss if trial is not None and trial.state == "complete" else None,
        last_loss=None if trial is None else trial.loss,
        confirm=tuple(sorted(confirmed.items())),
        failed_seeds=tuple(
            sorted({r.seed for r in group if r.phase == "confirm" and r.state == "failed"} - confirmed.keys())
        ),
        mean=stats.mean_interval((confirmed[seed] for seed in used), confidence) if used else None,
        metrics=tuple((name, fmean(found[name] for found in metrics)) for name in (metrics[0] if metrics else ())),
        loss_by_position=tuple(fmean(losses) for losses in positions),
        position_edges=measured[0].position_edges if measured else (),
        within_budget=first.cost <= budget,
        on_frontier=False,
    )


def _winner(
    entries: Sequence[Entry],
    confirmed: Mapping[str, Mapping[int, float]],
    shared: Sequence[int],
    confidence: float,
    tolerance: float,
) -> Winner | None:
    whole = {
        entry.schedule: {seed: confirmed[entry.schedule][seed] for seed in shared}
        for entry in entries
        if shared and confirmed[entry.schedule].keys() >= set(shared)
    }
    candidates = [entry for entry in entries if entry.within_budget and entry.schedule in whole]
    if not candidates:
        return None

    def mean(entry: Entry) -> float:
        return known(None if entry.mean is None else entry.mean.mean)

    leader = min(candidates, key=lambda entry: (mean(entry), entry.flops))
    to_leader = {
        entry.schedule: stats.paired_difference(whole[entry.schedule], whole[leader.schedule], confidence)
        for entry in candidates
    }

    def not_above(difference: stats.Interval) -> bool:
        # A single seed has no interval, so nothing there may stand in for the leader.
        return difference.low is not None and difference.low <= tolerance

    near = [e for e in candidates if e is leader or not_above(to_leader[e.schedule])]
    pick = min(near, key=lambda entry: (entry.flops, mean(entry)))

    def compare(reference: Entry | None) -> Comparison | None:
        if reference is None or reference is pick:
            return None
        picks = sum(entry is not reference for entry in candidates)
        a, b = whole[pick.schedule], whole[reference.schedule]
        difference = stats.paired_difference(a, b, confidence)
        corrected = stats.paired_difference(a, b, confidence, comparisons=picks)
        return Comparison(
            reference=reference.label,
            schedule=reference.schedule,
            difference=difference,
            corrected=corrected,
            comparisons=picks,
            seeds_needed=stats.seeds_needed(difference.std, difference.mean, confidence)
            if difference.std and difference.mean and not difference.excludes_zero
            else None,
            verdict=verdicts.comparison(difference, corrected, picks),
        )

    full = next((entry for entry in entries if ALL_FULL in entry.names and entry.schedule in whole), None)
    baselines = [entry for entry in candidates if entry.names]
    return Winner(
        schedule=pick.schedule,
        leader=leader.schedule,
        to_leader=None if pick is leader else to_leader[pick.schedule],
        candidates=len(candidates),
        not_separated=len(near),
        tolerance=tolerance,
        seeds=tuple(shared),
        to_all_full=compare(full),
        to_best_baseline=compare(min(baselines, key=lambda entry: (mean(entry), entry.flops), default=None)),
    )


def _per_l(n_full: int, entries: Sequence[Entry]) -> PerL:
    here = [entry for entry in entries if entry.n_full == n_full]
    complete = sorted((known(e.search_loss), e.cost, e.schedule) for e in here if e.search_loss is not None)
    means = sorted((e.mean.mean, e.cost, e.schedule) for e in here if e.mean is not None)
    return PerL(
        n_full=n_full,
        trained=len(complete),
        search_schedule=complete[0][2] if complete else None,
        search_loss=complete[0][0] if complete else None,
        search_worst=complete[-1][0] if complete else None,
        confirmed_schedule=means[0][2] if means else None,
        confirmed=next(e.mean for e in here if e.schedule == means[0][2]) if means else None,
    )
