"""The sentences of a result: what may be concluded, what may not, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from layersearch.results.stats import decimals
from layersearch.schedule import Schedule

if TYPE_CHECKING:
    from layersearch.results.result import Entry, Fidelity, Noise, Result, Signal, Spread

RANKS = 0.5
"""Spearman's correlation under which a cheap measure is not said to rank."""


def noise(found: Noise) -> str:
    """Say which differences mean nothing here, and how many seeds smaller ones take."""
    if found.floor is None or found.seed_std is None or found.seed_std_range is None or found.paired_std is None:
        return "Noise: unknown, it takes two schedules confirmed on the same two fresh seeds."
    low, high = found.seed_std_range
    said = (
        f"Differences under {found.floor:.{decimals(found.floor)}f} nats are noise here ({found.seeds} seeds). "
        f"Seed std {found.seed_std:.2g} (per schedule {low:.2g} to {high:.2g}), "
        f"paired-difference std {found.paired_std:.2g}."
    )
    if not found.seeds_for:
        return said
    (first, seeds), *others = found.seeds_for
    more = "".join(f", {size:g} by {number}" for size, number in others)
    return f"{said} A difference of {first:.2g} nats is found four times in five by {seeds} seeds{more}."


def spread(found: Spread, places: int) -> str:
    """Say how wide a spread is, in nats and seed standard deviations, and how wide noise alone would make it."""
    said = f"{found.nats:.{places}f} nats"
    if found.seed_stds is not None:
        said += f", {found.seed_stds:.{0 if found.seed_stds >= 10 else 1}f} times the seed std"
    if found.noise_nats is None:
        return said
    said += f" (noise alone {found.noise_nats:.{places}f}"
    # Of two schedules the verdict speaks, from their own difference seed by seed.
    if found.noise_chance is not None and len(found.schedules) > 2:
        said += ", this far " + ("under 1%" if found.noise_chance < 0.01 else f"{found.noise_chance:.0%}") + " of times"
    return said + ")"


def poor(found: Sequence[Fidelity]) -> str | None:
    """Say which cheap measures are not shown to rank schedules as what they stand for does."""
    names = [f.name for f in found if f.agreement is not None and f.agreement.spearman_low < RANKS]
    if not names:
        return None
    return f"Not shown to rank schedules (Spearman may be under {RANKS:g}): {', '.join(names)}."


def signal(found: Signal) -> str:
    """Say how far placements, and the two ends of cost, lie apart."""
    said, places = [], decimals(found.seed_std)
    if found.placements is not None and found.n_full is not None:
        said.append(
            f"{len(found.placements.schedules)} placements at equal cost (l = {found.n_full}, cost {found.cost:.3f}) "
            f"spread over {spread(found.placements, places)}"
        )
    if found.sparse_and_full is not None:
        lower, higher = (Schedule.parse(text).n_full for text in found.sparse_and_full.schedules)
        side = "below" if lower < higher else "above"
        said.append(f"all_sparse is {side} all_full by {spread(found.sparse_and_full, places)}")
    if not said:
        return "Signal: unknown, it takes two placements of equal cost, or all_sparse and all_full."
    one = "" if len(found.seeds) > 1 else " (on one fresh seed)" if found.seeds else " (on one seed, the search's own)"
    return f"Signal{one}: {'; '.join(said)}."


def by_position(result: Result) -> str | None:
    """Say where in the sequence the winner (all_sparse, if all_full won or nothing did) differs from all_full."""
    named = {name: entry for entry in result.entries for name in entry.names}
    full, other, what = named.get("all_full"), named.get("all_sparse"), "all_sparse"
    if result.winner is not None and (full is None or result.winner.schedule != full.schedule):
        other, what = result.entry(result.winner.schedule), "the winner"
    if full is None or other is None or len(full.position_edges) < 2:
        return None
    if full.position_edges != other.position_edges:
        return None
    first, last = (other.loss_by_position[at] - full.loss_by_position[at] for at in (0, -1))
    places = decimals(result.noise.floor)
    return (
        f"By position: {what} less all_full is {last:+.{places}f} nats in the last scored bin (to token "
        f"{full.position_edges[-1]}), {first:+.{places}f} in the first (to {full.position_edges[0]})."
    )


def probe(entry: Entry) -> tuple[str, float] | None:
    """Return the name and value of the measure to show beside a schedule's loss: an accuracy, where there is one."""
    return min(entry.metrics, key=lambda found: (not found[0].endswith("accuracy"), found[0]), default=None)
