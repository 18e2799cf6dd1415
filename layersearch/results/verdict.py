"""The sentences that name a winner and state the evidence for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layersearch.results.result import ALL_FULL, Comparison, Entry, Result, Unit, Winner
from layersearch.results.stats import Interval, decimals


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
    return f"no significant difference ({difference} nats)"


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
    )


def _reason(winner: Winner, name: str, leader: str, unit: str) -> str:
    seeds = f"{len(winner.seeds)} {unit}{'s' if len(winner.seeds) > 1 else ''}"
    number = winner.candidates
    if number == 1:
        return f"{name} is the only schedule within the budget that is confirmed, on {seeds}."
    if len(winner.seeds) == 1:
        return f"{name} has the lowest loss of {number} candidates, on {seeds}: no interval can be given."
    if winner.not_separated == number and winner.tolerance:
        reason = (
            f"None of the {number} candidates is shown on {seeds} to lie more than {winner.tolerance:g} "
            f"nats above the lowest loss: {name} is taken, the cheapest"
        )
    elif winner.not_separated == number:
        reason = f"The {number} candidates do not differ significantly on {seeds}: {name}, the cheapest, wins"
    elif winner.to_leader is None and winner.not_separated == 1:
        return f"{name} has the lowest loss, significantly below the other {number - 1}, on {seeds}."
    elif winner.to_leader is None:
        reason = f"{name} has the lowest loss of {number} candidates on {seeds}, and none as good is cheaper"
    else:
        reason = (
            f"{name} is the cheapest of {winner.not_separated} (of {number}) that {seeds} cannot tell "
            f"from {f'{winner.tolerance:g} nats above ' if winner.tolerance else ''}the lowest loss"
        )
    return reason + ("." if winner.to_leader is None else f" ({winner.to_leader} nats from {leader}).")


def _against(found: Comparison | None, reference: str, is_itself: bool, trained: bool, unit: Unit) -> str:
    if found is None:
        if is_itself:
            return f"It is {reference} itself."
        return f"Against {reference}: unknown, {f'not confirmed on the same {unit}s' if trained else 'none was trained'}."
    label = reference if reference == ALL_FULL else f"{reference} {found.reference}"
    more = f"; about {found.seeds_needed} {unit}s could detect a difference of this size" if found.seeds_needed else ""
    return f"Against {label}: {found.verdict}{more}."
