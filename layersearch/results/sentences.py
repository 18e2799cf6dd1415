"""Sentences on the winner and its evidence, and on the noise, signal and rank correlations of a result."""

from collections.abc import Sequence
from typing import Any

from layersearch.results.result import (
    ALL_FULL,
    Comparison,
    Entry,
    Fidelity,
    Noise,
    Result,
    Signal,
    Spread,
    Unit,
    Winner,
)
from layersearch.results.stats import Interval, decimals

MIN_SPEARMAN = 0.5  # a measure ranks schedules if the lower end of its Spearman correlation reaches this


def noise_sentence(found: Noise) -> str:
    """State which differences are noise, and how many seeds detect smaller ones."""
    if found.floor is None or found.seed_std is None or found.seed_std_range is None or found.paired_std is None:
        return "Noise: unknown, it takes two schedules confirmed on the same two fresh seeds."
    low, high = found.seed_std_range
    said = (
        f"With {found.seeds} seeds, two schedules of average noise differ significantly from "
        f"{found.floor:.{decimals(found.floor)}f} nats on"
    )
    if found.floor_range is not None:
        said += " (quietest pair {:.2g}, noisiest {:.2g})".format(*found.floor_range)
    said += (
        f". Seed std {found.seed_std:.2g} (per schedule {low:.2g} to {high:.2g}), "
        f"paired-difference std {found.paired_std:.2g}."
    )
    if not found.seeds_for:
        return said
    needed = ", ".join(f"{seeds} for {size:.2g} nats" for size, seeds in found.seeds_for)
    test = f"the verdict's test, corrected for {found.comparisons} choices" if found.comparisons > 1 else "the test"
    return f"{said} Seeds needed for 80% power of {test}: {needed}."


def spread_text(found: Spread, places: int) -> str:
    """Return a spread in nats and seed standard deviations, with the spread from noise alone."""
    said = f"{found.nats:.{places}f} nats"
    if found.seed_stds is not None:
        said += f", {found.seed_stds:.{0 if found.seed_stds >= 10 else 1}f} times the seed std"
    if found.noise_nats is None:
        return said
    said += f" (noise alone {found.noise_nats:.{places}f}"
    # The verdict covers two schedules, by their paired difference.
    if found.noise_chance is not None and len(found.schedules) > 2:
        p = "< 0.01" if found.noise_chance < 0.01 else f"= {min(found.noise_chance, 1):.2f}"
        said += f", paired tests of all pairs, corrected: p {p}"
    return said + ")"


def ranking_warning(found: Sequence[Fidelity]) -> str | None:
    """Name the cheap measures that are not shown to rank schedules as the full ones do."""
    names = [
        f.name
        for f in found
        if f.agreement is not None and (f.agreement.spearman_low is None or f.agreement.spearman_low < MIN_SPEARMAN)
    ]
    if not names:
        return None
    listed = "; ".join(name.replace("surrogate, unseen", "surrogate on unseen schedules") for name in names)
    return f"Not shown to rank schedules (lower Spearman bound below {MIN_SPEARMAN:g}, or too few trials): {listed}."


def signal_sentence(found: Signal, noise: Noise | None = None) -> str:
    """State the spread of the placements, and the difference of all_sparse and all_full.

    Where it stands beside `noise_sentence`, ``noise`` is the noise that this one tells.
    """
    said, places = [], decimals(found.seed_std)
    if found.placements is not None and found.n_full is not None:
        said.append(
            f"{len(found.placements.schedules)} placements at equal cost (l = {found.n_full}, cost {found.cost:.3f}) "
            f"span {spread_text(found.placements, places)}"
        )
    if found.sparse_and_full is not None:
        lower, higher = (schedule.n_full for schedule in found.sparse_and_full.schedules)
        side = "lower" if lower < higher else "higher"
        said.append(
            f"the loss of all_sparse is {side} than that of all_full by {spread_text(found.sparse_and_full, places)}"
        )
    if not said:
        return "Signal: unknown, it takes two placements of equal cost, or all_sparse and all_full."
    one = " (on one fresh seed)" if found.seeds else " (on one seed, the search's own)"
    if len(found.seeds) > 1:
        # After two rounds some schedules have more seeds, and the noise's seed std holds those too.
        told = noise is None or noise.seed_std is None or f"{noise.seed_std:.2g}" == f"{found.seed_std or 0:.2g}"
        one = "" if told else f" ({len(found.seeds)} shared seeds, seed std {found.seed_std or 0:.2g})"
    return f"Signal{one}: {'; '.join(said)}."


def position_sentence(result: Result) -> str | None:
    """State the difference to all_full by token position: the winner's, or all_sparse's without another winner."""
    named = {name: entry for entry in result.entries for name in entry.names}
    full, other, label = named.get(ALL_FULL), named.get("all_sparse"), "all_sparse"
    if result.winner is not None and (full is None or result.winner.schedule != full.schedule):
        other, label = result.entry(result.winner.schedule), "the winner"
    if full is None or other is None or len(full.position_edges) < 2 or full.position_edges != other.position_edges:
        return None
    first, last = (other.loss_by_position[at] - full.loss_by_position[at] for at in (0, -1))
    places = decimals(result.noise.floor)
    return (
        f"By position: {label} minus all_full is {last:+.{places}f} nats in the last scored bin (to token "
        f"{full.position_edges[-1]}), {first:+.{places}f} in the first (to {full.position_edges[0]})."
    )


def headline_metric(entry: Entry) -> tuple[str, float] | None:
    """Return name and value of the metric to show beside a schedule's loss: an accuracy, if there is one."""
    return min(entry.metrics, key=lambda found: (not found[0].endswith("accuracy"), found[0]), default=None)


def winner_evidence(result: Result) -> dict[str, Any]:
    """Return the evidence for a run's winner as plain data; ``winner.yaml`` and exports hold it."""
    assert result.winner is not None
    entry = result.entry(result.winner.schedule)
    evidence: dict[str, Any] = {
        "verdict": result.verdict,
        "budget": result.budget,
        "cost": entry.cost,
        "attention_flops": entry.flops,
        "seeds": list(result.winner.seeds),
    }
    if entry.mean is not None:
        evidence["validation_loss"] = entry.mean.mean
        if entry.mean.low is not None and entry.mean.high is not None:
            evidence["validation_loss_interval"] = [entry.mean.low, entry.mean.high]
            evidence["confidence"] = result.confidence
    return evidence


def comparison_text(difference: Interval, corrected: Interval, comparisons: int) -> str:
    """Say whether the winner differs from a reference; arguments are the fields of `Comparison`."""
    better, size, half = difference.mean < 0, abs(corrected.mean), corrected.half_width
    places = decimals(half)
    if half is None:
        return f"{'lower' if better else 'higher'} by {size:.{places}f} nats on one seed, which gives no interval"
    if corrected.excludes_zero:
        return f"{'better' if better else 'worse'} by {size:.{places}f} ± {half:.{places}f} nats"
    if difference.excludes_zero:
        return (
            f"no significant difference after correction for {comparisons} possible choices "
            f"({difference} nats alone, ± {half:.{places}f} corrected)"
        )
    return f"no significant difference ({corrected} nats)"


UNITS: dict[Unit, str] = {"seed": "fresh seed", "document": "held-out document"}


def verdict_text(winner: Winner | None, best: Entry | None, entries: Sequence[Entry], unit: Unit = "seed") -> str:
    """State the run's finding in a few sentences; ``best`` has the lowest loss in the search within the budget."""
    if winner is None:
        if not any(entry.state == "complete" or entry.confirm for entry in entries):
            return "Nothing to conclude: no trial has completed."
        if best is None:
            return "No winner: no schedule within the budget has completed."
        return (
            f"No winner yet: no schedule within the budget is confirmed on {UNITS[unit]}s. "
            f"Lowest loss in the search, on one seed: {best.label}."
        )
    by_schedule = {entry.schedule: entry for entry in entries}
    entry, names = by_schedule[winner.schedule], {name for entry in entries for name in entry.names}
    return " ".join(
        (
            _reason(winner, entry.label, by_schedule[winner.leader].label, UNITS[unit]),
            _against(winner.to_all_full, ALL_FULL, ALL_FULL in entry.names, ALL_FULL in names, unit),
            _against(winner.to_best_baseline, "the best baseline", bool(entry.names), bool(names), unit),
        )
    ) + _failures(winner)


def _reason(winner: Winner, name: str, leader: str, unit: str) -> str:
    seeds = f"{len(winner.seeds)} {unit}{'s' if len(winner.seeds) > 1 else ''}"
    number = winner.candidates
    if number == 1:
        return f"{name} is the only schedule within the budget that is confirmed, on {seeds}."
    if len(winner.seeds) == 1:
        return f"{name} has the lowest loss of {number} candidates, on {seeds}: no interval can be given."
    where = f"on {seeds}"
    if winner.set_aside:
        where += f", {winner.set_aside} of them set aside after a first round"
    if winner.to_leader is not None:
        return (
            f"{name} is the cheapest of the {winner.non_inferior} (of {number} candidates) shown to lie within "
            f"{winner.tolerance:g} nats of the lowest loss {where} ({winner.to_leader} nats from {leader})."
        )
    others = number - winner.set_aside - 1
    if winner.not_separated == 1:
        if winner.set_aside:
            return f"{name} has the lowest loss of {number} candidates {where}, significantly below the other {others}."
        return f"{name} has the lowest loss, significantly below the other {others}, {where}."
    unseen = winner.not_separated - 1
    worse = f"more than {winner.tolerance:g} nats worse" if winner.tolerance else "worse"
    said = f"{name} has the lowest loss of {number} candidates {where}. "
    said += f"The test cannot tell whether {unseen} of the others {'is' if unseen == 1 else 'are'} {worse}"
    if winner.tolerance and winner.non_inferior == 1:
        said += f", and shows no other to lie within {winner.tolerance:g} nats of it"
    return said + "."


def _failures(winner: Winner) -> str:
    """State at how many seeds the winner failed to learn, how likely that still is, and which seeds the losses are of.

    No number of seeds without a failure shows a mean over all seeds: in a simulation with failures at one in ten, its
    interval holds that mean in 0 to 10% of runs, and the mean over the seeds that learn in 95%.
    """
    if winner.failure_bound is None:
        return ""
    seeds = f"{len(winner.seeds)} fresh seed{'s' if len(winner.seeds) > 1 else ''}"
    counted = "its loss includes them" if winner.failed_seeds else "losses and differences are of seeds that learn"
    return (
        f" The winner failed to learn at {winner.failed_seeds} of {seeds}: {counted}, and up to "
        f"{winner.failure_bound:.0%} of seeds may fail (95%)."
    )


def _against(found: Comparison | None, reference: str, is_itself: bool, trained: bool, unit: Unit) -> str:
    if found is None:
        if is_itself:
            return f"It is {reference} itself."
        return (
            f"Against {reference}: unknown, {f'not confirmed on the same {unit}s' if trained else 'none was trained'}."
        )
    label = reference if reference == ALL_FULL else f"{reference} {found.reference}"
    more = (
        f"; if it is truly this large, it takes about {found.seeds_needed} {unit}s to show"
        if found.seeds_needed
        else ""
    )
    return f"Against {label}: {found.verdict}{more}."
