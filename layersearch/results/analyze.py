"""Analysis of a run's records: the frontier, the winner, its differences to references, and their reliability.

Losses of the phase ``search`` choose the schedules to confirm. Only losses of the phase ``confirm``, on fresh seeds,
measure how good they are. `docs/methods/winner.md` says how the winner is chosen and which intervals are corrected.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from layersearch.results import pareto, stats
from layersearch.results.noise import measure_noise, measure_signal, rank_fidelities
from layersearch.results.result import ALL_FULL, PROPOSED, BestPerL, Comparison, Entry, Result, Unit, Winner, not_none
from layersearch.results.sentences import comparison_text, verdict_text
from layersearch.schedule import Schedule
from layersearch.training.record import State, TrialRecord

_STATES: tuple[State, ...] = ("failed", "stopped", "complete")  # from the least to the furthest


def analyze(
    records: Iterable[TrialRecord],
    budget: float,
    confidence: float = stats.CONFIDENCE,
    tolerance: float = 0.0,
    leave_one_out: Sequence[tuple[float, float]] = (),
    unit: Unit = "seed",
) -> Result:
    """Analyze a run's records, finished or not.

    Args:
        records: in the order they were written; the last of several records of one schedule, phase and seed counts.
        budget: largest cost allowed, as a ratio to all-full.
        confidence: of every interval.
        tolerance: loss above the lowest, in nats, that a cheaper schedule may have.
        leave_one_out: (predicted, real) losses of the surrogate, nats, see
            `layersearch.surrogate.fit.leave_one_out_losses`. Empty: its rank correlation is not reported.
        unit: what a record's ``seed`` counts: seeds of a training, or held-out documents.

    Example:
        >>> from layersearch import analyze
        >>> analyze([], budget=0.5).verdict
        'Nothing to conclude: no trial has completed.'
    """
    # In one order, whatever the order of the trials was: ties and resampling must not depend on it.
    records = sorted(records, key=lambda record: record.key)
    grouped: dict[Schedule, list[TrialRecord]] = {}
    for record in records:
        grouped.setdefault(record.schedule, []).append(record)
    confirmed = {
        schedule: {
            r.seed: r.loss for r in group if r.phase == "confirm" and r.state == "complete" and r.loss is not None
        }
        for schedule, group in grouped.items()
    }
    shared = _shared_seeds(confirmed.values())
    entries = [_entry(group, confirmed[schedule], shared, budget, confidence) for schedule, group in grouped.items()]
    entries.sort(key=lambda entry: (entry.cost, entry.schedule))
    searched = [(entry, entry.search_loss) for entry in entries if entry.search_loss is not None]
    means = [(entry, entry.mean.mean) for entry in entries if entry.mean is not None and entry.mean.n >= len(shared)]
    search_frontier = _frontier(searched)
    frontier = _frontier(means) if len(means) > 1 else search_frontier
    entries = [dataclasses.replace(entry, on_frontier=entry.schedule in frontier) for entry in entries]
    reference = max(((loss, 1.0) for entry, loss in searched if entry.names), default=None)
    within = [(loss, entry.cost, entry) for entry, loss in searched if entry.within_budget]
    best = min(within, key=lambda one: one[:2])[2] if within else None
    winner = _winner(entries, confirmed, shared, confidence, tolerance)
    return Result(
        budget=budget,
        confidence=confidence,
        entries=tuple(entries),
        frontier=frontier,
        frontier_of="confirm" if len(means) > 1 else "search",
        search_frontier=search_frontier,
        hypervolume=reference and pareto.hypervolume([(loss, entry.cost) for entry, loss in searched], reference),
        hypervolume_reference=reference,
        winner=winner,
        best_searched=None if best is None else best.schedule,
        noise=measure_noise(confirmed.values(), len(shared), confidence),
        signal=measure_signal(entries, shared),
        best_per_l=tuple(_per_l(n_full, entries) for n_full in sorted({entry.n_full for entry in entries})),
        trust=rank_fidelities(
            records, [(loss, entry.mean.mean) for entry, loss in searched if entry.mean], confidence, leave_one_out
        ),
        failed=len({r.key for r in records if r.state == "failed"} - {r.key for r in records if r.state != "failed"}),
        verdict=verdict_text(winner, best, entries, unit),
        unit=unit,
    )


def _frontier(points: Sequence[tuple[Entry, float]]) -> tuple[Schedule, ...]:
    kept = pareto.nondominated([(loss, entry.cost) for entry, loss in points])
    return tuple(points[index][0].schedule for index in kept)


def _shared_seeds(losses: Iterable[Mapping[int, float]]) -> tuple[int, ...]:
    """Return the seeds over which candidates are compared: in a partial run, the set that uses most trials."""
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
    failed = {r.seed for r in group if r.phase == "confirm" and r.state == "failed"}
    by_seed = {r.seed: r for r in group if r.phase == "confirm" and r.state == "complete"}
    # A trial that was stopped and resumed has two records: the furthest one counts, the last of equals.
    searched = sorted((r for r in group if r.phase == "search"), key=lambda r: _STATES.index(r.state))
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
        n_full=first.schedule.n_full,
        cost=first.cost,
        flops=first.flops,
        state=None if trial is None else trial.state,
        steps=0 if trial is None else trial.steps,
        full_steps=first.full_steps if trial is None else trial.full_steps,
        search_loss=trial.loss if trial is not None and trial.state == "complete" else None,
        last_loss=None if trial is None else trial.loss,
        confirm=tuple(sorted(confirmed.items())),
        failed_seeds=tuple(sorted(failed - confirmed.keys())),
        mean=stats.mean_interval((confirmed[seed] for seed in used), confidence) if used else None,
        metrics=tuple((name, fmean(found[name] for found in metrics)) for name in (metrics[0] if metrics else ())),
        loss_by_position=tuple(fmean(losses) for losses in positions),
        position_edges=measured[0].position_edges if measured else (),
        within_budget=first.cost <= budget,
        on_frontier=False,
    )


def _winner(
    entries: Sequence[Entry],
    confirmed: Mapping[Schedule, Mapping[int, float]],
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
        return not_none(entry.mean).mean

    leader = min(candidates, key=lambda entry: (mean(entry), entry.flops))
    to_leader = {
        entry.schedule: stats.paired_difference(whole[entry.schedule], whole[leader.schedule], confidence)
        for entry in candidates
    }
    lows = {schedule: difference.low for schedule, difference in to_leader.items()}
    # A single seed has no interval (low is None): only the leader can win.
    near = [e for e in candidates if e is leader or ((low := lows[e.schedule]) is not None and low <= tolerance)]
    pick = min(near, key=lambda entry: (entry.flops, mean(entry)))

    def compare(reference: Entry | None) -> Comparison | None:
        if reference is None or reference is pick:
            return None
        picks = sum(entry is not reference for entry in candidates)
        a, b = whole[pick.schedule], whole[reference.schedule]
        difference, corrected = (stats.paired_difference(a, b, confidence, comparisons=n) for n in (1, picks))
        return Comparison(
            reference=reference.label,
            schedule=reference.schedule,
            difference=difference,
            corrected=corrected,
            comparisons=picks,
            seeds_needed=stats.seeds_needed(difference.std, difference.mean, confidence)
            if difference.std and difference.mean and not difference.excludes_zero
            else None,
            verdict=comparison_text(difference, corrected, picks),
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


def _per_l(n_full: int, entries: Sequence[Entry]) -> BestPerL:
    here = [entry for entry in entries if entry.n_full == n_full]
    complete = sorted((not_none(e.search_loss), e.cost, e.schedule) for e in here if e.search_loss is not None)
    means = sorted((e.mean.mean, e.cost, e.schedule) for e in here if e.mean is not None)
    return BestPerL(
        n_full=n_full,
        trained=len(complete),
        search_schedule=complete[0][2] if complete else None,
        search_loss=complete[0][0] if complete else None,
        search_worst=complete[-1][0] if complete else None,
        confirmed_schedule=means[0][2] if means else None,
        confirmed=next(e.mean for e in here if e.schedule == means[0][2]) if means else None,
    )


analyse = analyze
"""The former name of `analyze`."""
