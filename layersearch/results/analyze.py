"""Analysis of a run's records: the frontier, the winner, its differences to references, and their reliability.

Losses of the phase ``search`` choose the schedules to confirm. Only losses of the phase ``confirm``, on fresh seeds,
measure how good they are. `docs/methods/winner.md` says how the winner is chosen and which intervals are corrected.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from layersearch.results import pareto, stats
from layersearch.results.chosen import chosen_difference, chosen_mean
from layersearch.results.failures import failed_seeds, failure_bound
from layersearch.results.moderated import Prior, fit_prior
from layersearch.results.noise import measure_noise, measure_signal, rank_fidelities
from layersearch.results.result import ALL_FULL, PROPOSED, BestPerL, Comparison, Entry, Result, Unit, Winner, not_none
from layersearch.results.sentences import comparison_text, verdict_text
from layersearch.schedule import Schedule
from layersearch.training.record import State, TrialRecord

FAILURE_NATS = 0.1
"""A loss above the schedule's lowest by this much more than eight standard deviations counts as not learned."""
_STATES: tuple[State, ...] = ("failed", "stopped", "complete")  # from the least to the furthest


def analyze(
    records: Iterable[TrialRecord],
    budget: float,
    confidence: float = stats.CONFIDENCE,
    tolerance: float = 0.0,
    leave_one_out: Sequence[tuple[float, float]] = (),
    unit: Unit = "seed",
    first_round: int = 0,
) -> Result:
    """Analyze a run's records, finished or not.

    Args:
        records: in the order they were written; the last of several records of one schedule, phase and seed counts.
        budget: largest cost allowed, as a ratio to all-full.
        confidence: of every interval.
        tolerance: loss above the lowest, in nats, within which a cheaper schedule must be shown to lie to win.
        leave_one_out: (predicted, real) losses of the surrogate, nats, see
            `layersearch.surrogate.fit.leave_one_out_losses`. Empty: its rank correlation is not reported.
        unit: what a record's ``seed`` counts: seeds of a training, or held-out documents.
        first_round: number of fresh seeds of all candidates, where a second round gave further seeds to the undecided
            ones (`layersearch.study.confirmation`); 0: one round.

    Example:
        >>> from layersearch import analyze
        >>> analyze([], budget=0.5).verdict
        'Nothing to conclude: no trial has completed.'
    """
    # In one order, whatever the order of the trials was: ties and resampling must not depend on it.
    records = sorted(records, key=_order)
    decided = decide(records, budget, confidence, tolerance, unit, first_round)
    entries, common, confirmed, winner = decided.entries, decided.common, decided.confirmed, decided.winner
    searched = [(entry, entry.search_loss) for entry in entries if entry.search_loss is not None]
    # Over the seeds that all share: a seed's effect is common to all schedules, so means over other seeds differ by it.
    means = [
        (entry, fmean(confirmed[entry.schedule][seed] for seed in common))
        for entry in entries
        if common and confirmed[entry.schedule].keys() >= set(common)
    ]
    search_frontier = _frontier(searched)
    frontier = _frontier(means) if len(means) > 1 else search_frontier
    on_frontier = set(frontier)
    entries = [dataclasses.replace(e, on_frontier=True) if e.schedule in on_frontier else e for e in entries]
    reference = max(((loss, 1.0) for entry, loss in searched if entry.names), default=None)
    within = [(loss, entry.cost, entry) for entry, loss in searched if entry.within_budget]
    best = min(within, key=lambda one: one[:2])[2] if within else None
    claims = [] if winner is None else [winner.to_all_full, winner.to_best_baseline]
    choices = max((claim.comparisons for claim in claims if claim is not None), default=1)
    by_schedule = [confirmed[schedule] for schedule in sorted(confirmed)]
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
        noise=measure_noise(by_schedule, len(decided.shared), confidence, choices, decided.prior),
        signal=measure_signal(entries, common),
        best_per_l=tuple(_per_l(n_full, entries) for n_full in sorted({entry.n_full for entry in entries})),
        trust=rank_fidelities(
            records, [(loss, entry.mean.mean) for entry, loss in searched if entry.mean], confidence, leave_one_out
        ),
        failed=len({r.key for r in records if r.state == "failed"} - {r.key for r in records if r.state != "failed"}),
        verdict=verdict_text(winner, best, entries, unit),
        unit=unit,
    )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which of a run's schedules wins within a budget, without the rest of its analysis."""

    entries: list[Entry]
    """Cheapest first. Which of them are on the frontier is not known."""
    confirmed: Mapping[Schedule, Mapping[int, float]]
    """Losses by fresh seed, nats."""
    common: tuple[int, ...]
    """Fresh seeds that all candidates share."""
    shared: tuple[int, ...]
    """Those that decide: the second round's too, if there was one."""
    prior: Prior | None
    winner: Winner | None


def decide(
    records: Iterable[TrialRecord],
    budget: float,
    confidence: float = stats.CONFIDENCE,
    tolerance: float = 0.0,
    unit: Unit = "seed",
    first_round: int = 0,
) -> Decision:
    """Return the winner of a run within a budget, as `analyze` does in more time; arguments are its own."""
    grouped: dict[Schedule, list[TrialRecord]] = {}
    for record in sorted(records, key=_order):
        grouped.setdefault(record.schedule, []).append(record)
    confirmed = {
        schedule: {
            r.seed: r.loss for r in group if r.phase == "confirm" and r.state == "complete" and r.loss is not None
        }
        for schedule, group in grouped.items()
    }
    common, shared = _rounds(confirmed.values(), first_round)
    # Failures to learn are one of training seeds; a held-out document is no training.
    unlearned = failed_seeds(confirmed, FAILURE_NATS) if unit == "seed" else {}
    entries = [
        _entry(group, confirmed[schedule], shared, unlearned.get(schedule, ()), budget, confidence)
        for schedule, group in grouped.items()
    ]
    entries.sort(key=lambda entry: (entry.cost, entry.schedule))
    prior = fit_prior([confirmed[schedule] for schedule in sorted(confirmed)])  # the order of records must not matter
    winner = _winner(entries, confirmed, (common, shared), confidence, tolerance, prior, unit)
    if winner is not None:
        entries = [_allow_for_choice(entry, winner, confirmed, confidence, prior) for entry in entries]
    return Decision(entries=entries, confirmed=confirmed, common=common, shared=shared, prior=prior, winner=winner)


def _allow_for_choice(
    entry: Entry,
    winner: Winner,
    confirmed: Mapping[Schedule, Mapping[int, float]],
    confidence: float,
    prior: Prior | None,
) -> Entry:
    """Return the entry of the winner or the leader with an interval that allows for its choice, others as they are."""
    if entry.schedule not in (winner.schedule, winner.leader) or winner.candidates < 2:
        return entry
    whole = {
        schedule: {seed: by_seed[seed] for seed in winner.seeds}
        for schedule, by_seed in sorted(confirmed.items())
        if by_seed.keys() >= set(winner.seeds)
    }
    at = list(whole).index(entry.schedule)
    mean = chosen_mean(list(whole.values()), at, confidence, candidates=winner.candidates, prior=prior)
    return dataclasses.replace(entry, mean=mean)


def _order(record: TrialRecord) -> tuple[str, int, str]:
    return str(record.schedule), record.seed, record.phase


def _frontier(points: Sequence[tuple[Entry, float]]) -> tuple[Schedule, ...]:
    kept = pareto.nondominated([(loss, entry.cost) for entry, loss in points])
    return tuple(points[index][0].schedule for index in kept)


def _rounds(losses: Collection[Mapping[int, float]], first_round: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the seeds that all candidates share, and those that decide: the second round's too, if there was one."""
    first = set(sorted({seed for by_seed in losses for seed in by_seed})[:first_round])
    if not first:
        return (_shared_seeds(losses),) * 2
    common = _shared_seeds([{seed: by_seed[seed] for seed in first & by_seed.keys()} for by_seed in losses])
    further = [by_seed for by_seed in losses if by_seed.keys() - first]
    return common, _shared_seeds(further) if len(further) > 1 else common


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
    unlearned: tuple[int, ...],
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
        unlearned_seeds=unlearned,
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
    rounds: tuple[Sequence[int], Sequence[int]],
    confidence: float,
    tolerance: float,
    prior: Prior | None,
    unit: Unit,
) -> Winner | None:
    common, shared = rounds
    whole = {
        entry.schedule: {seed: confirmed[entry.schedule][seed] for seed in shared}
        for entry in entries
        if shared and confirmed[entry.schedule].keys() >= set(shared)
    }
    candidates = [entry for entry in entries if entry.within_budget and entry.schedule in whole]
    if not candidates:
        return None
    # The first round chose among all of them, so all count as choices.
    first, chosen = set(common), {entry.schedule for entry in candidates}
    tried = [e for e in entries if e.schedule in chosen or (e.within_budget and confirmed[e.schedule].keys() >= first)]

    def mean(entry: Entry) -> float:
        return not_none(entry.mean).mean

    leader = min(candidates, key=lambda entry: (mean(entry), entry.flops))
    to_leader = {
        entry.schedule: stats.paired_difference(
            whole[entry.schedule], whole[leader.schedule], confidence, prior=None if entry is leader else prior
        )
        for entry in candidates
    }
    # A single seed has no interval (the ends are None): only the leader can win.
    near = [
        e for e in candidates if e is leader or ((low := to_leader[e.schedule].low) is not None and low <= tolerance)
    ]
    # A schedule that failed to learn at a seed replaces no leader, whatever its mean.
    as_good = [
        entry
        for entry in candidates
        if entry is leader
        or ((high := to_leader[entry.schedule].high) is not None and high <= tolerance and not entry.unlearned_seeds)
    ]
    pick = min(as_good, key=lambda entry: (entry.flops, mean(entry)))

    def compare(reference: Entry | None) -> Comparison | None:
        if reference is None or reference is pick:
            return None
        picks = sum(entry is not reference for entry in tried)
        a, b = whole[pick.schedule], whole[reference.schedule]
        difference = stats.paired_difference(a, b, confidence, prior=prior)
        corrected = chosen_difference(a, b, confidence, comparisons=picks, prior=prior)
        std = difference.std if prior is None or difference.std is None else prior.std(difference.std, difference.n)
        needed = None
        if std and difference.mean and not corrected.excludes_zero:
            degrees = 0.0 if prior is None else prior.degrees
            needed = stats.seeds_needed(std, difference.mean, corrected.confidence, prior_degrees=degrees)
        return Comparison(
            reference=reference.label,
            schedule=reference.schedule,
            difference=difference,
            corrected=corrected,
            comparisons=picks,
            seeds_needed=needed,
            verdict=comparison_text(difference, corrected, picks),
        )

    full = next((entry for entry in entries if ALL_FULL in entry.names and entry.schedule in whole), None)
    baselines = [entry for entry in candidates if entry.names]
    failed = len(set(pick.unlearned_seeds) & set(shared))
    return Winner(
        schedule=pick.schedule,
        leader=leader.schedule,
        to_leader=None if pick is leader else to_leader[pick.schedule],
        candidates=len(tried),
        not_separated=len(near),
        non_inferior=len(as_good),
        set_aside=len(tried) - len(candidates),
        failed_seeds=failed,
        failure_bound=failure_bound(failed, len(shared)) if unit == "seed" else None,
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
