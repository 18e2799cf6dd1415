"""The sentences that name a winner and say how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layersearch.results.result import Result
from layersearch.results.stats import Interval, decimals

if TYPE_CHECKING:
    from layersearch.results.result import Comparison, Entry, Result, Winner


def winner_evidence(result: Result) -> dict[str, Any]:
    """Return what speaks for a run's winner, as plain data: ``winner.yaml`` and exports hold it."""
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


def comparison(difference: Interval, corrected: Interval, comparisons: int) -> str:
    """Say whether the winner differs from a reference.

    Args:
        difference: winner minus reference, nats.
        corrected: the same, its interval corrected for the number of comparisons.
        comparisons: that number.
    """
    size = Interval(**{**vars(corrected), "mean": abs(corrected.mean), "low": None, "high": None})
    word = "better" if difference.mean < 0 else "worse"
    if difference.half_width is None:
        direction = "lower" if difference.mean < 0 else "higher"
        return f"{direction} by {size} nats on one seed, which gives no interval"
    places = decimals(corrected.half_width)
    if corrected.excludes_zero:
        return f"{word} by {size.mean:.{places}f} ± {corrected.half_width:.{places}f} nats"
    if difference.excludes_zero:
        return (
            f"no significant difference once {comparisons} possible choices are allowed for "
            f"({difference} nats alone, ± {corrected.half_width:.{places}f} with them)"
        )
    return f"no significant difference ({difference} nats)"


def verdict(winner: Winner | None, best: Entry | None, entries: Sequence[Entry]) -> str:
    """Say in a few sentences what the run found.

    Args:
        winner: None before a schedule within the budget is confirmed.
        best: the lowest loss in the search within the budget.
        entries: all schedules.
    """
    if winner is None:
        if not any(entry.state == "complete" or entry.confirm for entry in entries):
            return "Nothing to conclude: no trial has completed."
        if best is None:
            return "No winner: no schedule within the budget has completed."
        return (
            f"No winner yet: no schedule within the budget is confirmed on fresh seeds. "
            f"Lowest loss in the search, on one seed: {best.label}."
        )
    by_text = {entry.schedule: entry for entry in entries}
    name = by_text[winner.schedule].label
    said = [_why(winner, name, by_text[winner.leader].label)]
    said.append(_against(winner.to_all_full, "all_full", winner, by_text, any("all_full" in e.names for e in entries)))
    said.append(
        _against(winner.to_best_baseline, "the best baseline", winner, by_text, any(entry.names for entry in entries))
    )
    return " ".join(sentence for sentence in said if sentence)


def _why(winner: Winner, name: str, leader: str) -> str:
    seeds = f"{len(winner.seeds)} fresh seed{'s' if len(winner.seeds) > 1 else ''}"
    if winner.candidates == 1:
        return f"{name} is the only schedule within the budget that is confirmed, on {seeds}."
    if len(winner.seeds) == 1:
        return f"{name} has the lowest loss of {winner.candidates} candidates, on {seeds}: no interval can be given."
    if winner.not_separated == winner.candidates and winner.tolerance:
        why = (
            f"None of the {winner.candidates} candidates is shown on {seeds} to lie more than {winner.tolerance:g} "
            f"nats above the lowest loss: {name} is taken, the cheapest"
        )
    elif winner.not_separated == winner.candidates:
        why = f"Nothing separates the {winner.candidates} candidates on {seeds}: {name} is taken, the cheapest"
    elif winner.to_leader is None and winner.not_separated == 1:
        return f"{name} has the lowest loss, significantly below the other {winner.candidates - 1}, on {seeds}."
    elif winner.to_leader is None:
        why = f"{name} has the lowest loss of {winner.candidates} candidates on {seeds}, and none as good is cheaper"
    else:
        why = (
            f"{name} is the cheapest of {winner.not_separated} (of {winner.candidates}) that {seeds} cannot tell "
            f"from {f'{winner.tolerance:g} nats above ' if winner.tolerance else ''}the lowest loss"
        )
    return why + ("." if winner.to_leader is None else f" ({winner.to_leader} nats from {leader}).")


def _against(found: Comparison | None, what: str, winner: Winner, by_text: dict[str, Entry], trained: bool) -> str:
    if found is None:
        names = by_text[winner.schedule].names
        if (what in names) if what == "all_full" else names:
            return f"It is {what} itself."
        return f"Against {what}: unknown, {'not confirmed on the same seeds' if trained else 'none was trained'}."
    label = "all_full" if what == "all_full" else f"{what} {found.reference}"
    more = f"; about {found.seeds_needed} seeds would show it" if found.seeds_needed else ""
    return f"Against {label}: {found.verdict}{more}."
