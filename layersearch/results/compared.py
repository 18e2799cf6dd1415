"""The schedules of a result that are compared in detail: the answer, all_full and the best named placement."""

from __future__ import annotations

from layersearch.results.result import ALL_FULL, Entry, Result
from layersearch.schedule import Schedule


def full_entry(result: Result) -> Entry | None:
    """Return all_full's entry."""
    return next((entry for entry in result.entries if ALL_FULL in parts(entry.names)), None)


def parts(joined: tuple[str, ...]) -> set[str]:
    """Return the names of an entry, where one schedule may have several."""
    return {part for name in joined for part in name.split(" = ")}


def compared(result: Result, chosen: Schedule | None) -> list[tuple[str, Entry]]:
    """Return the answer, all_full and the best named placement within the budget, each with a label, where they are."""
    answer = next((entry for entry in result.entries if entry.schedule == chosen), None)
    named = [entry for entry in result.entries if entry.names and entry.within_budget and entry.loss is not None]
    best = min(named, key=lambda entry: (entry.mean is None, entry.loss), default=None)
    found = [("winner" if result.winner else "best so far", answer), (ALL_FULL, full_entry(result))]
    if best is not None and best is not answer:
        found.append((best.names[0], best))
    return [(label, entry) for label, entry in found if entry is not None]
