"""The report of a study: one page of plain text that is also Markdown."""

from collections.abc import Mapping, Sequence

from layersearch.optimal_l.answer import SettingAnswer
from layersearch.optimal_l.knee import Choice
from layersearch.optimal_l.noninferiority import LStar
from layersearch.optimal_l.scaling_law import Law
from layersearch.results.failures import failure_bound
from layersearch.results.stats import Interval, decimals

Laws = Mapping[str, Sequence[Law]]  # scaling laws of l* by what varies: `length` and `depth`


def range_of(low: int, high: int) -> str:
    """Return ``2``, or ``1 to 3``."""
    return str(low) if low == high else f"{low} to {high}"


def l_star(found: LStar, reference: str) -> str:
    """State l* against a reference, or the confidence set if it is undecided."""
    firsts = {step.schedule for step in found.steps} | {found.reference}
    by = "" if found.shown_by in firsts else f" (shown by {found.shown_by}, second on the selection seeds)"
    within, sure = f"within {found.delta:g} nats of {reference}", f"{found.confidence:.0%} confidence"
    if found.decided and found.value == 0:
        return f"l* = 0 ({sure}): no full layer is needed to be {within}."
    layers = f"{found.value} full {'layer is' if found.value == 1 else 'layers are'}"
    if found.decided:
        return f"l* = {found.value} ({sure}): {layers} {within}{by}; fewer are shown to be worse."
    seeds = min((s.difference.n for s in found.steps if s.schedule in found.undecided and s.difference), default=0)
    upper = f"{layers} shown to be {within}{by}"
    if found.value == found.reference.n_full:
        upper = f"no l below {found.value} is shown to be {within}"
    lower = f"; fewer than {found.low} are shown to be worse" if found.low else ""
    return (
        f"l* is undecided: {range_of(found.low, found.value)} ({sure}, {seeds} fresh seeds for the undecided "
        f"schedules). {upper[0].upper()}{upper[1:]}{lower}."
    )


def failed_seeds(found: SettingAnswer) -> str:
    """State at how many fresh seeds a schedule behind l* failed to learn, and how likely an unseen failure still is."""
    bound = max((failure_bound(*counts) for counts in found.failed_seeds.values()), default=None)
    if bound is None:
        return ""
    counts = [f"`{schedule}` at {f} of {n}" for schedule, (f, n) in found.failed_seeds.items() if f]
    if not counts:
        seeds = range_of(*(end(n for _, n in found.failed_seeds.values()) for end in (min, max)))
        return (
            f"l* holds for trainings that learn. The schedules behind it learned at all of their {seeds} fresh seeds; "
            f"up to {bound:.0%} of seeds may still fail (95%)."
        )
    return (
        f"Failed to learn at some fresh seeds: {', '.join(counts)}; up to {bound:.0%} of seeds may (95%). From eight "
        "seeds on, the test uses a trimmed mean (12.5% at each end), so l* holds for trainings that learn."
    )


def larger(found: SettingAnswer) -> str:
    """State whether schedules with more full layers than the reference are shown not to be better by delta."""
    better, undecided = [], []
    for row in found.larger:
        gap = row.difference
        text = f"l = {row.l} ({difference(gap)})"
        if gap.high is not None and gap.high < -found.delta:
            better.append(text)
        elif gap.low is None or gap.low < -found.delta:
            undecided.append(text)
    if better:
        return (
            f"But on fresh seeds this schedule is not the best: {', '.join(better)} is better by more than "
            f"{found.delta:g} nats. Do not use this l*. Repeat with another --seed, or judge by the table."
        )
    if undecided:
        return (
            f"More full layers may still be better by {found.delta:g} nats: undecided for {', '.join(undecided)}. "
            "Use more --seeds."
        )
    return f"No larger number of full layers is better by {found.delta:g} nats." if found.larger else ""


def choice(found: Choice, name: str) -> str:
    """State the chosen l, and the other l's in its confidence set."""
    if found.l is None:
        return f"{name}: none; {found.why}."
    others = ", ".join(str(l) for l in found.likely if l != found.l)
    also = f" by the means; undecided against l = {others}" if others else ""
    return f"{name}: l = {found.l}{also} ({found.confidence:.0%} confidence)."


def difference(found: Interval | None) -> str:
    """Return a paired difference with its sign and interval, in nats."""
    if found is None:
        return ""
    places = decimals(found.half_width)
    half = "" if found.half_width is None else f" ± {found.half_width:.{places}f}"
    return f"{found.mean:+.{places}f}{half}"


def placements(found: SettingAnswer) -> str:
    """State which named placements differ significantly from the best found of the same l, and by how much."""
    worse, better, undecided = [], [], 0
    for row in found.curve:
        for placed in row.placements:
            gap = placed.to_best
            if gap is None:
                continue
            text = f"{placed.name} at l = {row.l} by {difference(gap)}"
            if not gap.excludes_zero:
                undecided += 1
            elif gap.mean > 0:
                worse.append((gap.mean, text))
            else:
                better.append(text)
    lines = []
    if worse:
        most = "; ".join(text for _, text in sorted(worse, reverse=True)[:5])
        more = f"; {len(worse) - 5} more" if len(worse) > 5 else ""
        lines.append(
            "Significantly worse than the best found of the same l (paired, corrected for the page, nats): "
            f"{most}{more}."
        )
    if better:
        lines.append(f"Significantly better than the best on the selection seeds: {'; '.join(better)}.")
    if undecided:
        subject = "1 named placement does" if undecided == 1 else f"{undecided} named placements do"
        lines.append(f"{subject} not differ significantly from the best found.")
    return " ".join(lines)


def layers(found: SettingAnswer) -> str:
    """State which layer has the largest effect alone, and which pair has the largest interaction."""
    alone = [(gain, at) for at, gain in enumerate(found.effects.restore) if gain is not None]
    if not alone:
        return ""
    gain = max(alone)[0]
    near = [str(at) for value, at in alone if value >= gain - found.delta]
    where = f"layer {near[0]}" if len(near) == 1 else f"layer {', '.join(near[:-1])} or {near[-1]}"
    text = "On one seed (layers counted from 0 at the bottom), one full layer "
    text += f"gains at most {gain:.3g} nats, as {where}" if gain > 0 else f"gains nothing, not even as {where}"
    pairs = [
        (value, i, j)
        for i, row in enumerate(found.effects.interaction)
        for j, value in enumerate(row)
        if value is not None and i < j
    ]
    value, i, j = max(pairs, default=(0.0, 0, 0))
    if value > found.delta:
        text += f"; layers {i} and {j} together gain {value:.3g} nats more than the sum of both alone"
    return text + "."


def law(name: str, fitted: Sequence[Law], n: int) -> list[str]:
    """State the scaling laws of l* with a size."""
    if not fitted:
        return [f"l* against {name}: no fit from {n} size{'s' if n != 1 else ''}; three are needed."]
    known: list[str] = []
    unknown: list[str] = []
    for found in fitted:
        a, b = (f"{value:.3g}" if abs(value) >= 1e-9 else "0" for value in (found.a, found.b))
        plus = f"- {b[1:]}" if b.startswith("-") else f"+ {b}"
        text = f"l* = {a} {plus} * log2({name})" if "log2" in found.form else f"l* = {a} * {name}^{b}"
        ends = f"coefficient {found.b_low:.2g} to {found.b_high:.2g}; residual {found.residual:.2g} layers"
        (known if found.sign_is_known else unknown).append(f"{text}; {ends}.")
    if unknown:
        unknown.insert(0, f"The data do not show whether l* changes with {name}. Least-squares fits:")
    return known + unknown


def page(title: str, answers: Sequence[SettingAnswer], laws: Laws) -> str:
    """Return the one-page report: one section per setting, then the scaling laws by what varies."""
    lines = [f"# {title}", ""]
    for found in answers:
        if len(answers) > 1:
            lines += [f"## {found.seq_len} tokens, {found.n_layers} layers", ""]
        lines += [*_setting(found), ""]
    for name, fitted in laws.items():
        sizes = {found.seq_len if name == "length" else found.n_layers for found in answers}
        lines += [f"## l* against {name}", "", *law(name, fitted, len(sizes)), ""]
    seeds = range_of(min(a.fresh_seeds for a in answers), max(a.most_seeds_spent for a in answers))
    lines += [
        f"Placements were selected on two seeds; every result uses other seeds ({seeds} fresh seeds). "
        f"Intervals are 95%. l counts full layers; the others are {answers[0].span}. The result holds for this model, "
        "data and training length.",
    ]
    return "\n".join(lines) + "\n"


def _setting(found: SettingAnswer) -> list[str]:
    reference = found.l_star.reference
    best = f"the best schedule found ({reference}, l = {reference.n_full})"
    lines = [
        f"{l_star(found.l_star, best)} {larger(found)}".strip(),
        l_star(found.l_star_all_full, "all-full"),
        failed_seeds(found),
        f"The task's known answer is l = {found.known_l}." if found.known_l is not None else "",
        choice(found.knee, "Knee of loss against cost"),
    ]
    if found.at_budget is not None and found.budget is not None:
        lines.append(choice(found.at_budget, f"Best l at a cost of {found.budget:g} of all-full"))
    lines += [placements(found), layers(found)]
    if found.failed:
        lines.append(f"{found.failed} trials failed; trials.jsonl has their errors. The same command tries them again.")
    return [f"- {text}" for text in lines if text] + ["", *table(found)]


def table(found: SettingAnswer) -> list[str]:
    """Return the curve as a Markdown table."""
    names = dict.fromkeys(part for row in found.curve for p in row.placements[1:] for part in p.name.split(" = "))
    head = ["l", "cost", "best found", "loss (nats)", "to reference", *(f"{name}, to best" for name in names)]
    to_reference = {step.schedule: step.difference for step in found.l_star.steps}
    to_reference |= {row.schedule: row.difference for row in found.larger}
    rows = [head, ["---"] * len(head)]
    for row in found.curve:
        gap = "reference" if row.schedule == found.l_star.reference else difference(to_reference.get(row.schedule))
        cells = [str(row.l), f"{row.cost:.3f}", f"`{row.schedule}`", str(row.placements[0].loss), gap]
        by_name = {part: p for p in row.placements for part in p.name.split(" = ")}
        for name in names:
            placed = by_name.get(name)
            cells.append("" if placed is None else "same" if placed.to_best is None else difference(placed.to_best))
        rows.append(cells)
    return ["| " + " | ".join(cells) + " |" for cells in rows]
