"""Sentences on noise, signal and rank correlations of a result."""

from __future__ import annotations

from collections.abc import Sequence

from layersearch.results.result import ALL_FULL, Entry, Fidelity, Noise, Result, Signal, Spread
from layersearch.results.stats import decimals

MIN_SPEARMAN = 0.5
"""A measure ranks schedules if the lower end of its Spearman correlation reaches this."""


def noise_sentence(found: Noise) -> str:
    """State which differences are noise, and how many seeds detect smaller ones."""
    if found.floor is None or found.seed_std is None or found.seed_std_range is None or found.paired_std is None:
        return "Noise: unknown, it takes two schedules confirmed on the same two fresh seeds."
    low, high = found.seed_std_range
    said = (
        f"With {found.seeds} seeds, differences below {found.floor:.{decimals(found.floor)}f} nats are not "
        f"significant. Seed std {found.seed_std:.2g} (per schedule {low:.2g} to {high:.2g}), "
        f"paired-difference std {found.paired_std:.2g}."
    )
    if not found.seeds_for:
        return said
    needed = ", ".join(f"{seeds} for {size:.2g} nats" for size, seeds in found.seeds_for)
    return f"{said} Seeds needed for 80% power: {needed}."


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
        said += ", P(noise alone) " + ("< 1%" if found.noise_chance < 0.01 else f"= {found.noise_chance:.0%}")
    return said + ")"


def ranking_warning(found: Sequence[Fidelity]) -> str | None:
    """Name the cheap measures that are not shown to rank schedules as the full ones do."""
    names = [f.name for f in found if f.agreement is not None and f.agreement.spearman_low < MIN_SPEARMAN]
    if not names:
        return None
    listed = "; ".join(name.replace("surrogate, unseen", "surrogate on unseen schedules") for name in names)
    return f"These measures may not rank schedules reliably (lower Spearman bound below {MIN_SPEARMAN:g}): {listed}."


def signal_sentence(found: Signal) -> str:
    """State the spread of the placements, and the difference of all_sparse and all_full."""
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
    one = "" if len(found.seeds) > 1 else " (on one fresh seed)" if found.seeds else " (on one seed, the search's own)"
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
