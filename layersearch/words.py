"""The sentences of a result: what may be concluded, what may not, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from layersearch.schedule import Schedule
from layersearch.stats import Interval, decimals

if TYPE_CHECKING:
    from layersearch.result import Comparison, Entry, Result, Winner
    from layersearch.signal import Signal, Spread
    from layersearch.solve import Solution
    from layersearch.trust import Fidelity, Noise

RANKS = 0.5
"""Spearman's correlation under which a cheap measure is not said to rank."""


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


def alternatives(found: Solution) -> str:
    """Say how the best confirmed schedule within a constraint and the best prediction stand to each other."""
    if found.proposal is None:
        return "All that could be proposed within the constraint is confirmed: this is measured, nothing is predicted."
    low = ""
    if found.proposal.predicted < found.lowest:
        low = (
            f" The prediction is below every loss that was trained ({found.lowest:.4g} nats): the model does not know "
            "where losses level off, so the interval reaches up to there."
        )
    if found.measured is None or found.difference is None:
        return "No schedule within the constraint is confirmed on fresh seeds yet." + low
    gap = found.difference
    places = decimals(gap.high - gap.mean)
    size = (
        f"{gap.mean:+.{places}f} nats, {found.confidence:.0%} interval {gap.low:+.{places}f} to {gap.high:+.{places}f}"
    )
    if gap.mean >= 0:
        return f"No other schedule is predicted to lie below the best confirmed one; the best of them by {size}."
    if gap.shown:
        return f"The model puts it below the best confirmed schedule by {size}.{low}"
    return (
        f"{found.proposal.schedule} is predicted to lie below the best confirmed schedule, which is not shown: "
        f"{size}.{low}"
    )


def learnt(found: Solution) -> str:
    """Say what a solution rests on, and whether a better prediction may have been missed."""
    stopped = f" and {found.stopped} stopped" if found.stopped else ""
    said = (
        f"Learnt from {found.trials} complete{stopped} trials of {found.schedules} schedules, {found.within} of them "
        f"within the constraint. Only numbers of full layers that were trained are proposed: "
        f"l = {', '.join(map(str, found.n_full))}. "
    )
    if found.noise is not None:
        said = f"Seed std {found.noise:.2g} nats. " + said
    best = found.optimum
    if best is None:
        return said + "No untrained schedule of theirs is within the constraint."
    if best.proven:
        return (
            f"{said}The untrained ones come from an integer program: the {found.shortlisted} best by single layers and "
            "pairs, proven, of which the predictor chose."
        )
    why = "the integer program was given up before its end"
    if best.pairs_held < best.pairs:
        why = f"a linear program of the {best.pairs_held} largest of {best.pairs} pairs of layers bounds them"
    return (
        f"{said}The untrained ones are not proven the best by single layers and pairs: {why}, and a local search on "
        f"the whole model found them. One may lie lower by {best.gap:.2g} nats at the most."
    )
