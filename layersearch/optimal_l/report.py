"""The answer in words: one page, plain text that is Markdown too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from layersearch.optimal_l.answer import SettingAnswer
from layersearch.optimal_l.knee import Choice
from layersearch.optimal_l.noninferiority import LStar
from layersearch.optimal_l.scaling_law import Law
from layersearch.results.stats import Interval, decimals

Laws = Mapping[str, Sequence[Law]]
"""Fitted laws of l* by what varies: ``length`` and ``depth``."""


def range_of(low: int, high: int) -> str:
    """Return ``2``, or ``1 to 3``."""
    return str(low) if low == high else f"{low} to {high}"


def l_star(found: LStar, what: str) -> str:
    """State l* against a reference, or the range that the data leave open."""
    firsts = {step.schedule for step in found.steps} | {found.reference}
    by = "" if found.shown_by in firsts else f" (shown by {found.shown_by}, second on the selection seeds)"
    delta, sure = f"{found.delta:g} nats", f"{found.confidence:.0%}"
    if found.decided and found.value == 0:
        return f"l* = 0 ({sure}): no full layer is needed to be within {delta} of {what}."
    if found.decided:
        return (
            f"l* = {found.value} ({sure}): {found.value} full {'layer is' if found.value == 1 else 'layers are'} "
            f"within {delta} of {what}{by}; fewer are shown to be worse than that."
        )
    seeds = min((s.difference.n for s in found.steps if s.schedule in found.undecided and s.difference), default=0)
    shown = found.value < found.reference.n_full
    enough = (
        f"{found.value} are shown to be enough{by}" if shown else f"no number below {found.value} is shown to be enough"
    )
    fewer = f"; fewer than {found.low} are shown not to be" if found.low else ""
    return (
        f"The data cannot tell l*: it lies in {range_of(found.low, found.value)} ({sure}, {seeds} fresh seeds where it "
        f"is in doubt). Within {delta} of {what}: {enough}{fewer}."
    )


def failed_seeds(found: SettingAnswer) -> str:
    """State at how many fresh seeds a schedule behind l* failed to learn."""
    told = [f"`{text}` at {failed} of {seeds}" for text, (failed, seeds) in found.failed_seeds.items()]
    if not told:
        return ""
    return f"Failed to learn at some fresh seeds: {', '.join(told)}. From eight seeds on, the test trims one in eight."


def larger(found: SettingAnswer) -> str:
    """State whether more full layers than the reference has are shown to be no better by delta."""
    lower, open_ = [], []
    for row in found.larger:
        gap = row.difference
        text = f"l = {row.l} ({difference(gap)})"
        if gap.high is not None and gap.high < -found.delta:
            lower.append(text)
        elif gap.low is None or gap.low < -found.delta:
            open_.append(text)
    if lower:
        return (
            f"But fresh seeds show that this schedule is not the best: {', '.join(lower)} is lower by more than "
            f"{found.delta:g} nats. Do not use this l*. Repeat with another --seed, or judge by the table."
        )
    if open_:
        return (
            f"More full layers may still be better by {found.delta:g} nats: not excluded for {', '.join(open_)}. "
            "More --seeds would decide."
        )
    if found.larger:
        return f"No larger number of full layers is better by {found.delta:g} nats."
    return ""


def choice(found: Choice, what: str) -> str:
    """State which l was picked, and which others are as likely."""
    if found.l is None:
        return f"{what}: none; {found.why}."
    if found.decided:
        return f"{what}: l = {found.l} ({found.confidence:.0%})."
    return (
        f"{what}: l = {found.l} by the means, but the data cannot tell it from l = "
        f"{', '.join(str(l) for l in found.likely if l != found.l)} ({found.confidence:.0%})."
    )


def difference(found: Interval | None) -> str:
    """Return a paired difference with its sign and interval, in nats."""
    if found is None:
        return ""
    places = decimals(found.half_width)
    half = "" if found.half_width is None else f" ± {found.half_width:.{places}f}"
    return f"{found.mean:+.{places}f}{half}"


def placements(found: SettingAnswer) -> str:
    """State which named placements are shown to be worse than the best found of the same l, and by how much."""
    worse, better, open_ = [], [], 0
    for row in found.curve:
        for placed in row.placements:
            gap = placed.to_best
            if gap is None:
                continue
            text = f"{placed.name} at l = {row.l} by {difference(gap)}"
            if not gap.excludes_zero:
                open_ += 1
            elif gap.mean > 0:
                worse.append((gap.mean, text))
            else:
                better.append(text)
    said = []
    if worse:
        most = "; ".join(text for _, text in sorted(worse, reverse=True)[:5])
        more = f"; {len(worse) - 5} more" if len(worse) > 5 else ""
        said.append(f"Shown to be worse than the best found of the same l (paired, nats): {most}{more}.")
    if better:
        said.append(f"Shown to be better than the choice of the selection seeds: {'; '.join(better)}.")
    if open_:
        said.append(f"{open_} {'named placement' if open_ == 1 else 'named placements'} cannot be told from the best.")
    return " ".join(said)


def layers(found: SettingAnswer) -> str:
    """State which layer gains most alone, and which pair gains most together."""
    alone = [(gain, at) for at, gain in enumerate(found.effects.restore) if gain is not None]
    if not alone:
        return ""
    gain = max(alone)[0]
    near = [str(at) for value, at in alone if value >= gain - found.delta]
    where = f"layer {near[0]}" if len(near) == 1 else f"layer {', '.join(near[:-1])} or {near[-1]}"
    said = "On one seed (layers counted from 0 at the bottom), one full layer "
    said += f"gains {gain:.3g} nats at the most, as {where}" if gain > 0 else f"gains nothing, not even as {where}"
    pairs = [
        (value, i, j)
        for i, row in enumerate(found.effects.interaction)
        for j, value in enumerate(row)
        if value is not None and i < j
    ]
    if pairs:
        value, i, j = max(pairs)
        if value > found.delta:
            said += f"; layers {i} and {j} together gain {value:.3g} nats more than apart"
    return said + "."


def law(name: str, fitted: Sequence[Law], n: int) -> list[str]:
    """State how l* changes with a size."""
    if not fitted:
        return [f"l* against {name}: cannot tell from {n} size{'s' if n != 1 else ''}; three are needed."]
    told: list[str] = []
    untold: list[str] = []
    for found in fitted:
        a, b = (f"{value:.3g}" if abs(value) >= 1e-9 else "0" for value in (found.a, found.b))
        plus = f"- {b[1:]}" if b.startswith("-") else f"+ {b}"
        text = f"l* = {a} {plus} * log2({name})" if "log2" in found.form else f"l* = {a} * {name}^{b}"
        ends = f"its coefficient lies in {found.b_low:.2g} to {found.b_high:.2g}; residual {found.residual:.2g} layers"
        (told if found.tells else untold).append(f"{text}; {ends}.")
    if untold:
        untold.insert(0, f"The data cannot tell whether l* changes with {name}. Least-squares fits:")
    return told + untold


def page(title: str, answers: Sequence[SettingAnswer], laws: Laws) -> str:
    """Return the answer on one page.

    Args:
        title: names the study.
        answers: one per setting.
        laws: by what varies.
    """
    lines = [f"# {title}", ""]
    for found in answers:
        if len(answers) > 1:
            lines += [f"## {found.seq_len} tokens, {found.n_layers} layers", ""]
        lines += [*_setting(found), ""]
    for name, fitted in laws.items():
        sizes = {found.seq_len if name == "length" else found.n_layers for found in answers}
        lines += [f"## l* against {name}", "", *law(name, fitted, len(sizes)), ""]
    first = answers[0]
    lines += [
        f"Placements were chosen on two seeds; all claims rest on others ({_seeds(answers)}). Intervals are 95%. "
        f"l counts full layers; the others are {first.span}. The answer holds for this model, data and training "
        "length. A schedule that fails at one seed in ten may show no failure at a few seeds.",
    ]
    return "\n".join(lines) + "\n"


def _seeds(answers: Sequence[SettingAnswer]) -> str:
    low, high = min(a.fresh_seeds for a in answers), max(a.most_seeds_spent for a in answers)
    return f"{range_of(low, high)} fresh seeds"


def _setting(found: SettingAnswer) -> list[str]:
    reference = found.l_star.reference
    best = f"the best schedule found ({reference}, l = {reference.n_full})"
    told = [" ".join([l_star(found.l_star, best), larger(found)]).strip(), l_star(found.l_star_all_full, "all-full")]
    told += [text for text in (failed_seeds(found),) if text]
    if found.known_l is not None:
        told.append(f"The task's known answer is l = {found.known_l}.")
    told.append(choice(found.knee, "Knee of loss against cost"))
    if found.at_budget is not None and found.budget is not None:
        told.append(choice(found.at_budget, f"Best l at a cost of {found.budget:g} of all-full"))
    told += [text for text in (placements(found), layers(found)) if text]
    if found.failed:
        told.append(f"{found.failed} trials failed; their errors are in trials.jsonl; the same command tries again.")
    return [f"- {text}" for text in told] + ["", *table(found)]


def table(found: SettingAnswer) -> list[str]:
    """Return the curve as a Markdown table."""
    names = list(dict.fromkeys(p.name for row in found.curve for p in row.placements[1:]))
    singles = list(dict.fromkeys(part for name in names for part in name.split(" = ")))
    head = ["l", "cost", "best found", "loss (nats)", "to reference", *(f"{name}, to best" for name in singles)]
    to_reference = {step.schedule: step.difference for step in found.l_star.steps}
    to_reference |= {row.schedule: row.difference for row in found.larger}
    rows = [head, ["---"] * len(head)]
    for row in found.curve:
        gap = "reference" if row.schedule == found.l_star.reference else difference(to_reference.get(row.schedule))
        cells = [str(row.l), f"{row.cost:.3f}", f"`{row.schedule}`", str(row.placements[0].loss), gap]
        by_name = {part: p for p in row.placements for part in p.name.split(" = ")}
        for name in singles:
            placed = by_name.get(name)
            cells.append("" if placed is None else "is it" if placed.to_best is None else difference(placed.to_best))
        rows.append(cells)
    return ["| " + " | ".join(cells) + " |" for cells in rows]
